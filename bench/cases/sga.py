"""The story: a 300 GiB region, 1500 clients. With 4 KiB pages its page tables alone were larger than the server.

Page tables are truly built. Data is sparse, as no machine here has 300 GiB: one 2 MiB page in each GiB
where tables hold 2 MiB entries, one 4 KiB page in each 2 MiB where they hold 4 KiB entries. That makes
the kernel build every table that a full region would have. A second run is dense, at a size that the
machine has.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sharedregion import _story
from sharedregion._guardian import Guardian, memory_group
from sharedregion._sizes import format_size
from sharedregion.bench.case import GIB, MIB, MOST, Bars, Case, Job, Metric, Sample, Setting
from sharedregion.bench.ours import unusable_reason
from sharedregion.errors import ToolError

KINDS = ("msharefs", "hugetlb-2m", "thp", "shm")


def _least(made: _story.Plan) -> int:
    return made.small_pages * _story.PAGE + _story.FEW * made.tables_bytes


def _limit(room: int, made: _story.Plan) -> int:
    """Memory for the clients: most of what there is, so that what is killed shows how far it got."""
    return -(-max(_least(made), min(24 * GIB, room * 6 // 10)) // MIB) * MIB


def plan(setting: Setting) -> list[Job]:
    """Full size and sparse; then dense, of a power of two that is a quarter of the memory at most."""
    if setting.quick:
        sparse = _story.Plan(16 * GIB, 40)
        dense = _story.Plan(min(64 * MIB, setting.small or GIB), 8)
    else:
        sparse = _story.Plan(300 * GIB, 1500)
        size = 1 << (max(setting.memory // 4, GIB).bit_length() - 1)
        dense = _story.Plan(min(size, setting.small or size), 64)
    jobs = []
    for made, data in ((sparse, "sparse"), (dense, "dense")):
        limit = 192 * MIB if setting.quick else _limit(setting.memory, made)
        for kind in KINDS:
            taken = made.pool_bytes if data == "sparse" else made.size
            idle = made.clients * MIB
            if kind == "thp":
                taken += made.huge_pages * _story.PAGE * made.clients
            elif kind == "shm" and data == "sparse":
                # Only root can make the limit; without it a few clients are started.
                taken, idle = limit if setting.root else _least(made), 0
            elif kind == "shm":
                taken += made.tables_bytes * made.clients
            pool = (2 * MIB, taken // (2 * MIB)) if kind == "hugetlb-2m" else None
            jobs.append(
                Job(
                    CASE.name,
                    kind,
                    {"size": made.size, "clients": made.clients, "data": data, "limit": limit},
                    memory=(0 if pool else taken) + idle + 128 * MIB,
                    pool=pool,
                    seconds=0.5
                    + made.clients / 120
                    + (made.size / GIB * (1 if pool else 3) if data == "dense" else 3),
                    cannot=unusable_reason(kind, setting),
                )
            )
    return jobs


def _tables(pids: Sequence[int]) -> dict[str, Any]:
    """A few clients say what one costs; the helper looks at all processes to tell shared from private."""
    import sharedregion as sr

    found = sr.footprint(*pids[:: max(1, len(pids) // 20)])
    return {
        "private": statistics.median(one.private_bytes for one in found.processes),
        "linked": statistics.median(one.linked_bytes for one in found.processes),
        "estimate": found.estimate,
    }


def measure(job: Job) -> Iterator[Sample]:
    """One side. What a client costs is said twice: by the helper, and by PageTables of the whole system."""
    limit = int(job.params["limit"])
    dense = job.params["data"] == "dense"
    made = _story.Plan(int(job.params["size"]), int(job.params["clients"]), limit)
    guardian = Guardian()
    try:
        if job.subject == "shm":
            small = _story.small_side(guardian, made, limit, dense=dense, look=_tables)
            if small.reason:
                yield "unlimited", 1
            else:
                yield "lived", small.lived
                yield "killed", float(small.killed)
            if small.tables is not None:
                yield "system", small.tables
            if small.seen is not None:
                yield "private", small.seen["private"]
                yield "estimated", float(small.seen["estimate"])
            return
        group = None
        try:
            group = memory_group(guardian, limit, f"sharedregion-story-{os.getpid()}")
        except (OSError, ToolError):
            # Nothing here comes near the limit; that it ran without one is said.
            yield "unlimited", 1
        step = _story.HUGE if dense else GIB
        idle, linked = _story.linked_side(guardian, made, job.subject, step=step, group=group, look=_tables)
        yield "lived", made.clients
        yield "killed", 0
        yield "private", max(0.0, linked.seen["private"] - idle.seen["private"])
        yield "system", (linked.page_tables - idle.page_tables) / made.clients
        yield "all", linked.page_tables
        yield "idle", idle.page_tables
        yield "seconds", linked.seconds
        yield "estimated", float(linked.seen["estimate"])
    finally:
        guardian.undo()


def arithmetic(rows: Sequence[Any]) -> list[str]:
    """The exact sums, for the sizes that were run."""
    said = []
    plans: Mapping[tuple[int, int], None] = dict.fromkeys(
        (row.params["size"], row.params["clients"]) for row in rows if row.params["data"] == "sparse"
    )
    for size, clients in plans:
        made = _story.Plan(size, clients)
        said += [
            (
                f"4 KiB pages: {format_size(size)} / 4 KiB = {size // 4096:,} entries x 8 B = {made.entries_bytes:,} B "
                f"({format_size(made.entries_bytes)}) in {size // _story.HUGE:,} tables; with the tables above them "
                f"{made.tables_bytes:,} B in each client; x {clients:,} clients = {made.all_tables_bytes:,} B "
                f"({format_size(made.all_tables_bytes)})."
            ),
            (
                f"Linked tables: one table of 4 KiB for each GiB holds its 512 entries for all clients: "
                f"{made.huge_pages:,} x 4096 B = {made.huge_pages * 4096:,} B in all; a client adds one table of 4 KiB "
                f"for each 512 GiB, which holds {made.huge_pages:,} entries of 8 B."
            ),
        ]
    said += [
        (
            "Tables of one client, beyond an idle one, are told by the helper and by PageTables of the whole system (of a 4 KiB "
            "client by its VmPTE); PageTables of all and of as many idle ones stand beside them."
        ),
        (
            "One page that 2,000 processes map takes 2,000 x 8 B = 16,000 B of entries: 16 kB, four times the page itself "
            "(8 kB, as the story is told, would be 1,000 processes)."
        ),
        (
            "Sparse data has one 2 MiB page in each GiB, or one 4 KiB page in each 2 MiB; every page table is built as for "
            "full data. The memory limit holds for the clients; a 4 KiB client that is killed is killed by the kernel."
        ),
    ]
    if any("unlimited" in row.figures for row in rows):
        said.append(
            "No control group with a memory limit could be made here (it takes root, and a cgroup file system that can be "
            f"written to): clients ran without one, with 4 KiB pages {_story.FEW} of them, so that the machine does not run "
            "out of memory. None was killed."
        )
    return said


CASE = Case(
    name="sga",
    title="the story: 300 GiB, 1500 clients, under a memory limit",
    plan=plan,
    measure=measure,
    metrics={
        "lived": Metric("", "lived", more=True),
        "killed": Metric("", "killed"),
        "private": Metric("B", "tables of one"),
        "system": Metric("B", "by PageTables"),
        "all": Metric("B", "of all"),
        "idle": Metric("B", "of idle ones"),
        "seconds": Metric("s", "all started"),
        "unlimited": Metric("", "without a limit"),
        "estimated": Metric("", "an estimate"),
    },
    charts=(
        Bars(
            "private",
            "Page tables of one client that reaches all of {size}",
            {"data": "sparse", "size": MOST},
            log=True,
        ),
        Bars(
            "lived",
            "Clients that lived, of {clients}, under the same memory limit",
            {"data": "sparse", "clients": MOST},
        ),
    ),
    epilogue=arithmetic,
)
