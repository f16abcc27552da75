"""Large pages for shared memory that is in use: what `sharedregion collapse` does, as data.

The kernel collapses the pages of a shared memory file for everybody who has it mapped (MADV_COLLAPSE);
the processes need not do anything, and go on while it happens. Those whose mapping is congruent to the
file modulo 2 MiB lose their tables of 4 KiB entries at once, and map the large pages by one entry each
at their next touch. The others go on with 4 KiB entries: where a mapping lies cannot be changed from
outside.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from sharedregion import _blocks
from sharedregion._kernel import processes
from sharedregion._kernel.maps import shared_memory_of
from sharedregion._kernel.mounts import mount_table
from sharedregion._kernel.procfs import process_status

__all__ = ["CollapsedFile", "Gain", "Report", "collapse"]

LARGE_PAGE = 2 << 20


@dataclass(frozen=True)
class CollapsedFile:
    """One file. `large`, `empty` and `refused` count ranges of 2 MiB; `tail` is bytes in small pages."""

    path: str
    size: int
    large: int
    empty: int
    refused: int
    why: str | None
    memory_before: int
    memory_after: int
    tail: int


@dataclass(frozen=True)
class Gain:
    """One process that has a file mapped: bytes of page tables, and of mappings by their address."""

    pid: int
    command: str
    tables_before: int
    tables_after: int
    congruent: int
    misplaced: int

    @property
    def gained(self) -> int:
        """Bytes of page tables that it has less."""
        return self.tables_before - self.tables_after


@dataclass(frozen=True)
class Report:
    """What became of each file and each process."""

    files: list[CollapsedFile] = field(default_factory=list)
    processes: list[Gain] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1,
            "files": [asdict(one) for one in self.files],
            "processes": [asdict(one) | {"gained": one.gained} for one in self.processes],
        }


@dataclass
class _Opened:
    path: str
    fd: int
    stat: os.stat_result

    @property
    def key(self) -> tuple[int, int]:
        return self.stat.st_dev, self.stat.st_ino


def _open(path: str, shown: str) -> _Opened:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    return _Opened(shown, fd, os.fstat(fd))


def _filesystem(path: str) -> str | None:
    """The kind of file system that a path lies on."""
    path = os.path.realpath(path)
    found = None
    longest = -1
    for mount in mount_table():
        point = mount.point.rstrip("/")
        if (path == point or path.startswith(point + "/")) and len(point) >= longest:
            found, longest = mount.fstype, len(point)
    return found


def _thread(pid: int) -> int:
    """A thread of the process that shows its memory: the one that it is named after does not, once it has ended."""
    threads = [pid]
    with contextlib.suppress(OSError):
        threads += map(int, os.listdir(f"/proc/{pid}/task"))
    return next((one for one in threads if "VmPTE" in process_status(one)), pid)


def _of_process(pid: int) -> list[_Opened]:
    """The shared memory of a process, each file once."""
    pid = _thread(pid)
    opened: dict[tuple[int, int], _Opened] = {}
    refused: OSError | None = None
    for one in shared_memory_of(pid):
        key = one.file
        if key in opened:
            continue
        found = None
        # By its address, which needs a capability; by its name; by a descriptor that is still open.
        candidates = [f"/proc/{pid}/map_files/{one.start:x}-{one.end:x}", one.path]
        with contextlib.suppress(OSError):
            candidates += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
        for path in candidates:
            try:
                if path != one.path and "/fd/" in path:
                    there = os.stat(path)
                    if (there.st_dev, there.st_ino) != key:
                        continue
                found = _open(path, one.path)
            except OSError as error:
                refused = error
                continue
            if found.key == key:
                break
            os.close(found.fd)
            found = None
        if found is not None:
            opened[key] = found
    if not opened and refused is not None:
        raise refused
    return list(opened.values())


def _of_name(name: str) -> list[_Opened]:
    """A block, a region or a file by its name."""
    if "/" not in name:
        for path in (f"{_blocks.SHM_DIR}/{name}", f"{_blocks.SHM_DIR}/sharedregion.{name}.data"):
            if os.path.exists(path):
                return [_open(path, path)]
    if not os.path.exists(name):
        raise FileNotFoundError(
            2, f"no process, block, region or file of this name; {_blocks.SHM_DIR} was looked at", name
        )
    kind = _filesystem(name) if os.path.isfile(name) else None
    if kind != "tmpfs":
        raise ValueError(f"{name} is no shared memory: it {f'lies on {kind}' if kind else 'is no file'}")
    return [_open(name, name)]


def _users(keys: set[tuple[int, int]]) -> dict[int, list[processes.Area]]:
    """Who has one of the files mapped, as far as the caller may see."""
    found = {pid: processes.areas(pid, keys) for pid in processes.pids() if pid != os.getpid()}
    return {pid: areas for pid, areas in found.items() if areas}


def _collapse_file(one: _Opened) -> CollapsedFile:
    large, empty, refused, why = _blocks.collapse(one.fd, one.stat.st_size)
    return CollapsedFile(
        one.path,
        one.stat.st_size,
        large,
        empty,
        refused,
        os.strerror(why) if why else None,
        one.stat.st_blocks * 512,
        os.fstat(one.fd).st_blocks * 512,
        one.stat.st_size % LARGE_PAGE,
    )


def collapse(targets: Iterable[str]) -> Report:
    """Collapse what the targets name: process ids, blocks, regions, files. OSError, ValueError."""
    opened: dict[tuple[int, int], _Opened] = {}
    try:
        for target in targets:
            found = _of_process(int(target)) if target.isascii() and target.isdigit() else _of_name(target)
            for one in found:
                if one.key in opened:
                    os.close(one.fd)
                else:
                    opened[one.key] = one
        # Memory of the hugetlb pool is in huge pages from the start.
        shmem = {key: one for key, one in opened.items() if one.stat.st_blksize < LARGE_PAGE}
        users = _users(set(shmem))
        threads = {pid: _thread(pid) for pid in users}
        before = {pid: process_status(threads[pid]).get("VmPTE", 0) for pid in users}
        files = [_collapse_file(one) for one in shmem.values()]
        gains = []
        for pid, mapped in users.items():
            after = process_status(threads[pid]).get("VmPTE")
            if after is None:
                continue
            # Less than one large page has nothing to gain, wherever it lies.
            wide = [area for area in mapped if area.end - area.start >= LARGE_PAGE]
            total = sum(area.end - area.start for area in wide)
            good = sum(area.end - area.start for area in wide if (area.start - area.offset) % LARGE_PAGE == 0)
            command = processes.command(pid) or "?"
            gains.append(Gain(pid, command, before[pid], after, good, total - good))
        return Report(files, gains)
    finally:
        for one in opened.values():
            os.close(one.fd)
