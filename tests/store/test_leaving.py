"""Objects that are replaced, deleted, popped or listed while others are at it, and holds that nobody needs any more."""

import mmap
import os
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest

import sharedregion as sr

Sent = Callable[..., str]


def test_a_replaced_array_still_travels(unique: str) -> None:
    """Who holds an array can send it as a reference, whatever has its name by now, and it holds on the way."""
    with sr.create(unique, size="1 MiB", backend="shm") as region:
        region["x"] = np.arange(1000)
        x = region["x"]
        region["x"] = np.zeros(1000)
        sent = ForkingPickler.dumps(x[::2])
        assert len(sent) < 300
        del x
        del region["x"]
        for n in range(300):
            region[f"y{n % 50}"] = np.full(1000, n)
        arrived = pickle.loads(sent)
        assert (arrived == np.arange(0, 1000, 2)).all()
        del arrived
        region._sweep()
        assert region.stats().withdrawn == 0
        with pytest.raises(sr.ObjectNotFound):
            pickle.loads(sent)


def test_a_pool_gets_what_was_replaced(unique: str, run: Sent) -> None:
    """An executor's task with an array of an older version gets that version, and the pool goes on."""
    code = """
import sys, numpy as np, sharedregion as sr
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
def total(x): return int(x.sum())
if __name__ == "__main__":
    region = sr.create(sys.argv[1], size="8 MiB", backend="shm")
    for method in ("fork", "spawn", "forkserver"):
        with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
            tasks = []
            for n in range(100):
                region["x"] = np.full(1000, n)
                tasks.append(pool.submit(total, region["x"]))
            assert [task.result(60) for task in tasks] == [1000 * n for n in range(100)]
    region._sweep()
    print("well", region.stats().withdrawn)
"""
    assert run(code, unique) == "well 0\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_ends_after_its_last_result(method: str, run: Sent) -> None:
    """What a process of a pool shares as the last thing that it does arrives."""
    code = """
import sys, multiprocessing, numpy as np, sharedregion as sr
def job(n): return sr.share(np.full(1000, n))
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    for _ in range(3):
        with context.Pool(2, maxtasksperchild=1) as pool:
            results = pool.map_async(job, range(8), chunksize=1).get(timeout=100)
        assert [int(result[0]) for result in results] == list(range(8))
    print("well")
"""
    assert run(code, method) == "well\n"


def test_a_reference_that_is_dropped_lets_go(unique: str) -> None:
    """One that arrived and was never asked for its object holds it no longer."""
    with sr.create(unique, size="1 MiB", backend="shm") as region:
        region["x"] = {"a": np.arange(100)}
        reference = pickle.loads(pickle.dumps(region.ref("x")))
        del region["x"]
        assert region._tickets() == 1
        del reference
        assert region._tickets() == 0
        region._sweep()
        assert region.stats().withdrawn == 0


def test_what_allocate_lent_goes_with_its_array(unique: str) -> None:
    """An array that was filled in place travels as a reference afterwards, and leaves no block behind."""
    with sr.create(unique, size="64 MiB", backend="shm") as region:
        latest = None
        for n in range(20):
            with region.allocate("y", (1 << 18,), "u1") as y:
                y[:] = n
            sent = ForkingPickler.dumps(y[5:])
            assert len(sent) < 300
            arrived = pickle.loads(sent)
            assert (arrived == n).all() and not arrived.flags.writeable
            latest = y
            del arrived, y
        assert region.stats().withdrawn <= 2
        assert latest is not None and latest[0] == 19


def test_an_exception_survives_the_death_of_an_array(run: Sent) -> None:
    """A pickle that fails behind an array that was sent says why."""
    code = """
import io, numpy as np, sharedregion as sr
from multiprocessing.reduction import ForkingPickler
region = sr.create(size="1 MiB", backend="shm")
region["x"] = np.arange(10)
for _ in range(3):
    try: ForkingPickler(io.BytesIO(), 4).dump((region["x"], lambda: 0))
    except Exception as error: print("lambda" in str(error))
"""
    assert run(code) == "True\n" * 3


