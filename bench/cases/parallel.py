"""joblib's Parallel: a large array with every task, by temporary file or by region."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from sharedregion.bench import workers
from sharedregion.bench.case import MIB, Case, Job, Sample, Setting

_FILES, _REGION = "loky, temporary files", "sharedregion"


def plan(setting: Setting) -> list[Job]:
    """512 MiB to four workers."""
    return workers.jobs(
        CASE.name, (_FILES, _REGION), setting, ("joblib",), size=512 * MIB, workers=4, seconds=8
    )


_held: Any = None


def _work(array: Any, _: int) -> tuple[int, float]:
    # The array of the last task is kept, so that a look finds a worker as it is while it works.
    global _held
    _held = array
    return os.getpid(), float(array[::512].sum())


def measure(job: Job) -> Iterator[Sample]:
    """The first call, in which workers are started and the array is placed, and then calls for some seconds."""
    import joblib
    from joblib.externals.loky import get_reusable_executor

    import sharedregion.integrations.joblib  # noqa: F401 - it registers the backend

    array = np.ones(int(job.params["size"]) // 8)
    total, count = float(array[::512].sum()), int(job.params["workers"])
    backend = "sharedregion" if job.subject == _REGION else "loky"
    pids: set[int] = set()
    try:
        with joblib.parallel_config(backend=backend, n_jobs=count), joblib.Parallel(batch_size=1) as parallel:
            started, done = time.perf_counter(), 0
            while len(pids) < count or time.perf_counter() - started < workers.busy(job, 3):
                found = parallel(joblib.delayed(_work)(array, n) for n in range(4 * count))
                assert all(value == total for _, value in found)
                pids |= {pid for pid, _ in found}
                if not done:
                    yield "start", time.perf_counter() - started
                done += len(found)
            yield "rate", done / (time.perf_counter() - started)
            yield from workers.costs(sorted(pids))
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


CASE = Case(
    name="parallel",
    title="joblib.Parallel: an array with every task",
    plan=plan,
    measure=measure,
    metrics=workers.METRICS,
    charts=workers.bars("joblib.Parallel"),
    notes=(
        "A task reads one number of every 4 KiB.",
        "The start has the writing of the file, or the placing, in it.",
    ),
)
