"""Threads of one process: they share a region's handle, and long work lets others run."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import sharedregion as sr
from sharedregion import _native


def test_put_get_delete_in_threads(unique: str) -> None:
    """Threads that put, get and delete the same names see whole objects, and leave nothing behind."""
    names = [f"n{k}" for k in range(4)]
    seen: list[BaseException] = []

    def work(seed: int) -> int:
        random = np.random.default_rng(seed)
        got = 0
        for k in range(400):
            name = names[int(random.integers(len(names)))]
            try:
                match int(random.integers(4)):
                    case 0:
                        region[name] = np.full(int(random.integers(1, 3000)), seed * 1000 + k)
                    case 1:
                        del region[name]
                    case _:
                        array = region[name]
                        assert (array == array[0]).all()
                        got += 1
            except sr.ObjectNotFound:
                continue
            except BaseException as error:
                seen.append(error)
                raise
        return got

    with sr.create(unique, size="8 MiB", backend="shm") as region:
        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(work, range(6))) > 0
        assert not seen
        region._check()
        for name in list(region):
            del region[name]
        region._sweep()
        stats = region.stats()
        assert (stats.used, stats.withdrawn, stats.unfinished) == (0, 0, 0)


def test_close_beside_other_threads(unique: str) -> None:
    """close() while others are at work: they get RegionClosed, and what they hold stays valid."""
    for _ in range(20):
        region = sr.create(unique, size="4 MiB", backend="shm")
        region["x"] = np.arange(1000)
        started = threading.Barrier(4)
        kept: list[np.ndarray] = []
        ends: list[str] = []

        def work(region: sr.Region = region, started: threading.Barrier = started) -> None:
            started.wait()
            try:
                for k in range(100_000):
                    kept.append(region["x"])  # noqa: B023  of this round
                    region[f"y{k % 3}"] = np.arange(k % 2000)
                    del kept[:-3]  # noqa: B023
            except sr.RegionClosed:
                ends.append("closed")  # noqa: B023

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        started.wait()
        region.close()
        for thread in threads:
            thread.join()
        assert ends == ["closed"] * 3
        assert all(x.sum() == 499_500 for x in kept)
        kept.clear()


def test_a_large_put_lets_others_run(unique: str) -> None:
    """The interpreter's lock is released while 1 GiB is placed: other threads go on meanwhile."""
    array = np.ones(1 << 30, "u1")
    begun, counted = threading.Event(), []

    def place() -> None:
        begun.set()
        region["large"] = array
        counted.append(count)

    with sr.create(unique, size="1025 MiB", backend="shm") as region:
        # No switch between threads but where the lock is released.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            count = 0
            thread = threading.Thread(target=place)
            thread.start()
            begun.wait()
            while not counted:
                count += 1
                time.sleep(0)
            thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert counted[0] > 10
        assert region["large"][:: 1 << 20].sum() == 1 << 10


WAITER = """
import sys, sharedregion as sr
region = sr.attach(sys.argv[1])
print("waits", flush=True)
try:
    region.wait("never")
except KeyboardInterrupt:
    print("interrupted", flush=True)
    region["x"]
    print("usable", flush=True)
"""


def test_interrupted_wait(unique: str, start) -> None:
    """Ctrl-C ends wait(), and the region goes on."""
    with sr.create(unique, size="1 MiB", backend="shm") as region:
        region["x"] = 1
        worker: subprocess.Popen[str] = start(WAITER, region.name)
        assert worker.first == "waits"  # type: ignore[attr-defined]
        # Inside the futex, not before it.
        deadline = time.monotonic() + 10
        while "futex" not in _wchan(worker.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        worker.send_signal(signal.SIGINT)
        out, _ = worker.communicate(timeout=60)
        assert out.split() == ["interrupted", "usable"]
        assert worker.returncode == 0


def _wchan(pid: int) -> str:
    with open(f"/proc/{pid}/wchan") as file:
        return file.read() or "futex"


def test_wait_beside_a_put(unique: str) -> None:
    """wait() in one thread is woken by a put of another."""
    with sr.create(unique, size="1 MiB", backend="shm") as region, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(region.wait, "x", 60)
        region["x"] = np.arange(3)
        assert waiting.result() == region.version("x")


PARTNER = """
import sys, sharedregion as sr
name, mine, other, rounds = sys.argv[1:]
region = sr.attach(name, writable=True)
print("there", flush=True)
seen = 0
for n in range(int(rounds)):
    if mine == "first": region[mine] = n
    # With a slice of ten minutes, a wake-up that is lost ends nothing.
    while (version := region._wait(other, seen, 600 * 10**9)) is None: pass
    seen = version
    if mine == "second": region[mine] = n
"""


def test_no_wake_up_is_lost(unique: str, start) -> None:
    """Two processes that answer each other's versions, again and again, never both sleep."""
    with sr.create(unique, size="1 MiB", backend="shm"):
        partners = [
            start(PARTNER, unique, *names, "3000") for names in (("first", "second"), ("second", "first"))
        ]
        for partner in partners:
            assert partner.wait(timeout=120) == 0


def test_nobody_is_woken_where_nobody_waits(unique: str, start) -> None:
    """A put or delete calls the kernel for who sleeps on the name, and only then."""
    with sr.create(unique, size="1 MiB", backend="shm") as region:
        region["never"] = region["x"] = 1
        _native.count_calls()
        region["never"] = region["x"] = 2
        assert "futex_wake" not in _native.calls()
        _native.fail_none()
        worker = start(WAITER.replace('"never"', '"never", newer_than=1 << 40'), region.name)
        while "futex" not in _wchan(worker.pid):
            time.sleep(0.01)
        _native.count_calls()
        region["never"] = 3
        assert _native.calls()["futex_wake"] == 1
        _native.fail_none()
        worker.kill()
        worker.wait()


def test_threads_and_fork(unique: str) -> None:
    """A child forked while threads are at work has a region that works."""
    with sr.create(unique, size="8 MiB", backend="shm") as region:
        region["x"] = np.arange(100)
        over = threading.Event()

        def work(name: str) -> None:
            while not over.is_set():
                region[name] = np.arange(500)
                region[name].sum()

        threads = [threading.Thread(target=work, args=(f"t{k}",)) for k in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                pid = os.fork()
                if pid == 0:
                    good = region["x"].sum() == 4950
                    region[f"child {os.getpid()}"] = 1
                    os._exit(0 if good else 1)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                del region[f"child {pid}"]
        finally:
            over.set()
            for thread in threads:
                thread.join()
        region._check()
        with pytest.raises(sr.ObjectNotFound):
            region[f"child {pid}"]
