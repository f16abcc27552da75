"""multiprocessing.shared_memory, of the standard library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer, Values
from sharedregion.bench.stores import prefixed


def _attach(name: str) -> SharedMemory:
    memory = SharedMemory(name)
    # Before Python 3.13 whoever attaches registers it for removal with a tracker of its own.
    with contextlib.suppress(Exception):
        resource_tracker.unregister(f"/{name}", "shared_memory")
    return memory


@contextlib.contextmanager
def hold(size: int, fill: Fill, where: tuple[str, str]) -> Iterator[str]:
    memory = SharedMemory(f"{where[0]}held", create=True, size=size)
    try:
        array = np.ndarray(size, np.uint8, memory.buf)
        fill(array)
        del array
        yield memory.name
    finally:
        memory.unlink()
        with contextlib.suppress(BufferError):
            memory.close()


@contextlib.contextmanager
def view(ticket: str) -> Iterator[Bytes]:
    memory = _attach(ticket)
    yield np.ndarray(memory.size, np.uint8, memory.buf)
    with contextlib.suppress(BufferError):
        memory.close()


class _Store:
    """A block for each object, as there is no other way to give objects names."""

    def __init__(self, prefix: str) -> None:
        self.ticket = prefix

    def put(self, name: str, value: Values) -> None:
        block = f"{self.ticket}{name}"
        try:
            memory = SharedMemory(block, create=True, size=value.nbytes)
        except FileExistsError:
            # There is no replacing: the old one goes, and for a moment there is none.
            self.delete(name)
            memory = SharedMemory(block, create=True, size=value.nbytes)
        np.ndarray(value.size, value.dtype, memory.buf)[:] = value
        resource_tracker.unregister(f"/{block}", "shared_memory")
        memory.close()

    def look(self, name: str) -> float:
        memory = SharedMemory(f"{self.ticket}{name}")
        first = float(np.ndarray(1, np.float64, memory.buf)[0])
        resource_tracker.unregister(f"/{self.ticket}{name}", "shared_memory")
        memory.close()
        return first

    def delete(self, name: str) -> None:
        memory = SharedMemory(f"{self.ticket}{name}")
        memory.unlink()
        memory.close()


store, join = prefixed(_Store)

PEER = Peer(
    name="shared_memory",
    title="multiprocessing.shared_memory",
    hold=hold,
    view=view,
    sparse=True,
    store=store,
    join=join,
)
