"""mmap of a file in shared memory (tmpfs), the plainest way there is."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer, Values
from sharedregion.bench.stores import files


@contextlib.contextmanager
def hold(size: int, fill: Fill, where: tuple[str, str]) -> Iterator[str]:
    path = os.path.join(where[1], "held.bin")
    try:
        with open(path, "w+b") as file:
            file.truncate(size)
            with mmap.mmap(file.fileno(), size) as memory:
                array = np.frombuffer(memory, np.uint8)
                fill(array)
                del array
        yield path
    finally:
        os.unlink(path)


@contextlib.contextmanager
def view(ticket: str) -> Iterator[Bytes]:
    with open(ticket, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    yield np.frombuffer(memory, np.uint8)


def _write(path: str, value: Values) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(descriptor, value.nbytes)
    with mmap.mmap(descriptor, value.nbytes) as memory:
        np.frombuffer(memory, np.float64)[:] = value
    os.close(descriptor)


def _first(path: str) -> float:
    descriptor = os.open(path, os.O_RDONLY)
    memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    os.close(descriptor)
    return float(np.frombuffer(memory, np.float64, 1)[0])


store, join = files(_write, _first)

PEER = Peer(
    name="mmap",
    title="mmap of a file in tmpfs",
    hold=hold,
    view=view,
    sparse=True,
    store=store,
    join=join,
)
