"""The shared memory that a process has mapped, as /proc/PID/maps tells it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sharedregion._kernel.files import under

__all__ = ["SharedMemoryMapping", "shared_memory_of"]

#: How the kernel names mappings of memory that no file system on a disk stands behind.
_MEMORY = ("/dev/shm/", "/memfd:", "/dev/zero", "/SYSV")


@dataclass(frozen=True, slots=True)
class SharedMemoryMapping:
    """One mapping. `path` is as the kernel shows it, with " (deleted)" for files without a name."""

    start: int
    end: int
    file: tuple[int, int]
    path: str


def shared_memory_of(pid: int, root: str = "/") -> list[SharedMemoryMapping]:
    """Shared mappings of memory, in the order of their addresses. OSError if it is gone or not yours to see."""
    found = _mappings(under(root, f"proc/{pid}/maps"))
    if found is None:
        # The thread that the process is named after has ended, and shows nothing: the others have it all.
        for task in sorted(os.listdir(under(root, f"proc/{pid}/task")), key=len):
            found = _mappings(under(root, f"proc/{pid}/task/{task}/maps"))
            if found is not None:
                break
    return found or []


def _mappings(path: str) -> list[SharedMemoryMapping] | None:
    """None for a file without a line."""
    found = []
    line = ""
    with open(path, errors="surrogateescape") as lines:
        for line in lines:
            words = line.rstrip("\n").split(maxsplit=5)
            if len(words) < 6 or not words[1].endswith("s") or not words[5].startswith(_MEMORY):
                continue
            start, _, end = words[0].partition("-")
            major, _, minor = words[3].partition(":")
            file = os.makedev(int(major, 16), int(minor, 16)), int(words[4])
            found.append(SharedMemoryMapping(int(start, 16), int(end, 16), file, words[5]))
    return found if line else None