BUSY = """
import sys, numpy as np, sharedregion as sr
region = sr.attach(sys.argv[1], writable=True)
print("busy", flush=True)
k = 0
while True:
    k += 1
    region[f"n{k % 20}"] = np.full(8, k)
    held = region[f"n{(k + 3) % 20}"]
    region[f"more{k % 300}"] = k
    if k % 300 > 250: del region[f"more{k % 300}"]
"""


def test_a_list_has_each_name_once(unique: str, start: Callable[..., Any]) -> None:
    """Names that are there all the while are listed once each, while they are replaced and others come and go."""
    with sr.create(unique, size="8 MiB", backend="shm") as region:
        names = {f"n{k}" for k in range(20)}
        for name in names:
            region[name] = np.zeros(8)
        writer = start(BUSY, unique)
        for _ in range(3000):
            found = [name for name in region if name.startswith("n")]
            assert len(found) == 20 and set(found) == names
        writer.kill()
        writer.wait()


POPS = """
import sys, sharedregion as sr
region = sr.attach(sys.argv[1], writable=True)
print("there", flush=True)
got = []
while True:
    job = region.pop("job", None)
    if job is None: continue
    if job[0] < 0: break
    got.append(int(job[0]))
print(*got)
"""


def test_pop_gives_each_object_to_one(unique: str, start: Callable[..., Any]) -> None:
    """Of several who pop a name, each object goes to exactly one."""
    jobs = 3000
    with sr.create(unique, size="1 MiB", backend="shm") as region:
        consumers = [start(POPS, unique) for _ in range(3)]

        def give(number: int) -> None:
            while "job" in region:
                pass
            region["job"] = np.array([number])

        for number in range(jobs):
            give(number)
        got: list[int] = []
        for _ in consumers:
            give(-1)
        for consumer in consumers:
            got += map(int, consumer.communicate(timeout=100)[0].split())
        assert sorted(got) == list(range(jobs))


def test_fork_without_a_descriptor(unique: str, run: Sent) -> None:
    """A child that is forked when no descriptor is left looks at what it inherited, and nothing else."""
    code = """
import os, resource, sys, numpy as np, sharedregion as sr
region = sr.create(sys.argv[1], size="1200 KiB", backend="shm")
region["x"] = np.full(200_000, 7, "u1")
x = region["x"]
(here, there), count = os.pipe(), int(sys.argv[2])
free = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
names = os.listdir("/proc/self/fd")
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
if count > 3:
    # Nor one of ours that could be given up for it.
    for name in names:
        try: mine = "/dev/shm" in os.readlink(f"/proc/self/fd/{name}")
        except OSError: continue
        if mine: os.dup2(free[0], int(name))
child = os.fork()
if child == 0:
    os.close(there)
    os.read(here, 1)
    print(set(x.tolist()), region.closed, flush=True)
    os._exit(0)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
del x, region["x"]
for k in range(8): region[f"y{k % 3}"] = np.full(200_000, 100 + k, "u1")
os.write(there, b"x")
os.waitpid(child, 0)
"""
    assert run(code, f"{unique}a", "3") == "{7} False\n"
    assert run(code, f"{unique}b", "4") == "{7} True\n"


def test_seal_reaches_the_kernel(unique: str, run: Sent) -> None:
    """Nobody can map sealed memory without a name for writing, or give pages of it back; readers still come."""
    region = sr.Region._create(
        name=unique, size=1 << 20, backend="shm", place="memfd", mode=0o600, persist=False, replace=False,
        commit_all=False, reason="a test asked for it", keeper=sr.opening._KEEPER,
    )._settle_in(None)  # fmt: skip
    with region:
        region["x"] = np.arange(1000)
        del region["x"]
        region["y"] = 1
        region.seal()
        assert region.trim() == 0
        with sr.attach(unique) as reader:
            assert reader["y"] == 1
        device, inode = region._head()["files"][:2]
        for name in os.listdir("/proc/self/fd"):
            try:
                info = os.stat(f"/proc/self/fd/{name}")
            except OSError:
                continue
            if (info.st_dev, info.st_ino) == (device, inode):
                with pytest.raises(PermissionError):
                    mmap.mmap(int(name), 4096)
                break
        else:
            pytest.fail("a writer has no descriptor of its memory")
