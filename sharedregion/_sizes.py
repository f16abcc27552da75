"""Sizes as people write them. "8 GiB" and "8G" are 2^30 bytes each."""

from __future__ import annotations

import math
import operator
import re
from typing import SupportsIndex

__all__ = ["MAX_SIZE", "format_size", "parse_size"]

#: The user half of a four-level x86_64 address space.
MAX_SIZE = 1 << 47

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)")
_UNIT = re.compile(r"([KMGTP]?)(IB|B|)")


def parse_size(size: str | SupportsIndex | float) -> int:
    """Bytes of `size`: a number, or text such as "8 GiB", "8G", "1.5GiB", "4096". A fraction of a byte counts whole.

    Raises ValueError with the reason: zero, negative, not a number, more than 2^47, "GB" (which
    means 10^9 to some and 2^30 to others); TypeError for what is neither a number nor text.
    """
    if isinstance(size, bool):
        raise ValueError("size is a number of bytes or a text such as '8 GiB', not a truth value")
    if isinstance(size, str):
        amount = _from_text(size)
    elif isinstance(size, float):
        if not math.isfinite(size):
            raise ValueError(f"size {size} is not a number of bytes")
        amount = math.ceil(size)
    else:
        try:
            amount = operator.index(size)
        except TypeError:
            raise TypeError(
                f"size is a number of bytes or a text such as '8 GiB', not {type(size).__name__}"
            ) from None
    if amount <= 0:
        raise ValueError(f"size {_shown(size)} is not above 0")
    if amount > MAX_SIZE:
        raise ValueError(f"size {_shown(size)} is more than an address space can hold (2^47 bytes, 128 TiB)")
    return amount


def _from_text(text: str) -> int:
    stripped = text.strip()
    if stripped.startswith("-"):
        raise ValueError(f"size {_shown(text)} is not above 0")
    match = _SIZE.fullmatch(stripped)
    unit = _UNIT.fullmatch(match[2].upper()) if match else None
    if match is None or unit is None or (unit[2] == "IB" and not unit[1]):
        raise ValueError(
            f"size {_shown(text)} is not understood; write bytes, or a text such as '8 GiB' or '512M'"
        )
    if unit[1] and unit[2] == "B":
        raise ValueError(f"size {_shown(text)} is ambiguous: write {unit[1]}iB for powers of 1024")
    whole, _, part = match[1].partition(".")
    # Integers throughout: a float would lose bytes above 2^53.
    divisor = int("1" + "0" * len(part))
    return -((int(whole + part) << _UNITS[unit[1]]) // -divisor)


def _shown(size: object) -> str:
    # A text of any length may come from a command line; an int of any length cannot be printed at all.
    if isinstance(size, str):
        return repr(size if len(size) <= 40 else size[:40] + "...")
    if isinstance(size, int) and size.bit_length() > 200:
        return f"of {size.bit_length()} bits"
    return str(size)


def format_size(size: float) -> str:
    """`size` bytes for people: three digits at most that mean something, "16 KiB", "1.5 GiB"."""
    sign, amount = ("-", -size) if size < 0 else ("", size)
    if amount < 1024:
        return f"{sign}{amount:g} B" if amount == int(amount) else f"{sign}{amount:.1f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        amount /= 1024
        # 1023.6 would print as 1024: go on to the next unit before that.
        if amount < 999.5 or unit == "PiB":
            break
    digits = 2 if amount < 9.995 else 1 if amount < 99.95 else 0
    text = f"{amount:.{digits}f}"
    return f"{sign}{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"
