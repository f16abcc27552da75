"""Arrow: Table, RecordBatch, Array, ChunkedArray, polars frames, and whatever speaks the PyCapsule interface.

An object lies in the region as an Arrow IPC stream, which is read in place: every buffer of what comes
back is a part of the region. What comes back speaks the PyCapsule interface in its turn, so that
polars, pandas, DuckDB and others take it without a copy where their own memory is laid out like
Arrow's. Compressed or not: a stream in a region is not compressed.

The description beside the entry is one byte: what the value was (_Kind).
"""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from sharedregion import _native, references
from sharedregion._frameworks import load
from sharedregion.errors import FrameworkMissing, NotPlaceable, RegionCorrupt

if TYPE_CHECKING:
    from sharedregion.codecs import Place

NUMBER = 6
_MANY = 1 << 20


class _Kind(IntEnum):
    """Numbers are stored: never use one again."""

    TABLE = 1
    BATCH = 2
    ARRAY = 3
    CHUNKED = 4
    POLARS_FRAME = 5
    POLARS_SERIES = 6


def _kind_of(value: object) -> _Kind | None:
    framework = type(value).__module__.partition(".")[0]
    if framework in ("polars", "pyarrow"):
        load(framework)  # What is too old is said where its value is placed.
    polars = sys.modules.get("polars")
    if polars is not None and type(value) in (polars.DataFrame, polars.Series):
        return _Kind.POLARS_FRAME if type(value) is polars.DataFrame else _Kind.POLARS_SERIES
    streams = hasattr(type(value), "__arrow_c_stream__")
    if not streams and not hasattr(type(value), "__arrow_c_array__"):
        return None
    try:
        pyarrow = load("pyarrow")
    except FrameworkMissing:
        return None
    for kind, cls in (
        (_Kind.BATCH, pyarrow.RecordBatch),
        (_Kind.ARRAY, pyarrow.Array),
        (_Kind.CHUNKED, pyarrow.ChunkedArray),
    ):
        if isinstance(value, cls):
            return kind
    return _Kind.TABLE if streams else _Kind.ARRAY


def accepts(value: object) -> bool:
    """What lends its memory by the PyCapsule interface, and frames and series of polars."""
    return _kind_of(value) is not None


def _table_of(kind: _Kind, value: Any) -> Any:
    """The same memory as one pyarrow.Table."""
    pyarrow = load("pyarrow")
    try:
        if kind is _Kind.POLARS_FRAME:
            return _polars_to_arrow(value)
        if kind is _Kind.POLARS_SERIES:
            return _polars_to_arrow(value.to_frame())
        if kind is _Kind.BATCH:
            return pyarrow.Table.from_batches([value])
        if kind is _Kind.CHUNKED:
            return pyarrow.Table.from_arrays([value], names=[""])
        if kind is _Kind.ARRAY:
            array = value if isinstance(value, pyarrow.Array) else pyarrow.array(value)
            return pyarrow.Table.from_arrays([array], names=[""])
        return value if isinstance(value, pyarrow.Table) else pyarrow.table(value)
    except NotPlaceable:
        raise
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        raise NotPlaceable(f"Arrow cannot hold this {type(value).__name__}: {error}") from error


def _polars_to_arrow(frame: Any) -> Any:
    polars = sys.modules["polars"]
    objects = [name for name, dtype in frame.schema.items() if dtype == polars.Object]
    if objects:
        raise objects_in(objects, "cast them to a type of polars, or leave them out")
    return frame.to_arrow(compat_level=polars.CompatLevel.newest())


def objects_in(columns: list[Any], remedy: str) -> NotPlaceable:
    """The error for a frame whose columns point to Python objects."""
    names = ", ".join(repr(name) for name in columns[:5]) + (", and more" if len(columns) > 5 else "")
    return NotPlaceable(
        f"{names}: a column of Python objects means nothing in another process",
        remedy,
    )


def _write(pyarrow: Any, sink: Any, table: Any) -> None:
    # Batches of one column may have different dictionaries; a stream may replace them.
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _length(pyarrow: Any, table: Any) -> int:
    counted = pyarrow.MockOutputStream()
    _write(pyarrow, counted, table)
    return int(counted.size())


def size_of(value: Any) -> int:
    """Bytes of the stream."""
    kind = _kind_of(value)
    assert kind is not None
    return _length(load("pyarrow"), _table_of(kind, value))


