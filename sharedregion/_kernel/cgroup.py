"""Limits that control groups put on this process, versions 1 and 2.

The limit of a group holds for everything below it, so every ancestor counts. In a container the
groups above the mount cannot be seen; what can be seen is what is reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sharedregion._kernel.files import parse_int, read_int, read_text, under
from sharedregion._kernel.mounts import Mount, mount_table

__all__ = ["Group", "HugetlbLimit", "MemoryLimit", "groups", "hugetlb_limits", "memory_limits"]

# Version 1 writes "no limit" as the largest multiple of the page size below 2^63.
_NO_LIMIT = 1 << 62
_UNITS = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_HUGETLB_V2 = re.compile(r"hugetlb\.([0-9]+)(KB|MB|GB)\.(rsvd\.)?max")
_HUGETLB_V1 = re.compile(r"hugetlb\.([0-9]+)(KB|MB|GB)\.(rsvd\.)?limit_in_bytes")


@dataclass(frozen=True)
class Group:
    """A group that this process is in, or an ancestor of it; `path` as the kernel mounts it."""

    version: int
    path: str


@dataclass(frozen=True)
class MemoryLimit:
    """A limit on memory: all in bytes. `cache` is file cache that the kernel drops before it kills."""

    group: str
    limit: int
    usage: int
    cache: int = 0
    counts_hugetlb: bool = False

    @property
    def headroom(self) -> int:
        """Bytes that can still be taken under this limit."""
        return max(0, self.limit - max(0, self.usage - self.cache))


@dataclass(frozen=True)
class HugetlbLimit:
    """A limit on huge pages of one size, in bytes."""

    group: str
    page_size: int
    limit: int
    usage: int

    @property
    def headroom(self) -> int:
        """Bytes of huge pages that can still be taken under this limit."""
        return max(0, self.limit - self.usage)


def _own_paths(root: str) -> list[tuple[frozenset[str], str]]:
    """(controllers, path) of this process; version 2 has no controllers in its line."""
    found = []
    for line in (read_text(root, "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and parts[2].startswith("/"):
            found.append((frozenset(filter(None, parts[1].split(","))), parts[2]))
    return found


def _ancestors(mount: Mount, path: str) -> Iterator[str]:
    """From the group itself up to the mount, as paths of the mounted tree."""
    # In a container the mount shows a part of the hierarchy, which the path may repeat.
    if mount.root != "/" and (path == mount.root or path.startswith(mount.root + "/")):
        path = path[len(mount.root) :]
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield os.path.join(mount.point, *parts[:depth])


def groups(controller: str, root: str = "/", table: Iterable[Mount] | None = None) -> list[Group]:
    """The groups that bind this process for `controller`, its own first."""
    mounts = list(mount_table(root) if table is None else table)
    found: list[Group] = []
    for controllers, path in _own_paths(root):
        if controllers and controller not in controllers:
            continue
        version = 1 if controllers else 2
        places = [
            mount
            for mount in mounts
            if (
                mount.fstype == "cgroup" and controller in mount.super_options
                if controllers
                else mount.fstype == "cgroup2"
            )
        ]
        if places:
            found += [Group(version, place) for place in _ancestors(places[-1], path)]
    return [group for group in dict.fromkeys(found) if os.path.isdir(under(root, group.path))]


def _statistic(root: str, path: str, name: str) -> int:
    for line in (read_text(root, path) or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return parse_int(value) or 0
    return 0


def memory_limits(root: str = "/", table: Iterable[Mount] | None = None) -> list[MemoryLimit]:
    """Every limit on memory that binds this process, its own group first; groups without one are left out."""
    mounts = list(mount_table(root) if table is None else table)
    # Since Linux 6.6 a mount option makes huge pages count as memory of the group.
    counts = any(m.fstype == "cgroup2" and "memory_hugetlb_accounting" in m.super_options for m in mounts)
    limits = []
    for group in groups("memory", root, mounts):
        two = group.version == 2
        limit = read_int(root, f"{group.path}/{'memory.max' if two else 'memory.limit_in_bytes'}")
        usage = read_int(root, f"{group.path}/{'memory.current' if two else 'memory.usage_in_bytes'}")
        if limit is None or limit >= _NO_LIMIT:
            continue
        # Inactive file pages only: shared memory and active pages are not given up so readily.
        cache = _statistic(
            root, f"{group.path}/memory.stat", "inactive_file" if two else "total_inactive_file"
        )
        limits.append(MemoryLimit(group.path, limit, usage or 0, cache, counts_hugetlb=two and counts))
    return limits


def hugetlb_limits(root: str = "/", table: Iterable[Mount] | None = None) -> list[HugetlbLimit]:
    """Every limit on huge pages that binds this process; both kinds, on use and on reservation."""
    limits = []
    for group in groups("hugetlb", root, table):
        two = group.version == 2
        try:
            names = sorted(os.listdir(under(root, group.path)))
        except OSError:
            continue
        for name in names:
            match = (_HUGETLB_V2 if two else _HUGETLB_V1).fullmatch(name)
            limit = read_int(root, f"{group.path}/{name}") if match else None
            if match is None or limit is None or limit >= _NO_LIMIT:
                continue
            used = name.removesuffix("max" if two else "limit_in_bytes") + (
                "current" if two else "usage_in_bytes"
            )
            usage = read_int(root, f"{group.path}/{used}") or 0
            limits.append(HugetlbLimit(group.path, int(match[1]) * _UNITS[match[2]], limit, usage))
    return limits
