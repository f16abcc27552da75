"""Views of other processes in /proc: who they are, and what files they have mapped or open.

Processes end while one looks: then there is nothing to be told of them, and that is no error.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain

from sharedregion._kernel.files import parse_int, read_text, under

__all__ = ["Area", "Status", "areas", "command", "open_files", "pids", "status"]


@dataclass(frozen=True)
class Status:
    """What everybody may know of a process. `inner_pids`: as each nested pid namespace names it, outermost first."""

    pid: int
    uid: int | None
    inner_pids: tuple[int, ...]
    hugetlb: int
    thp_enabled: bool


@dataclass(frozen=True)
class Area:
    """A mapping of a file that was asked for. `flags`, `rss` and `huge` (bytes) only where smaps was read."""

    start: int
    end: int
    writable: bool
    offset: int
    file: tuple[int, int]
    flags: frozenset[str] = frozenset()
    rss: int | None = None
    huge: int = 0


def pids(root: str = "/") -> list[int]:
    """Every process that can be seen, by number."""
    try:
        names = os.listdir(under(root, "proc"))
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def status(pid: int, root: str = "/") -> Status | None:
    """None if there is no such process."""
    text = read_text(root, f"proc/{pid}/status")
    if text is None:
        return None
    fields = dict(line.split(":", 1) for line in text.split("\n") if ":" in line)

    def numbers(name: str) -> list[int]:
        return [n for n in map(parse_int, fields.get(name, "").split()) if n is not None]

    uids, inner, hugetlb = numbers("Uid"), numbers("NSpid"), numbers("HugetlbPages")
    return Status(
        pid=pid,
        uid=uids[1] if len(uids) > 1 else None,
        inner_pids=tuple(inner),
        hugetlb=hugetlb[0] * 1024 if hugetlb else 0,
        # The line is there since Linux 5.0, and 0 after prctl(PR_SET_THP_DISABLE).
        thp_enabled=fields.get("THP_enabled", "1").strip() != "0",
    )


def command(pid: int, root: str = "/") -> str | None:
    """The name of the program, as the process itself chose it: not to be trusted, and to be escaped."""
    text = read_text(root, f"proc/{pid}/comm")
    return None if text is None else text.removesuffix("\n")


def open_files(pid: int, root: str = "/") -> dict[tuple[int, int], int] | None:
    """Files that it has open, as (device, inode), with the bytes that lie behind each; None if it may not be asked."""
    folder = under(root, f"proc/{pid}/fd")
    found: dict[tuple[int, int], int] = {}
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    for name in names:
        try:
            info = os.stat(os.path.join(folder, name))
        except OSError:
            continue
        found[info.st_dev, info.st_ino] = info.st_blocks * 512
    return found


def _head(line: bytes, wanted: Collection[tuple[int, int]]) -> Area | None:
    """ "start-end perms offset major:minor inode path", if it is of a file that is wanted."""
    words = line.split(None, 5)
    try:
        major, _, minor = words[3].partition(b":")
        file = (os.makedev(int(major, 16), int(minor, 16)), int(words[4]))
        if file not in wanted:
            return None
        start, _, end = words[0].partition(b"-")
        return Area(int(start, 16), int(end, 16), b"w" in words[1], int(words[2], 16), file)
    except (IndexError, ValueError):
        return None


def areas(
    pid: int, wanted: Collection[tuple[int, int]], root: str = "/", *, smaps: bool = False
) -> list[Area] | None:
    """Where the process has the files `wanted` mapped; None if it may not be asked, or has ended.

    With `smaps` also the flags of each mapping, and how much of it large pages map; the kernel walks
    the process's page tables for that. Read line by line: there are processes with 100,000 mappings.
    """
    name = "smaps" if smaps else "maps"
    try:
        found = _areas(under(root, f"proc/{pid}/{name}"), wanted, smaps)
        if found is None:
            # The thread that the process is named after has ended, and shows nothing: the others have it all.
            for task in sorted(os.listdir(under(root, f"proc/{pid}/task")), key=len):
                found = _areas(under(root, f"proc/{pid}/task/{task}/{name}"), wanted, smaps)
                if found is not None:
                    break
    except OSError:
        return None
    return found or []


def _areas(path: str, wanted: Collection[tuple[int, int]], smaps: bool) -> list[Area] | None:
    """None for a file without a line."""
    inodes = {str(inode).encode() for _, inode in wanted}
    found: list[Area] = []
    with open(path, "rb", buffering=1 << 18) as file:
        first = file.readline()
        if not first:
            return None
        lines = chain((first,), file)
        if smaps:
            return list(_smaps(lines, wanted))
        for line in lines:
            # Cheap first: of most lines the inode says that they do not matter.
            words = line.split(None, 5)
            if len(words) >= 5 and words[4] in inodes and (area := _head(line, wanted)):
                found.append(area)
    return found


_HUGE = (b"ShmemPmdMapped:", b"FilePmdMapped:", b"AnonHugePages:")


def _smaps(lines: Iterator[bytes], wanted: Collection[tuple[int, int]]) -> Iterator[Area]:
    area: Area | None = None
    rss = huge = 0
    for line in lines:
        name, _, rest = line.partition(b" ")
        if not name.endswith(b":"):
            area, rss, huge = _head(line, wanted), 0, 0
        elif area is None:
            continue
        elif name == b"Rss:":
            rss = int(rest.split()[0]) * 1024
        elif name in _HUGE:
            huge += int(rest.split()[0]) * 1024
        elif name == b"VmFlags:":
            # The last line of each.
            flags = frozenset(rest.decode("ascii", "replace").split())
            yield Area(area.start, area.end, area.writable, area.offset, area.file, flags, rss, huge)
            area = None
