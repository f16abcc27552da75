"""What a block of the drop-in is made of: pure, from its size and what was asked for.

A block of 2 MiB or more comes from thp: it costs its users 4 KiB of page tables per GiB and not 2 MiB,
and keeps its name in /dev/shm. Memory without such a name is taken only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["HEADROOM_FROM", "KINDS", "NAMELESS", "choose"]

VARIABLE = "SHAREDREGION_SHM_BACKEND"
LARGE_PAGE = 2 << 20
#: Kinds that have no file in /dev/shm: such a block is a region, found by its name all the same.
NAMELESS = ("hugetlb", "msharefs")
KINDS = ("thp", "shm", *NAMELESS)
#: From this size on the memory that is left is looked at before it is taken: beyond the limit of a
#: control group the answer is SIGKILL, not an error. What smaller blocks overrun is bounded by it.
HEADROOM_FROM = 16 << 20


def choose(size: int, backend: str | None, environ: Mapping[str, str]) -> str:
    """One of KINDS. ValueError for a name that is not known.

    An argument wins over the variable; the variable leaves blocks of less than 2 MiB alone, which
    would take a whole page from the pool each.
    """
    source = "backend"
    if backend is None:
        source, backend = VARIABLE, environ.get(VARIABLE) or None
        if backend in NAMELESS and size < LARGE_PAGE:
            backend = None
    if backend is None or backend == "auto":
        return "thp" if size >= LARGE_PAGE else "shm"
    if backend not in KINDS:
        raise ValueError(f"{source} {backend!r} is not known; it is one of auto, {', '.join(KINDS)}")
    return backend
