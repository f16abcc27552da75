"""What the library is to cost, as data: each budget beside the figure that decides it.

A figure is a metric of a case, or the ratio of two from the same run. Ratios hold on other machines
too; plain times are for a machine like the one that the stored results were measured on. A quick run
does not reach the sizes that most budgets are about, and then says nothing about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sharedregion.bench.case import GIB, KIB, MIB
from sharedregion.bench.records import Results

__all__ = ["BUDGETS", "Budget", "Pick", "Verdict"]


@dataclass(frozen=True)
class Pick:
    """Figures of the results: one for each subject and each row that fits."""

    case: str
    metric: str
    subjects: Sequence[str]
    where: Mapping[str, Any] = field(default_factory=dict)
    #: Taken off for each GiB of the row's size.
    less: float = 0

    def values(self, results: Results) -> list[float]:
        """Medians of what fits."""
        return [
            row.figures[self.metric].median - self.less * row.params.get("size", 0) / GIB
            for row in results.of(self.case)
            if row.subject in self.subjects
            and self.metric in row.figures
            and all(row.params.get(key) == value for key, value in self.where.items())
        ]


@dataclass(frozen=True)
class Verdict:
    """What was measured, and whether it is within the budget."""

    value: float
    met: bool


@dataclass(frozen=True)
class Budget:
    """`what` costs at most `limit` (at least, if `more`), in `unit`. With `over`, the ratio pick / over counts.

    Of several figures the worst counts. `why` explains one that is missed or easily misread.
    """

    key: str
    what: str
    limit: float
    unit: str
    pick: Pick
    over: Pick | None = None
    more: bool = False
    why: str = ""

    @property
    def limit_text(self) -> str:
        """The limit in words."""
        from sharedregion.bench.tables import amount

        return f"{'at least' if self.more else 'at most'} {amount(self.limit, self.unit)}"

    def judge(self, results: Results) -> Verdict | None:
        """The verdict, or None if it was not measured."""
        values = self.pick.values(results)
        if not values:
            return None
        value = min(values) if self.more else max(values)
        if self.over is not None:
            others = self.over.values(results)
            worst = (max(others) if self.more else min(others)) if others else 0.0
            if not worst:
                return None
            value /= worst
        return Verdict(value, value >= self.limit if self.more else value <= self.limit)


_LINKED = ("msharefs", "hugetlb-1g", "hugetlb-2m")
_STORY = {"size": 300 * GIB, "clients": 1500, "data": "sparse"}
_LARGE = {"size": GIB}
_SMALL = {"operation": "put-delete", "object": 64}

BUDGETS: tuple[Budget, ...] = (
    Budget(
        "story",
        "the story: page tables of one of 1500 clients of 300 GiB with linked tables, beyond an idle one",
        16 * KIB,
        "B",
        Pick("sga", "private", _LINKED, _STORY),
    ),
    Budget(
        "story-system",
        "the same by PageTables of the whole system",
        16 * KIB,
        "B",
        Pick("sga", "system", _LINKED, _STORY),
    ),
    Budget(
        "story-small",
        "the story is real: with 4 KiB pages one client takes this much",
        600 * MIB,
        "B",
        Pick("sga", "private", ("shm",), _STORY),
        more=True,
    ),
    Budget(
        "story-killed",
        "and the kernel kills one at the memory limit",
        1,
        "",
        Pick("sga", "killed", ("shm",), _STORY),
        more=True,
    ),
    Budget(
        "worker-linked",
        "page tables of one more worker that reads all of a region, hugetlb and msharefs, any size and number",
        16 * KIB,
        "B",
        Pick("footprint", "private", _LINKED),
    ),
    Budget(
        "worker-thp",
        "the same on thp, beyond 4 KiB for each GiB",
        16 * KIB,
        "B",
        Pick("footprint", "private", ("thp",), less=4 * KIB),
        why="It holds as far as the kernel finds whole pages of 2 MiB: 513 tables of 4 KiB for 512 GiB. Where memory is short or "
        "in pieces, each 2 MiB that stays in 4 KiB pages takes one table more; 'mapped by 2 MiB' in the table of footprint "
        "tells how much became large, stats().huge_fraction of a region does.",
    ),
    Budget(
        "attach-thp",
        "attach and first pass over 2 GiB, beyond a pass with no faults: thp faster than shared_memory",
        15,
        "x",
        Pick("attach", "beyond", ("shared_memory",), {"size": 2 * GIB}),
        over=Pick("attach", "beyond", ("thp",), {"size": 2 * GIB}),
        more=True,
    ),
    Budget(
        "attach-hugetlb",
        "the same on hugetlb",
        15,
        "x",
        Pick("attach", "beyond", ("shared_memory",), {"size": 2 * GIB}),
        over=Pick("attach", "beyond", ("hugetlb-1g", "hugetlb-2m"), {"size": 2 * GIB}),
        more=True,
    ),
    Budget(
        "get",
        "region[name] of a small array",
        0.5e-6,
        "s",
        Pick("objects", "seconds", ("thp",), {"operation": "get"}),
    ),
    Budget(
        "put-delete",
        "put and delete of a small array, of LMDB's time with sync off",
        1,
        "x",
        Pick("objects", "seconds", ("thp",), {"operation": "put-delete"}),
        over=Pick("objects", "seconds", ("lmdb",), {"operation": "put-delete"}),
    ),
    Budget(
        "writers",
        "puts and deletes of eight processes at once, in all, of what one alone does",
        1,
        "x",
        Pick("writers", "rate", ("thp",), {**_SMALL, "processes": 8}),
        over=Pick("writers", "rate", ("thp",), {**_SMALL, "processes": 1}),
        more=True,
        why="A small put is nearly all inside the region's one lock. On two idle processors a second writer adds the way of the "
        "lock, and of all that it guards, from one to the other; writers that find it taken rest so long that this happens every "
        "few changes. Longer rests would lose less, and cost every other writer time.",
    ),
    Budget(
        "large-fresh",
        "placing 1 GiB in a fresh region, of the rate of filling a fresh shared_memory block",
        4,
        "x",
        Pick("large", "fresh", ("put into a region (thp)",), _LARGE),
        over=Pick("large", "fresh", ("fill shared_memory",), _LARGE),
        more=True,
        why="When this was stored one thread made all large pages, and had the kernel clear them, which took longer than the copy. "
        "Several do it now: `sharedregion bench large` gave 5.0 and 4.4.",
    ),
    Budget(
        "large-warm",
        "placing 1 GiB in memory that was there, of the rate of a copy",
        0.9,
        "x",
        Pick("large", "warm", ("put into a region (thp)",), _LARGE),
        over=Pick("large", "warm", ("copy into private memory",), _LARGE),
        more=True,
    ),
    Budget(
        "million-attach",
        "attach to a region of a million objects",
        1e-3,
        "s",
        Pick("million", "attach", ("region (thp)",), {"objects": 1_000_000}),
    ),
    Budget(
        "million-tables",
        "page tables of a worker that looked a million objects up, beyond an idle one",
        16 * KIB,
        "B",
        Pick("million", "private", ("region (thp)",), {"objects": 1_000_000}),
    ),
    Budget(
        "helper-one",
        "asking for the page tables of one process",
        20e-3,
        "s",
        Pick("helper", "seconds", ("one process",)),
    ),
    Budget(
        "helper-many",
        "of a thousand processes",
        1,
        "s",
        Pick("helper", "seconds", ("1000 processes",)),
    ),
    Budget(
        "import",
        "import sharedregion, in a process that has NumPy",
        20e-3,
        "s",
        Pick("imports", "seconds", ("import sharedregion", "import it and ask it for attach")),
    ),
)
