"""`make msharefs-check`, which strangers run: what it answers where, and that it needs nothing but what it says."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sharedregion as sr

TESTS = Path(__file__).resolve().parents[1]
CHECK = TESTS / "msharefs" / "check.py"
#: What the package needs, and pytest with what that needs.
NEEDED = (
    *("numpy", "posix_ipc", "psutil", "click", "rich", "pygments", "markdown_it", "mdurl"),
    *("pytest", "_pytest", "pluggy", "iniconfig", "packaging"),
)
WELL, FAILED, NO_MSHAREFS, NOT_MOUNTED, MISSING = 0, 1, 3, 4, 5


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The installed package, as a wheel holds it: without modes."""
    path = tmp_path_factory.mktemp("wheel") / "sharedregion.whl"
    package = Path(sr.__file__).parent
    with zipfile.ZipFile(path, "w") as archive:
        for file in package.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.writestr(f"sharedregion/{file.relative_to(package)}", file.read_bytes())
    return str(path)


def run(*arguments: str, python: str = sys.executable, **environ: str) -> tuple[int, str]:
    done = subprocess.run(
        [python, str(CHECK), *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environ},
        timeout=600,
    )
    print(done.stdout)
    return done.returncode, done.stdout


def test_nothing_but_pytest_and_the_package_is_imported() -> None:
    """By the check itself and by the tests that it runs."""
    needed = set()
    chosen = [TESTS / "conftest.py", TESTS / "kinds.py", TESTS / "conformance" / "conftest.py", CHECK]
    chosen += [TESTS / "conformance" / f"test_{name}.py" for name in ("objects", "lifetime", "travel")]
    chosen += [TESTS / "msharefs" / f"test_{name}.py" for name in ("regions", "files")]
    for path in chosen:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                needed |= {one.name.split(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom):
                needed.add((node.module or "").split(".")[0])
    assert needed - sys.stdlib_module_names <= {"numpy", "pytest", "sharedregion"}


@pytest.mark.root
@pytest.mark.slow
def test_all_well_on_the_stand_in(msharefs: Callable[[int], Any], wheel: str, tmp_path: Path) -> None:
    """From a wheel, in an environment that has only what that needs: the tests pass, and both kinds are measured.

    The figures are those of the stand-in, whose tables are each process's own: large pages keep them small.
    """
    bare = tmp_path / "packages"
    bare.mkdir()
    installed = Path(sr.__file__).parent.parent
    for name in os.listdir(installed):
        if name == "py.py" or name.split("-")[0].lower().startswith(NEEDED):
            (bare / name).symlink_to(installed / name)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    double = msharefs(512 << 30)
    code, out = run(
        "--package", wheel, "--size", "32", "--workers", "4",
        python=str(python), PYTHONPATH=str(bare), SHAREDREGION_MSHAREFS=double.path,
    )  # fmt: skip
    assert " passed" in out
    assert " failed, " not in out.split("msharefs: 32 MiB")[0]
    for line in ("series v3, units of 524288 MiB", "msharefs: 32 MiB read by 4 workers", "shm: 32 MiB read"):
        assert line in out
    assert "4 failed" not in out
    # What others do on the machine at the same time may move its counters, but nothing else is wrong.
    assert code == WELL or "too much" in out, out
    assert not double.regions()


@pytest.mark.root
def test_each_way_in_which_it_cannot_be_said(
    msharefs: Callable[[int], Any], wheel: str, tmp_path: Path
) -> None:
    """Not there, not mounted, no msharefs, an interface of another kind: a sentence and a status, never a traceback."""
    quick = ("--package", wheel, "--no-tests")
    known = "msharefs" in Path("/proc/filesystems").read_text()
    code, out = run(*quick, SHAREDREGION_MSHAREFS="")
    assert code == NO_MSHAREFS or known
    assert "this kernel has no msharefs" in out or known
    code, out = run(*quick, SHAREDREGION_MSHAREFS=str(tmp_path / "nowhere"))
    assert code == NOT_MOUNTED
    assert "mount -t msharefs msharefs" in out
    code, out = run(*quick, SHAREDREGION_MSHAREFS=str(tmp_path))
    assert code == FAILED
    assert "is not an msharefs mount" in out
    double = msharefs(512 << 30)
    double.tell("refuse", "ioctl", 25)
    code, out = run(*quick, SHAREDREGION_MSHAREFS=double.path)
    assert code == FAILED
    assert "may have another interface" in out
    for package, says in (
        (str(tmp_path / "none.whl"), "is no wheel"),
        (str(CHECK), "is no wheel"),
        (str(tmp_path), "there is no built sharedregion"),
    ):
        code, out = run("--package", package)
        assert (code, says in out, "Traceback" in out) == (MISSING, True, False)
    assert not double.regions()


@pytest.mark.root
def test_not_as_root(msharefs: Callable[[int], Any], nobodys_python: str, tmp_path: Path) -> None:
    """It says that it has to be root; and without pytest, how to go on."""
    double = msharefs(512 << 30)
    copy = Path(nobodys_python).parents[1] / "check.py"
    shutil.copy(CHECK, copy)
    copy.chmod(0o644)
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", nobodys_python, str(copy)]
    for options, code, says in (
        (["--no-tests"], NOT_MOUNTED, "has to be run as root"),
        ([], MISSING, "No module named 'pytest'"),
    ):
        done = subprocess.run(
            [*nobody, *options],
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "SHAREDREGION_MSHAREFS": double.path},
        )
        assert (done.returncode, says in done.stdout, done.stderr) == (code, True, ""), done.stdout
