"""How long a fresh worker takes to attach and to read everything for the first time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from sharedregion.bench import placed
from sharedregion.bench.case import GIB, MIB, MOST, OURS, Bars, Case, Job, Lines, Metric, Sample, Setting
from sharedregion.bench.crew import crew

WORKERS = 5
#: Peers that take seconds to start.
SLOW = ("ray", "torch")


def plan(setting: Setting) -> list[Job]:
    """Each size; the rounds of all subjects of one size take turns."""
    if setting.quick:
        sizes: tuple[int, ...] = (setting.small or 64 * MIB,)
    else:
        sizes = tuple(n for n in (64 * MIB, 512 * MIB, 2 * GIB) if n <= (setting.small or n))
    few = (*OURS, "shared_memory", "mmap")
    return [
        placed.job(
            CASE.name,
            name,
            setting,
            size,
            2 if setting.quick else WORKERS,
            rounds=(1 if setting.quick else 2 if name in SLOW else 3),
        )
        for size in sizes
        for name in placed.subjects(setting)
        # Over the size, for a line; all peers at the last size.
        if size == sizes[-1] or name in few
    ]


def measure(job: Job) -> Iterator[Sample]:
    """Workers one after the other: on few processors, workers at once would time each other."""
    workers = int(job.params["workers"])
    with placed.held(job) as ticket, crew(job.subject, workers) as team:
        times = [team.ask(number, "attach", ticket=ticket, passes=3) for number in range(workers)]
    yield "attach", statistics.median(one["attach"] for one in times)
    yield "first", statistics.median(one["first"] for one in times)
    # The lesser of two passes without faults is nearer to what the memory takes.
    yield "again", statistics.median(one["again"] for one in times)
    # A first pass cannot take less than a later one; where it seems to, the faults are below the noise.
    yield "beyond", statistics.median(one["attach"] + max(0.0, one["first"] - one["again"]) for one in times)


CASE = Case(
    name="attach",
    title="attach and first pass, in a fresh worker",
    plan=plan,
    measure=measure,
    metrics={
        "beyond": Metric("s", "beyond"),
        "attach": Metric("s", "attach"),
        "first": Metric("s", "first pass"),
        "again": Metric("s", "a later pass"),
    },
    charts=(
        Bars(
            "beyond",
            "Attach and first pass over {size}, beyond a pass with no faults",
            {"size": MOST},
            log=True,
        ),
        Lines("beyond", "size", "Attach and first pass, beyond a pass with no faults, over the size"),
    ),
    notes=(
        "A pass reads one byte of every 4 KiB. beyond: attach and first pass, less a later pass, which meets no faults.",
    ),
)
