"""The model of publish, pin, recover and fork hand-over (native/catalog/model.py), in all its states."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[2] / "native" / "catalog" / "model.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sharedregion_model", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MODEL = _load()


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
