"""What the library is to cost, as data: each budget beside the figure that decides it.

A figure is a metric of a case, or the ratio of two from the same run. Ratios hold on other machines
too; plain times are for a machine like the one that the stored results were measured on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sharedregion.bench.case import GIB, KIB
from sharedregion.bench.records import Results

__all__ = ["BUDGETS", "Budget", "Pick"]


@dataclass(frozen=True)
class Pick:
    """A figure of the results. Of several subjects or rows that fit, the worst counts."""

    case: str
    metric: str
    subjects: Sequence[str]
    where: Mapping[str, Any] = field(default_factory=dict)

    def values(self, results: Results) -> list[float]:
        """Medians of what fits."""
        return [
            row.figures[self.metric].median
            for row in results.of(self.case)
            if row.subject in self.subjects
            and self.metric in row.figures
            and all(row.params.get(key) == value for key, value in self.where.items())
        ]


@dataclass(frozen=True)
class Budget:
    """`what` costs at most `limit` (at least, if `more`), in `unit`. With `over`, the ratio pick / over counts."""

    key: str
    what: str
    limit: float
    unit: str
    pick: Pick
    over: Pick | None = None
    more: bool = False

    @property
    def limit_text(self) -> str:
        """The limit in words."""
        from sharedregion.bench.tables import amount

        return f"{'at least' if self.more else 'at most'} {amount(self.limit, self.unit)}"

    def judge(self, results: Results) -> tuple[float, bool] | None:
        """(measured, met), or None if it was not measured."""
        values = self.pick.values(results)
        if not values:
            return None
        value = min(values) if self.more else max(values)
        if self.over is not None:
            others = self.over.values(results)
            if not others or not others[0]:
                return None
            value /= others[0]
        return value, value >= self.limit if self.more else value <= self.limit


_LINKED = ("msharefs", "hugetlb-1g", "hugetlb-2m")

BUDGETS: tuple[Budget, ...] = (
    Budget(
        "worker-linked",
        "page tables of one more worker, hugetlb and msharefs, any size",
        16 * KIB,
        "B",
        Pick("footprint", "private", _LINKED),
    ),
    Budget(
        "attach",
        "attach and first pass over 2 GiB, beyond a pass with no faults: shared_memory's time over thp's",
        15,
        "x",
        Pick("attach", "beyond", ("shared_memory",), {"size": 2 * GIB}),
        over=Pick("attach", "beyond", ("thp",), {"size": 2 * GIB}),
        more=True,
    ),
)
