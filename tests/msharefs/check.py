"""Whether msharefs does what this library needs, on the kernel that this is started on.

    python tests/msharefs/check.py [--package WHEEL | FOLDER] [--size MIB] [--workers N] [--no-tests]

As root, with msharefs mounted. It needs the package (installed, or the wheel or folder given), what that
needs, and pytest, and nothing else: no network, no compiler, no test dependency. It tries a region, runs
the tests that any kind of memory passes and those of msharefs alone, measures what the page tables of N
workers that read a whole region cost, beside plain shared memory, and looks whether the kernel complained
meanwhile. It leaves nothing behind.

Exit status: 0 all well; 1 something does not work; 3 this kernel has no msharefs; 4 it has, but it is
not mounted, or this is not root; 5 something is missing here: the package, or a module.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

WELL, FAILED, NO_MSHAREFS, NOT_MOUNTED, MISSING = 0, 1, 3, 4, 5
TESTS = Path(__file__).resolve().parents[1]
PAGE = 4096
#: Bytes of page tables that a worker may cost beyond one that attaches a region of a page and reads it.
LIMIT = 16 << 10
ROUNDS = 3

HOST = """
import sys, sharedregion as sr
name, kind, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "msharefs-hugetlb":
    region = sr.Region._create(
        name=name, size=size + (4 << 20), backend="msharefs", place="hugetlb", mode=0o600, persist=False,
        replace=False, commit_all=False, reason="reserved 2 MiB pages", keeper=sr.opening._KEEPER,
        msharefs=sys.argv[4])._settle_in(None)
else:
    region = sr.create(name, size=size + (4 << 20), backend=kind)
with region.allocate("x", size, "u1") as x:
    x[:] = 1
