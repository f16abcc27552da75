"""What prefork servers share: a process that places objects, and handles that its children inherit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sharedregion import codecs, opening, references
from sharedregion.errors import RegionFull
from sharedregion.region import Region

__all__ = ["Host"]

_EACH = 4096  # What placing an object at its alignment may take beside its bytes.


class Host:
    """A region that this process fills and keeps, and a second, read-only handle for processes forked from it."""

    def __init__(
        self,
        name: str,
        load: Callable[[], Mapping[str, Any]],
        size: int | str | None,
        options: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.load = load
        self.size = size
        self.options = dict(options)
        self.writer: Region | None = None
        self.reader: Region | None = None

    def place(self) -> Region:
        """Load everything and place it; new versions if the region is there and has room, a new generation otherwise."""
        values = dict(self.load())
        if self.writer is not None and not self.writer.closed:
            try:
                return self._put(self.writer, values)
            except RegionFull:
                pass
        size = self.size
        if size is None:
            # Twice: a new version lies beside the old one until the last worker has let go of that.
            # Where memory is committed as it is used (thp, shm), the second half costs nothing.
            size = 2 * sum(codecs.codec_for(v).size_of(v) + _EACH for v in values.values()) + (1 << 20)
        former = (self.writer, self.reader)
        writer = opening.create(self.name, **({"size": size, "replace": True} | self.options))
        self._put(writer, values)
        self.writer = writer
        # By identity: whoever takes the name later does not matter to processes that are forked from now on.
        self.reader = Region._attach(self.name, False, writer.uid)._settle_in(None)
        for handle in former:
            if handle is not None:
                handle.close()
        return writer

    def _put(self, writer: Region, values: Mapping[str, Any]) -> Region:
        for name, value in values.items():
            writer[name] = value
        return writer

    def in_child(self) -> Region:
        """In a forked process: keep what reads, let go of what writes."""
        assert self.reader is not None, "place() comes before the fork"
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        references.remember(self.reader)
        return self.reader

    def close(self) -> None:
        """Let go of both."""
        for handle in (self.reader, self.writer):
            if handle is not None:
                handle.close()
