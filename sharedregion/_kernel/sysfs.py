"""Views of /sys: the pools of huge pages, and the settings of transparent huge pages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sharedregion._kernel.files import read_int, read_text, under

__all__ = [
    "HUGEPAGES",
    "THP",
    "HugepagePool",
    "TransparentHugepages",
    "hugepage_pools",
    "transparent_hugepages",
]

HUGEPAGES = "/sys/kernel/mm/hugepages"
THP = "/sys/kernel/mm/transparent_hugepage"

_DIRECTORY = re.compile(r"hugepages-([0-9]{1,12})kB")
_CHOSEN = re.compile(r"\[(\w+)\]")


@dataclass(frozen=True)
class HugepagePool:
    """The pool of one page size; counts are pages.

    `reserved` pages are still among the `free` ones but promised to others. `overcommit` is how many
    pages beyond the pool the kernel may try to make on demand; `surplus` how many of those exist.
    """

    page_size: int
    total: int
    free: int
    reserved: int
    surplus: int
    overcommit: int

    @property
    def available(self) -> int:
        """Pages that nobody holds and nobody was promised."""
        return max(0, self.free - self.reserved)

    @property
    def growable(self) -> int:
        """Pages that the kernel may try to add on demand, without a promise that memory is found."""
        return max(0, self.overcommit - self.surplus)

    @property
    def persistent(self) -> int:
        """Pages that `nr_hugepages` asks for; the number that an operator sets."""
        return max(0, self.total - self.surplus)

    @property
    def control(self) -> str:
        """The file that sets the size of the pool."""
        return f"{HUGEPAGES}/hugepages-{self.page_size // 1024}kB/nr_hugepages"


def hugepage_pools(root: str = "/") -> dict[int, HugepagePool]:
    """Pools by page size in bytes; empty where the kernel has no hugetlb."""
    try:
        names = sorted(os.listdir(under(root, HUGEPAGES)))
    except OSError:
        return {}
    pools: dict[int, HugepagePool] = {}
    for name in names:
        match = _DIRECTORY.fullmatch(name)
        if match is None:
            continue
        size = int(match[1]) * 1024

        def count(file: str, name: str = name) -> int:
            return read_int(root, f"{HUGEPAGES}/{name}/{file}") or 0

        pools[size] = HugepagePool(
            page_size=size,
            total=count("nr_hugepages"),
            free=count("free_hugepages"),
            reserved=count("resv_hugepages"),
            surplus=count("surplus_hugepages"),
            overcommit=count("nr_overcommit_hugepages"),
        )
    return pools


@dataclass(frozen=True)
class TransparentHugepages:
    """Settings of transparent huge pages; None where the kernel has no such file.

    `per_size` maps a page size in bytes to its own shmem setting, where "inherit" defers to
    `shmem_enabled`. Since Linux 6.11 there is one for each size.
    """

    present: bool
    enabled: str | None = None
    shmem_enabled: str | None = None
    pmd_size: int | None = None
    per_size: Mapping[int, str] = field(default_factory=dict)


def _chosen(text: str | None) -> str | None:
    """The word in brackets: "always [madvise] never" -> "madvise"."""
    match = _CHOSEN.search(text or "")
    return match[1] if match else None


def transparent_hugepages(root: str = "/") -> TransparentHugepages:
    """What the kernel will do about huge pages in shared memory."""
    try:
        names = sorted(os.listdir(under(root, THP)))
    except OSError:
        return TransparentHugepages(present=False)
    per_size: dict[int, str] = {}
    for name in names:
        match = _DIRECTORY.fullmatch(name)
        setting = _chosen(read_text(root, f"{THP}/{name}/shmem_enabled")) if match else None
        if match and setting:
            per_size[int(match[1]) * 1024] = setting
    return TransparentHugepages(
        present=True,
        enabled=_chosen(read_text(root, f"{THP}/enabled")),
        shmem_enabled=_chosen(read_text(root, f"{THP}/shmem_enabled")),
        pmd_size=read_int(root, f"{THP}/hpage_pmd_size"),
        per_size=MappingProxyType(per_size),
    )
