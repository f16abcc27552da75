"""Arrow: a table that workers read, sent to each, mapped from a file, or in a region."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from sharedregion.bench import workers
from sharedregion.bench.case import MIB, Case, Job, Sample, Setting

_SENT, _MAPPED, _REGION = "sent to each", "memory_map", "region"

_table: Any = None


def plan(setting: Setting) -> list[Job]:
    """256 MiB of columns to four forked workers."""
    return workers.jobs(
        CASE.name, (_SENT, _MAPPED, _REGION), setting, ("pyarrow",), size=256 * MIB, workers=4, seconds=5
    )


def _open(subject: str, what: Any) -> None:
    global _table
    if subject == _SENT:
        _table = what
    elif subject == _MAPPED:
        import pyarrow as pa

        _table = pa.ipc.open_stream(pa.memory_map(what)).read_all()
    else:
        import sharedregion as sr

        _table = sr.attach(what)["table"]


def _work(_: int) -> tuple[int, float]:
    return os.getpid(), float(sum(column.to_numpy()[::512].sum() for column in _table.columns))


def measure(job: Job) -> Iterator[Sample]:
    """Workers open the table when they start, and read all of it with each task."""
    import numpy as np
    import pyarrow as pa

    import sharedregion as sr

    count, rows = int(job.params["workers"]), int(job.params["size"]) // 32
    table = pa.table({name: np.arange(rows, dtype="f8") for name in "abcd"})
    total = 4.0 * float(np.arange(rows, dtype="f8")[::512].sum())
    region = None
    what: Any = table
    if job.subject == _MAPPED:
        what = f"{job.folder}/table"
        with pa.OSFile(what, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    elif job.subject == _REGION:
        what = f"{job.prefix}table"
        region = sr.create(what, size=table.nbytes + MIB)
        region["table"] = table
    started = time.perf_counter()
    context = get_context("spawn")
    pids: set[int] = set()
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=_open, initargs=(job.subject, what)
    ) as pool:
        while len(pids) < count:
            for pid, found in pool.map(_work, range(count)):
                assert found == total
                pids.add(pid)
        yield "start", time.perf_counter() - started
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < workers.busy(job, 2):
            done += len(list(pool.map(_work, range(4 * count))))
        yield "rate", done / (time.perf_counter() - started)
        yield from workers.costs(sorted(pids))
    if region is not None:
        region.close()


CASE = Case(
    name="columns",
    title="an Arrow table that workers read",
    plan=plan,
    measure=measure,
    metrics=workers.METRICS,
    charts=workers.bars("Arrow"),
    notes=("A task reads one number of every 4 KiB of each column.",),
)
