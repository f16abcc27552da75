"""bytes, bytearray and memoryview: come back as a memoryview with no copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharedregion.codecs import Place

NUMBER = 2


def accepts(value: object) -> bool:
    """Anything that is bytes and nothing more."""
    return type(value) in (bytes, bytearray, memoryview)


def size_of(value: bytes | bytearray | memoryview) -> int:
    """Bytes of the value."""
    return memoryview(value).nbytes


def place(region: Place, name: str, value: bytes | bytearray | memoryview, flags: int) -> int:
    """A memoryview with gaps is placed without them."""
    view = memoryview(value)
    region._make_room(view.nbytes)
    return region._put(name, NUMBER, flags, b"", view if view.contiguous else view.tobytes())


def read(meta: bytes, pin: Any, *, writable: bool) -> memoryview:
    """A view; every slice of it holds the block."""
    view = memoryview(pin)
    return view if writable else view.toreadonly()
