"""Results as data: one JSON object a line while measuring, and medians with their spread afterwards.

A file starts with a `run` record (machine, versions, command), has `sample` and `status` records in
the order of measuring, and ends with an `end` record; without that one the run was cut off. Later
lines never change earlier ones, so that a run that is killed leaves what it had.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

__all__ = ["SCHEMA", "STATUSES", "Figure", "Results", "Row", "read", "write"]

SCHEMA = 1

#: What can be the matter with a subject, beside "ok": the program ended with an error, was killed by a
#: signal, is not installed, cannot do this case, was not started for lack of something, or is left out.
STATUSES = ("ok", "failed", "killed", "missing", "cannot", "refused", "left out")

Record = Mapping[str, Any]
Params = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Figure:
    """One metric of one subject under one set of params, over all rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass
class Row:
    """A line of a table: what one subject gave under one set of params, or why it gave nothing."""

    case: str
    subject: str
    params: Mapping[str, Any]
    figures: dict[str, Figure] = field(default_factory=dict)
    status: str = "ok"
    reason: str | None = None


class Results:
    """All of a run, by case."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.run: Mapping[str, Any] = {}
        self.end: Mapping[str, Any] | None = None
        self.rows: list[Row] = []
        found: dict[tuple[str, str, Params], Row] = {}
        values: dict[tuple[str, str, Params], dict[str, list[float]]] = {}
        for record in records:
            kind = record.get("record")
            if kind == "run":
                self.run = record
            elif kind == "end":
                self.end = record
            elif kind in ("sample", "status"):
                key = (record["case"], record["subject"], tuple(sorted(record["params"].items())))
                if key not in found:
                    found[key] = Row(record["case"], record["subject"], record["params"])
                    self.rows.append(found[key])
                if kind == "sample":
                    values.setdefault(key, {}).setdefault(record["metric"], []).append(record["value"])
                elif record["status"] != "ok":
                    found[key].status, found[key].reason = record["status"], record["reason"]
        for key, row in found.items():
            row.figures = {metric: Figure(tuple(several)) for metric, several in values.get(key, {}).items()}

    @property
    def cases(self) -> list[str]:
        """Names of the cases that have rows, in order of measuring."""
        return list(dict.fromkeys(row.case for row in self.rows))

    def of(self, case: str) -> list[Row]:
        """The rows of a case."""
        return [row for row in self.rows if row.case == case]

    def figure(
        self, case: str, subject: str, metric: str, where: Mapping[str, Any] | None = None
    ) -> Figure | None:
        """The figure of the first row that fits; params not named in `where` may be anything."""
        for row in self.of(case):
            if (
                row.subject == subject
                and metric in row.figures
                and all(row.params.get(key) == value for key, value in (where or {}).items())
            ):
                return row.figures[metric]
        return None


def write(file: IO[str], record: Record) -> None:
    """One line, at once: what was measured is not lost with the process."""
    file.write(json.dumps(record, ensure_ascii=True, allow_nan=False) + "\n")
    file.flush()


def read(lines: Iterable[str]) -> Iterator[Record]:
    """The records of a file. Raises ValueError with the line's number for what is none.

    A last line that was cut off, as a killed run leaves it, is left out.
    """
    several = list(lines)
    for number, line in enumerate(several, 1):
        try:
            record = json.loads(line)
        except ValueError:
            if number == len(several) and not line.endswith("\n"):
                return
            raise ValueError(f"line {number} is not JSON") from None
        if not isinstance(record, dict) or "record" not in record:
            raise ValueError(f"line {number} is not a record of a benchmark")
        if record["record"] == "run" and record.get("schema") != SCHEMA:
            raise ValueError(f"these results have schema {record.get('schema')}; this is {SCHEMA}")
        yield record
