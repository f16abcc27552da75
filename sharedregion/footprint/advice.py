"""What a shared mapping would cost with other pages, and how to get there. Pure: figures in, figures out.

The rules behind the figures (x86_64):

- A PTE table serves 2 MiB of one process. 2 MiB pages do without it; the PMD tables, one a GiB, stay.
- Linux links one PMD table of 2 MiB hugetlb pages into all processes that map a whole GiB of the
  file, at addresses equal modulo 1 GiB, with the same permissions. A piece of a GiB at either end of a
  mapping is never linked; nor is memory that was merely collapsed.
- 1 GiB pages need no PMD tables either: their entries lie in the PUD page that is there anyway.
- A collapsed file is mapped by 2 MiB only where address and file offset are equal modulo 2 MiB.

A program that is started anew with large pages maps at another address, aligned to the page: the
pieces at the ends are then cut differently, a table or two a process. Hence every such figure is an
estimate, and marked.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sharedregion._kernel.facts import Facts, gather
from sharedregion.footprint.answer import Footprint, MappingExtent, MappingFootprint
from sharedregion.footprint.programs import Program, program_of

__all__ = ["LEAST_BYTES", "LEAST_SHARE", "Advice", "Alternative", "Step", "advise"]

#: A mapping whose tables take more than either is worth a word.
LEAST_BYTES = 64 << 20
LEAST_SHARE = 0.05

_TABLE = 4096
_LARGE = 2 << 20
_HUGE = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One thing to do: what it is, and the command or setting, run or made by the reader."""

    text: str
    command: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Alternative:
    """What the tables of the mapping would take: `table_bytes`, each table once; an estimate.

    `total_bytes` is the same for all tables of all processes that were asked for. `pages` of `page_size`
    bytes must be reserved for it (0: none). `possible` is False where this machine or this mapping cannot
    have it; `why` says why, or what to know.
    """

    name: str
    table_bytes: int
    saved_bytes: int
    total_bytes: int
    page_size: int
    pages: int
    possible: bool
    why: str | None
    steps: tuple[Step, ...]
    estimate: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Advice:
    """A mapping whose page tables cost much, and its alternatives, those that save most first.

    `cost_bytes` are its tables, each once; `share_of_memory` is that part of the machine's memory;
    `total_bytes` all tables of all processes that were asked for. `program` is the program known by its
    process name, or None.
    """

    mapping: MappingFootprint
    cost_bytes: int
    share_of_memory: float | None
    total_bytes: int
    program: str | None
    alternatives: tuple[Alternative, ...]

    def to_dict(self) -> dict[str, Any]:
        mapping = self.mapping
        return {
            "name": mapping.name,
            "memory": mapping.memory,
            "device": mapping.device,
            "inode": mapping.inode,
            "bytes": mapping.bytes,
            "processes": mapping.processes,
            "cost_bytes": self.cost_bytes,
            "share_of_memory": self.share_of_memory,
            "total_bytes": self.total_bytes,
            "program": self.program,
            "alternatives": [dataclasses.asdict(one) for one in self.alternatives],
        }


def advise(
    found: Footprint,
    facts: Facts | None = None,
    *,
    least_bytes: int = LEAST_BYTES,
    least_share: float = LEAST_SHARE,
) -> tuple[Advice, ...]:
    """Advice on each shared mapping, and each private one of a file in several processes, whose tables take
    more than `least_bytes`, or more than `least_share` of the machine's memory; the costliest first.

    `found` must have been looked at with `mappings=True`, else ValueError. `facts` are of the machine that
    it was found on; by default, this one.
    """
    if found.machine is None:
        raise ValueError(
            "this footprint does not say which mappings its tables serve: look with mappings=True"
        )
    facts = facts or gather()
    memory = facts.memory_total
    advice = []
    for mapping in found.mappings:
        cost = mapping.distinct_bytes
        dear = cost > least_bytes or (memory is not None and cost > least_share * memory)
        if mapping.kind == "file" and (mapping.shared or mapping.processes > 1) and dear:
            advice.append(_advice(found, facts, mapping))
    return tuple(sorted(advice, key=lambda one: -one.cost_bytes))


