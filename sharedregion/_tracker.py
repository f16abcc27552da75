"""The resource tracker of a program that uses the drop-in: the standard one, which looks before it removes.

multiprocessing starts one tracker for a program and all its children. When the last of them is gone,
however it ended, the tracker removes the blocks that were registered and not unlinked. The standard
one does so although other programs may still use a block. This one asks the kernel: a write lease
(fcntl(2), F_SETLEASE) is granted only if nobody else has the file open or mapped, whatever library
they use and even if they closed the descriptor. A block in use keeps its name until its last user
is gone; a process that was split off waits for that, so that nobody waits for the tracker. Until then
the block is marked as an orphan, by the sticky bit of its file, which means nothing to Linux: its name
is free for a program that starts anew and creates it.

It knows blocks by their inodes, not only by their names: one that another program has unlinked, and
perhaps made anew, is not this program's any more, and one that was about to get its name when its
creator was killed is.

Run by its path, in a process of its own: nothing of this package is imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import IO, Any

_FOLDER = "/dev/shm"
_KIND = "shared_memory"
_SHORTEST, _LONGEST = 0.05, 2.0

#: Names that were registered, and the files that they were given to, by their inodes: several processes
#: may try to make a block at once.
_registered: dict[str, set[int | None]] = {}
#: Path and inode of the blocks that are in use.
_waiting: list[tuple[str, int]] = []


def _path(name: str) -> str:
    return os.path.join(_FOLDER, name.lstrip("/"))


def _inode(name: str) -> int | None:
    try:
        return os.lstat(_path(name)).st_ino
    except (OSError, ValueError):
        return None


def _left(names: dict[str, set[int | None]]) -> list[str]:
    """Those that still are the names of the same files."""
    return [name for name, inodes in names.items() if (_inode(name) or -1) in inodes]


def _lines(pipe: IO[bytes]) -> Iterator[bytes]:
    """What the standard tracker is to read of what processes wrote, and at the end what is still to be said."""
    announced: dict[str, set[int | None]] = {}
    ended_well = False
    for line in pipe:
        command, _, rest = os.fsdecode(line).strip().partition(":")
        name, _, kind = rest.rpartition(":")
        inode, slash, named = name.partition("/")
        if command == "PROBE" and slash and inode.isdecimal():
            announced.setdefault(slash + named, set()).add(int(inode))
        elif command == "REGISTER" and kind == _KIND:
            _registered.setdefault(name, set()).update(announced.pop(name, {_inode(name)}))
        elif command == "UNREGISTER" and kind == _KIND and not _registered.pop(name, ()):
            # Never registered: programs do that to keep the standard library from unlinking what they
            # attached to.
            continue
        ended_well |= line == b"PROBE:end:noop\n"
        yield line
    unnamed = _left(announced)
    for name in unnamed:
        yield os.fsencode(f"REGISTER:{name}:{_KIND}\n")
    if ended_well and not unnamed and not _left(_registered):
        # Other programs have unlinked them all: nothing is leaked.
        for name in _registered:
            yield os.fsencode(f"UNREGISTER:{name}:{_KIND}\n")


@contextlib.contextmanager
def _open(fd: int, mode: str) -> Iterator[Iterator[bytes]]:
    """The standard tracker's open(), of its pipe."""
    with open(fd, mode) as pipe:
        yield _lines(pipe)


def _remove_unused(path: str, inodes: set[int | None] | None) -> int:
    """The inode of a block in use, if it is one of these. 0: nobody uses it, and it is removed, or was."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(fd).st_ino
        if inodes is not None and found not in inodes:
            return 0
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except BlockingIOError:
            with contextlib.suppress(OSError):
                os.fchmod(fd, os.fstat(fd).st_mode | stat.S_ISVTX)
            return found
        except OSError:
            # Of another user, or no leases here: what the standard library does.
            pass
        # It may have lost its name to another block between the two.
        if os.lstat(path).st_ino == found:
            os.unlink(path)
        return 0
    finally:
        os.close(fd)


def reclaim(name: str) -> None:
    """The tracker's cleanup of one block. FileNotFoundError if it is gone, as the tracker expects."""
    path = _path(name)
    inode = _remove_unused(path, _registered.get(name))
    if inode:
        _waiting.append((path, inode))


def _wait() -> None:
    delay = _SHORTEST
    waiting = list(_waiting)
    while waiting:
        time.sleep(delay)
        delay = min(delay * 1.5, _LONGEST)
        left = []
        for path, inode in waiting:
            with contextlib.suppress(OSError):
                if _remove_unused(path, {inode}):
                    left.append((path, inode))
        waiting = left


def _split_off() -> None:
    """Wait for the users in a process that nobody knows; who started the tracker may wait for its end."""
    if os.fork():
        return
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        _wait()
    finally:
        os._exit(0)


def main(fd: int) -> None:
    """The standard tracker's work, with the cleanup above."""
    tracker: Any = resource_tracker
    tracker._CLEANUP_FUNCS[_KIND] = reclaim
    tracker.open = _open
    # Who opens a block while its lease is looked at makes the kernel send this; its default is the end.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        tracker.main(fd)
    finally:
        if _waiting:
            _split_off()
