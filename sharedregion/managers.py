"""SharedMemoryManager whose blocks and lists are those of `sharedregion.shared_memory`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from multiprocessing import managers
from typing import Any

from sharedregion import shared_memory

__all__ = ["SharedMemoryManager"]

_standard: Any = managers


class _Blocks(_standard._SharedMemoryTracker):  # type: ignore[misc]
    """The blocks that a manager's server unlinks at its end."""

    def __init__(self, name: str, segment_names: Iterable[str] = ()) -> None:
        # The list is this instance's own; the standard default is one list for all.
        super().__init__(name, list(segment_names))

    def destroy_segment(self, segment_name: str) -> None:
        """Unlink one block. Another may have done it before."""
        self.segment_names.remove(segment_name)
        try:
            block = shared_memory.SharedMemory(segment_name, track=False)
        except FileNotFoundError:
            return
        block.close()
        block.unlink()


class SharedMemoryServer(_standard.SharedMemoryServer):  # type: ignore[misc]
    """The server process of a SharedMemoryManager."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        standard: Any = self.shared_memory_context
        self.shared_memory_context: Any = _Blocks(standard.shared_memory_context_name)


class SharedMemoryManager(_standard.SharedMemoryManager):  # type: ignore[misc]
    """Makes blocks and lists that end with the manager, as `multiprocessing.managers` does."""

    _Server = SharedMemoryServer

    def SharedMemory(self, size: int) -> shared_memory.SharedMemory:  # noqa: N802
        """A new block of `size` bytes, unlinked when the manager shuts down."""
        return self._tracked(lambda: shared_memory.SharedMemory(None, create=True, size=size))  # type: ignore[no-any-return]

    def ShareableList(self, sequence: Iterable[Any] | None) -> shared_memory.ShareableList:  # noqa: N802
        """A new list of the items, unlinked when the manager shuts down."""
        return self._tracked(lambda: shared_memory.ShareableList(sequence))  # type: ignore[no-any-return]

    def _tracked(self, make: Any) -> Any:
        own: Any = self
        with own._Client(own._address, authkey=own._authkey) as connection:
            made = make()
            block = getattr(made, "shm", made)
            try:
                _standard.dispatch(connection, None, "track_segment", (block.name,))
            except BaseException:
                block.close()
                block.unlink()
                raise
        return made


if shared_memory.__name__ != "sharedregion.shared_memory":
    sys.modules[__name__] = managers
