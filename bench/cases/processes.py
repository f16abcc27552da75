"""multiprocessing: an array as the argument of every task, pickled or by reference."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from sharedregion.bench import workers
from sharedregion.bench.case import MIB, Case, Job, Sample, Setting

_PICKLED, _BLOCKS, _REGION = "pickled", "SharedMemory", "sr.share"


def plan(setting: Setting) -> list[Job]:
    """256 MiB to four spawned workers."""
    subjects = (_PICKLED, _BLOCKS, _REGION)
    return workers.jobs(CASE.name, subjects, setting, (), size=256 * MIB, workers=4, seconds=6)


_held: Any = None


def _work(array: Any) -> tuple[int, float]:
    # The array of the last task is kept, so that a look finds a worker as it is while it works.
    global _held
    _held = array
    return os.getpid(), float(array[::512].sum())


_block: SharedMemory | None = None


def _work_in_block(name: str, count: int) -> tuple[int, float]:
    global _block
    if _block is None:
        _block = SharedMemory(name)
    return _work(np.ndarray(count, "f8", _block.buf))


def measure(job: Job) -> Iterator[Sample]:
    """A pool, a first round of tasks, and then tasks for some seconds."""
    import sharedregion as sr

    array = np.ones(int(job.params["size"]) // 8)
    total, count = float(array[::512].sum()), int(job.params["workers"])
    block = None
    started = time.perf_counter()
    task: tuple[Any, ...]
    if job.subject == _REGION:
        task = (_work, sr.share(array))
    elif job.subject == _BLOCKS:
        block = SharedMemory(create=True, size=array.nbytes)
        np.ndarray(array.size, "f8", block.buf)[:] = array
        task = (_work_in_block, block.name, array.size)
    else:
        task = (_work, array)
    try:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            pids: set[int] = set()
            while len(pids) < count:
                for pid, found in [f.result() for f in [pool.submit(*task) for _ in range(count)]]:
                    assert found == total
                    pids.add(pid)
            yield "start", time.perf_counter() - started
            started, done = time.perf_counter(), 0
            while time.perf_counter() - started < workers.busy(job, 2):
                done += len([f.result() for f in [pool.submit(*task) for _ in range(2 * count)]])
            yield "rate", done / (time.perf_counter() - started)
            yield from workers.costs(sorted(pids))
    finally:
        if block is not None:
            block.close()
            block.unlink()


CASE = Case(
    name="processes",
    title="ProcessPoolExecutor: an array with every task",
    plan=plan,
    measure=measure,
    metrics=workers.METRICS,
    charts=workers.bars("ProcessPoolExecutor"),
    notes=("A task reads one number of every 4 KiB.", "SharedMemory is attached to once in each worker."),
)
