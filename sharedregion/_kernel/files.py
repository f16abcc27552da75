"""Reading small kernel files, where an unreadable file is an answer like any other."""

from __future__ import annotations

import os

__all__ = ["parse_int", "read_int", "read_text", "under"]

# Kernel files of the kinds read here are far smaller; a limit keeps a made-up tree from hurting.
_LIMIT = 1 << 24
# Files of /proc/sys refuse to be read by pieces of several MiB, with ENOMEM.
_PIECE = 1 << 16


def under(root: str, path: str) -> str:
    """`path` (absolute as the kernel names it, or relative) inside the tree at `root`."""
    return os.path.join(root, path.lstrip("/"))


def read_text(root: str, path: str) -> str | None:
    """The file's text, or None if it cannot be read. Bytes that are not UTF-8 are kept, escaped."""
    try:
        with open(under(root, path), "rb", buffering=0) as file:
            pieces: list[bytes] = []
            while len(pieces) < _LIMIT // _PIECE and (piece := file.read(_PIECE)):
                pieces.append(piece)
            return b"".join(pieces).decode("utf-8", "surrogateescape")
    except (OSError, ValueError):
        return None


def read_int(root: str, path: str) -> int | None:
    """The decimal number that the file holds, or None."""
    return parse_int(read_text(root, path))


def parse_int(text: str | None) -> int | None:
    """A plain decimal number, or None. `int()` alone would take "1_0", signs and huge texts too."""
    if text is None:
        return None
    digits = text.strip()
    if not digits.isascii() or not digits.isdigit() or len(digits) > 20:
        return None
    return int(digits)
