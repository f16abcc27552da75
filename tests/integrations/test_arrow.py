"""Arrow, pandas and polars: what comes back is the same memory, what travels is a reference, what is refused says why."""

import gc
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import sharedregion as sr
from sharedregion import _native

N = 10_000


def lies(address: int, nbytes: int) -> bool:
    return nbytes == 0 or _native.locate(address, nbytes) is not None


def all_in_region(columns: list[Any]) -> bool:
    """Whether every buffer of the Arrow columns lies in a region."""
    buffers = [b for column in columns for chunk in column.chunks for b in chunk.buffers() if b is not None]
    assert buffers
    return all(lies(buffer.address, buffer.size) for buffer in buffers)


def array_in_region(array: np.ndarray) -> bool:
    return lies(array.__array_interface__["data"][0], array.nbytes)


TABLE = pa.table(
    {
        "n": pa.array(range(N)),
        "s": pa.array([None if i % 7 == 0 else f"text {i}" for i in range(N)]),
        "l": pa.array([[i, i + 1] for i in range(N)]),
        "d": pa.array(["u", "v"] * (N // 2)).dictionary_encode(),
        "m": pa.array([{"a": i} for i in range(N)]),
        "t": pa.array(range(N), pa.timestamp("us", "UTC")),
        "x": pa.array(range(N), pa.decimal128(10, 2)),
        "b": pa.array([True, False] * (N // 2)),
    }
)


def test_tables_come_back_without_a_copy(unique: str) -> None:
    """Every buffer of a table that is got lies in the region: numbers, text, lists, dictionaries, structures."""
    with sr.create(unique, size="16 MiB") as region, sr.attach(unique) as reader:
        region["t"] = TABLE
        got = reader["t"]
        assert got.equals(TABLE) and got.schema.equals(TABLE.schema)
        got.validate(full=True)
        assert all_in_region(got.columns)
        before = pa.total_allocated_bytes()
        for _ in range(20):
            assert reader["t"].num_rows == N
        assert pa.total_allocated_bytes() - before < 100_000, "getting it allocates no column"


@pytest.mark.parametrize(
    "value",
    [
        TABLE.to_batches()[0], TABLE["n"], TABLE["s"].chunk(0), pa.chunked_array([[1, 2], [3]]), TABLE.slice(77, 1000),
        TABLE.slice(0, 0), pa.table({}), pa.array([], pa.string()), pa.chunked_array([], pa.int8()),
        pa.RecordBatch.from_pydict({"a": pa.array([], pa.int8())}), pa.array([None, None]),
        pa.concat_tables([pa.table({"d": pa.array([c]).dictionary_encode()}) for c in "abc"]),
    ],
    ids=lambda value: f"{type(value).__name__}{len(value)}",
)  # fmt: skip
def test_each_kind_comes_back_as_itself(unique: str, value: Any) -> None:
    """Batches, arrays, chunked ones, slices and empty ones; chunks with dictionaries of their own."""
    with sr.create(unique, size="8 MiB") as region:
        region["v"] = value
        got = region["v"]
        assert isinstance(got, type(value).__mro__[0]) and got.equals(value)
        assert sr.share(value).equals(value)


class Foreign:
    """Speaks the PyCapsule interface and nothing else."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._value.__arrow_c_stream__(requested_schema)


class ForeignArray:
    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return TABLE["n"].chunk(0).__arrow_c_array__(requested_schema)


def test_the_capsule_interface_both_ways(unique: str) -> None:
    """Anybody's data come in by capsules, and go out to others by capsules, over the region's memory."""
    with sr.create(unique, size="16 MiB") as region:
        region["stream"], region["array"] = Foreign(TABLE), ForeignArray()
        assert type(region["stream"]) is pa.Table and region["stream"].equals(TABLE)
        assert isinstance(region["array"], pa.Array) and region["array"].equals(TABLE["n"].chunk(0))
        numbers = pl.DataFrame(Foreign(region["stream"].select(["n"])))["n"].to_numpy(allow_copy=False)
        assert array_in_region(numbers) and numbers[-1] == N - 1
        frame = region["stream"].select(["n"]).to_pandas(split_blocks=True)
        assert array_in_region(frame["n"].to_numpy())


POLARS = pl.DataFrame(
    {
        "n": range(N),
        "s": [f"a text of more than twelve bytes {i}" for i in range(N)],
        "b": [True, False] * (N // 2),
        "l": [[1, 2]] * N,
        "c": pl.Series(["u", "v"] * (N // 2), dtype=pl.Categorical),
    }
)


def test_polars_frames(unique: str) -> None:
    """A polars frame comes back as one, its columns in the region, text and bits too."""
    with sr.create(unique, size="16 MiB") as region:
        region["f"], region["s"] = POLARS, POLARS["s"]
        got = region["f"]
        assert got.equals(POLARS) and got.schema == POLARS.schema
        assert region["s"].equals(POLARS["s"]) and region["s"].name == "s"
        assert array_in_region(got["n"].to_numpy(allow_copy=False))
        arrow = got.select("n", "s", "b", "l").to_arrow(compat_level=pl.CompatLevel.newest())
        assert all_in_region(arrow.columns)
        assert got.with_columns(pl.col("n") + 1)["n"].sum() == POLARS["n"].sum() + N, "a write makes a copy"
        assert got.lazy().filter(pl.col("b")).collect().height == N // 2


PANDAS = pd.DataFrame(
    {
        "a": np.arange(N),
        "b": np.arange(float(N)),
        "s": pd.array([f"text {i}" for i in range(N)], dtype="string[pyarrow]"),
        "c": pd.Categorical(["u", "v"] * (N // 2)),
        "t": pd.date_range("2020", periods=N, freq="s"),
    }
)


def test_pandas_frames(unique: str) -> None:
    """A pandas frame comes back as it was, numbers and Arrow's text in the region, read-only."""
    with sr.create(unique, size="16 MiB") as region:
        region["f"], region["a"], region["i"] = PANDAS, PANDAS["a"], PANDAS.index
        got = region["f"]
        pd.testing.assert_frame_equal(got, PANDAS)
        pd.testing.assert_series_equal(region["a"], PANDAS["a"])
        for column in ("a", "b"):
            assert array_in_region(got[column].to_numpy()) and not got[column].to_numpy().flags.writeable
        assert all_in_region(
            [
                pa.chunked_array([pa.array(got["s"])])
                if isinstance(pa.array(got["s"]), pa.Array)
                else pa.array(got["s"])
            ]
        )
        own = region.get("f", copy_on_write=True)
        own.loc[0, "a"] = -5
        assert own["a"].iloc[0] == -5 and region["f"]["a"].iloc[0] == 0
        assert region["i"].equals(PANDAS.index)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (pd.DataFrame({"good": [1], "bad": pd.Series([{}], dtype=object)}), "'bad': .*convert_dtypes"),
        (pd.Series([object()], name="bad", dtype=object), "'bad'"),
        (pl.DataFrame({"good": [1], "bad": pl.Series([object()], dtype=pl.Object)}), "'bad': .*cast"),
    ],
    ids=["pandas", "pandas series", "polars"],
)
def test_columns_of_objects_are_refused_by_name(unique: str, value: Any, says: str) -> None:
    """Python objects in a column mean nothing elsewhere: the error names the column and the way out, nothing is lost."""
    with sr.create(unique, size="1 MiB") as region:
        region["f"] = 5
        with pytest.raises(sr.NotPlaceable, match=says):
            region["f"] = value
        with pytest.raises(sr.NotPlaceable, match="bad"):
            sr.share(value)
        assert region["f"] == 5
        if isinstance(value, pd.DataFrame):
            region.put("f", value, pickle=True)
            pd.testing.assert_frame_equal(region["f"], value)


def test_references(unique: str) -> None:
    """What lies in a region goes as references: tables and slices, frames, containers of them; what does not, as data."""
    numbers = POLARS.drop("c")  # polars copies categories on the way to Arrow
    with sr.create(unique, size="64 MiB") as region:
        for value, limit in (
            (TABLE, 3000),
            (numbers, 3000),
            (PANDAS[["a", "b", "t"]], 3000),
            ({"t": TABLE, "f": numbers}, 6000),
        ):
            region["v"] = value
            sent = ForkingPickler.dumps(region["v"])
            again = pickle.loads(sent)
            assert len(sent) < limit, (type(value), len(sent))
            if isinstance(value, dict):
                assert again["t"].equals(TABLE) and again["f"].equals(numbers)
            else:
                assert again.equals(value)
        region["t"] = TABLE
        part = pickle.loads(ForkingPickler.dumps(region["t"].slice(50, 20)))
        assert part.equals(TABLE.slice(50, 20)) and all_in_region(part.columns)
    assert pickle.loads(ForkingPickler.dumps(TABLE)).equals(TABLE)
    assert pickle.loads(ForkingPickler.dumps(POLARS)).equals(POLARS)
    assert len(pickle.dumps(sr.share(TABLE))) > TABLE.nbytes // 2, "pickle writes the data"


def test_in_a_worker(run, unique: str) -> None:
    """Another process reads all of it; attaching loads no framework, and asking loads the one that is needed."""
    with sr.create(unique, size="16 MiB") as region:
        region["t"], region["p"], region["d"] = TABLE, POLARS, PANDAS
        code = """
import sys, sharedregion as sr
region = sr.attach(sys.argv[1])
print(len(region), [m for m in ("pyarrow", "polars", "pandas") if m in sys.modules])
t = region["t"]; print(sum(t["n"].to_pylist()), "polars" in sys.modules)
print(region["p"]["n"].sum(), "pandas" in sys.modules)
print(int(region["d"]["a"].sum()))
"""
        total = sum(range(N))
        assert run(code, unique).splitlines() == ["3 []", f"{total} False", f"{total} False", str(total)]


def test_columns_outlive_the_region(unique: str) -> None:
    """A column holds its block after close(), and gives it back with the last buffer."""
    region = sr.create(unique, size="16 MiB")
    region["t"] = TABLE
    column = region["t"]["n"]
    region.close()
    gc.collect()
    assert unique in sr.regions() and column.to_pylist() == list(range(N))
    del column, region
    gc.collect()
    assert unique not in sr.regions()


def test_damage_is_said(unique: str) -> None:
    """A stream that is cut or overwritten gives RegionCorrupt."""
    from sharedregion.codecs import arrow

    with sr.create(unique, size="8 MiB") as region:
        region["t"] = TABLE.select(["n"])
        good = bytes(memoryview(region._get_exact(region._info("t")[7], region._info("t")[5])))
        region["none"] = pa.table({})
        empty = bytes(memoryview(region._get_exact(region._info("none")[7], region._info("none")[5])))
        for n, (meta, data) in enumerate(
            [
                (b"\x03", empty),
                (b"\x04", empty),
                (b"\x01", good[:100]),
                (b"\x63", good),
                (b"", good),
                (b"\x01", b"\xff" * 64),
                (b"\x01", b""),
            ]
        ):
            region._put(f"bad{n}", arrow.NUMBER, 0, meta, data)
            with pytest.raises(sr.RegionCorrupt):
                region[f"bad{n}"]


class Readings(pd.DataFrame):
    """A frame that a program made its own."""

    @property
    def _constructor(self) -> type["Readings"]:
        return Readings


def test_a_subclass_comes_back_as_itself() -> None:
    """What somebody made of a frame is more than a table of its columns."""
    shared = sr.share(Readings({"n": np.arange(1000.0)}))
    assert type(shared) is Readings
    assert shared["n"].sum() == 499500 and not shared["n"].to_numpy().flags.writeable


ABSENT = """
import sys, sharedregion as sr
class Nothing:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == sys.argv[2]: raise ModuleNotFoundError("none", name=name)
sys.meta_path.insert(0, Nothing())
region = sr.attach(sys.argv[1])
try: region[sys.argv[3]]
except ImportError as error: print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("framework", "name"), [("pyarrow", "t"), ("polars", "p"), ("pandas", "f")])
def test_without_the_framework(run, unique: str, framework: str, name: str) -> None:
    """A worker that lacks it is told which version would do."""
    with sr.create(unique, size="16 MiB") as region:
        region["t"], region["p"], region["f"] = TABLE, POLARS, pd.DataFrame({"n": [1, 2]})
        said = run(ABSENT, unique, framework, name)
        assert said.startswith(f"FrameworkMissing {framework} is not installed, version ")


@pytest.mark.parametrize("first", ["import pyarrow", "import sharedregion", "find_spec"])
def test_import_order(run, first: str) -> None:
    """References are sent whichever is imported first, and when a program has only asked whether the framework is there."""
    lines = {
        "import pyarrow": "import pyarrow, sharedregion as sr",
        "import sharedregion": "import sharedregion as sr; region = sr.create(size='8 MiB'); import pyarrow",
        "find_spec": (
            "import importlib.util, sharedregion as sr; region = sr.create(size='8 MiB')\n"
            "assert importlib.util.find_spec('pyarrow').origin.endswith('.py')\nimport pyarrow"
        ),
    }
    code = """
from multiprocessing.reduction import ForkingPickler
shared = sr.share(pyarrow.table({"n": list(range(10_000))}))
print(len(ForkingPickler.dumps(shared)) < 2000)
"""
    assert run(lines[first] + code) == "True\n"
