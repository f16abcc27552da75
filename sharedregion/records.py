"""What a region says of itself: plain records."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Member", "Stats"]


class Stats(NamedTuple):
    """Numbers of a region at one moment. Bytes, unless said otherwise.

    `free` is what objects may still occupy of `size`. `largest` is a single object that could be placed
    now: less than `free` where small objects keep pages in use that are otherwise empty. `committed` is
    what has memory behind it. `withdrawn` counts deleted or replaced objects that somebody still looks at,
    `unfinished` those being filled. `huge_fraction` is the part of the committed data that the
    kernel maps by pages larger than 4 KiB in this process, None where this process has touched none.
    """

    size: int
    used: int
    free: int
    largest: int
    committed: int
    objects: int
    withdrawn: int
    unfinished: int
    members: int
    recoveries: int
    sealed: bool
    huge_fraction: float | None


class Member(NamedTuple):
    """A process that has the region open. `pid` is as that process sees itself."""

    pid: int
    uid: int
    writable: bool
    since: float
    pins: int
