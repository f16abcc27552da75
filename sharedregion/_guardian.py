"""Changes of the machine that are undone however their maker ends.

A guardian is a small process that is told each step before it is taken: huge pages reserved, a
control group made, names that will lie in /dev/shm, processes that will be started. When its maker
says so, or has gone, SIGKILL included, it undoes them, the last one first.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from sharedregion._kernel import cgroup, files, mounts
from sharedregion._kernel.sysfs import hugepage_pools
from sharedregion._signals import deferred
from sharedregion._sizes import format_size
from sharedregion.errors import ToolError

__all__ = ["Guardian", "end_marked", "marked_processes", "memory_group", "remove_names", "reserve", "write"]


class Guardian:
    """A process that undoes steps, the last one first, as soon as this process has gone or says so.

    A step is announced before it is taken:

    - `("pool", page size, pages)`: that many huge pages more than there were;
    - `("group", path)`: a control group; what is in it is killed;
    - `("folder", path)`: a folder with all that is in it;
    - `("names", text)`: whatever in /dev/shm has this text in its name;
    - `("processes", text)`: processes whose environment, as they were started, has this text.

    `undo()` waits until all is undone.
    """

    def __init__(self, root: str = "/") -> None:
        reader, self.pipe = os.pipe()
        with deferred():
            self.pid = os.fork()
            if self.pid == 0:
                _guard(reader, self.pipe, root)
        os.close(reader)

    def announce(self, *step: Any) -> None:
        os.write(self.pipe, json.dumps(step).encode() + b"\n")

    def undo(self) -> None:
        os.close(self.pipe)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _guard(reader: int, writer: int, root: str) -> NoReturn:
    """The guardian's life. It leaves by os._exit alone: nothing of the host's may run here."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.close(writer)
        announced = b""
        while chunk := os.read(reader, 65536):
            announced += chunk
        for step in _steps(announced):
            # One step that fails must not keep the others from being undone.
            with contextlib.suppress(Exception):
                _undo(step, root)
    finally:
        os._exit(0)


def _steps(announced: bytes) -> list[Sequence[Any]]:
    """What to undo, the last step first. Changes of a pool add up to one step, undone at the very end:

    taken singly, a correction would first ask the kernel for pages that it has already refused.
    """
    steps: list[Sequence[Any]] = []
    pools: dict[int, int] = {}
    for text in announced.splitlines():
        step = json.loads(text)
        if step[0] == "pool":
            pools[step[1]] = pools.get(step[1], 0) + step[2]
        else:
            steps.insert(0, step)
    return steps + [("pool", size, added) for size, added in pools.items() if added]


def _undo(step: Sequence[Any], root: str) -> None:
    if step[0] == "pool":
        # By difference: someone else may have changed the pool meanwhile.
        _, size, added = step
        pool = hugepage_pools(root)[size]
        write(files.under(root, pool.control), max(0, pool.persistent - added))
    elif step[0] == "group":
        _undo_group(step[1])
    elif step[0] == "folder":
        shutil.rmtree(step[1], ignore_errors=True)
    elif step[0] == "names":
        remove_names(step[1])
    elif step[0] == "processes":
        end_marked(step[1])


def _undo_group(path: str) -> None:
    for _ in range(200):
        for pid in (files.read_text("/", f"{path}/cgroup.procs") or "").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError:
            # Killed processes leave a group some milliseconds later.
            time.sleep(0.02)
        else:
            return


def remove_names(text: str) -> None:
    """Remove whatever in /dev/shm has this text in its name."""
    for name in os.listdir("/dev/shm"):
        if text in name:
            path = os.path.join("/dev/shm", name)
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def marked_processes(text: str) -> Iterator[int]:
    """Processes, other than this one, whose environment as they were started has `text` in it."""
    wanted = text.encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        # Processes of others cannot be read, and one that has ended has no environment.
        with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
            if wanted in file.read():
                yield int(entry)


def end_marked(text: str, patience: float = 3) -> None:
    """End those processes: first as they would end themselves, so that they clean up, then for good."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + seconds
        told: set[int] = set()
        # Until none is left: one may be forking another just now.
        while found := set(marked_processes(text)):
            for pid in found - told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= found
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return


def write(path: str, value: object) -> None:
    """Write a setting of the kernel's."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(value))


def reserve(guardian: Guardian, pages: int, size: int = 2 << 20) -> None:
    """See that `pages` huge pages of that size are free, taking from memory what is missing."""
    pool = hugepage_pools()[size]
    missing = pages - pool.available
    if missing <= 0:
        return
    guardian.announce("pool", size, missing)
    # Free memory may lie in pieces: let the kernel move them together first.
    with contextlib.suppress(OSError):
        write("/proc/sys/vm/compact_memory", 1)
    write(pool.control, pool.persistent + missing)
    grown = hugepage_pools()[size]
    if grown.available < pages:
        # What was not granted must not be taken from what others reserved.
        guardian.announce("pool", size, grown.persistent - pool.persistent - missing)
        raise ToolError(
            f"the kernel found {grown.available} of {pages} huge pages of {format_size(size)}",
            "free memory, or reserve them at boot",
        )


def memory_group(guardian: Guardian, limit: int, name: str) -> str:
    """A control group of our own with that limit, below the group that this process is in if it can be."""
    for group in cgroup.groups("memory", table=mounts.mount_table()):
        two = group.version == 2
        if (
            two
            and "memory" not in (files.read_text("/", f"{group.path}/cgroup.subtree_control") or "").split()
        ):
            continue
        path = os.path.join(group.path, name)
        guardian.announce("group", path)
        try:
            os.mkdir(path)
        except OSError:
            continue
        write(f"{path}/{'memory.max' if two else 'memory.limit_in_bytes'}", limit)
        # Swap would hide the limit; where there is none, there is no such file.
        with contextlib.suppress(OSError):
            write(
                f"{path}/{'memory.swap.max' if two else 'memory.memsw.limit_in_bytes'}", 0 if two else limit
            )
        return path
    raise ToolError("no control group with a memory limit can be made here")
