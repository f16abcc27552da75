"""Blocks and multiprocessing's resource tracker.

Only the process that makes a block registers it. One that attaches registers nothing: its own tracker
would unlink the block at its exit, and within one family of processes the entry is the creator's.
"""

from __future__ import annotations

import atexit
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

__all__ = ["announce", "arm", "forget", "is_orphan", "remove_orphan", "used_by_others", "watch"]

_KIND = "shared_memory"
_PLAIN = "from multiprocessing.resource_tracker import main;main("
# Read by its path: the tracker may be started with flags that hide where this package is.
_OURS = """\
try:
    with open({path!r}, 'rb') as f: exec(compile(f.read(), {path!r}, 'exec'))
except OSError:
    from multiprocessing.resource_tracker import main
main("""

_spawn_standard: Any = None


def _spawn(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
    *flags, code = args
    if not (isinstance(code, str) and code.startswith(_PLAIN)):
        pid: int = _spawn_standard(path, args, passfds)
        return pid
    import subprocess

    ours = _OURS.format(path=os.path.join(os.path.dirname(__file__), "_tracker.py"))
    # In a session of its own: what ends all processes of a terminal or a job at once must not end who
    # cleans up after them.
    tracker = subprocess.Popen(
        [*flags, ours + code[len(_PLAIN) :]],
        executable=path,
        pass_fds=passfds,
        restore_signals=False,
        start_new_session=True,
    )
    # Multiprocessing waits for it, by its number.
    tracker.returncode = 0
    return tracker.pid


def arm(util: Any) -> None:
    """From now on a tracker that this process starts is the one of `_tracker.py`. A running one stays.

    `util` is multiprocessing's, which may just be on its way in: nothing of multiprocessing is
    imported here before it is needed.
    """
    global _spawn_standard
    if _spawn_standard is None:
        from sharedregion.awaiting import when_imported

        _spawn_standard = util.spawnv_passfds
        util.spawnv_passfds = _spawn
        when_imported("multiprocessing.popen_fork", _share_tracker)
        atexit.register(_say_end)


def _say_end() -> None:
    """The program ends by itself: a block that another one has unlinked is no leak then."""
    module: Any = sys.modules.get("multiprocessing.resource_tracker")
    if module is not None and module._resource_tracker._fd is not None:
        with suppress(OSError):
            os.write(module._resource_tracker._fd, b"PROBE:end:noop\n")


def _share_tracker(popen_fork: ModuleType) -> None:
    """Forked children have their parent's tracker, as spawned ones always do.

    One that each of them started would take its end for the program's: it warns of the blocks that the
    child made and left to others, and removes those that nobody has attached to yet.
    """
    popen: Any = popen_fork.Popen
    standard = popen._launch

    def _launch(self: Any, process: Any) -> None:
        from multiprocessing import resource_tracker

        with suppress(OSError):
            resource_tracker.ensure_running()
        standard(self, process)

    popen._launch = _launch


def _can_carry(name: str) -> bool:
    """Whether the tracker's line protocol has room for the name."""
    return name.isascii() and ":" not in name and "\n" not in name


def announce(name: str, fd: int) -> None:
    """Say which file is about to have the name: a creator that is killed before `watch` leaves no block.

    For a tracker that is not ours the line means nothing.
    """
    try:
        from multiprocessing import resource_tracker

        tracker: Any = resource_tracker._resource_tracker
        # Programs replace register() to keep blocks from being registered.
        if _can_carry(name) and resource_tracker.register == tracker.register:
            tracker._send("PROBE", f"{os.fstat(fd).st_ino}{name}", "noop")
    except OSError as error:
        raise OSError(
            error.errno, "multiprocessing's resource tracker cannot be told of the block"
        ) from error


def watch(name: str) -> None:
    """Register a block that was just made."""
    from multiprocessing import resource_tracker

    if _can_carry(name):
        resource_tracker.register(name, _KIND)


def forget(name: str) -> None:
    """Unregister a block that was just unlinked, by whichever process of the family.

    Whether it is registered cannot be asked. Registering is idempotent, so that the two together
    leave no entry and cause no error.
    """
    from multiprocessing import resource_tracker

    tracker: Any = resource_tracker._resource_tracker
    if tracker._fd is None or not _can_carry(name):
        return
    resource_tracker.register(name, _KIND)
    resource_tracker.unregister(name, _KIND)


def is_orphan(path: str) -> bool:
    """Whether all processes of the program that made the block are gone (`_tracker.py` marks it so)."""
    try:
        return bool(os.lstat(path).st_mode & stat.S_ISVTX)
    except OSError:
        return False


def remove_orphan(path: str) -> None:
    """Take the name from an orphan: who has it mapped keeps the memory.

    Several processes may want to, and one of them may have made a new block of that name by then. So
    they do it one after the other, and only to the file that they have looked at.
    """
    if not is_orphan(path):
        return
    import fcntl

    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if is_orphan(path) and os.path.samestat(os.fstat(fd), os.lstat(path)):
                os.unlink(path)
        finally:
            os.close(fd)


def used_by_others(found: os.stat_result) -> bool:
    """Whether a process other than this one has the file mapped. Slow: looks at all processes."""
    from sharedregion._kernel import processes

    key = found.st_dev, found.st_ino
    for pid in processes.pids():
        areas = [] if pid == os.getpid() else processes.areas(pid, {key})
        # Who may not be looked at is of another user, and cannot have opened what is the owner's alone.
        if areas or (areas is None and found.st_mode & 0o077 and os.path.exists(f"/proc/{pid}")):
            return True
    return False
