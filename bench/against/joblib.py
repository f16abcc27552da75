"""joblib's memmap: dump to a file in shared memory, load with mmap_mode="r", as its workers do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer, Values
from sharedregion.bench.stores import files


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


def _write(path: str, value: Values) -> None:
    import joblib

    joblib.dump(value, path)


def _first(path: str) -> float:
    import joblib

    return float(joblib.load(path, mmap_mode="r")[0])


store, join = files(_write, _first)

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
