"""Results as tables of text: what the terminal shows, and the report under its charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sharedregion._sizes import format_size
from sharedregion.bench.budgets import BUDGETS
from sharedregion.bench.case import Case
from sharedregion.bench.records import Figure, Results, Row

__all__ = ["BYTES", "Table", "amount", "budgets", "gaps", "machine_line", "notes", "of", "spread", "title"]

#: Params that are bytes.
BYTES = frozenset({"size", "object", "limit"})


@dataclass(frozen=True)
class Table:
    """Text in rows; `right` names the columns of numbers, `optional` those that may be left out, the first one first."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[str]
    optional: Sequence[str]


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
    low, high = amount(figure.low, unit), amount(figure.high, unit)
    if low == high:
        return middle
    value, _, words = low.rpartition(" ")
    # The unit is said once where it is the same.
    if value and middle.endswith(f" {words}") and high.endswith(f" {words}"):
        low, high = value, high.rpartition(" ")[0]
    return f"{middle} ({low} to {high})"


def title(subject: str) -> str:
    """What a subject is called."""
    from sharedregion.bench import against
    from sharedregion.bench.ours import TITLES

    if subject in TITLES:
        return TITLES[subject]
    return against.load(subject).title if subject in against.NAMES else subject


def _value(key: str, value: Any) -> str:
    return format_size(value) if key in BYTES and isinstance(value, int) else str(value)


def _varying(rows: Sequence[Row]) -> list[str]:
    """Params that say which row is which."""
    return [
        key
        for key in dict.fromkeys(key for row in rows for key in row.params)
        if len({row.params.get(key) for row in rows}) > 1
    ]


def of(case: Case, results: Results) -> Table:
    """One row for each subject and its params that gave figures, one column for each metric that was measured."""
    rows = [row for row in results.of(case.name) if row.figures]
    params = _varying(rows)
    shown = [
        key
        for key in case.metrics
        if any(key in row.figures for row in rows)
        and case.metrics[key].title
        and (case.metrics[key].unit or _says_something(rows, key))
    ]
    titles = [case.metrics[key].title for key in shown]
    lines = [
        [
            title(row.subject),
            *(_value(key, row.params[key]) if key in row.params else "" for key in params),
            *(
                spread(row.figures[key], case.metrics[key].unit) if key in row.figures else "-"
                for key in shown
            ),
        ]
        for row in rows
    ]
    # What a narrow terminal can do without: figures, the last ones first.
    return Table(["", *params, *titles], lines, [*params, *titles], titles[:0:-1])


def gaps(case: Case, results: Results) -> Table:
    """What gave no figures, or not all: one row for each subject and reason."""
    rows = results.of(case.name)
    params = _varying(rows)
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.status != "ok":
            words = [
                _value(key, row.params[key])
                + ("" if key in BYTES or isinstance(row.params[key], str) else f" {key}")
                for key in params
                if key in row.params
            ]
            found.setdefault((row.subject, f"{row.status}: {row.reason}"), []).append(" ".join(words))
    several = {subject: len([row for row in rows if row.subject == subject]) for subject, _ in found}
    lines = [
        # The same reason everywhere needs no list of where.
        [title(subject), "" if len(where) == several[subject] else ", ".join(where), reason]
        for (subject, reason), where in found.items()
    ]
    return Table(["not measured", "where", "why"], lines, [], [])


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
