"""mmap of a file in shared memory (tmpfs), the plainest way there is."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer, Store, Values


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


class _Store:
    """A file for each object, put into place by rename, so that readers see it whole."""

    def __init__(self, folder: str) -> None:
        self.ticket = folder

    def put(self, name: str, value: Values) -> None:
        path = os.path.join(self.ticket, name)
        descriptor = os.open(f"{path}.{os.getpid()}", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, value.nbytes)
        with mmap.mmap(descriptor, value.nbytes) as memory:
            np.frombuffer(memory, np.float64)[:] = value
        os.close(descriptor)
        os.rename(f"{path}.{os.getpid()}", path)

    def look(self, name: str) -> float:
        descriptor = os.open(os.path.join(self.ticket, name), os.O_RDONLY)
        memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        os.close(descriptor)
        return float(np.frombuffer(memory, np.float64, 1)[0])

    def delete(self, name: str) -> None:
        os.unlink(os.path.join(self.ticket, name))


@contextlib.contextmanager
def store(room: int, where: tuple[str, str]) -> Iterator[Store]:
    folder = os.path.join(where[1], "objects")
    os.makedirs(folder, exist_ok=True)
    yield _Store(folder)


@contextlib.contextmanager
def join(ticket: str) -> Iterator[Store]:
    yield _Store(ticket)


PEER = Peer(
    name="mmap",
    title="mmap of a file in tmpfs",
    hold=hold,
    view=view,
    sparse=True,
    store=store,
    join=join,
)
