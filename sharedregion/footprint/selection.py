"""Which processes are meant by a user or by a name."""

from __future__ import annotations

import fnmatch
import os

from sharedregion._kernel.files import parse_int, read_text

__all__ = ["processes", "user_id"]


def user_id(user: str) -> int:
    """The number of a user by name or number; ValueError if there is none of that name."""
    number = parse_int(user)
    if number is not None:
        return number
    import pwd

    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise ValueError(f"there is no user {user!r}") from None


def processes(*, uid: int | None = None, command: str | None = None, root: str = "/") -> list[int]:
    """Numbers of the processes whose real or effective user is `uid` and whose name matches `command`.

    `command` is a pattern ("postgres*"), compared with the name that the process goes by (15 bytes at
    most) and with the file name of its program. Those that end meanwhile are left out.
    """
    try:
        listed = sorted(int(name) for name in os.listdir(os.path.join(root, "proc")) if name.isdigit())
    except OSError:
        return []
    return [
        pid
        for pid in listed
        if (uid is None or uid in _uids(root, pid)) and (command is None or _named(root, pid, command))
    ]


def _uids(root: str, pid: int) -> tuple[int, ...]:
    for line in (read_text(root, f"proc/{pid}/status") or "").splitlines():
        if line.startswith("Uid:"):
            return tuple(int(word) for word in line.split()[1:3] if word.isdigit())
    return ()


def _named(root: str, pid: int, glob: str) -> bool:
    name = (read_text(root, f"proc/{pid}/comm") or "").removesuffix("\n")
    if name and fnmatch.fnmatchcase(name, glob):
        return True
    try:
        program = os.path.basename(os.readlink(os.path.join(root, f"proc/{pid}/exe"))).removesuffix(
            " (deleted)"
        )
    except OSError:
        return False
    return fnmatch.fnmatchcase(program, glob)
