"""Page tables of a worker: against the size of what it reads, and against the number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from sharedregion import _story
from sharedregion._guardian import Guardian
from sharedregion._sizes import format_size
from sharedregion.bench import placed
from sharedregion.bench.case import GIB, MIB, OURS, Case, Job, Lines, Metric, Sample, Setting
from sharedregion.bench.crew import crew
from sharedregion.bench.ours import subject

FEW = 4
#: The size at which the number of workers is varied: its tables stand out, and 256 workers read it within seconds.
MIDDLE = 256 * MIB


def plan(setting: Setting) -> list[Job]:
    """Sizes with few workers, then more workers with one size, then sizes that no machine has."""
    if setting.quick:
        return [_dense(name, setting, setting.small or 64 * MIB, 2) for name in placed.subjects(setting)]
    # The largest power of two that leaves a quarter of the memory free.
    largest = 1 << (max(setting.memory * 3 // 4, GIB).bit_length() - 1)
    most = setting.small or min(16 * GIB, largest)
    wanted = [(size, FEW) for size in (64 * MIB, GIB, 4 * GIB, 16 * GIB)]
    wanted += [(MIDDLE, workers) for workers in (1, FEW, 32, 256)]
    chosen = dict.fromkeys((min(size, most), workers) for size, workers in wanted)
    jobs = [
        _dense(name, setting, size, workers) for size, workers in chosen for name in placed.subjects(setting)
    ]
    for size in () if setting.small else (64 * GIB, 512 * GIB):
        jobs += [_sparse(name, setting, size) for name in placed.subjects(setting)]
    return jobs


def _dense(name: str, setting: Setting, size: int, workers: int) -> Job:
    made = placed.job(CASE.name, name, setting, size, workers)
    cannot = None
    if name == "ray" and workers > 32:
        cannot = f"each worker is a driver of its own, of 100 MB: {workers} do not start here"
    if name == "queue" and workers > FEW:
        cannot = "each worker gets a copy through a pipe: more of them take longer, and say nothing new"
    return replace(made, cannot=made.cannot or cannot)


def _sparse(name: str, setting: Setting, size: int) -> Job:
    """A page here and there: what reaches beyond the machine's memory."""
    workers = FEW
    made = placed.job(CASE.name, name, setting, size, workers, data="sparse")
    large = name in ("msharefs", "hugetlb-2m", "thp")
    cannot = made.cannot
    if name == "hugetlb-1g":
        cannot = cannot or "a page of 1 GiB cannot be sparse"
    elif name not in OURS and not subject(name).sparse:
        cannot = f"it writes all of the data; {format_size(size)} are more than this machine has"
    data = size // GIB * 2 * MIB if large else size // 512
    pool = (2 * MIB, size // GIB) if name == "hugetlb-2m" else None
    return replace(
        made,
        memory=(0 if pool else data) + (0 if large else size // 512 * workers) + 256 * MIB,
        pool=pool,
        seconds=1 + size / GIB * (0.005 if large else 0.004 * workers),
        cannot=cannot,
    )


def _story_like(job: Job) -> Iterator[Sample]:
    """Ours, sparse: a segment by itself, as in the story. Workers are forked by its maker."""

    def look(pids: Sequence[int]) -> dict[str, float]:
        import sharedregion as sr

        found = sr.footprint(*pids)
        return {
            "private": median(one.private_bytes for one in found.processes),
            "proportional": median(one.proportional_bytes for one in found.processes),
            "linked": median(one.linked_bytes for one in found.processes),
            "estimated": float(found.estimate),
            "large": placed.in_large_pages(pids),
        }

    workers = int(job.params["workers"])
    made = _story.Plan(int(job.params["size"]), workers, None)
    guardian = Guardian()
    try:
        step = 2 * MIB if job.subject == "shm" else GIB
        idle, full = _story.linked_side(guardian, made, job.subject, step=step, look=look)
    finally:
        guardian.undo()
    for metric in ("private", "proportional", "linked"):
        yield metric, full.seen[metric] - idle.seen[metric]
    yield "growth", (full.page_tables - idle.page_tables) / workers
    yield "estimated", full.seen["estimated"]
    if job.subject == "thp":
        yield "large", full.seen["large"]


def measure(job: Job) -> Iterator[Sample]:
    """One size, one number of workers."""
    if job.params.get("data") == "sparse":
        if job.subject in OURS:
            yield from _story_like(job)
            return
        with (
            placed.held(job, placed.sparsely(2 * MIB)) as ticket,
            crew(job.subject, int(job.params["workers"]) + 1) as team,
        ):
            yield from placed.costs(job, ticket, team, step=2 * MIB)
        return
    with placed.held(job) as ticket, crew(job.subject, int(job.params["workers"]) + 1) as team:
        yield from placed.costs(job, ticket, team)


CASE = Case(
    name="footprint",
    title="page tables of a worker that reads all of it",
    plan=plan,
    measure=measure,
    metrics={
        "private": Metric("B", "its own"),
        "proportional": Metric("B", "its share"),
        "linked": Metric("B", "that it reaches"),
        "growth": Metric("B", "PageTables"),
        "estimated": Metric("", "estimates"),
        "large": Metric("B", "mapped by 2 MiB"),
        "first": Metric("s", "first pass"),
    },
    charts=(
        Lines(
            "private",
            "size",
            "Page tables of one more worker, over the size of what it reads",
            {"workers": FEW},
        ),
        Lines(
            "private",
            "workers",
            "Page tables of one more worker that reads {size}, over the number of workers",
            {"size": MIDDLE},
        ),
    ),
    notes=(
        "Median worker beyond an idle worker of the same program, each against itself before it attached.",
        (
            "Tables of its own, its share of those that others reach too, and all that it reaches come from the page tables "
            "themselves (the helper). PageTables is what the kernel's count for the whole machine grew by for each worker; "
            "other programs move it too."
        ),
        (
            "Mapped by 2 MiB: what of thp the kernel could put into large pages, by its own count. Each 2 MiB that it could not "
            "take a table of 4 KiB in each worker. Sparse data has 2 MiB in each GiB."
        ),
    ),
)
