"""What a case is, and what it asks for: data that the runner, the tables and the report read.

Nothing here measures, starts or prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["GIB", "KIB", "MIB", "MOST", "OURS", "Bars", "Case", "Job", "Lines", "Metric", "Sample", "Setting"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

#: In the `where` of a chart: the most that was measured, whatever it was.
MOST = "most"

#: One figure of one run: the metric's key, and the value in the metric's unit.
Sample = tuple[str, float]

#: Subjects that are kinds of memory of this library, in the order of `auto`; see `ours.py`.
OURS = ("msharefs", "hugetlb-1g", "hugetlb-2m", "thp", "shm")


@dataclass(frozen=True)
class Metric:
    """A figure that a case gives. `unit` is one of B, s, /s, B/s, x (a ratio) or empty (a count)."""

    unit: str
    title: str
    #: Larger is better; for the order of bars and the best of a table.
    more: bool = False


@dataclass(frozen=True)
class Bars:
    """A chart: one bar a subject of one metric, for the rows whose params have these values.

    The title may name params of `where`: "over {size}".
    """

    metric: str
    title: str
    where: Mapping[str, object] = field(default_factory=dict)
    log: bool = False
    note: str = ""


@dataclass(frozen=True)
class Lines:
    """A chart: one line a subject, a metric over one of the params."""

    metric: str
    over: str
    title: str
    where: Mapping[str, object] = field(default_factory=dict)
    log: bool = True
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """What a plan may depend on. `peers` are those asked for, installed or not."""

    quick: bool
    peers: tuple[str, ...]
    #: Our kinds of memory that this machine can serve, from `OURS`.
    kinds: tuple[str, ...]
    #: Kinds that it cannot, and why.
    unusable: Mapping[str, str]
    memory: int
    processors: int
    root: bool
    #: Bytes that take the place of a case's own sizes: for tests.
    small: int | None = None


@dataclass(frozen=True)
class Job:
    """One subject under one set of conditions, measured `rounds` times, each time in a fresh process.

    Jobs with the same `params` that stand next to each other take turns: round after round, the
    order reversed each time.
    """

    case: str
    subject: str
    params: Mapping[str, int | str | float] = field(default_factory=dict)
    rounds: int = 1
    #: Bytes that it needs at most; it is refused, with this figure, where fewer are available.
    memory: int = 256 * MIB
    #: Huge pages to have in the pool: page size and count. As root the runner reserves what is missing.
    pool: tuple[int, int] | None = None
    #: How long one round may take on a plain machine, for the time left.
    seconds: float = 1.0
    #: Why it cannot be measured at all: the row then says this.
    cannot: str | None = None
    #: Which of its rounds this is; the runner counts.
    round: int = 0
    quick: bool = False
    #: Names that it makes outside of its folder start with this; the runner sweeps them.
    prefix: str = ""
    #: A folder in shared memory for its files.
    folder: str = ""


@dataclass(frozen=True)
class Case:
    """One question, and how it is asked.

    To add a case, write one file `cases/NAME.py` with a `CASE = Case(...)`, name it in the list of
    `cases/__init__.py` and in `meson.build`:

    - `plan(setting)` gives the jobs: subjects (names of peers, kinds of memory, or words of the
      case's own) times params. A peer that is not installed or that says in its `cannot` why this
      case is beyond it becomes a row by itself: plan it like the others. `setting.quick` is to end
      within seconds.
    - `measure(job)` runs in a fresh process that has imported nothing but this package's face and
      yields (metric, value). What it raises becomes the row's reason; what kills it, too. It takes
      its names from `job.prefix`, its files go to `job.folder`, and what it starts ends with it.
    - `metrics` says what the keys mean. Terminal table, JSON lines, budgets and report follow from it.
    - `charts` says what to draw; without any, the report has the table alone.
    """

    name: str
    title: str
    plan: Callable[[Setting], Sequence[Job]]
    measure: Callable[[Job], Iterable[Sample]]
    metrics: Mapping[str, Metric]
    charts: Sequence[Bars | Lines] = ()
    #: What a reader should know before believing the figures, in whole sentences.
    notes: Sequence[str] = ()
    #: Said after the table, from the rows of this case: exact arithmetic, for example.
    epilogue: Callable[[Sequence[Any]], Sequence[str]] | None = None
