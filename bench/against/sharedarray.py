"""SharedArray: NumPy arrays by name in /dev/shm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer, Values
from sharedregion.bench.stores import prefixed


@contextlib.contextmanager
def hold(size: int, fill: Fill, where: tuple[str, str]) -> Iterator[str]:
    import SharedArray

    name = f"{where[0]}held"
    try:
        array = SharedArray.create(f"shm://{name}", size, np.uint8)
        fill(array)
        del array
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            SharedArray.delete(f"shm://{name}")


@contextlib.contextmanager
def view(ticket: str) -> Iterator[Bytes]:
    import SharedArray

    yield SharedArray.attach(f"shm://{ticket}", ro=True)


class _Store:
    def __init__(self, prefix: str) -> None:
        self.ticket = prefix

    def put(self, name: str, value: Values) -> None:
        import SharedArray

        address = f"shm://{self.ticket}{name}"
        try:
            array = SharedArray.create(address, value.size, np.float64)
        except FileExistsError:
            # There is no replacing: the old one goes, and for a moment there is none.
            SharedArray.delete(address)
            array = SharedArray.create(address, value.size, np.float64)
        array[:] = value

    def look(self, name: str) -> float:
        import SharedArray

        return float(SharedArray.attach(f"shm://{self.ticket}{name}", ro=True)[0])

    def delete(self, name: str) -> None:
        import SharedArray

        SharedArray.delete(f"shm://{self.ticket}{name}")


store, join = prefixed(_Store)

PEER = Peer(
    name="sharedarray",
    title="SharedArray",
    module="SharedArray",
    distribution="SharedArray",
    hold=hold,
    view=view,
    sparse=True,
    store=store,
    join=join,
)
