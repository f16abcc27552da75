"""Which processes are meant by a user, by a name or by a region, and which files are whose."""

from __future__ import annotations

import contextlib
import fnmatch
import os

from sharedregion import inventory
from sharedregion._kernel.files import parse_int, read_text
from sharedregion.errors import SharedRegionError

__all__ = ["of_region", "processes", "region_files", "user_id"]

File = tuple[int, int]


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


def of_region(name: str) -> tuple[list[File], list[int]]:
    """The files (device, inode) that a region's memory is made of, and the processes that have any of them mapped.

    Whoever may not be looked at is left out. Nothing is joined. RegionNotFound, RegionDenied, RegionCorrupt.
    """
    files = _files_of(name)
    seen = inventory._Seen(files)
    return files, sorted({pid for file in files for pid in seen.users(file)})


def region_files() -> dict[File, str]:
    """What files belong to which region: "region NAME: data". Those of regions that cannot be read are left out."""
    found = {}
    for name in inventory._names():
        with contextlib.suppress(SharedRegionError, ValueError):
            for file, part in zip(_files_of(name), ("data", "members", "msharefs"), strict=False):
                found[file] = f"region {name}: {part}"
            if catalog := inventory._stat(f"{inventory._PREFIX}{name}{inventory._CATALOG}"):
                found[catalog.st_dev, catalog.st_ino] = f"region {name}: catalog"
    return found


def _files_of(name: str) -> list[File]:
    listed = inventory._look(name).head()["files"]
    return list(zip(listed[::2], listed[1::2], strict=True))
