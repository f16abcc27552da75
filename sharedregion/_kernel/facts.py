"""All facts about the machine that a choice of backend rests on, gathered in one call."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sharedregion._kernel import cgroup, mounts, procfs, sysfs
from sharedregion._kernel.msharefs import Msharefs, look

__all__ = ["Facts", "Msharefs", "gather"]


@dataclass(frozen=True)
class Facts:
    """What was seen, at one moment. Sizes are bytes; None means that the kernel did not say."""

    supported: bool = True
    system: str = "linux x86_64"
    root_user: bool = False
    memory_total: int | None = None
    memory_available: int | None = None
    pools: Mapping[int, sysfs.HugepagePool] = field(default_factory=dict)
    thp: sysfs.TransparentHugepages = field(default_factory=lambda: sysfs.TransparentHugepages(present=False))
    shm: mounts.ShmSpace | None = None
    msharefs: Msharefs = field(default_factory=Msharefs)
    memory_limits: tuple[cgroup.MemoryLimit, ...] = ()
    hugetlb_limits: tuple[cgroup.HugetlbLimit, ...] = ()


def gather(root: str = "/") -> Facts:
    """Look at the machine (or at the tree at `root`). Never raises for what is missing."""
    memory = procfs.meminfo(root)
    table = mounts.mount_table(root)
    machine = os.uname().machine if hasattr(os, "uname") else "unknown"
    return Facts(
        supported=sys.platform == "linux" and machine == "x86_64",
        system=f"{sys.platform} {machine}",
        root_user=hasattr(os, "geteuid") and os.geteuid() == 0,
        memory_total=memory.get("MemTotal"),
        memory_available=memory.get("MemAvailable"),
        pools=MappingProxyType(sysfs.hugepage_pools(root)),
        thp=sysfs.transparent_hugepages(root),
        shm=mounts.shm_space(root, table),
        msharefs=look(root, table),
        memory_limits=tuple(cgroup.memory_limits(root, table)),
        hugetlb_limits=tuple(cgroup.hugetlb_limits(root, table)),
    )
