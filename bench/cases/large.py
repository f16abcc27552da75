"""One large array: into fresh memory, and into memory that was there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from sharedregion.bench.case import GIB, MIB, MOST, Bars, Case, Job, Metric, Sample, Setting


def plan(setting: Setting) -> list[Job]:
    """All of them once in each process, several times over, in turn: they are compared as ratios."""
    size = min(64 * MIB if setting.quick else GIB, setting.small or GIB)
    return [
        Job(
            CASE.name,
            subject,
            {"size": size},
            rounds=1 if setting.quick else 5,
            memory=3 * size + 256 * MIB,
            seconds=0.5 + 2.5 * size / GIB,
        )
        for subject in SUBJECTS
    ]


def _standard(source: Any, prefix: str) -> Iterator[Sample]:
    started = time.perf_counter()
    memory = SharedMemory(f"{prefix}large", create=True, size=source.nbytes)
    array = np.ndarray(source.nbytes, "u1", memory.buf)
    array[:] = source
    yield "fresh", source.nbytes / (time.perf_counter() - started)
    started = time.perf_counter()
    array[:] = source
    yield "warm", source.nbytes / (time.perf_counter() - started)
    del array
    memory.close()
    memory.unlink()


def _region(source: Any, prefix: str) -> Iterator[Sample]:
    import sharedregion as sr

    started = time.perf_counter()
    with sr.create(f"{prefix}large", size=source.nbytes + 4 * MIB, backend="thp") as region:
        region["x"] = source
        yield "fresh", source.nbytes / (time.perf_counter() - started)
        del region["x"]
        started = time.perf_counter()
        region["x"] = source
        yield "warm", source.nbytes / (time.perf_counter() - started)


def _memcpy(source: Any, prefix: str) -> Iterator[Sample]:
    target = np.empty(source.nbytes, "u1")
    started = time.perf_counter()
    target[:] = source
    yield "fresh", source.nbytes / (time.perf_counter() - started)
    started = time.perf_counter()
    target[:] = source
    yield "warm", source.nbytes / (time.perf_counter() - started)


SUBJECTS: dict[str, Callable[[Any, str], Iterator[Sample]]] = {
    "put into a region (thp)": _region,
    "fill shared_memory": _standard,
    "copy into private memory": _memcpy,
}


def measure(job: Job) -> Iterator[Sample]:
    """Bytes a second, from the call that makes the memory to the last byte."""
    size = int(job.params["size"])
    source = np.ones(size, "u1")
    # Last, so that what follows is most likely to be given memory that the host machine has backed.
    np.ones(2 * size, "u1")
    yield from SUBJECTS[job.subject](source, job.prefix)


CASE = Case(
    name="large",
    title="one large array, placed",
    plan=plan,
    measure=measure,
    metrics={
        "fresh": Metric("B/s", "fresh memory", more=True),
        "warm": Metric("B/s", "warm memory", more=True),
    },
    charts=(
        Bars("fresh", "Placing {size} in fresh memory", {"size": MOST}),
        Bars("warm", "Placing {size} in memory that was there", {"size": MOST}),
    ),
    notes=(
        "Fresh: making the memory counts. As much memory was touched and freed just before, and the subjects take turns.",
    ),
)
