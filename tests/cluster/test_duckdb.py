"""DuckDB over tables in a region: right answers, in several processes, and no copy of the table."""

import ast
import subprocess
import sys
from collections.abc import Callable

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import sharedregion as sr
from sharedregion.integrations import duckdb as in_regions

ROWS = 4_000_000


def _table() -> pa.Table:
    rng = np.random.default_rng(3)
    return pa.table({"k": rng.integers(0, 10, ROWS), "x": rng.integers(0, 1000, ROWS).astype("f8")})


QUERY = """
import sys, psutil, sharedregion as sr
from sharedregion.integrations import duckdb as in_regions
with sr.attach(sys.argv[1]) as region:
    connection = in_regions.connect(region)
    connection.execute("set threads = 1")
    connection.sql("select 1").fetchall()
    before = psutil.Process().memory_full_info().uss
    answer = connection.sql("select k, sum(x) from t group by k order by k").fetchall()
    print(repr((answer, psutil.Process().memory_full_info().uss - before)))
"""


def test_several_processes_query_one_table(unique: str) -> None:
    """Each answers as DuckDB does over its own copy, and none takes even half the table's size for itself."""
    arrow = _table()
    expected = duckdb.sql("select k, sum(x) from arrow group by k order by k").fetchall()
    with sr.create(unique, size="256 MiB") as region:
        region["t"] = arrow
        workers = [
            subprocess.Popen([sys.executable, "-c", QUERY, unique], stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        answers = [ast.literal_eval(worker.communicate(timeout=120)[0]) for worker in workers]
    for answer, grown in answers:
        assert answer == expected
        assert grown < arrow.nbytes / 2, (grown, arrow.nbytes)


@pytest.mark.parametrize(
    "make", [lambda t: t, lambda t: t.to_batches()[0], pl.from_arrow, lambda t: t.to_pandas()]
)
def test_all_kinds_of_tables(unique: str, make: object) -> None:
    """Arrow tables and batches, frames of polars and pandas."""
    assert callable(make)
    value = make(pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]}))
    assert isinstance(value, pa.Table | pa.RecordBatch | pl.DataFrame | pd.DataFrame)
    with sr.create(unique, size="16 MiB") as region:
        region["t"] = value
        with in_regions.connect(region) as connection:
            assert connection.sql("select a, b from t where a > 1 order by a").fetchall() == [
                (2, "y"),
                (3, "z"),
            ]


def test_what_is_no_table_is_refused_by_name(unique: str) -> None:
    """Asked for by name, it is an error that says what it is; a name that is not there is ObjectNotFound."""
    with sr.create(unique, size="1 MiB") as region:
        region["x"] = np.zeros(3)
        with pytest.raises(sr.NotPlaceable, match="ndarray, not a table"):
            in_regions.connect(region, "x")
        with pytest.raises(sr.ObjectNotFound):
            in_regions.connect(region, "y")


class Odd:
    """Can be placed by its maker, and opened by nobody."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("not a number",)


def test_what_cannot_be_opened_is_left_out(run: Callable[..., str], unique: str) -> None:
    """Beside the tables may lie what this process cannot open, a tensor without torch too: asked for by name, it is an error."""
    with sr.create(unique, size="16 MiB") as region:
        region["t"] = pa.table({"a": [1, 2, 3]})
        region["odd"] = Odd()
        region["tensor"] = torch.ones(3)
        with in_regions.connect(region) as connection:
            assert connection.sql("select sum(a) from t").fetchall() == [(6,)]
        with pytest.raises(ValueError, match="not a number"):
            in_regions.connect(region, "odd")
        code = """
import sys, sharedregion as sr
from sharedregion.integrations import duckdb
sys.modules["torch"] = None
print(duckdb.connect(sr.attach(sys.argv[1])).sql("select sum(a) from t").fetchall())
"""
        assert run(code, unique) == "[(6,)]\n"


def test_a_connection_keeps_the_version_that_it_looks_at(unique: str) -> None:
    """Replaced under it, the old table stays whole; registered again, the new one is seen."""
    with sr.create(unique, size="64 MiB") as region:
        region["t"] = pa.table({"a": np.zeros(100_000)})
        with in_regions.connect(region) as connection:
            region["t"] = pa.table({"a": np.ones(100_000)})
            assert connection.sql("select sum(a) from t").fetchall() == [(0.0,)]
            in_regions.register(connection, region, "t")
            assert connection.sql("select sum(a) from t").fetchall() == [(100_000.0,)]
