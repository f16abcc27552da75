"""What programs do to a library without meaning harm."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import sharedregion as sr

SHM = Path("/dev/shm")


def test_close_beside_a_put(run) -> None:
    """close() in one thread while another places: the put ends well or says closed, and nothing crashes."""
    run("""
import threading, time, numpy as np, sharedregion as sr
big, small = np.ones(15_000_000, "f4"), np.arange(100.0)
for n in range(12):
    region = sr.create(size="100 MiB", backend="thp")
    def work():
        try:
            for k in range(2000): region["x" if n % 2 else f"x{k % 7}"] = big if n % 2 else small
        except sr.RegionClosed: pass
    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.004)
    region.close()
    thread.join()
""")


DAEMON = """
import os, sys, numpy as np, sharedregion as sr
region = sr.create(sys.argv[1], size="4 MiB", backend=sys.argv[2])
region["x"] = np.full(50_000, 7, "u1")
worker = sr.attach(sys.argv[1])
held = worker["x"]
os.closerange(3, 100)
names = [f"/var/tmp/{sys.argv[1]}.{n}" for n in range(20)]
own = [open(name, "wb+", buffering=0) for name in names]
for name in names: os.unlink(name)
del region["x"]
for n in range(30): region[f"y{n % 3}"] = np.full(50_000, 100 + n, "u1")
assert (held == 7).all(), "somebody else's bytes"
assert all(os.fstat(f.fileno()).st_size == 0 for f in own), "an own file has grown"
del held
worker.close()
region.close()
for f in own: f.write(b"still mine")
print("well")
"""


@pytest.mark.parametrize("backend", ["thp", "shm"])
def test_descriptors_closed_and_used_again(run, unique: str, backend: str) -> None:
    """A program that closes all descriptors and opens files of its own: no wrong bytes, and its files are its own."""
    assert run(DAEMON, unique, backend) == "well\n"
    assert not list(SHM.glob(f"sharedregion.{unique}.*"))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_that_end_last_leave_no_name(run, unique: str, method: str) -> None:
    """The host closes first; processes of multiprocessing that end later, together, take the names with them."""
    run(
        """
import sys, time, multiprocessing as mp, sharedregion as sr
def work(name, event):
    inherited = sr.attach(name)
    event.wait()
if __name__ == "__main__":
    context = mp.get_context(sys.argv[2])
    for _ in range(4):
        region = sr.create(sys.argv[1], size="1 MiB")
        event = context.Event()
        workers = [context.Process(target=work, args=(sys.argv[1], event)) for _ in range(3)]
        for w in workers: w.start()
        while len(region.members()) < (7 if sys.argv[2] == "fork" else 4): time.sleep(0.01)
        region.close()
        event.set()
        for w in workers: w.join()
        assert sys.argv[1] not in sr.regions()
""",
        unique,
        method,
    )
    assert not list(SHM.glob(f"sharedregion.{unique}.*"))


def test_pool_of_shared_arrays_leaves_nothing(run) -> None:
    """Arrays shared through a pool of forked workers, which ends by itself: no name stays."""
    before = set(os.listdir(SHM))
    run("""
import numpy as np, sharedregion as sr
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
    for n in range(4):
        x = sr.share(np.full(100_000, n, "f8"))
        assert list(pool.map(np.mean, [x] * 6)) == [n] * 6
del x
""")
    left = [name for name in set(os.listdir(SHM)) - before if "anonymous" in name]
    assert not left


def test_replace_by_many_at_once(run, unique: str) -> None:
    """Several processes that replace one region take turns; none is told that it exists, and one name remains."""
    run(
        """
import sys, multiprocessing as mp, sharedregion as sr
def work(name):
    for n in range(60):
        with sr.create(name, size=65536, replace=True) as region: region["n"] = n
if __name__ == "__main__":
    first = sr.create(sys.argv[1], size=65536)
    workers = [mp.Process(target=work, args=(sys.argv[1],)) for _ in range(3)]
    for w in workers: w.start()
    for w in workers: w.join()
    assert [w.exitcode for w in workers] == [0, 0, 0]
    first.close()
    last = sr.create(sys.argv[1], size=65536, replace=True)
    assert sr.attach(sys.argv[1])._id == last._id
    last.close()
