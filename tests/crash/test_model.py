"""The models of publish, pin, recover and fork hand-over (native/catalog/model.py), and of the writers' lock, in all their states."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sharedregion_{Path(path).stem}", NATIVE / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MODEL = _load("catalog/model.py")
LOCK = _load("region/lock_model.py")


def test_no_interleaving_and_no_kill_breaks_the_protocol() -> None:
    """No reader's block is used again, no committed object lost, no block leaked, in any state."""
    states, why = MODEL.explore()
    assert why == ""
    assert states > 10000, "the model has become too small to say anything"


@pytest.mark.parametrize("mutation", MODEL.MUTATIONS)
def test_each_step_of_the_protocol_is_needed(mutation: str) -> None:
    """With a step left out, or two exchanged, some state is wrong: the model can tell."""
    _, why = MODEL.explore(mutation)
    assert why


def test_no_damage_of_the_lock_lets_two_inside_or_keeps_all_out() -> None:
    """Three writers, one killed anywhere, the lock's word damaged at any time, in every interleaving."""
    states, why = LOCK.explore()
    assert why == ""
    assert states > 100000, "the model has become too small to say anything"


@pytest.mark.parametrize("mutation", [m for m, (_, writers) in LOCK.MUTATIONS.items() if writers == 2])
def test_each_step_of_the_lock_is_needed(mutation: str) -> None:
    """The same with a step left out; `make kill` tries those for which it takes three writers."""
    wanted, writers = LOCK.MUTATIONS[mutation]
    _, why = LOCK.explore(mutation, (1,) * writers)
    assert why.startswith(wanted)
