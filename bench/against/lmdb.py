"""LMDB in shared memory, with sync off and a writable map: the fastest that it has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer, Store, Ticket, Values

_FAST: dict[str, Any] = {"sync": False, "metasync": False, "writemap": True, "map_async": True}


def _open(ticket: Ticket) -> Any:
    import lmdb

    folder, room = ticket
    os.makedirs(folder, exist_ok=True)
    return lmdb.open(folder, map_size=room, max_readers=512, **_FAST)


@contextlib.contextmanager
def hold(size: int, fill: Fill, where: tuple[str, str]) -> Iterator[Ticket]:
    folder = os.path.join(where[1], "lmdb-held")
    room = size + size // 8 + (64 << 20)
    data = np.empty(size, np.uint8)
    fill(data)
    with _open([folder, room]) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"data", data.data)
        del data
        yield [folder, room]
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))


@contextlib.contextmanager
def view(ticket: Ticket) -> Iterator[Bytes]:
    import lmdb

    folder, room = ticket
    with (
        lmdb.open(folder, map_size=room, readonly=True, max_readers=512) as environment,
        environment.begin(buffers=True) as transaction,
    ):
        yield np.frombuffer(transaction.get(b"data"), np.uint8)


class _Store:
    def __init__(self, environment: Any, ticket: Ticket) -> None:
        self._environment = environment
        self.ticket = ticket

    def put(self, name: str, value: Values) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.put(name.encode(), value.data)

    def look(self, name: str) -> float:
        with self._environment.begin(buffers=True) as transaction:
            return float(np.frombuffer(transaction.get(name.encode()), np.float64, 1)[0])

    def delete(self, name: str) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.delete(name.encode())


@contextlib.contextmanager
def store(room: int, where: tuple[str, str]) -> Iterator[Store]:
    ticket = [os.path.join(where[1], "lmdb-store"), 2 * room]
    with _open(ticket) as environment:
        yield _Store(environment, ticket)


@contextlib.contextmanager
def join(ticket: Ticket) -> Iterator[Store]:
    with _open(ticket) as environment:
        yield _Store(environment, ticket)


PEER = Peer(
    name="lmdb",
    title="LMDB, sync off",
    module="lmdb",
    distribution="lmdb",
    hold=hold,
    view=view,
    copies=2,
    largest=((1 << 32) - 1, "a value of LMDB has less than 4 GiB"),
    store=store,
    join=join,
    note="one writer at a time; a reader's bytes are its own until its transaction ends",
)
