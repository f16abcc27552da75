"""What the page tables of processes cost: runs the helper and gives its answer types.

The helper, `sharedregion-ptwalk`, is a program of its own, so that privilege can be given to it
alone. Where it may, it reads the page tables themselves; otherwise it estimates, and says so.

Words: *linked* bytes are those of all tables that a process reaches; *private*, of those that it
alone reaches; *shared*, of those that others reach too; *proportional*, each table divided by the
number of processes that reach it; *distinct*, each table once. Whether a table is private is told
by looking at all processes that the caller may see, not only at those asked for, and by the share
count that the kernel itself keeps for some tables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Protocol

from sharedregion.errors import ToolError
from sharedregion.footprint.advice import Advice, Alternative, Step, advise
from sharedregion.footprint.answer import (
    Footprint,
    LeafCounts,
    MachineTables,
    MappingExtent,
    MappingFootprint,
    ProcessFootprint,
    RegionFootprint,
    SharedTables,
    TableCounts,
    parse,
)
from sharedregion.footprint.helper import find_helper, run

__all__ = [
    "Advice",
    "Alternative",
    "Footprint",
    "LeafCounts",
    "MachineTables",
    "MappingExtent",
    "MappingFootprint",
    "ProcessFootprint",
    "RegionFiles",
    "RegionFootprint",
    "SharedTables",
    "Step",
    "TableCounts",
    "advise",
    "find_helper",
    "footprint",
    "page_tables_total",
]

# More numbers than this are not passed on: all processes are asked for, and picked from here.
_PIDS_LIMIT = 100_000


class RegionFiles(Protocol):
    """A region, as far as this module is concerned: its name and the files that it is made of."""

    @property
    def name(self) -> str: ...
    @property
    def files(self) -> Iterable[tuple[int, int]]:
        """(st_dev, st_ino) of each."""
        ...


def footprint(
    *pids: int,
    regions: Iterable[RegionFiles | tuple[str, Iterable[tuple[int, int]]]] = (),
    leaves: bool = False,
    mappings: bool = False,
    method: str | None = None,
    timeout: float = 120.0,
) -> Footprint:
    """The page tables of the processes `pids`, or of all that the caller may see.

    `regions` are objects with `name` and `files`, or such pairs: tables that serve a region alone are
    then told apart. `leaves` also counts the entries that map pages, for which every table must be
    read. `mappings` also says which files, shared memory objects and other mappings the tables serve, and
    compares the whole with the machine's PageTables; `advise` and `Footprint.advice` need it. `method` forces "walk", "pagemap" or "status"; by default the best that is allowed is taken.
    `timeout` is in seconds. A pid that has ended, or is not the caller's to see, is no error: it is
    in `gone` or `denied`.

    Raises `ToolError` where the helper is missing, is killed or gives no sensible answer, and
    `ValueError` for what is no process number.
    """
    wanted = sorted({_checked_pid(pid) for pid in pids})
    names: list[str] = []
    arguments: list[str] = []
    for region in regions:
        name, files = region if isinstance(region, tuple) else (region.name, region.files)
        # The helper knows a region by number: it would escape a name, and no name needs to reach it.
        arguments += [f"--region={len(names)}={os.major(dev)}:{os.minor(dev)}:{ino}" for dev, ino in files]
        names.append(name)
    if leaves:
        arguments.append("--leaves")
    if mappings:
        arguments.append("--mappings")
        if len(wanted) > _PIDS_LIMIT:
            raise ValueError(
                f"mappings of {len(wanted)} processes by number: ask for {_PIDS_LIMIT} or for all"
            )
    if method is not None:
        if method not in ("walk", "pagemap", "status"):
            raise ValueError(f"method is {method!r}, not 'walk', 'pagemap' or 'status'")
        arguments.append(f"--method={method}")
    if len(wanted) <= _PIDS_LIMIT:
        arguments += [str(pid) for pid in wanted]
    before = page_tables_total() if mappings else 0
    found = parse(run(find_helper(), arguments, timeout), names)
    if mappings:
        # Others go on meanwhile: the middle is nearest to what was there during the look.
        total = (before + page_tables_total()) // 2
        found = dataclasses.replace(found, machine=MachineTables(total, found.looked_at["distinct_bytes"]))
    if len(wanted) > _PIDS_LIMIT:
        chosen = set(wanted)
        found = dataclasses.replace(
            found, processes=tuple(process for process in found.processes if process.pid in chosen)
        )
    return found


def page_tables_total(root: str = "/") -> int:
    """Bytes of page tables on the whole machine, the kernel's own among them (`PageTables`).

    The kernel gathers its counters per processor and lazily; where the caller may, it is made to add
    them up first, since the sum can otherwise be off by some hundred pages.
    """
    with contextlib.suppress(OSError), open(os.path.join(root, "proc/sys/vm/stat_refresh"), "w") as file:
        file.write("1")
    try:
        with open(os.path.join(root, "proc/meminfo"), encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("PageTables:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError) as error:
        raise ToolError(
            f"the machine's page tables cannot be told: {error}", "mount /proc", getattr(error, "errno", None)
        ) from error
    raise ToolError("/proc/meminfo has no line PageTables", "mount the kernel's own /proc")


def _checked_pid(pid: int) -> int:
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 1 << 31:
        raise ValueError(f"{pid!r} is no process number")
    return pid


class _Callable(ModuleType):
    """`sharedregion.footprint` is this module and the function in it: whichever was meant works."""

    def __call__(self, *pids: int, **options: Any) -> Footprint:
        return footprint(*pids, **options)


sys.modules[__name__].__class__ = _Callable
