"""Processes to look at, and the helper that looks."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sharedregion.footprint import Footprint, find_helper, footprint
from tests.sanitizers import sanitized

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


@pytest.fixture(scope="session")
def helper() -> str:
    return find_helper()


@pytest.fixture(scope="session")
def sanitized_helper(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The helper under AddressSanitizer and UBSan: what is wrong in it ends it with exit code 1 and a report."""
    return str(sanitized(tmp_path_factory.mktemp("sanitized") / "ptwalk", ["base", "sys", "ptwalk"]))


@pytest.fixture(scope="session")
def exact(helper: str) -> str:
    """The helper, where it can read page tables at all."""
    if os.geteuid() != 0:
        pytest.skip("page tables can only be read by root")
    found = footprint(os.getpid())
    if found.method != "walk":
        pytest.skip(f"page tables cannot be read here: {found.why}")
    return helper


@pytest.fixture
def ask(helper: str) -> Callable[..., dict[str, Any]]:
    """Runs the helper with these arguments and gives its JSON."""

    def run(
        *arguments: object, prefix: tuple[str, ...] = (), path: str = helper, **options: Any
    ) -> dict[str, Any]:
        command = [*prefix, path, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False, **options)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return run


@pytest.fixture
def worker() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts Python code that prints a line when it is ready and then waits for its input to end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        code: str, *arguments: object, prefix: tuple[str, ...] = (), **options: Any
    ) -> subprocess.Popen[bytes]:
        program = (
            "import os, sys\ndef ready(*said):\n    print('ready', *said, flush=True)\n    sys.stdin.read()\n"
            + code
        )
        interpreter = "/usr/bin/python3" if prefix else sys.executable
        process = subprocess.Popen(
            [*prefix, interpreter, "-I", "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **options,
        )
        started.append(process)
        assert process.stdout is not None
        process.said = process.stdout.readline().decode().split()  # type: ignore[attr-defined]
        assert process.said, "the worker ended before it was ready"  # type: ignore[attr-defined]
        return process

    yield start
    for process in started:
        process.kill()
    for process in started:
        with process:
            process.wait()


@pytest.fixture
def nobody(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The start of a command that runs as a user without any privilege."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("running as another user takes root and setpriv")
    return tuple(NOBODY)


@pytest.fixture
def public_copy(helper: str) -> Iterator[Callable[[], Path]]:
    """Copies of the helper that every user may run, owned by root."""
    folders: list[Path] = []

    def copy() -> Path:
        folder = Path("/tmp") / f"sharedregion-test-{os.getpid()}-{len(folders)}"
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
        folders.append(folder)
        target = folder / "ptwalk"
        shutil.copyfile(helper, target)
        target.chmod(0o755)
        return target

    yield copy
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture
def one() -> Callable[..., Any]:
    """The answer for a single process."""

    def look(pid: int, **options: Any) -> Any:
        found: Footprint = footprint(pid, **options)
        assert [process.pid for process in found.processes] == [pid]
        return found.processes[0]

    return look


#: Maps `gib` GiB of file descriptor `fd`, `shift` bytes off GiB alignment, and touches one byte in each.
MAP_SHARED = """
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
fd, gib, shift = map(int, sys.argv[1:4])
G = 1 << 30
space = libc.mmap(None, (gib + 2) * G, 0, 0x4022, -1, 0)
at = (space + G - 1) // G * G + shift
assert libc.mmap(at, gib * G, 1, 0x4011, fd, 0) == at
for i in range(gib):
    ctypes.string_at(at + i * G, 1)
ready(os.getpid())
"""


@pytest.fixture
def map_shared() -> str:
    return MAP_SHARED


@pytest.fixture
def huge_file(pool: Callable[[int, int], None]) -> Iterator[Callable[[int], int]]:
    """A hugetlb file of so many GiB, with one page for the start of each."""
    opened: list[int] = []

    def make(gib: int) -> int:
        pool(2 << 20, gib)
        fd = os.memfd_create("sharedregion-test", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
        opened.append(fd)
        os.ftruncate(fd, gib << 30)
        for i in range(gib):
            with mmap.mmap(fd, 2 << 20, offset=i << 30) as page:
                page[0] = 1
        return fd

    yield make
    for fd in opened:
        os.close(fd)
