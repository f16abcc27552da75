"""Results as tables of text: what the terminal shows, and the report under its charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sharedregion._sizes import format_size
from sharedregion.bench.budgets import BUDGETS
from sharedregion.bench.case import Case
from sharedregion.bench.records import Figure, Results, Row

__all__ = ["BYTES", "Table", "amount", "budgets", "machine_line", "notes", "of", "spread", "title"]

#: Params that are bytes.
BYTES = frozenset({"size", "object", "limit"})


@dataclass(frozen=True)
class Table:
    """Text in rows; `right` names the columns of numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[str]


def amount(value: float, unit: str) -> str:
    """A figure with its unit, as a person would write it."""
    if unit == "B":
        sign = "-" if value < 0 else ""
        return sign + format_size(round(abs(value)))
    if unit == "s":
        size = abs(value)
        if size < 1e-6:
            return f"{value * 1e9:.0f} ns"
        if size < 1e-3:
            return f"{value * 1e6:.3g} us"
        return f"{value * 1e3:.3g} ms" if size < 1 else f"{value:.3g} s"
    if unit == "B/s":
        return f"{value / (1 << 30):.2f} GiB/s"
    if unit == "/s":
        return f"{value:,.0f}/s"
    if unit == "x":
        return f"{value:.2f} x" if value < 100 else f"{value:.0f} x"
    return f"{value:,.0f}"


def spread(figure: Figure, unit: str) -> str:
    """The median, and what it ranged over if it was measured more than once."""
    middle = amount(figure.median, unit)
    if len(figure.values) < 2:
        return middle
    low, high = amount(figure.low, unit), amount(figure.high, unit)
    return middle if low == high else f"{middle} ({low} to {high})"


def title(subject: str) -> str:
    """What a subject is called."""
    from sharedregion.bench import against
    from sharedregion.bench.ours import TITLES

    if subject in TITLES:
        return TITLES[subject]
    return against.load(subject).title if subject in against.NAMES else subject


def _value(key: str, value: Any) -> str:
    return format_size(value) if key in BYTES and isinstance(value, int) else str(value)


def of(case: Case, results: Results) -> Table:
    """One row for each subject and its params, one column for each metric that was measured."""
    rows = results.of(case.name)
    params = [
        key
        for key in dict.fromkeys(key for row in rows for key in row.params)
        if len({row.params.get(key) for row in rows if row.figures}) > 1
    ]
    metrics = [key for key in case.metrics if any(key in row.figures for row in rows)]
    words = any(row.status != "ok" for row in rows)
    shown = [
        key
        for key in metrics
        if case.metrics[key].title and (case.metrics[key].unit or _says_something(rows, key))
    ]
    columns = ["", *params, *(case.metrics[key].title for key in shown), *(["remark"] if words else [])]
    lines: list[list[str]] = []
    said: set[tuple[str, str | None]] = set()
    for row in rows:
        if not row.figures:
            # The same reason for each size says nothing more.
            if (row.subject, row.reason) in said:
                continue
            said.add((row.subject, row.reason))
        line = [title(row.subject)]
        line += [_value(key, row.params[key]) if key in row.params and row.figures else "" for key in params]
        line += [
            spread(row.figures[key], case.metrics[key].unit) if key in row.figures else "-" for key in shown
        ]
        if words:
            line.append("" if row.status == "ok" else f"{row.status}: {row.reason}")
        lines.append(line)
    return Table(columns, lines, columns[1 : 1 + len(params) + len(shown)])


def _says_something(rows: Sequence[Row], key: str) -> bool:
    return any(value for row in rows if key in row.figures for value in row.figures[key].values)


def notes(case: Case, results: Results) -> list[str]:
    """What a reader of the table should know."""
    said = list(case.notes)
    if case.epilogue is not None:
        said += case.epilogue(results.of(case.name))
    return said


def machine_line(run: Mapping[str, Any]) -> str:
    """What it was measured on, in one line."""
    machine, warmed = run["machine"], run["warmed"]
    kind = "virtual machine" if machine["virtual"] else "machine"
    words = (
        f"{kind} with {machine['processors']} x {machine['processor']}, {format_size(machine['memory'])}, "
        f"Linux {machine['kernel']}, Python {machine['python']}, NumPy {machine['versions']['numpy']}"
    )
    if warmed["first_seconds"] and warmed["second_seconds"]:
        words += (
            f"; before, {format_size(warmed['bytes'])} were touched and freed twice: {warmed['first_seconds']:.2f} s, "
            f"then {warmed['second_seconds']:.2f} s"
        )
    return words


def budgets(results: Results) -> list[list[str]]:
    """Each budget whose case was run, beside what was measured."""
    lines = []
    for budget in BUDGETS:
        verdict = budget.judge(results)
        if verdict is None:
            continue
        lines.append(
            [
                budget.what,
                budget.limit_text,
                amount(verdict.value, budget.unit),
                "met" if verdict.met else "MISSED",
            ]
        )
    return lines
