"""Small things: what one get, one put with its delete, and one replacement take. Timed by pyperf, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from sharedregion.bench.against import Store, Values
from sharedregion.bench.case import MIB, Bars, Case, Job, Metric, Sample, Setting
from sharedregion.bench.ours import subject, unusable_reason

#: What pyperf calls: the seconds that so many loops took.
Body = Callable[[int], float]

OPERATIONS = {
    "get": "get of a small array",
    "put-delete": "put and delete of a small array",
    "replace": "replacing a small array",
}
OURS = ("thp",)
SMALL: Values = np.arange(8.0)
_VARIABLE = "SHAREDREGION_BENCH_BODY"


def plan(setting: Setting) -> list[Job]:
    """Each operation, of our memory and of every peer that keeps objects."""
    lacking = (
        None if find_spec("pyperf") else "it is timed by pyperf, which is not installed: pip install pyperf"
    )
    return [
        Job(
            CASE.name,
            name,
            {"operation": operation},
            rounds=1,
            seconds=0.6 if setting.quick else 3,
            cannot=lacking or (unusable_reason(name, setting) if name in OURS else None),
        )
        for operation in list(OPERATIONS)[: 2 if setting.quick else None]
        for name in [*OURS, *setting.peers]
    ]


def measure(job: Job) -> Iterator[Sample]:
    """pyperf starts this file anew, several times; its median, and the standard deviation of its values."""
    import pyperf

    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        out = os.path.join(folder, "out.json")
        words = f"{job.subject} {job.params['operation']} {job.prefix} {folder}"
        # A number of loops that is given needs no process that finds one.
        few = ["--processes=1", "--values=3", "--loops=1000", "--warmups=0"]
        many = ["--processes=2", "--values=4", "--min-time=0.1", "--warmups=1"]
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "sharedregion.bench.cases.objects",
                "--quiet",
                *(few if job.quick or job.subject == "ray" else many),
                f"--inherit-environ={_VARIABLE},PYTHONSAFEPATH,SHAREDREGION_BENCH_RUN",
                "-o",
                out,
            ],
            env={**os.environ, _VARIABLE: words},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pyperf failed"
            )
        found = pyperf.Benchmark.load(out)
        yield "seconds", found.median()
        yield "low", min(found.get_values())
        yield "high", max(found.get_values())


# ---- In pyperf's processes ----------------------------------------------------------------------


def _loop(what: Callable[[], object]) -> Body:
    def body(loops: int) -> float:
        started = time.perf_counter()
        for _ in range(loops):
            what()
        return time.perf_counter() - started

    return body


def _get_region(name: str, where: tuple[str, str]) -> Iterator[Body]:
    """An ndarray that holds its block, as a reader writes it."""
    import sharedregion as sr

    with sr.create(f"{where[0]}objects", size="64 MiB", backend=name) as region:
        region["x"] = SMALL

        def body(loops: int) -> float:
            started = time.perf_counter()
            for _ in range(loops):
                region["x"]
            return time.perf_counter() - started

        yield body


def _put_delete_region(name: str, where: tuple[str, str]) -> Iterator[Body]:
    """Publish and withdraw, seen by every process at once."""
    import sharedregion as sr

    with sr.create(f"{where[0]}objects", size="64 MiB", backend=name) as region:

        def body(loops: int) -> float:
            started = time.perf_counter()
            for _ in range(loops):
                region["x"] = SMALL
                del region["x"]
            return time.perf_counter() - started

        yield body


def _get_lmdb(name: str, where: tuple[str, str]) -> Iterator[Body]:
    """A read transaction, get and numpy.frombuffer: without a hold on the bytes once it ends."""
    import lmdb

    with lmdb.open(
        where[1], map_size=64 << 20, sync=False, metasync=False, writemap=True, map_async=True
    ) as env:
        with env.begin(write=True) as transaction:
            transaction.put(b"x", SMALL.tobytes())

        def body(loops: int) -> float:
            started = time.perf_counter()
            for _ in range(loops):
                with env.begin(buffers=True) as transaction:
                    np.frombuffer(transaction.get(b"x"))
            return time.perf_counter() - started

        yield body


def _put_delete_lmdb(name: str, where: tuple[str, str]) -> Iterator[Body]:
    """Two transactions, as two changes that others see."""
    import lmdb

    with lmdb.open(
        where[1], map_size=64 << 20, sync=False, metasync=False, writemap=True, map_async=True
    ) as env:

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


def _get_shared_memory(name: str, where: tuple[str, str]) -> Iterator[Body]:
    """Attach to a block by name and close it."""
    from multiprocessing.shared_memory import SharedMemory

    memory = SharedMemory(f"{where[0]}objects", create=True, size=4096)
    try:
        yield _loop(lambda: SharedMemory(memory.name).close())
    finally:
        memory.close()
        memory.unlink()


def _stored(name: str, operation: str, where: tuple[str, str]) -> Iterator[Body]:
    """Through the store that all peers have in common; its get reads one number, too."""
    peer = subject(name)
    assert peer.store is not None
    with peer.store(64 * MIB, where) as store:
        store.put("x", SMALL)
        yield _loop(_operation(store, operation))


def _operation(store: Store, operation: str) -> Callable[[], object]:
    if operation == "get":
        return lambda: store.look("x")
    if operation == "replace":
        return lambda: store.put("x", SMALL)

    def both() -> None:
        store.put("y", SMALL)
        store.delete("y")

    return both


#: Where the common store would add what a user does not pay, these are written out.
_EXACT: dict[tuple[str, str], Any] = {
    **{(name, "get"): _get_region for name in OURS},
    **{(name, "put-delete"): _put_delete_region for name in OURS},
    ("lmdb", "get"): _get_lmdb,
    ("lmdb", "put-delete"): _put_delete_lmdb,
    ("shared_memory", "get"): _get_shared_memory,
}


def _worker() -> None:
    """What pyperf runs in its own processes."""
    import pyperf

    runner = pyperf.Runner(program_args=["-P", "-m", "sharedregion.bench.cases.objects"])
    runner.parse_args()
    name, operation, prefix, folder = os.environ[_VARIABLE].split()
    where = (f"{prefix}{os.getpid()}-", folder)
    exact = _EXACT.get((name, operation))

    with contextmanager(
        lambda: exact(name, where) if exact is not None else _stored(name, operation, where)
    )() as body:
        runner.bench_time_func(f"{operation} {name}", body)


CASE = Case(
    name="objects",
    title="one small array, by name",
    plan=plan,
    measure=measure,
    metrics={
        "seconds": Metric("s", "time"),
        "low": Metric("s", "least"),
        "high": Metric("s", "most"),
    },
    charts=tuple(
        Bars("seconds", words[0].upper() + words[1:], {"operation": operation}, log=True)
        for operation, words in OPERATIONS.items()
    ),
    notes=(
        (
            "64 bytes; medians by pyperf. shared_memory, mmap, SharedArray, Arrow and joblib have a file for each object, which "
            "get opens, maps and lets go of."
        ),
    ),
)


if __name__ == "__main__":
    _worker()