""",
        unique,
    )
    assert not list(SHM.glob(f"sharedregion.{unique}.*"))


def test_a_false_commit_mark_is_no_sigbus(run, unique: str) -> None:
    """Bad bytes in the commit map are found out: memory is committed again, or there is none and it is said."""
    run(
        """
import sys, numpy as np, sharedregion as sr
region = sr.create(sys.argv[1], size="64 MiB", backend="shm")
with open(f"/dev/shm/sharedregion.{sys.argv[1]}.catalog", "r+b") as file:
    file.seek(8192); file.write(b"\\xff" * 64)
region["x"] = np.ones(30 << 20, "u1")
import os
assert os.stat(f"/dev/shm/sharedregion.{sys.argv[1]}.data").st_blocks * 512 >= 30 << 20
assert region["x"].sum() == 30 << 20
region.close()
""",
        unique,
    )


@pytest.mark.root
def test_unlink_that_may_not(unique: str, as_nobody) -> None:
    """unlink of another user's region is an error that says so, and the region stays."""
    with sr.create(unique, size="1 MiB", mode=0o644):
        assert "RegionDenied" in as_nobody(f"sr.unlink({unique!r}, owner=0)", expect=1)
        assert unique in sr.regions()


def test_unlink_of_a_damaged_generation(unique: str) -> None:
    """unlink mends a damaged region that had been replaced: nothing of it stays."""
    sr.create(unique, size="1 MiB", persist=True).close()
    sr.create(unique, size="1 MiB", persist=True, replace=True).close()
    with (SHM / f"sharedregion.{unique}.catalog").open("r+b") as file:
        file.seek(200)
        file.write(b"\xaa")
    with pytest.raises(sr.RegionCorrupt, match="unlink"):
        sr.attach(unique)
    sr.unlink(unique)
    assert not list(SHM.glob(f"sharedregion.{unique}.*"))


@pytest.mark.root
def test_a_pool_of_one_region(unique: str, pool) -> None:
    """Huge pages are free for the next region when close(), or unlink() of a persistent one, returns."""
    pool(2 << 20, 8)
    free = int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    size = free * (2 << 20)
    for persist in (False, True):
        for _ in range(6):
            region = sr.create(unique, size=size, backend="hugetlb-2m", persist=persist)
            region["x"] = np.arange(10)
            region.close()
            if persist:
                with sr.attach(unique) as again:
                    assert again["x"].sum() == 45
                sr.unlink(unique)


def test_no_descriptor_free_at_close(run, unique: str) -> None:
    """close() takes the names also when the process has no descriptor left."""
    run(
        """
import os, sys, resource, sharedregion as sr
region = sr.create(sys.argv[1], size="1 MiB")
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
taken = []
try:
    while True: taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError: pass
region.close()
for fd in taken: os.close(fd)
""",
        unique,
    )
    assert not list(SHM.glob(f"sharedregion.{unique}.*"))


def test_wait_arguments(unique: str) -> None:
    """Numbers that are no versions or times are refused; a closed region cannot be entered."""
    with sr.create(unique, size=4096) as region:
        region["x"] = 1
        for newer_than in (-1, 2**64, 2**70):
            with pytest.raises(ValueError, match="version"):
                region.wait("x", 0, newer_than=newer_than)
        with pytest.raises(ValueError, match="seconds"):
            region.wait("x", float("nan"))
    with pytest.raises(sr.RegionClosed), region:
        pass


def test_signals_reach_a_waiting_thread(unique: str) -> None:
    """wait() lets other threads run, and Ctrl-C ends it."""
    code = f"""
import threading, sharedregion as sr
region = sr.create({unique!r}, size=4096)
ran = []
threading.Timer(0.1, lambda: (ran.append(1), print("waiting", flush=True))).start()
try: region.wait("nothing")
except KeyboardInterrupt: print("interrupted", len(ran))
region.close()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(2)
    out, _ = process.communicate(timeout=60)
    assert out == "interrupted 1\n"


def test_a_stopped_replacer_is_not_undone(unique: str) -> None:
    """Closing the old generation while the name moves to a new one leaves the new one its name."""
    for _ in range(30):
        old = sr.create(unique, size=65536)
        made: list[sr.Region] = []
        thread = threading.Thread(
            target=lambda made=made: made.append(sr.create(unique, size=65536, replace=True))
        )
        thread.start()
        time.sleep(0.0005)
        old.close()
        thread.join()
        with sr.attach(unique) as seen:
            assert seen._id == made[0]._id
        made[0].close()
