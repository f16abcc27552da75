"""Programs that others wrote, unedited: the suites of PyPI packages built on multiprocessing.shared_memory.

    python tests/compat/packages.py [NAME]...

Each suite runs twice from its source distribution, on the standard library and through `sharedregion run`.
Fails if a test that passes on the standard library fails with the drop-in and is not listed here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 900


@dataclass(frozen=True)
class Package:
    """`different`: tests that cannot pass, each with its reason. `options` are pytest's."""

    name: str
    version: str
    options: tuple[str, ...] = ()
    different: dict[str, str] = field(default_factory=dict)


PACKAGES = (
    Package("mempipe", "0.3.2"),
    Package(
        "atomicshm",
        "0.1.0",
        different={
            "test_shared_memory_close_requires_view_close": "asserts that close() with a live view raises BufferError (cpython#115635)"
        },
    ),
    # The others start programs in C++ that have to be built with a library of their own.
    Package("slick-queue-py", "2.3.0", options=("-k", "not cpp and not interop", "tests")),
)


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=PATIENCE)


def environment(folder: Path) -> Path:
    """A virtual environment on top of this one, with what the packages' builds and suites need."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    inside = folder / "bin" / "python"
    site = _run(
        str(inside), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    ).stdout.strip()
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    Path(site, "above.pth").write_text(ours + "\n")
    wanted = ["setuptools>=77", "wheel", "hatchling", "setuptools-scm", "pytest-timeout"]
    subprocess.run([str(inside), "-m", "pip", "install", "--quiet", *wanted], check=True)
    return inside


def fetch(python: Path, package: Package, folder: Path) -> Path:
    """The unpacked source distribution, installed."""
    flags = ("--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", str(folder))
    wanted = f"{package.name}=={package.version}"
    subprocess.run([str(python), "-m", "pip", "download", *flags, wanted], check=True)
    (archive,) = folder.glob(f"{package.name.replace('-', '_')}-*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz")
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        str(source),
    ]
    subprocess.run(command, check=True)
    return source


def suite(command: list[str], package: Package, source: Path) -> tuple[str, set[str]]:
    """pytest's last line, and the names of the tests that failed."""
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestConfigWarning", *package.options]
    done = _run(*command, "-m", "pytest", *options, cwd=source)
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", done.stdout, re.MULTILINE))
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()
    return last.strip("= "), failed


def main() -> int:
    """0 if the drop-in passes what the standard library passes."""
    chosen = [one for one in PACKAGES if not sys.argv[1:] or one.name in sys.argv[1:]]
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="sharedregion-packages-") as name:
        folder = Path(name)
        python = environment(folder / "venv")
        drop_in = [str(Path(sys.executable).with_name("sharedregion")), "run", str(python)]
        for package in chosen:
            source = fetch(python, package, folder)
            standard, fails = suite([str(python)], package, source)
            ours, ours_fail = suite(drop_in, package, source)
            print(
                f"{package.name} {package.version}\n  standard library: {standard}\n  sharedregion run: {ours}",
                flush=True,
            )
            for test in sorted(ours_fail - fails):
                reason = package.different.get(test)
                wrong |= reason is None
                print(f"    {test}: {reason or 'FAILS, and passes on the standard library'}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
