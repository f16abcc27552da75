"""joblib's memmap: dump to a file in shared memory, load with mmap_mode="r", as its workers do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer, Store, Values


@contextlib.contextmanager
def hold(size: int, fill: Fill, where: tuple[str, str]) -> Iterator[str]:
    import joblib

    path = os.path.join(where[1], "held.joblib")
    data = np.empty(size, np.uint8)
    fill(data)
    try:
        joblib.dump(data, path)
        del data
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


@contextlib.contextmanager
def view(ticket: str) -> Iterator[Bytes]:
    import joblib

    yield np.asarray(joblib.load(ticket, mmap_mode="r"))


class _Store:
    """A file for each object, put into place by rename."""

    def __init__(self, folder: str) -> None:
        self.ticket = folder

    def put(self, name: str, value: Values) -> None:
        import joblib

        path = os.path.join(self.ticket, name)
        joblib.dump(value, f"{path}.{os.getpid()}")
        os.rename(f"{path}.{os.getpid()}", path)

    def look(self, name: str) -> float:
        import joblib

        return float(joblib.load(os.path.join(self.ticket, name), mmap_mode="r")[0])

    def delete(self, name: str) -> None:
        os.unlink(os.path.join(self.ticket, name))


@contextlib.contextmanager
def store(room: int, where: tuple[str, str]) -> Iterator[Store]:
    folder = os.path.join(where[1], "joblib-objects")
    os.makedirs(folder, exist_ok=True)
    yield _Store(folder)


@contextlib.contextmanager
def join(ticket: str) -> Iterator[Store]:
    yield _Store(ticket)


PEER = Peer(
    name="joblib",
    title="joblib, memmap",
    module="joblib",
    distribution="joblib",
    hold=hold,
    view=view,
    copies=2,
    store=store,
    join=join,
)
