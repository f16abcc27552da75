"""What kinds of values a region can hold: a codec a file, and the table of them.

A codec turns a value into bytes of the data segment and a short description beside the catalog
entry, and back into a value that looks at those bytes.

To add a codec: take the next number (numbers are stored: never use one again), write a file with
the functions of `Codec`, and list it in `_ORDER` below at its place; the first one that accepts a
value takes it.
"""

from __future__ import annotations

from typing import Any, Protocol

from sharedregion.codecs import buffer, ndarray, pickled, text
from sharedregion.errors import RegionCorrupt

__all__ = ["Codec", "Place", "codec_for", "codec_of"]


class Place(Protocol):
    """What a codec needs of a region."""

    def _put(self, name: str, kind: int, flags: int, meta: bytes, data: Any, /) -> int: ...
    def _begin(self, name: str, kind: int, flags: int, meta: bytes, nbytes: int, /) -> Any: ...
    def _make_room(self, nbytes: int) -> None: ...


class Codec(Protocol):
    """One kind of value."""

    NUMBER: int

    def accepts(self, value: object) -> bool:
        """Whether this codec is the one for `value`."""
        ...

    def size_of(self, value: Any) -> int:
        """Bytes of the data segment that `value` will take, at most."""
        ...

    def place(self, region: Place, name: str, value: Any, flags: int) -> int:
        """Place and publish; returns the version."""
        ...

    def read(self, meta: bytes, pin: Any, *, writable: bool) -> Any:
        """The value, over the memory that `pin` lends."""
        ...


_ORDER: tuple[Codec, ...] = (ndarray, text, buffer, pickled)
_BY_NUMBER = {codec.NUMBER: codec for codec in _ORDER}


def codec_for(value: object) -> Codec:
    """The codec that takes `value`; the last one takes anything that can be pickled."""
    return next(codec for codec in _ORDER if codec.accepts(value))


def codec_of(number: int) -> Codec:
    """The codec of a stored number."""
    try:
        return _BY_NUMBER[number]
    except KeyError:
        raise RegionCorrupt(f"an object is of kind {number}, which this version does not know") from None
