"""CPython's own tests of shared memory against the drop-in, on the interpreter that runs the tests.

`make compat` does it on every interpreter that is found.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("compat_cpython", HERE / "cpython.py")
assert _spec and _spec.loader
cpython = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cpython)

BASE = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")


@pytest.fixture
def base() -> str:
    if cpython.describe(str(BASE)) is None:
        pytest.skip("this Python came without CPython's own tests (Debian: libpython3-testsuite)")
    return str(BASE)


def test_cpythons_own_tests_pass(base) -> None:
    """Under fork, forkserver and spawn, with every process watched."""
    done = subprocess.run(
        [sys.executable, "-P", str(HERE / "cpython.py"), "--python", base],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("0 by the standard module") == 3


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("sharedregion.install()", "the standard module ran in process"),
        ('when_imported("sharedregion.shared_memory", _count)', "0 children used the drop-in"),
    ],
)
def test_the_harness_notices(base, tmp_path, broken, said) -> None:
    """A process that runs the standard module, or one that is not seen at all, fails the run."""
    python, log = cpython.environment(base, tmp_path / "venv", None)
    (watcher,) = (tmp_path / "venv").rglob("watch.py")
    watcher.write_text(watcher.read_text().replace(f"\n{broken}\n", "\n"))
    if broken.startswith("when"):
        log.touch()
    wrong, _ = cpython.run(python, log, "spawn", tmp_path)
    assert any(said in line for line in wrong), wrong
