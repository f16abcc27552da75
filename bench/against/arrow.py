"""Apache Arrow: an IPC file in shared memory, opened by pyarrow.memory_map."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer
from sharedregion.bench.stores import files


def _write(path: str, array: Any) -> None:
    import pyarrow as pa

    column = pa.array(array)
    batch = pa.record_batch([column], names=["data"])
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _read(path: str) -> Any:
    import pyarrow as pa

    source = pa.memory_map(path, "r")
    return pa.ipc.open_file(source).get_batch(0).column(0).to_numpy(zero_copy_only=True)


@contextlib.contextmanager
def hold(size: int, fill: Fill, where: tuple[str, str]) -> Iterator[list[Any]]:
    path = os.path.join(where[1], "held.arrow")
    # An array has 2^31 - 1 elements at most; the last bytes are cut off at the reader's end.
    whole = np.empty(-(-size // 8), np.uint64)
    fill(whole.view(np.uint8)[:size])
    try:
        _write(path, whole)
        del whole
        yield [path, size]
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


@contextlib.contextmanager
def view(ticket: list[Any]) -> Iterator[Bytes]:
    path, size = ticket
    yield _read(path).view(np.uint8)[:size]


store, join = files(_write, lambda path: float(_read(path)[0]))

PEER = Peer(
    name="arrow",
    title="Arrow, memory_map",
    module="pyarrow",
    distribution="pyarrow",
    hold=hold,
    view=view,
    copies=2,
    store=store,
    join=join,
)
