"""What several cases share: one subject holds bytes, workers attach to them, and someone looks."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from sharedregion._kernel import procfs
from sharedregion.bench.against import Bytes, Fill
from sharedregion.bench.case import GIB, MIB, OURS, Job, Sample, Setting
from sharedregion.bench.crew import Crew
from sharedregion.bench.ours import pages, subject, unusable_reason

__all__ = ["costs", "every_page", "held", "in_large_pages", "job", "sparsely", "subjects"]


def every_page(memory: Bytes) -> None:
    """Something in each page, so that all of them are there; what it is does not matter to page tables."""
    memory[::4096] = 1


def sparsely(step: int) -> Fill:
    """One page in each `step` bytes: all tables that a full mapping has, from little memory."""

    def fill(memory: Bytes) -> None:
        memory[::step] = 1

    return fill


def subjects(setting: Setting) -> list[str]:
    """Our kinds of memory, then the peers."""
    return [*OURS, *setting.peers]


def job(
    case: str,
    name: str,
    setting: Setting,
    size: int,
    workers: int,
    *,
    rounds: int = 1,
    seconds: float = 0,
    **params: Any,
) -> Job:
    """A job that holds `size` bytes and lets so many workers attach."""
    ours = name in OURS
    cannot = unusable_reason(name, setting) if ours else None
    peer = None if ours else subject(name)
    if peer is not None and peer.largest is not None and size > peer.largest[0]:
        cannot = peer.largest[1]
    copies = 1.0 if peer is None else peer.copies + (2 * workers if peer.own_copy else 0)
    pool = pages(name, size) if ours and cannot is None else None
    tables = 0 if name in ("hugetlb-1g", "hugetlb-2m", "msharefs") else size // 512 * workers
    data = 0 if pool else round(size * copies)
    guess = 0.5 + workers * 0.03 + size / GIB * (0.6 * copies + 0.02 * workers) + (peer.slow if peer else 0)
    return Job(
        case=case,
        subject=name,
        params={"size": size, "workers": workers, **params},
        rounds=rounds,
        memory=data + tables + workers * 8 * MIB + 192 * MIB,
        pool=pool,
        seconds=seconds or guess,
        cannot=cannot,
    )


@contextlib.contextmanager
def held(job: Job, fill: Fill = every_page) -> Iterator[Any]:
    """The ticket to `job.params["size"]` bytes that its subject holds."""
    peer = subject(job.subject)
    assert peer.hold is not None
    with peer.hold(int(job.params["size"]), fill, (job.prefix, job.folder)) as ticket:
        yield ticket


def _tables(pids: Sequence[int]) -> dict[int, tuple[int, int, int, bool]]:
    import sharedregion as sr

    found = sr.footprint(*pids)
    return {
        one.pid: (one.private_bytes, one.linked_bytes, one.proportional_bytes, one.estimate)
        for one in found.processes
    }


def in_large_pages(pids: Sequence[int]) -> float:
    """Bytes of shared memory that the median process maps by entries of 2 MiB, by the kernel's count."""

    def one(pid: int) -> int:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return next(
                (int(line.split()[1]) << 10 for line in file if line.startswith("ShmemPmdMapped:")), 0
            )

    return float(statistics.median(one(pid) for pid in pids))


def costs(job: Job, ticket: Any, team: Crew, step: int = 4096) -> Iterator[Sample]:
    """Page tables of workers that have read all of it, beyond one that has not.

    The last worker of the team does everything but attach; each is compared with itself before, since
    address spaces are laid out at random.
    """
    workers = len(team) - 1
    for number in range(len(team)):
        team.ask(number, "idle")
    start, before = _tables(team.pids), procfs.page_tables()
    times = [team.ask(number, "attach", ticket=ticket, step=step, passes=1) for number in range(workers)]
    team.ask(workers, "idle")
    after, end = procfs.page_tables(), _tables(team.pids)

    def grown(number: int, which: int) -> int:
        pid = team.pids[number]
        return end[pid][which] - start[pid][which]

    for which, metric in ((0, "private"), (1, "linked"), (2, "proportional")):
        own = [grown(number, which) - grown(workers, which) for number in range(workers)]
        yield metric, float(statistics.median(own))
    if before is not None and after is not None:
        yield "growth", (after - before) / workers
    yield "estimated", float(any(end[pid][3] for pid in team.pids))
    if job.subject == "thp":
        yield "large", in_large_pages(team.pids[:workers])
    yield "first", float(statistics.median(one["attach"] + one["first"] for one in times))