def place(region: Place, name: str, value: Any, flags: int) -> int:
    """Written straight into the region: buffers are copied once, by several threads."""
    kind = _kind_of(value)
    assert kind is not None
    table = _table_of(kind, value)
    pyarrow = load("pyarrow")
    nbytes = _length(pyarrow, table)
    region._make_room(nbytes)
    draft = region._begin(name, NUMBER, flags, bytes([kind]), nbytes)
    with pyarrow.FixedSizeBufferWriter(pyarrow.py_buffer(draft)) as sink:
        if nbytes > _MANY:
            sink.set_memcopy_threads(4)
        _write(pyarrow, sink, table)
    del sink
    version: int = draft.publish()
    return version


def read(meta: bytes, pin: Any, *, writable: bool) -> Any:
    """The value, its buffers parts of the region."""
    pyarrow = load("pyarrow")
    view = memoryview(pin)
    try:
        kind = _Kind(meta[0])
        with pyarrow.ipc.open_stream(pyarrow.py_buffer(view if writable else view.toreadonly())) as reader:
            table = reader.read_all()
        table.validate()
        return _value_of(kind, table)
    except (pyarrow.ArrowException, ValueError, IndexError, OSError) as error:
        raise RegionCorrupt(f"an Arrow stream contradicts itself: {error}") from None


def _value_of(kind: _Kind, table: Any) -> Any:
    if kind is _Kind.TABLE:
        return table
    if kind in (_Kind.POLARS_FRAME, _Kind.POLARS_SERIES):
        frame = load("polars").from_arrow(table, rechunk=False)
        return frame if kind is _Kind.POLARS_FRAME else frame.to_series()
    if kind is _Kind.CHUNKED:
        return table.column(0)
    if kind is _Kind.BATCH:
        batches = table.to_batches()
        return batches[0] if batches else load("pyarrow").RecordBatch.from_pylist([], schema=table.schema)
    chunks = table.column(0).chunks
    return chunks[0] if chunks else load("pyarrow").array([], type=table.column(0).type)


# --- what travels ------------------------------------------------------------------------------


def _reduce_buffer(buffer: Any) -> Any:
    """A buffer that lies in a region goes as a reference; tables and arrays are made of buffers."""
    if buffer.size and _native.locate(buffer.address, buffer.size) is not None:
        import numpy as np

        found = references.reduce(np.frombuffer(buffer, np.uint8))
        if found is not None:
            return _claimed_buffer, found[1]
    return buffer.__reduce_ex__(4)


def _claimed_buffer(*what: Any) -> Any:
    return load("pyarrow").py_buffer(references.claim(*what))


def _in_region(table: Any) -> bool:
    return any(
        buffer is not None and buffer.size and _native.locate(buffer.address, buffer.size) is not None
        for column in table.columns
        for chunk in column.chunks
        for buffer in chunk.buffers()
    )


def _reduce_polars(value: Any) -> Any:
    kind = _kind_of(value)
    assert kind is not None
    table = _table_of(kind, value) if sys.modules.get("pyarrow") else None
    return (
        (_polars_again, (int(kind), table))
        if table is not None and _in_region(table)
        else value.__reduce_ex__(4)
    )


def _polars_again(kind: int, table: Any) -> Any:
    return _value_of(_Kind(kind), table)


def _polars_in_pickle(value: Any, _: dict[Any, Any]) -> Any:
    try:
        load("pyarrow")
    except FrameworkMissing:
        return NotImplemented
    kind = _kind_of(value)
    assert kind is not None
    return _polars_again, (int(kind), _table_of(kind, value))


def teach(pickler: Any) -> None:
    """Teach ForkingPickler, and the pickles that lie in regions; for whichever of the two frameworks is there."""
    from sharedregion.codecs import pickled

    polars, pyarrow = sys.modules.get("polars"), sys.modules.get("pyarrow")
    if polars is not None and hasattr(polars, "Series"):
        for kind in (polars.DataFrame, polars.Series):
            pickled.REDUCERS[kind] = _polars_in_pickle
            if pickler is not None:
                pickler.register(kind, _reduce_polars)
    if pyarrow is not None and hasattr(pyarrow, "Buffer") and pickler is not None:
        pickler.register(pyarrow.Buffer, _reduce_buffer)
