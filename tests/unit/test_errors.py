"""One family of errors: each refines a builtin, carries errno and remedy, and survives pickling."""

import errno
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from sharedregion import errors
from sharedregion.errors import SharedRegionError

FAMILY = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, SharedRegionError)
]

REFINES = {
    "RegionExists": FileExistsError,
    "RegionNotFound": FileNotFoundError,
    "RegionFull": MemoryError,
    "RegionCorrupt": OSError,
    "RegionLost": OSError,
    "BackendUnavailable": OSError,
    "ReadOnlyRegion": PermissionError,
    "ObjectNotFound": KeyError,
}


def test_every_error_is_exported() -> None:
    assert {cls.__name__ for cls in FAMILY} == set(errors.__all__)


@pytest.mark.parametrize(("name", "builtin"), REFINES.items())
def test_a_program_that_handles_the_builtin_needs_no_change(name: str, builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match="it happened"):
        raise getattr(errors, name)("it happened", "do this")


@pytest.mark.parametrize("cls", FAMILY)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling_whole(cls: type[SharedRegionError], protocol: int) -> None:
    error = cls("it happened", "do this", errno.EIO, wanted=3, free=2)
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is cls
    assert (copy.message, copy.remedy, copy.errno, str(copy)) == (
        "it happened",
        "do this",
        errno.EIO,
        str(error),
    )
    assert (copy.wanted, copy.free) == (3, 2)


@pytest.mark.parametrize("cls", FAMILY)
def test_text_is_the_sentence_and_then_the_remedy(cls: type[SharedRegionError]) -> None:
    """KeyError would show its repr, OSError its number."""
    assert str(cls("it happened")) == "it happened"
    assert str(cls("it happened", "do this")) == "it happened. do this"


@pytest.mark.parametrize("cls", FAMILY)
def test_errno_is_the_class_s_own_unless_given(cls: type[SharedRegionError]) -> None:
    assert cls("x").errno == cls.default_errno
    assert cls("x", errno=errno.EIO).errno == errno.EIO


POOL = """
import multiprocessing, sys
from sharedregion import errors

def fail(name):
    raise getattr(errors, name)("in a worker", "do this")

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for name in errors.__all__:
            try:
                pool.apply_async(fail, (name,)).get(timeout=60)
            except errors.SharedRegionError as error:
                print(type(error).__name__, error.message, error.remedy, sep=": ")
"""


def test_every_error_comes_back_from_a_pool(tmp_path: Path) -> None:
    """An error that does not unpickle would hang get() for ever: that is what the limit catches."""
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{name}: in a worker: do this" for name in errors.__all__]
