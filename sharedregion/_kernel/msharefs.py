"""Whether this machine has msharefs, where it is mounted, and what this user may do there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sharedregion._kernel import procfs
from sharedregion._kernel.files import parse_int, read_text, under
from sharedregion._kernel.mounts import Mount, mount_table

__all__ = ["PLACE", "VARIABLE", "Msharefs", "look"]

#: The folder that a kernel with msharefs makes for the mount.
PLACE = "/sys/fs/mshare"
#: Environment variable that says where msharefs is, instead of the mount table.
VARIABLE = "SHAREDREGION_MSHAREFS"


@dataclass(frozen=True)
class Msharefs:
    """What can be seen without making anything.

    `unit` is what the address space of a region is a multiple of, in bytes; None where the mount does
    not say. `path` is empty where an msharefs needs no mount. `usable` says whether this user may make
    files there. `sticky` is whether its folder lets only the owner of a file remove it. `refused` is why
    the kernel did not do what the mount promised, when that was tried.
    """

    known: bool = False
    path: str | None = None
    unit: int | None = None
    usable: bool = False
    sticky: bool = False
    refused: str | None = None

    @property
    def mounted(self) -> bool:
        """True where the mount table, or the environment, says where it is."""
        return self.path is not None

    @property
    def place(self) -> str:
        """What follows its name in a sentence: where it is mounted, and nothing where it needs no mount."""
        return f" at {self.path}" if self.path else ""

    @property
    def mount_command(self) -> str:
        """What makes it available to all users, and lets nobody remove another's file."""
        return f"mount -t msharefs msharefs {PLACE} && chmod 1777 {PLACE}"


def look(
    root: str = "/", table: Iterable[Mount] | None = None, environ: Mapping[str, str] | None = None
) -> Msharefs:
    """What the machine (or the tree at `root`) says. Of several mounts the newest is taken."""
    named = (os.environ if environ is None else environ).get(VARIABLE) or None
    path = named
    for mount in mount_table(root) if table is None else table:
        # Mounts of user-space file systems carry the name behind a dot; those are found by VARIABLE alone.
        if named is None and mount.fstype == "msharefs":
            path = mount.point
    known = path is not None or "msharefs" in procfs.filesystems(root)
    if path is None:
        return Msharefs(known)
    place = under(root, path)
    try:
        mode = os.stat(place).st_mode
    except OSError:
        return Msharefs(known, path)
    return Msharefs(
        known=known,
        path=path,
        unit=parse_int(read_text(root, f"{path}/mshare_info")),
        usable=stat.S_ISDIR(mode) and os.access(place, os.W_OK | os.X_OK),
        sticky=bool(mode & stat.S_ISVTX),
    )
