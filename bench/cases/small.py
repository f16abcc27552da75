"""Small things: what one get, and one put with its delete, takes. Timed by pyperf, each subject in processes of its own.

LMDB runs with sync off and a writable map, which is the fastest that it has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sharedregion.bench.cases.report import say

Body = Callable[[int], float]


@contextmanager
def _region() -> Iterator[Any]:
    import sharedregion as sr

    with sr.create(size="64 MiB", backend="thp") as region:
        yield region


@contextmanager
def _lmdb() -> Iterator[Any]:
    import lmdb

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield lmdb.open(folder, map_size=64 << 20, sync=False, metasync=False, writemap=True, map_async=True)


SMALL = np.arange(8.0)


@contextmanager
def get_sharedregion() -> Iterator[Body]:
    """region["x"]: an ndarray that holds its block."""
    with _region() as region:
        region["x"] = SMALL

        def body(loops: int) -> float:
            started = time.perf_counter()
            for _ in range(loops):
                region["x"]
            return time.perf_counter() - started

        yield body


@contextmanager
def get_lmdb() -> Iterator[Body]:
    """A read transaction, get and numpy.frombuffer: without a hold on the bytes once it ends."""
    with _lmdb() as env:
        with env.begin(write=True) as transaction:
            transaction.put(b"x", SMALL.tobytes())

        def body(loops: int) -> float:
            started = time.perf_counter()
            for _ in range(loops):
                with env.begin(buffers=True) as transaction:
                    np.frombuffer(transaction.get(b"x"))
            return time.perf_counter() - started

        yield body


@contextmanager
def get_shared_memory() -> Iterator[Body]:
    """multiprocessing.shared_memory: attach to a block by name and close it."""
    from multiprocessing.shared_memory import SharedMemory

    memory = SharedMemory(create=True, size=4096)

    def body(loops: int) -> float:
        started = time.perf_counter()
        for _ in range(loops):
            again = SharedMemory(memory.name)
            again.close()
        return time.perf_counter() - started

    yield body
    memory.close()
    memory.unlink()


@contextmanager
def put_delete_sharedregion() -> Iterator[Body]:
    """Publish and withdraw, seen by every process at once."""
    with _region() as region:

        def body(loops: int) -> float:
            started = time.perf_counter()
            for _ in range(loops):
                region["x"] = SMALL
                del region["x"]
            return time.perf_counter() - started

        yield body


@contextmanager
def put_delete_lmdb() -> Iterator[Body]:
    """Two transactions, as two changes that others see."""
    with _lmdb() as env:

        def body(loops: int) -> float:
            data = SMALL.data
            started = time.perf_counter()
            for _ in range(loops):
                with env.begin(write=True) as transaction:
                    transaction.put(b"x", data)
                with env.begin(write=True) as transaction:
                    transaction.delete(b"x")
            return time.perf_counter() - started

        yield body


SUBJECTS = [get_sharedregion, get_lmdb, get_shared_memory, put_delete_sharedregion, put_delete_lmdb]


def worker() -> None:
    """What pyperf runs in its own processes."""
    import pyperf

    runner = pyperf.Runner(
        processes=5, values=5, warmups=2, program_args=["-m", "sharedregion.bench.cases.small", "run"]
    )
    runner.argparser.add_argument("subject")
    runner.argparser.add_argument("mode", nargs="?")
    arguments = runner.parse_args()
    subject = next(s for s in SUBJECTS if s.__name__ == os.environ["SHAREDREGION_BENCH_SUBJECT"])
    del arguments
    with subject() as body:
        runner.bench_time_func(subject.__name__, body)


def main() -> None:
    """Each subject through pyperf; median and standard deviation in microseconds."""
    import pyperf

    for subject in SUBJECTS:
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "out.json")
            environment = dict(os.environ, SHAREDREGION_BENCH_SUBJECT=subject.__name__)
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "sharedregion.bench.cases.small",
                    "run",
                    "--quiet",
                    "--inherit-environ=SHAREDREGION_BENCH_SUBJECT,PYTHONSAFEPATH",
                    "-o",
                    out,
                ],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                raise SystemExit(done.returncode)
            result = pyperf.Benchmark.load(out)
            say(subject.__name__, result.median() * 1e6, f"us, standard deviation {result.stdev() * 1e6:.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        worker()
    else:
        main()
