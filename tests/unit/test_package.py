"""What is installed is what is in the tree: a source that the build forgot fails here."""

import subprocess
import sys
from importlib.metadata import distribution, metadata
from pathlib import Path

import sharedregion

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = Path(sharedregion.__file__).parent


def _python_files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix in (".py", ".pyi") or path.name == "py.typed"
        if "__pycache__" not in path.parts
    }


def test_the_tests_run_against_the_installed_package() -> None:
    assert not INSTALLED.is_relative_to(ROOT / "sharedregion")


def test_every_source_is_installed_and_nothing_else() -> None:
    expected = _python_files(ROOT / "sharedregion")
    # bench/ stands at the top of the tree and is installed inside the package.
    expected |= {f"bench/{name}" for name in _python_files(ROOT / "bench")}
    assert _python_files(INSTALLED) == expected


def test_installed_sources_are_those_of_the_tree() -> None:
    """A stale install would test yesterday's code."""
    for name in sorted(_python_files(ROOT / "sharedregion")):
        assert (INSTALLED / name).read_bytes() == (ROOT / "sharedregion" / name).read_bytes(), (
            f"{name} is stale"
        )


def test_the_wheel_names_what_it_needs() -> None:
    found = metadata("sharedregion")
    assert found["Requires-Python"] == ">=3.11"
    needed = {
        line.split(">")[0].split(";")[0].strip()
        for line in distribution("sharedregion").requires or []
        if "extra" not in line
    }
    assert needed == {"numpy", "posix_ipc", "psutil", "click", "rich"}
    assert "LICENSE" in str(found.get_all("License-File"))


def test_the_version_is_the_one_of_the_build() -> None:
    assert f"version: '{metadata('sharedregion')['Version']}'" in (ROOT / "meson.build").read_text()


def test_the_command_is_installed_and_says_its_version() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "sharedregion", "--version"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"sharedregion {metadata('sharedregion')['Version']}\n"
