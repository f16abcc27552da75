"""The resource tracker of a program that uses the drop-in: the standard one, which looks before it removes.

multiprocessing starts one tracker for a program and all its children. When the last of them is gone,
however it ended, the tracker removes the blocks that were registered and not unlinked. The standard
one does so although other programs may still use a block. This one asks the kernel: a write lease
(fcntl(2), F_SETLEASE) is granted only if nobody else has the file open or mapped, whatever library
they use and even if they closed the descriptor. A block in use keeps its name until its last user
is gone; a process that was split off waits for that, so that nobody waits for the tracker. Until then
the block is marked as an orphan, by the sticky bit of its file, which means nothing to Linux: its name
is free for a program that starts anew and creates it.

Run by its path, in a process of its own: nothing of this package is imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import sys
import time
import types
from multiprocessing import resource_tracker
from typing import Any

_FOLDER = "/dev/shm"
_SHORTEST, _LONGEST = 0.05, 2.0

#: Path and inode of the blocks that are in use.
_waiting: list[tuple[str, int]] = []


def _remove_unused(path: str, inode: int | None = None) -> int:
    """0: nobody uses it, and it is removed, or was. Otherwise the inode of a block in use."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(fd).st_ino
        if inode is not None and found != inode:
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
        os.unlink(path)
        return 0
    finally:
        os.close(fd)


def reclaim(name: str) -> None:
    """The tracker's cleanup of one block. FileNotFoundError if it is gone, as the tracker expects."""
    path = os.path.join(_FOLDER, name.lstrip("/"))
    inode = _remove_unused(path)
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
                if _remove_unused(path, inode):
                    left.append((path, inode))
        waiting = left


def _split_off() -> None:
    """Wait for the users in a process that nobody knows; who started the tracker may wait for its end."""
    if os.fork():
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        _wait()
    finally:
        os._exit(0)


def _report(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    # A name that is unregistered and was never registered: programs do that to keep the standard
    # library from unlinking what they attached to, and here nothing was registered.
    if kind is not KeyError:
        sys.__excepthook__(kind, error, trace)


def main(fd: int) -> None:
    """The standard tracker's work, with the cleanup above."""
    tracker: Any = resource_tracker
    tracker._CLEANUP_FUNCS["shared_memory"] = reclaim
    sys.excepthook = _report
    # Who opens a block while its lease is looked at makes the kernel send this; its default is the end.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        tracker.main(fd)
    finally:
        if _waiting:
            _split_off()
