"""The mount table, and the room in /dev/shm."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sharedregion._kernel.files import read_text, under

__all__ = ["Mount", "ShmSpace", "mount_table", "mounted", "shm_space"]

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of the mount table. `root` is the part of the filesystem that appears at `point`."""

    point: str
    fstype: str
    source: str = ""
    root: str = "/"
    options: frozenset[str] = frozenset()
    super_options: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ShmSpace:
    """/dev/shm: `size` and `free` in bytes, None where the filesystem has no limit of its own."""

    path: str
    fstype: str | None
    size: int | None
    free: int | None
    writable: bool


def _plain(text: str) -> str:
    # The kernel writes space, tab, newline, # and backslash as three octal digits.
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _mountinfo(text: str) -> Iterable[Mount]:
    for line in text.splitlines():
        words = line.split(" ")
        if "-" not in words[6:]:
            continue
        after = words.index("-", 6) + 1
        if len(words) < after + 3:
            continue
        yield Mount(
            point=_plain(words[4]),
            fstype=words[after],
            source=_plain(words[after + 1]),
            root=_plain(words[3]),
            options=frozenset(words[5].split(",")),
            super_options=frozenset(words[after + 2].split(",")),
        )


def _mounts(text: str) -> Iterable[Mount]:
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 4:
            options = frozenset(words[3].split(","))
            yield Mount(_plain(words[1]), words[2], _plain(words[0]), "/", options, options)


def mount_table(root: str = "/") -> list[Mount]:
    """Mounts as this process sees them, oldest first: of two at one place the later one is seen."""
    text = read_text(root, "proc/self/mountinfo")
    if text is not None:
        return list(_mountinfo(text))
    return list(_mounts(read_text(root, "proc/self/mounts") or ""))


def mounted(fstype: str, table: Iterable[Mount]) -> Mount | None:
    """The newest mount of that filesystem type, wherever it is."""
    found = None
    for mount in table:
        if mount.fstype == fstype:
            found = mount
    return found


def shm_space(root: str = "/", table: Iterable[Mount] | None = None) -> ShmSpace | None:
    """Where POSIX shared memory lives, or None if there is no such directory."""
    path = under(root, "dev/shm")
    try:
        if not os.path.isdir(path):
            return None
        room = os.statvfs(path)
    except OSError:
        return None
    fstype = None
    for mount in mount_table(root) if table is None else table:
        if mount.point == "/dev/shm":
            fstype = mount.fstype
    # A tmpfs mounted with size=0 has no limit and reports no blocks at all.
    unlimited = room.f_blocks == 0
    return ShmSpace(
        path="/dev/shm",
        fstype=fstype,
        size=None if unlimited else room.f_blocks * room.f_frsize,
        free=None if unlimited else room.f_bavail * room.f_frsize,
        writable=os.access(path, os.W_OK | os.X_OK),
    )
