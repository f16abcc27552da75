"""The types of an answer, and the reading of the helper's JSON."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sharedregion.errors import ToolError

if TYPE_CHECKING:
    from sharedregion.footprint.advice import Advice

__all__ = [
    "SCHEMA",
    "Footprint",
    "LeafCounts",
    "MachineTables",
    "MappingExtent",
    "MappingFootprint",
    "ProcessFootprint",
    "RegionFootprint",
    "SharedTables",
    "TableCounts",
    "parse",
]

SCHEMA = 3


@dataclasses.dataclass(frozen=True, slots=True)
class TableCounts:
    """Page tables by level, each page once. `p4d` is 0 on machines with four levels."""

    pgd: int
    p4d: int
    pud: int
    pmd: int
    pte: int


@dataclasses.dataclass(frozen=True, slots=True)
class LeafCounts:
    """Entries that map a page, by the size of the page.

    `full_tables` are PTE tables with an entry in every place: those that a 2 MiB page would do without.
    It is 0 in an estimate.
    """

    small: int
    large: int
    huge: int
    full_tables: int

    def to_dict(self) -> dict[str, int]:
        """Keys `4k`, `2m`, `1g`, `full_tables`."""
        return {"4k": self.small, "2m": self.large, "1g": self.huge, "full_tables": self.full_tables}


@dataclasses.dataclass(frozen=True, slots=True)
class RegionFootprint:
    """The tables that one process has for one region and nothing else.

    `alone_gib` counts the GiB of 2 MiB hugetlb pages whose PMD table this process shares with nobody
    although others have the region mapped too.
    """

    region: str
    linked_bytes: int
    private_bytes: int
    shared_bytes: int
    alone_gib: int


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessFootprint:
    """The page tables of one process.

    `vm_pte_bytes` is the kernel's own count, which leaves out the PGD. `held_tables` (part of
    `tables.pte`) are put aside for the day a huge page is split. `moving` counts what would not hold
    still while it was read; `shares_with` names processes that have the very same memory (a child
    between vfork and exec), the first 64 of the `shares_with_in_all`.
    """

    pid: int
    command: str
    tables: TableCounts
    held_tables: int
    linked_bytes: int
    private_bytes: int
    shared_bytes: int
    proportional_bytes: int
    vm_pte_bytes: int
    moving: int
    estimate: bool
    shares_with: tuple[int, ...]
    shares_with_in_all: int
    regions: tuple[RegionFootprint, ...]
    leaves: LeafCounts | None = None

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        out["tables"] = dataclasses.asdict(self.tables)
        out["shares_with"] = list(self.shares_with)
        out["regions"] = [dataclasses.asdict(region) for region in self.regions]
        if self.leaves is None:
            del out["leaves"]
        else:
            out["leaves"] = self.leaves.to_dict()
        return out


@dataclasses.dataclass(frozen=True, slots=True)
class MappingExtent:
    """`processes` map `bytes` of a file from `file_offset` on, `start_in_gib` bytes after a multiple of 1 GiB."""

    start_in_gib: int
    bytes: int
    file_offset: int
    writable: bool
    processes: int


@dataclasses.dataclass(frozen=True, slots=True)
class MappingFootprint:
    """The tables that serve one file or shared memory object and nothing else, in all that was asked for.

    `kind` is "file" for what has an inode (shared memory without a name too), or one of those that make
    the sum whole: "anonymous" (private memory), "several" (tables that more than one mapping needs),
    "upper" (the same, of the upper levels), "unmapped" (where nothing is mapped now), "hidden" (of
    processes whose maps could not be read), "others" (beyond the costliest thousand). `name` is shown
    by other processes: it is safe to print, and to be believed as little as they are. `page_size` is
    that of hugetlb memory, else 4096. `bytes` is the part of the file that anyone maps.

    `linked_bytes` counts a table for each process that reaches it, `distinct_bytes` once; of these
    `distinct_pte_bytes` are tables of the lowest level, which 2 MiB pages do without. `commands` says
    how many of the `processes` have which name; `extents` how they map it (of private mappings, those
    of 2 MiB and more), but for `extents_left_out`.
    """

    kind: str
    name: str
    shared: bool
    device: str
    inode: int
    page_size: int
    bytes: int
    processes: int
    linked_bytes: int
    distinct_bytes: int
    distinct_pte_bytes: int
    pmd_links: int
    pte_links: int
    commands: tuple[tuple[str, int], ...]
    extents: tuple[MappingExtent, ...]
    extents_left_out: int

    @property
    def memory(self) -> str:
        """What kind of memory it is, as far as the name tells: a word or two."""
        if self.kind != "file":
            return _PARTS.get(self.kind, self.kind)
        if self.page_size > 4096:
            return "hugetlb"
        if self.name.startswith("/dev/zero") and self.shared:
            return "shared anonymous"
        for start, word in (
            ("/SYSV", "System V"),
            ("/memfd:", "memfd"),
            ("/dev/shm/", "POSIX shared memory"),
        ):
            if self.name.startswith(start):
                return word
        return "file" if self.shared else "private file"

    @property
    def label(self) -> str:
        """The name, or what stands for it."""
        return self.name if self.kind == "file" and self.name else f"({self.memory})"

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        out["memory"] = self.memory
        out["commands"] = [{"command": name, "processes": count} for name, count in self.commands]
        out["extents"] = [dataclasses.asdict(extent) for extent in self.extents]
        return out


#: What is no file, in words.
_PARTS = {
    "anonymous": "private memory",
    "several": "tables of several mappings",
    "upper": "upper levels",
    "unmapped": "empty tables",
    "hidden": "maps not readable",
    "others": "other mappings",
}


@dataclasses.dataclass(frozen=True, slots=True)
class MachineTables:
    """`PageTables` of the whole machine, and how much of it was seen, each table once."""

    page_tables_bytes: int
    seen_bytes: int

    @property
    def kernel_bytes(self) -> int:
        """What is left: the kernel's own tables, and those of processes that could not be seen."""
        return max(0, self.page_tables_bytes - self.seen_bytes)

    def to_dict(self) -> dict[str, int]:
        return {**dataclasses.asdict(self), "kernel_bytes": self.kernel_bytes}


