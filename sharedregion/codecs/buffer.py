"""bytes, bytearray, memoryview, array.array and mmap: come back as a memoryview with no copy.

The description beside the entry is the format of its items, as in `memoryview.format`, where they are not bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedregion.errors import RegionCorrupt

if TYPE_CHECKING:
    from sharedregion.codecs import Place

NUMBER = 2

#: Whoever has one has imported its module, and nobody else needs it.
_ELSEWHERE = {("array", "array"), ("mmap", "mmap")}
#: What memoryview.cast can give back.
_FORMATS = frozenset("cb?hHiIlLqQnNfd")


def accepts(value: object) -> bool:
    """Anything that is bytes, or numbers in a row, and nothing more."""
    kind = type(value)
    return kind in (bytes, bytearray, memoryview) or (kind.__module__, kind.__qualname__) in _ELSEWHERE


def size_of(value: Any) -> int:
    """Bytes of the value."""
    return memoryview(value).nbytes


def place(region: Place, name: str, value: Any, flags: int) -> int:
    """A memoryview with gaps is placed without them, and any in C order."""
    with memoryview(value) as view:
        region._make_room(view.nbytes)
        meta = view.format.encode() if view.format in _FORMATS else b""
        return region._put(name, NUMBER, flags, meta, view if view.c_contiguous else view.tobytes())


def read(meta: bytes, pin: Any, *, writable: bool) -> memoryview:
    """A view; every slice of it holds the block."""
    view = memoryview(pin) if writable else memoryview(pin).toreadonly()
    if not meta:
        return view
    try:
        return view.cast(meta.decode())  # type: ignore[call-overload,no-any-return]
    except (ValueError, TypeError) as error:
        raise RegionCorrupt(f"the description of a memoryview contradicts itself: {error}") from None
