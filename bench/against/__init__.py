"""The peers: other ways to hand the same bytes to other processes, one file each.

To add a peer, write `against/NAME.py` with a `PEER = Peer(...)`, and name it in `NAMES` and in
`meson.build`. Whatever a file needs beyond the standard library and NumPy it imports inside its
functions, so that the list of peers can be shown where none is installed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["NAMES", "Bytes", "Fill", "Peer", "Store", "Ticket", "Values", "load"]

Bytes = NDArray[np.uint8]
Values = NDArray[np.float64]
#: Writes into memory that was placed: called once, with all of it.
Fill = Callable[[Bytes], None]
#: How a worker finds what a host holds: what JSON can carry.
Ticket = Any
Held = AbstractContextManager[Ticket]


class Store(Protocol):
    """Flat arrays of float64 by name, for one process; `ticket` is for `join` in another."""

    ticket: Ticket

    def put(self, name: str, value: Values) -> None:
        """Place it, or replace what has the name."""

    def look(self, name: str) -> float:
        """Find it, read its first number, and let go of it."""
        ...

    def delete(self, name: str) -> None:
        """Remove it."""


NAMES = (
    "shared_memory",
    "mmap",
    "sharedarray",
    "joblib",
    "arrow",
    "ray",
    "torch",
    "lmdb",
    "iceoryx2",
    "queue",
)


@dataclass(frozen=True)
class Peer:
    """What a peer can do. A capability that is None it does not have; `cannot` says why, for the table."""

    name: str
    title: str
    #: The module to import, and the distribution that brings it; None for the standard library.
    module: str | None = None
    distribution: str | None = None
    #: hold(size, fill, where): memory of that many bytes, filled, as long as the context lasts. `where` is
    #: a prefix for names and a folder for files: ("bench-12-", "/dev/shm/...").
    hold: Callable[[int, Fill, tuple[str, str]], Held] | None = None
    #: view(ticket): the same bytes, in any other process; read-only where the peer can say so.
    view: Callable[[Ticket], AbstractContextManager[Bytes]] | None = None
    #: Times `size` that hold() needs: 2 where the bytes are made first and placed then.
    copies: float = 1
    #: True if a worker's view is a copy of its own, so that each one needs the memory again.
    own_copy: bool = False
    #: True if holes of a file stay holes, so that 512 GiB can be held by writing a few pages.
    sparse: bool = False
    #: The largest value, in bytes, and who says so; None without such a limit.
    largest: tuple[int, str] | None = None
    #: Objects by name: store(room, where) makes a place for so many bytes, join(ticket) opens it elsewhere.
    store: Callable[[int, tuple[str, str]], AbstractContextManager[Store]] | None = None
    join: Callable[[Ticket], AbstractContextManager[Store]] | None = None
    #: case -> why this peer cannot do it.
    cannot: Mapping[str, str] = field(default_factory=dict)
    #: Names that a killed process of this peer leaves in /dev/shm, with {pid} in it.
    leaves: tuple[str, ...] = ()
    #: Rounds of a long case take this much longer than others': starting a server, say.
    slow: float = 0
    #: What a reader of its figures should know.
    note: str = ""

    def missing(self) -> str | None:
        """Why it cannot be used here, or None."""
        if self.module is None:
            return None
        try:
            importlib.import_module(self.module)
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and error.name == self.module.split(".")[0]:
                return f"not installed: pip install {self.distribution}"
            return f"installed, but it cannot be imported: {error}"
        # A broken installation can raise anything at import.
        except Exception as error:  # noqa: BLE001
            return f"installed, but importing it fails: {type(error).__name__}: {error}"
        return None

    def version(self) -> str | None:
        """Its version, if it is a distribution and installed."""
        if self.distribution is None:
            return None
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


def load(name: str) -> Peer:
    """The peer of that name."""
    peer = importlib.import_module(f"sharedregion.bench.against.{name}").PEER
    assert isinstance(peer, Peer)
    return peer
