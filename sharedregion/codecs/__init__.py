"""What kinds of values a region can hold: a codec a file, and the table of them.

A codec turns a value into bytes of the data segment and a short description beside the catalog
entry, and back into a value that looks at those bytes.

To add a codec: take the next number (numbers are stored: never use one again), write a file with
the functions of `Codec`, and list it below. A codec for a framework's values is found by the name of
the package that their type comes from, and loaded only then: whoever holds such a value has the
framework loaded, and nobody else needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

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


_ORDER: tuple[Codec, ...] = (ndarray, text, buffer)
_BY_NUMBER: dict[int, Codec] = {codec.NUMBER: codec for codec in (*_ORDER, pickled)}
#: The first part of a type's module, and the codec for values from there.
_FRAMEWORKS = {"torch": "tensor", "pyarrow": "arrow", "polars": "arrow", "pandas": "frames"}
_FRAMEWORK_NUMBERS = {5: "tensor", 6: "arrow", 7: "file"}


def _framework_codec(name: str) -> Codec:
    return cast("Codec", import_module(f"sharedregion.codecs.{name}"))


def codec_for(value: object) -> Codec:
    """The codec that takes `value`; the last one takes anything that can be pickled."""
    for codec in _ORDER:
        if codec.accepts(value):
            return codec
    kind = type(value)
    # Of a subclass that somebody else made, what it comes from decides: it is more than its columns.
    names = (_FRAMEWORKS.get(base.__module__.partition(".")[0]) for base in kind.__mro__)
    name = next((name for name in names if name is not None), None)
    if name is None and (hasattr(kind, "__arrow_c_stream__") or hasattr(kind, "__arrow_c_array__")):
        name = "arrow"
    if name is not None and (codec := _framework_codec(name)).accepts(value):
        return codec
    return pickled


def codec_of(number: int) -> Codec:
    """The codec of a stored number."""
    codec = _BY_NUMBER.get(number)
    if codec is None:
        name = _FRAMEWORK_NUMBERS.get(number)
        if name is None:
            raise RegionCorrupt(f"an object is of kind {number}, which this version does not know")
        codec = _BY_NUMBER[number] = _framework_codec(name)
    return codec
