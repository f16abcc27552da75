"""The cases, in the order in which a run of all of them goes. How to add one stands above `case.Case`."""

from __future__ import annotations

import importlib

from sharedregion.bench.case import Case

__all__ = ["NAMES", "load"]

NAMES = (
    "sga",
    "footprint",
    "attach",
    "objects",
    "latency",
    "writers",
    "large",
    "dropin",
    "million",
    "gather",
    "serve",
    "imports",
    "helper",
    "processes",
    "loader",
    "prefork",
    "parallel",
    "columns",
    "postgresql",
)


def load(name: str) -> Case:
    """The case of that name."""
    case = importlib.import_module(f"sharedregion.bench.cases.{name}").CASE
    assert isinstance(case, Case)
    return case
