"""Reading: at random, where the reach of the TLB and the walk of the tables count, and from end to end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from sharedregion.bench import placed
from sharedregion.bench.against import Bytes
from sharedregion.bench.case import GIB, MIB, MOST, Bars, Case, Job, Metric, Sample, Setting
from sharedregion.bench.crew import crew


def plan(setting: Setting) -> list[Job]:
    """One array, read by as many workers as there are processors, up to four."""
    size = min(64 * MIB if setting.quick else GIB, setting.small or GIB)
    counts = (1 if setting.quick else min(4, setting.processors),)
    return [
        placed.job(
            CASE.name,
            name,
            setting,
            size,
            count,
            rounds=1 if setting.quick else 2,
            seconds=0.6 if setting.quick else 4,
        )
        for count in counts
        for name in placed.subjects(setting)
    ]


def read(memory: Bytes, quick: bool) -> dict[str, float]:
    """In a worker: numbers at random places, then all of them in a row, both after a first pass."""
    flat: Any = memory[: len(memory) // 8 * 8].view(np.uint64)
    flat[::512].sum()
    picks = np.random.default_rng(1).integers(0, len(flat), 1 << (18 if quick else 23))
    out = np.empty(1 << 16, np.uint64)
    started = time.perf_counter()
    for at in range(0, len(picks), len(out)):
        np.take(flat, picks[at : at + len(out)], out=out, mode="clip")
    took = time.perf_counter() - started
    started = time.perf_counter()
    for at in range(0, len(flat), 1 << 20):
        flat[at : at + (1 << 20)].sum()
    return {"read": took / len(picks), "stream": flat.nbytes / (time.perf_counter() - started)}


def measure(job: Job) -> Iterator[Sample]:
    """All workers at the same time."""
    workers = int(job.params["workers"])
    with placed.held(job) as ticket, crew(job.subject, workers) as team:
        for number in range(workers):
            team.ask(number, "attach", ticket=ticket, passes=1)
        found = team.ask_all("call", where="sharedregion.bench.cases.gather:read", quick=job.quick)
    yield "read", sum(one["read"] for one in found) / workers
    yield "stream", sum(one["stream"] for one in found)


CASE = Case(
    name="gather",
    title="random reads, and reading from end to end",
    plan=plan,
    measure=measure,
    metrics={
        "read": Metric("s", "a random read"),
        "stream": Metric("B/s", "end to end, all", more=True),
    },
    charts=(
        Bars("read", "One random read in {size}", {"size": MOST}),
        Bars("stream", "Reading from end to end, all workers", {"size": MOST}),
    ),
    notes=(
        (
            "After a first pass, so that no page fault is in it: what differs is how many entries the TLB needs and how long a "
            "walk of the tables takes. numpy.take of 8 bytes each; from end to end: all workers together."
        ),
    ),
)
