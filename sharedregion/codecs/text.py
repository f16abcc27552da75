"""str: UTF-8 in the region, a str of one's own when it comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharedregion.codecs import Place

NUMBER = 3

# A str may hold lone surrogates (file names that are not UTF-8): they come back as they went.
_ERRORS = "surrogatepass"


def accepts(value: object) -> bool:
    """str itself."""
    return type(value) is str


def size_of(value: str) -> int:
    """Bytes of UTF-8."""
    return len(value.encode("utf-8", _ERRORS))


def place(region: Place, name: str, value: str, flags: int) -> int:
    """Encode and copy."""
    return region._put(name, NUMBER, flags, b"", value.encode("utf-8", _ERRORS))


def read(meta: bytes, pin: Any, *, writable: bool) -> str:
    """Decoded: a copy."""
    return str(memoryview(pin), "utf-8", _ERRORS)