def _advice(found: Footprint, facts: Facts, mapping: MappingFootprint) -> Advice:
    program = program_of(mapping.commands, mapping.memory)
    made = [_linked(facts, mapping, program)]
    if mapping.page_size < _HUGE:
        made.append(_huge(facts, mapping, program))
    if mapping.page_size < _LARGE:
        made.append(_large(facts, mapping, program))
        made.append(_collapsed(facts, mapping))
    alternatives = tuple(
        dataclasses.replace(
            one,
            saved_bytes=mapping.distinct_bytes - one.table_bytes,
            total_bytes=found.distinct_bytes - mapping.distinct_bytes + one.table_bytes,
        )
        for one in sorted(made, key=lambda one: one.table_bytes)
    )
    memory = facts.memory_total
    return Advice(
        mapping=mapping,
        cost_bytes=mapping.distinct_bytes,
        share_of_memory=mapping.distinct_bytes / memory if memory else None,
        total_bytes=found.distinct_bytes,
        program=program.name if program else None,
        alternatives=alternatives,
    )


# --- arithmetic -----------------------------------------------------------------------------------


def _ceil(size: int, unit: int) -> int:
    return -(-size // unit)


def _whole(extent: MappingExtent) -> tuple[int, int]:
    """Of the file offsets that the extent maps in whole GiB of address space: the first, and how many GiB."""
    skip = -extent.start_in_gib % _HUGE
    return extent.file_offset + skip, max(0, extent.bytes - skip) // _HUGE


def _union(ranges: Iterable[tuple[int, int]]) -> int:
    """How many GiB lie in the union of (first, count of GiB), which all are congruent modulo 1 GiB."""
    total = 0
    reached = None
    for first, count in sorted(ranges):
        end = first + count * _HUGE
        if reached is not None and first < reached:
            first = reached
        if end > first:
            total += (end - first) // _HUGE
            reached = end
    return total


def linkable(extents: Iterable[MappingExtent]) -> tuple[int, int]:
    """PMD tables of whole GiB: as many as all processes have together, and as many as linking leaves."""
    links = 0
    classes: dict[tuple[int, bool], list[tuple[int, int]]] = defaultdict(list)
    for extent in extents:
        first, count = _whole(extent)
        links += count * extent.processes
        if count:
            classes[(extent.start_in_gib - extent.file_offset) % _HUGE, extent.writable].append(
                (first, count)
            )
    return links, sum(_union(ranges) for ranges in classes.values())


def _large_tables(mapping: MappingFootprint) -> int:
    """Bytes of PMD tables with 2 MiB hugetlb pages, mapped where the mapping lies now."""
    if mapping.extents_left_out:
        return mapping.pmd_links * _TABLE
    whole, linked = linkable(mapping.extents)
    # What was never touched has no tables: fewer may be there than addresses would have.
    whole = min(whole, mapping.pmd_links)
    return (mapping.pmd_links - whole + min(linked, whole)) * _TABLE


def congruent_share(mapping: MappingFootprint) -> float:
    """Which part of what is mapped lies where a large page of the file could be mapped as one."""
    whole = fit = 0
    for extent in mapping.extents:
        whole += extent.bytes * extent.processes
        if (extent.start_in_gib - extent.file_offset) % _LARGE == 0:
            fit += extent.bytes // _LARGE * _LARGE * extent.processes
    return fit / whole if whole else 0.0


# --- the alternatives -----------------------------------------------------------------------------


def _reserve(facts: Facts, page_size: int, pages: int) -> tuple[bool, str | None, tuple[Step, ...]]:
    """Whether a pool of such pages can be had, what to know, and how."""
    pool = facts.pools.get(page_size)
    size = "2 MiB" if page_size == _LARGE else "1 GiB"
    if pool is None:
        return False, f"this processor or kernel has no pages of {size}", ()
    missing = max(0, pages - pool.available)
    if missing == 0:
        return True, f"{pool.available} pages of {size} are free already", ()
    memory = facts.memory_total
    if memory is not None and (pool.persistent + missing) * page_size > memory:
        return False, f"{pages} pages of {size} are more than this machine's memory", ()
    total = pool.persistent + missing
    if page_size == _LARGE:
        return True, None, (Step("reserve the pages", f"sysctl -w vm.nr_hugepages={total}"),)
    why = "memory may be too fragmented for so large pages once the machine has run for a while"
    boot = Step("or at boot, on the kernel's command line", f"hugepagesz=1G hugepages={total}")
    return True, why, (Step("reserve the pages", f"echo {total} > {pool.control}"), boot)


def _program_steps(
    mapping: MappingFootprint, settings: tuple[tuple[str, str | None], ...]
) -> tuple[Step, ...]:
    if settings:
        return tuple(Step(text, command) for text, command in settings)
    ways = {
        "shared anonymous": "the program must map it with MAP_HUGETLB",
        "memfd": "the program must make it with MFD_HUGETLB",
        "System V": "the program must make it with SHM_HUGETLB",
    }
    return (Step(ways.get(mapping.memory, "the program must open the file on a hugetlbfs mount")),)


def _pages(facts: Facts, mapping: MappingFootprint, program: Program | None, page_size: int) -> Alternative:
    pages = _ceil(mapping.bytes, page_size)
    possible, why, steps = _reserve(facts, page_size, pages)
    settings = () if program is None else program.large if page_size == _LARGE else program.huge
    return Alternative(
        name="2 MiB pages" if page_size == _LARGE else "1 GiB pages",
        table_bytes=_large_tables(mapping) if page_size == _LARGE else 0,
        saved_bytes=0,
        total_bytes=0,
        page_size=page_size,
        pages=pages,
        possible=possible,
        why=why,
        steps=(*steps, *_program_steps(mapping, settings)) if possible else (),
    )


def _large(facts: Facts, mapping: MappingFootprint, program: Program | None) -> Alternative:
    return _pages(facts, mapping, program, _LARGE)


def _huge(facts: Facts, mapping: MappingFootprint, program: Program | None) -> Alternative:
    return _pages(facts, mapping, program, _HUGE)


def _linked(facts: Facts, mapping: MappingFootprint, program: Program | None) -> Alternative:
    """The library's own regions: 2 MiB pages at addresses by which one table serves all."""
    pages = _ceil(mapping.bytes, _LARGE)
    possible, why, steps = _reserve(facts, _LARGE, pages)
    place = Step(
        "place the data with this library", "sharedregion.create(NAME, size=SIZE, backend='hugetlb')"
    )
    if mapping.name.startswith("/dev/shm/psm_"):
        place = Step(
            "this is a block of Python's multiprocessing.shared_memory: import the library's instead",
            "from sharedregion import shared_memory",
        )
    if program is not None:
        possible, why = (
            False,
            f"{program.name} makes this memory itself; with 2 MiB pages Linux links what fills whole GiB",
        )
    return Alternative(
        name="linked tables",
        table_bytes=min(_ceil(mapping.bytes, _HUGE) * _TABLE, mapping.distinct_bytes),
        saved_bytes=0,
        total_bytes=0,
        page_size=_LARGE,
        pages=pages,
        possible=possible,
        why=why,
        steps=(*steps, place) if possible else (),
    )


def _collapsed(facts: Facts, mapping: MappingFootprint) -> Alternative:
    share = congruent_share(mapping)
    saved = int(mapping.distinct_pte_bytes * share)
    possible, why = True, None
    # The name is another process's choice: nothing goes into a command that a shell could take for more.
    named = re.fullmatch(r"/dev/shm/[A-Za-z0-9._/-]+", mapping.name)
    target, which = (mapping.name, "") if named else ("PID", "; PID is any of these processes")
    steps = (Step(f"collapse it while it is in use{which}", f"sharedregion collapse {target}"),)
    # A file on a disk can be collapsed only if it is a program's text.
    if mapping.memory not in ("shared anonymous", "System V", "memfd", "POSIX shared memory"):
        possible, why = False, "only shared memory can be collapsed, not a file of a disk's file system"
    elif facts.thp.shmem_enabled == "deny" or facts.thp.per_size.get(_LARGE) == "never":
        possible, why = False, "large pages in shared memory are switched off (transparent_hugepage)"
    elif share == 0:
        possible, why = (
            False,
            "address and file offset differ modulo 2 MiB in every process: it would be mapped by 4 KiB all the same",
        )
    elif share < 0.99:
        why = f"only {share:.0%} of what is mapped lies where a large page can be mapped as one"
    return Alternative(
        name="collapsed",
        table_bytes=mapping.distinct_bytes - saved,
        saved_bytes=0,
        total_bytes=0,
        page_size=_LARGE,
        pages=0,
        possible=possible,
        why=why,
        steps=steps if possible else (),
    )
