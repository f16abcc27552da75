"""Blocks and multiprocessing's resource tracker.

Only the process that makes a block registers it. One that attaches registers nothing: its own tracker
would unlink the block at its exit, and within one family of processes the entry is the creator's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

__all__ = ["arm", "forget", "is_orphan", "used_by_others", "watch"]

_KIND = "shared_memory"
_PLAIN = "from multiprocessing.resource_tracker import main;main("
# Read by its path: the tracker may be started with flags that hide where this package is.
_OURS = """\
try:
    with open({path!r}, 'rb') as f: exec(compile(f.read(), {path!r}, 'exec'))
except OSError:
    from multiprocessing.resource_tracker import main
main("""
#: A line of the tracker's pipe is at most this long, with its command and kind.
_LONGEST_NAME = 512 - len("UNREGISTER::shared_memory\n")

_spawn_standard: Any = None


def _spawn(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
    args = list(args)
    if args and isinstance(args[-1], str) and args[-1].startswith(_PLAIN):
        ours = _OURS.format(path=os.path.join(os.path.dirname(__file__), "_tracker.py"))
        args[-1] = ours + args[-1][len(_PLAIN) :]
    pid: int = _spawn_standard(path, args, passfds)
    return pid


def arm(util: Any) -> None:
    """From now on a tracker that this process starts is the one of `_tracker.py`. A running one stays.

    `util` is multiprocessing's, which may just be on its way in: nothing of multiprocessing is
    imported here before it is needed.
    """
    global _spawn_standard
    if _spawn_standard is None:
        _spawn_standard = util.spawnv_passfds
        util.spawnv_passfds = _spawn


def _can_carry(name: str) -> bool:
    """Whether the tracker's line protocol has room for the name."""
    return name.isascii() and ":" not in name and "\n" not in name and len(name) <= _LONGEST_NAME


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
