"""Apache Arrow: an IPC file in shared memory, opened by pyarrow.memory_map."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer, Store, Values


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


class _Store:
    """A file for each object, put into place by rename."""

    def __init__(self, folder: str) -> None:
        self.ticket = folder

    def put(self, name: str, value: Values) -> None:
        path = os.path.join(self.ticket, name)
        _write(f"{path}.{os.getpid()}", value)
        os.rename(f"{path}.{os.getpid()}", path)

    def look(self, name: str) -> float:
        return float(_read(os.path.join(self.ticket, name))[0])

    def delete(self, name: str) -> None:
        os.unlink(os.path.join(self.ticket, name))


@contextlib.contextmanager
def store(room: int, where: tuple[str, str]) -> Iterator[Store]:
    folder = os.path.join(where[1], "arrow-objects")
    os.makedirs(folder, exist_ok=True)
    yield _Store(folder)


@contextlib.contextmanager
def join(ticket: str) -> Iterator[Store]:
    yield _Store(ticket)


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