print(region.reason, flush=True)
sys.stdin.readline()
"""


def unpack(package: str, folder: str) -> str:
    """A folder from which the package can be imported; ValueError says why there is none."""
    if not os.path.isdir(package):
        try:
            with zipfile.ZipFile(package) as wheel:
                wheel.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{package} is no wheel: {error}") from None
        package = folder
    programs = Path(package, "sharedregion", "_bin")
    if not programs.is_dir():
        raise ValueError(f"there is no built sharedregion in {package}")
    for program in programs.iterdir():
        program.chmod(0o755)
    return os.path.abspath(package)


def missing(tests: bool) -> str | None:
    """What cannot be imported here, in one sentence."""
    try:
        import sharedregion._native  # noqa: F401
    except ImportError as error:
        return f"{error}; --package WHEEL gives the package, pip install what it needs: numpy posix_ipc psutil click rich"
    if not tests:
        return None
    try:
        import pytest  # noqa: F401
    except ImportError as error:
        return f"{error}; pip install pytest, or leave the tests out: --no-tests"
    return None


class KernelLog:
    """What the kernel writes into its log from now on."""

    def __init__(self) -> None:
        try:
            self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self.fd, 0, os.SEEK_END)
        except OSError:
            self.fd = -1

    def complaints(self) -> list[str]:
        """Warnings and bugs: lines that begin the report of one."""
        found = []
        while self.fd >= 0:
            try:
                line = os.read(self.fd, 8192).decode(errors="replace").partition(";")[2].split("\n")[0]
            except BlockingIOError:
                break
            except OSError:
                continue  # overwritten in the meantime: the next one follows
            if any(word in line for word in ("WARNING:", "BUG:", "Oops", "general protection fault")):
                found.append(line)
        return found


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
            except Exception:  # noqa: BLE001 - whatever it is, the parent counts it and the reader sees why
                traceback.print_exc()
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


def measure(kind: str, size: int, count: int, path: str) -> tuple[float, int, str]:
    """(bytes of page tables of each worker beyond one of a region of a page, failures, reason of the region)."""
    import numpy as np

    import sharedregion as sr

    name = f"msharefs-check-{os.getpid()}"
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, name, kind, str(size), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert host.stdout is not None
    reason = host.stdout.readline().strip()
    if not reason:
        host.wait()
        return 0.0, count, "there is no region"
    kept = []

    def read_all(which: str) -> int:
        region = sr.attach(which)
        kept.append(region)
        array = region["x"]
        return int(array[::PAGE].sum() * PAGE // array.nbytes)

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
        *(str(TESTS / "msharefs" / f"test_{name}.py") for name in ("regions", "files")),
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(TESTS)]
    command += ["-p", "no:cacheprovider", "--import-mode=importlib", "-W", "ignore", "-rs", *chosen]
    return subprocess.run(command, env=environ, check=False).returncode == 0


def free_pages() -> int:
    """Reserved pages of 2 MiB that nobody has."""
    folder = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    try:
        return int((folder / "free_hugepages").read_text()) - int((folder / "resv_hugepages").read_text())
    except OSError:
        return 0


def measure_all(size: int, count: int, path: str) -> bool:
    """Whether all of them could be read, and msharefs costs a worker next to nothing."""
    well = True
    for kind in ("msharefs", "msharefs-hugetlb", "shm"):
        pages = size // (2 << 20) + 2
        if kind == "msharefs-hugetlb" and free_pages() < pages:
            print(
                f"{kind}: not tried: {free_pages()} reserved pages are free, {pages} needed "
                f"(echo {pages} > /proc/sys/vm/nr_hugepages)"
            )
            continue
        each, lost, reason = measure(kind, size, count, path)
        over = kind != "shm" and each > LIMIT
        well &= not over and lost == 0
        print(
            f"{kind}: {size >> 20} MiB read by {count} workers: {each / 1024:.1f} KiB of page tables "
            f"for each beyond one that reads a page{' (too much)' if over else ''}, {lost} failed  [{reason}]"
        )
    return well


def check(arguments: argparse.Namespace, path: str | None) -> int:
    lacking = missing(not arguments.no_tests)
    if lacking is not None:
        print(lacking)
        return MISSING
    import sharedregion as sr
    from sharedregion import _native
    from sharedregion._kernel.msharefs import look

    print(f"sharedregion of {Path(sr.__file__).parent}, Linux {os.uname().release}")
    there = look()
    if not there.known:
        print("this kernel has no msharefs")
        return NO_MSHAREFS
    if there.path is None or not os.path.isdir(there.path):
        print(
            f"msharefs is not mounted{f' at {there.path}' if there.path else ''}; as root: {there.mount_command}"
        )
        return NOT_MOUNTED
    if os.geteuid() != 0:
        print("this has to be run as root: it reads counters of the whole machine")
        return NOT_MOUNTED
    log = KernelLog()
    try:
        series, unit = _native.msharefs_try(there.path)
    except sr.BackendUnavailable as error:
        print(f"msharefs at {there.path} does not serve: {error}")
        return FAILED
    print(f"msharefs at {there.path}: series {series}, units of {unit >> 20} MiB")
    if not there.sticky:
        print(f"any user may remove another's files there until: chmod 1777 {there.path}")
    well = arguments.no_tests or run_tests(path)
    well &= measure_all(arguments.size << 20, arguments.workers, there.path)
    left = [name for name in os.listdir("/dev/shm") if "msharefs-check" in name]
    left += [name for name in os.listdir(there.path) if name.startswith("sharedregion")]
    complaints = log.complaints()
    for line in complaints:
        print(f"the kernel's log: {line}")
    well &= not left and not complaints
    print("all well" if well else "failed", *left)
    return WELL if well else FAILED


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--package", help="a wheel, or a folder that holds sharedregion/, built")
    parser.add_argument("--size", type=int, default=256, help="MiB of the region that is measured")
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--no-tests", action="store_true", help="only the trial and the measurement")
    arguments = parser.parse_args()
    # The tests print too: what is said first should stand first, wherever it goes.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory(prefix="sharedregion-check-") as folder:
        try:
            path = unpack(arguments.package, folder) if arguments.package else None
        except ValueError as error:
            print(error)
            return MISSING
        if path is not None:
            sys.path.insert(0, path)
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))
        return check(arguments, path)


if __name__ == "__main__":
    sys.exit(main())
