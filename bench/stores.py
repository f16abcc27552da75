"""Objects by name for peers that keep none of their own: a file for each, or a name with a prefix."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from sharedregion.bench.against import Store, Values

__all__ = ["files", "prefixed"]

Open = Callable[[int, tuple[str, str]], AbstractContextManager[Store]]
Join = Callable[[str], AbstractContextManager[Store]]


class _Files:
    """A file for each object in one folder, put into place by rename, so that readers see it whole."""

    def __init__(
        self, folder: str, write: Callable[[str, Values], object], first: Callable[[str], float]
    ) -> None:
        self.ticket = folder
        self._write, self._first = write, first

    def put(self, name: str, value: Values) -> None:
        path = f"{self.ticket}/{name}"
        self._write(f"{path}.{os.getpid()}", value)
        os.rename(f"{path}.{os.getpid()}", path)

    def look(self, name: str) -> float:
        return self._first(f"{self.ticket}/{name}")

    def delete(self, name: str) -> None:
        os.unlink(f"{self.ticket}/{name}")


def files(write: Callable[[str, Values], object], first: Callable[[str], float]) -> tuple[Open, Join]:
    """(store, join) of a peer: write(path, values) makes a file, first(path) opens it and reads its first number."""

    def folder(where: tuple[str, str]) -> str:
        path = os.path.join(where[1], "objects")
        os.makedirs(path, exist_ok=True)
        return path

    return _both(folder, lambda path: _Files(path, write, first))


def prefixed(make: Callable[[str], Store]) -> tuple[Open, Join]:
    """(store, join) of a peer whose names are the system's: make(prefix) is the store of names that begin so."""
    return _both(lambda where: f"{where[0]}o-", make)


def _both(ticket: Callable[[tuple[str, str]], str], make: Callable[[str], Store]) -> tuple[Open, Join]:
    @contextlib.contextmanager
    def join(text: str) -> Iterator[Store]:
        yield make(text)

    return lambda _, where: join(ticket(where)), join
