"""Whether msharefs does what this library needs, on the kernel that this is started on.

    python tests/msharefs/check.py [--package WHEEL | FOLDER] [--size MIB] [--workers N] [--no-tests]

As root, with msharefs mounted. It needs the package (installed, or the wheel or folder given) and
pytest, and nothing else: no network, no compiler, no test dependency. It tries a region, runs the
tests that any kind of memory passes and those of msharefs alone, and measures what the page tables
of N workers that read a whole region cost, beside plain shared memory. It leaves nothing behind.

Exit status: 0 all well; 1 something does not work; 3 this kernel has no msharefs; 4 it has, but it is
not mounted, or not for this user.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

WELL, FAILED, NO_MSHAREFS, NOT_MOUNTED = 0, 1, 3, 4
TESTS = Path(__file__).resolve().parents[1]
PAGE = 4096
#: Bytes of page tables that a worker may cost beyond one that attaches a region of a page and reads it.
LIMIT = 16 << 10
ROUNDS = 3

HOST = """
import sys, numpy as np, sharedregion as sr
name, kind, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
region = sr.create(name, size=size + (4 << 20), backend=kind)
with region.allocate("x", size, "u1") as x:
    x[:] = 1
print(region.reason, flush=True)
sys.stdin.readline()
"""


def unpack(package: str, folder: str) -> str:
    """A folder from which the package can be imported."""
    if os.path.isdir(package):
        return os.path.abspath(package)
    with zipfile.ZipFile(package) as wheel:
        wheel.extractall(folder)
    for program in Path(folder, "sharedregion", "_bin").iterdir():
        program.chmod(0o755)
    return folder


def page_tables() -> int:
    """PageTables of the machine, once the counters of all processors have been added up."""
    time.sleep(0.3)
    Path("/proc/sys/vm/stat_refresh").read_text()
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("PageTables:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no PageTables in /proc/meminfo")


def workers(count: int, work: Callable[[], int]) -> tuple[int, int]:
    """(bytes that `count` forked processes add to PageTables, how many did not do their work)."""
    before = page_tables()
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os.close(go_write)
            ok = False
            try:
                ok = work() == 1
            finally:
                os.write(ready_write, b"+" if ok else b"-")
                os.read(go_read, 1)
                os._exit(0)
        pids.append(pid)
    os.close(ready_write)
    answers = b""
    while len(answers) < count and (piece := os.read(ready_read, count)):
        answers += piece
    added = page_tables() - before
    for fd in (go_write, go_read, ready_read):
        os.close(fd)
    for pid in pids:
        os.waitpid(pid, 0)
    return added, count - answers.count(b"+")


def measure(kind: str, size: int, count: int) -> tuple[float, int, str]:
    """(bytes of page tables of each worker beyond one of a region of a page, failures, reason of the region)."""
    import numpy as np

    import sharedregion as sr

    name = f"msharefs-check-{os.getpid()}"
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, name, kind, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert host.stdout is not None
    reason = host.stdout.readline().strip()
    kept = []

    def read_all(which: str) -> int:
        region = sr.attach(which)
        kept.append(region)
        array = region["x"]
        return int(array[::PAGE].sum()) * PAGE // array.nbytes

    little = f"{name}-little"
    each, failed = [], 0
    try:
        # PageTables is the whole machine's: of several looks the middle one is that without a stranger.
        for _ in range(ROUNDS):
            with sr.create(little, size=1 << 20, backend="shm") as region:
                region["x"] = np.ones(PAGE, "u1")
                idle, _ = workers(count, lambda: read_all(little))
            busy, lost = workers(count, lambda: read_all(name))
            failed += lost
            each.append((busy - idle) / count)
    finally:
        host.communicate("\n")
    return statistics.median(each), failed, reason


def run_tests(path: str | None) -> bool:
    environ = {**os.environ, "SHAREDREGION_TEST_KINDS": "msharefs", "PYTHONSAFEPATH": "1"}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))
    environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    chosen = [
        *(str(TESTS / "conformance" / f"test_{name}.py") for name in ("objects", "lifetime", "travel")),
        str(TESTS / "msharefs" / "test_regions.py"),
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(TESTS)]
    command += ["-p", "no:cacheprovider", "--import-mode=importlib", "-W", "ignore", *chosen]
    return subprocess.run(command, env=environ, check=False).returncode == 0


def check(arguments: argparse.Namespace, path: str | None) -> int:
    import sharedregion as sr
    from sharedregion import _native
    from sharedregion._kernel.msharefs import look

    print(f"sharedregion of {Path(sr.__file__).parent}, Linux {os.uname().release}")
    there = look()
    if not there.known:
        print("this kernel has no msharefs")
        return NO_MSHAREFS
    if there.path is None or not there.usable:
        print(f"msharefs cannot be used as it is; as root: {there.mount_command}")
        return NOT_MOUNTED
    try:
        series, unit = _native.msharefs_try(there.path)
    except sr.BackendUnavailable as error:
        print(f"msharefs at {there.path} does not serve: {error}")
        return FAILED
    print(f"msharefs at {there.path}: series {series}, units of {unit >> 20} MiB, sticky: {there.sticky}")
    failed = False
    if not arguments.no_tests:
        failed = not run_tests(path)
    size = arguments.size << 20
    for kind in ("msharefs", "shm"):
        each, lost, reason = measure(kind, size, arguments.workers)
        over = kind == "msharefs" and each > LIMIT
        failed |= over or lost > 0
        print(
            f"{kind}: {arguments.size} MiB read by {arguments.workers} workers: {each / 1024:.1f} KiB of page tables "
            f"for each beyond one that reads a page{' (too much)' if over else ''}, {lost} failed  [{reason}]"
        )
    left = [name for name in os.listdir("/dev/shm") if "msharefs-check" in name]
    left += [name for name in os.listdir(there.path) if name.startswith("sharedregion")]
    print("failed" if failed or left else "all well", *left)
    return FAILED if failed or left else WELL


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--package", help="a wheel, or a folder that holds sharedregion/")
    parser.add_argument("--size", type=int, default=256, help="MiB of the region that is measured")
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--no-tests", action="store_true", help="only the trial and the measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sharedregion-check-") as folder:
        path = unpack(arguments.package, folder) if arguments.package else None
        if path is not None:
            sys.path.insert(0, path)
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))
        return check(arguments, path)


if __name__ == "__main__":
    sys.exit(main())
