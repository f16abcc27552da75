"""Files that are mapped into a region on msharefs: an array of their bytes, or the bytes. Placed by `map_file`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from sharedregion.arrays import array_over
from sharedregion.errors import NotPlaceable

if TYPE_CHECKING:
    from sharedregion.codecs import Place

NUMBER = 7

#: Offset in the msharefs region and length, which the native core reads; the array's description follows.
PLACE = struct.Struct("=QQ")


def accepts(value: object) -> bool:
    """No value is one of these: they are files."""
    return False


def size_of(value: Any) -> int:
    """A file takes no memory of the region, but for its entry."""
    return 0


def place(region: Place, name: str, value: Any, flags: int) -> int:
    """Only by `Region.map_file`."""
    raise NotPlaceable("a file is placed by map_file")


def read(meta: bytes, pin: Any, *, writable: bool) -> Any:
    """The array, or a view of the bytes, over the file's pages."""
    described = meta[PLACE.size :]
    return array_over(described, pin, writable=False) if described else memoryview(pin).toreadonly()