@dataclasses.dataclass(frozen=True, slots=True)
class SharedTables:
    """`tables` tables of one level, each reached by `processes` of those looked at, in `links` places.

    `share_count` is the kernel's own number of further links, or None where it keeps none.
    """

    level: str
    tables: int
    processes: int
    links: int
    share_count: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Footprint:
    """The helper's answer.

    `method` is "walk" (page tables were read, by `reader`), "pagemap" or "status" (estimates: `why`
    says why, `remedy` what would make them exact). `scope` says at whom it looked to tell shared from
    private: "all", "namespace" for those of a pid namespace (a container's), beyond which there are others, or
    "own" for the caller's own processes alone. `share_count` compares the kernel's
    share counts with the links that were found: `more` are tables that processes out of sight share.
    """

    method: str
    reader: str | None
    why: str | None
    remedy: str | None
    scope: str
    distinct_bytes: int
    processes: tuple[ProcessFootprint, ...]
    gone: tuple[int, ...]
    denied: tuple[int, ...]
    kernel_threads: tuple[int, ...]
    shared_tables: tuple[SharedTables, ...]
    share_count: Mapping[str, int]
    looked_at: Mapping[str, int]
    version: str
    mappings: tuple[MappingFootprint, ...] = ()
    mappings_in_all: int = 0
    machine: MachineTables | None = None
    schema: int = SCHEMA

    @property
    def estimate(self) -> bool:
        """True if not every figure was read from page tables."""
        return self.method != "walk" or any(process.estimate for process in self.processes)

    def advice(self) -> tuple[Advice, ...]:
        """What would make the costliest shared mappings cheaper: `advise` with the facts of this machine."""
        from sharedregion.footprint.advice import advise

        return advise(self)

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON has it."""
        out: dict[str, Any] = {
            "schema": self.schema,
            "version": self.version,
            "method": self.method,
            "reader": self.reader,
            "why": self.why,
            "remedy": self.remedy,
            "scope": self.scope,
            "distinct_bytes": self.distinct_bytes,
            "shared": {
                "tables": [dataclasses.asdict(tables) for tables in self.shared_tables],
                "share_count": dict(self.share_count),
            },
            "looked_at": dict(self.looked_at),
            "processes": [process.to_dict() for process in self.processes],
            "gone": list(self.gone),
            "denied": list(self.denied),
            "kernel_threads": list(self.kernel_threads),
        }
        if self.machine is not None:
            out["mappings"] = [mapping.to_dict() for mapping in self.mappings]
            out["mappings_in_all"] = self.mappings_in_all
            out["machine"] = self.machine.to_dict()
        return out


class _BadAnswer(Exception):
    pass


def _number(of: Any, key: str) -> int:
    value = of[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _BadAnswer(f"{key} is {value!r}")
    return value


def _text(of: Any, key: str) -> str:
    value = of[key]
    if not isinstance(value, str):
        raise _BadAnswer(f"{key} is {value!r}")
    return value


def _text_or_none(of: Any, key: str) -> str | None:
    return None if of[key] is None else _text(of, key)


def _objects(of: Any, key: str) -> list[dict[str, Any]]:
    value = of[key]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _BadAnswer(f"{key} is no list of objects")
    return value


def _pids(of: Any, key: str) -> tuple[int, ...]:
    value = of[key]
    if not isinstance(value, list):
        raise _BadAnswer(f"{key} is no list")
    return tuple(_number({"pid": pid}, "pid") for pid in value)


def _numbers(of: Any) -> dict[str, int]:
    if not isinstance(of, dict):
        raise _BadAnswer("an object is missing")
    return {str(key): _number(of, key) for key in of}


def _region(of: dict[str, Any], names: Sequence[str]) -> RegionFootprint:
    kept = (_number(of, key) for key in ("linked_bytes", "private_bytes", "shared_bytes", "alone_gib"))
    return RegionFootprint(names[int(_text(of, "region"))], *kept)


def _process(of: dict[str, Any], names: Sequence[str]) -> ProcessFootprint:
    leaves = of.get("leaves")
    return ProcessFootprint(
        pid=_number(of, "pid"),
        command=_text(of, "command"),
        tables=TableCounts(**_numbers(of["tables"])),
        held_tables=_number(of, "held_tables"),
        linked_bytes=_number(of, "linked_bytes"),
        private_bytes=_number(of, "private_bytes"),
        shared_bytes=_number(of, "shared_bytes"),
        proportional_bytes=_number(of, "proportional_bytes"),
        vm_pte_bytes=_number(of, "vm_pte_bytes"),
        moving=_number(of, "moving"),
        estimate=bool(of["estimate"]),
        shares_with=_pids(of, "shares_with"),
        shares_with_in_all=_number(of, "shares_with_in_all"),
        regions=tuple(_region(region, names) for region in _objects(of, "regions")),
        leaves=leaves
        if leaves is None
        else LeafCounts(*(_number(leaves, key) for key in ("4k", "2m", "1g", "full_tables"))),
    )


def _extent(of: dict[str, Any]) -> MappingExtent:
    start, size, offset = (_number(of, key) for key in ("start_in_gib", "bytes", "file_offset"))
    return MappingExtent(start, size, offset, bool(of["writable"]), _number(of, "processes"))


def _mapping(of: dict[str, Any]) -> MappingFootprint:
    return MappingFootprint(
        kind=_text(of, "kind"),
        name=_text(of, "name"),
        shared=bool(of["shared"]),
        device=_text(of, "device"),
        inode=_number(of, "inode"),
        page_size=_number(of, "page_size"),
        bytes=_number(of, "bytes"),
        processes=_number(of, "processes"),
        linked_bytes=_number(of, "linked_bytes"),
        distinct_bytes=_number(of, "distinct_bytes"),
        distinct_pte_bytes=_number(of, "distinct_pte_bytes"),
        pmd_links=_number(of, "pmd_links"),
        pte_links=_number(of, "pte_links"),
        commands=tuple(
            (_text(one, "command"), _number(one, "processes")) for one in _objects(of, "commands")
        ),
        extents=tuple(_extent(extent) for extent in _objects(of, "extents")),
        extents_left_out=_number(of, "extents_left_out"),
    )


def _shared(of: dict[str, Any]) -> SharedTables:
    count = None if of["share_count"] is None else _number(of, "share_count")
    tables, processes, links = (_number(of, key) for key in ("tables", "processes", "links"))
    return SharedTables(_text(of, "level"), tables, processes, links, count)


def parse(answer: bytes, names: Sequence[str]) -> Footprint:
    try:
        of = json.loads(answer)
        if not isinstance(of, dict) or of.get("schema") != SCHEMA:
            raise _BadAnswer(
                f"schema is {of.get('schema') if isinstance(of, dict) else None!r}, not {SCHEMA}"
            )
        shared = of.get("shared", {"tables": [], "share_count": {}})
        found = Footprint(
            method=_text(of, "method"),
            reader=_text_or_none(of, "reader"),
            why=_text_or_none(of, "why"),
            remedy=_text_or_none(of, "remedy"),
            scope=_text(of, "scope"),
            distinct_bytes=_number(of, "distinct_bytes"),
            processes=tuple(_process(process, names) for process in _objects(of, "processes")),
            gone=_pids(of, "gone"),
            denied=_pids(of, "denied"),
            kernel_threads=_pids(of, "kernel_threads"),
            shared_tables=tuple(_shared(tables) for tables in _objects(shared, "tables")),
            share_count=_numbers(shared["share_count"]),
            looked_at=_numbers(of["looked_at"]),
            version=_text(of, "version"),
            mappings=tuple(_mapping(mapping) for mapping in _objects(of, "mappings"))
            if "mappings" in of
            else (),
            mappings_in_all=_number(of, "mappings_in_all") if "mappings" in of else 0,
        )
        if found.method not in ("walk", "pagemap", "status"):
            raise _BadAnswer(f"method is {found.method!r}")
    # RecursionError: JSON nested without end.
    except (_BadAnswer, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        text = str(error) if isinstance(error, _BadAnswer) else f"{type(error).__name__}: {error}"
        raise ToolError(
            f"the helper's answer makes no sense ({text[:200]})",
            "reinstall sharedregion, so that library and helper are of one version; remove an old copy of the helper",
            errno.EPROTO,
        ) from error
    return found
