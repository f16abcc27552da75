"""Page tables of a worker: against the size of what it reads, and against the number of workers."""

from __future__ import annotations

from collections.abc import Iterator

from sharedregion.bench import placed
from sharedregion.bench.case import GIB, MIB, Case, Job, Lines, Metric, Sample, Setting
from sharedregion.bench.crew import crew


def plan(setting: Setting) -> list[Job]:
    """Sizes with few workers, then workers with one size."""
    if setting.quick:
        sizes, counts, size = (setting.small or 256 * MIB,), (), 0
    else:
        sizes = tuple(n for n in (64 * MIB, 256 * MIB, GIB, 4 * GIB, 16 * GIB) if n <= (setting.small or n))
        counts, size = (1, 4, 16, 64, 256), min(GIB, setting.small or GIB)
    few = 2 if setting.quick else 4
    jobs = [
        placed.job(CASE.name, name, setting, each, few, over="size")
        for each in sizes
        for name in placed.subjects(setting)
    ]
    for count in counts:
        jobs += [
            placed.job(CASE.name, name, setting, size, count, over="workers")
            for name in placed.subjects(setting)
        ]
    return jobs


def measure(job: Job) -> Iterator[Sample]:
    """One size, one number of workers."""
    with placed.held(job) as ticket, crew(job.subject, int(job.params["workers"]) + 1) as team:
        yield from placed.costs(job, ticket, team)


CASE = Case(
    name="footprint",
    title="page tables of a worker that reads all of it",
    plan=plan,
    measure=measure,
    metrics={
        "private": Metric("B", "tables of its own"),
        "proportional": Metric("B", "its share of all tables"),
        "linked": Metric("B", "tables that it reaches"),
        "growth": Metric("B", "PageTables, for each worker"),
        "estimated": Metric("", "figures are estimates"),
        "first": Metric("s", "attach and first pass"),
    },
    charts=(
        Lines(
            "private",
            "size",
            "Page tables of one more worker, over the size of what it reads",
            {"over": "size"},
        ),
        Lines(
            "private",
            "workers",
            "Page tables of one more worker, over the number of workers",
            {"over": "workers"},
        ),
    ),
    notes=(
        "Median worker beyond an idle worker of the same program, each against itself before it attached.",
        (
            "The first three come from the page tables themselves (the helper); PageTables is the kernel's count for the "
            "whole machine, which other programs move too."
        ),
    ),
)
