"""DuckDB: SQL over tables that lie in a region, by any number of processes, with no copy of the tables.

    region["trips"] = pyarrow_table                       # once, in the host
    con = sharedregion.integrations.duckdb.connect(sharedregion.attach("data"))   # in each worker
    con.sql("select city, avg(fare) from trips group by city")

DuckDB scans Arrow data where it lies, a vector at a time. What it computes (hash tables, sorted runs,
results) is the process's own.
"""

# ruff: noqa: E402  What is missing or too old is said before anything is taken from it.
from __future__ import annotations

import logging
from typing import Any

from sharedregion._frameworks import load

duckdb = load("duckdb")

from sharedregion.codecs import arrow, pickled
from sharedregion.errors import NotPlaceable, RegionCorrupt
from sharedregion.region import Region

__all__ = ["connect", "register"]

_log = logging.getLogger("sharedregion")
#: Numbers of the codecs that tables are placed by: what is of another is not even opened.
_KINDS = (arrow.NUMBER, pickled.NUMBER)


def connect(region: Region, *names: str, database: str = ":memory:", **options: Any) -> Any:
    """A DuckDB connection in which the region's tables can be queried by their names.

    `names` chooses some; without, all objects that are tables are taken. `database` and `options` are those
    of `duckdb.connect`.
    """
    connection = duckdb.connect(database, **options)
    try:
        register(connection, region, *names)
    except BaseException:
        connection.close()
        raise
    return connection


def register(connection: Any, region: Region, *names: str) -> list[str]:
    """Make tables of the region known to a connection; returns their names.

    A table is an Arrow Table or RecordBatch, or a frame of polars or pandas. The connection looks at the
    version of this moment and holds it, until the name is registered again or the connection is closed.
    ObjectNotFound if a name is not there, NotPlaceable if it is not a table. Without `names`, what this
    process cannot open (a pickle of another user, a frame whose framework is not installed) is left out,
    and the log says why.
    """
    known = []
    for name in names or list(region):
        try:
            if not names and region._info(name)[1] not in _KINDS:
                continue
            value = region[name]
        except Exception as error:
            # Deleted meanwhile, a pickle of another user, or of something that this process does not know.
            if names or isinstance(error, RegionCorrupt):
                raise
            _log.info("object %r is left out: %s", name, error)
            continue
        if _is_table(value):
            connection.register(name, value)
            known.append(name)
        elif names:
            raise NotPlaceable(
                f"object {name!r} is a {type(value).__name__}, not a table",
                "place a pyarrow Table, or a frame of polars or pandas",
            )
    return known


def _is_table(value: object) -> bool:
    """By its module and name, so that no framework is imported for the question."""
    kind = type(value)
    return (kind.__module__.partition(".")[0], kind.__name__) in {
        ("pyarrow", "Table"),
        ("pyarrow", "RecordBatch"),
        ("polars", "DataFrame"),
        ("pandas", "DataFrame"),
    }
