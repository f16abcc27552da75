"""What regions there are, who has them open, what lies in them, and what the dead have left.

Everything here looks without joining: an onlooker is no member, changes nothing, and keeps nobody from
ending. What cannot be looked at, being another user's or damaged, is listed as such. `collect` alone
removes anything, and only what no living process holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import stat
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sharedregion import _native, codecs
from sharedregion._alone import Alone, alone_of, why_alone
from sharedregion._kernel import processes
from sharedregion.errors import RegionCorrupt, RegionDenied, RegionNotFound, SharedRegionError, ToolError
from sharedregion.region import _PAGE_SIZE as PAGE_SIZES

__all__ = [
    "Alone",
    "Leftover",
    "MemberInfo",
    "ObjectInfo",
    "RegionInfo",
    "collect",
    "leftovers",
    "members",
    "objects",
    "region",
    "regions",
    "why_alone",
]

PAGE = 4096
_PREFIX, _CATALOG = "sharedregion.", ".catalog"
_SEGMENT = re.compile(r"sharedregion\.(.+)\.(members|data)(?:\.([0-9]{1,10}))?", re.DOTALL)
# A copy of a busy catalog is not of one moment: an entry may change under it.
_LOOKS = 5
# Asking for smaps makes the kernel walk a process's page tables; one that has touched the region is enough.
_SMAPS_TRIED = 4

File = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """A region as an onlooker sees it; sizes in bytes, None where it cannot be told.

    `state` is "live" (a member lives), "idle" (it persists, with no member now), "orphaned" (no living
    process holds it: `collect` reclaims it), "corrupt", "foreign" (made by another build of this library), or
    "denied" (another user's).

    `tables` says of hugetlb regions whether the page tables of their GiBs are "linked" among those who
    map it, "partly" or not at all ("alone": see `alone` for who and why), "single" where no two map it
    alike (a writer and a reader do not), "untouched", "none" (1 GiB pages need none) or "unknown"; of other memory "own": small, and each
    process has its own; "region": msharefs, whose tables are the region's.
    """

    name: str
    state: str
    backend: str | None = None
    kind: str | None = None
    page_size: int | None = None
    size: int | None = None
    used: int | None = None
    free: int | None = None
    largest: int | None = None
    backed: int | None = None
    objects: int | None = None
    members: int | None = None
    huge_fraction: float | None = None
    tables: str | None = None
    alone: tuple[Alone, ...] = ()
    created: float | None = None
    age: float | None = None
    uid: int | None = None
    owner: str | None = None
    mode: int | None = None
    persist: bool | None = None
    keeper: int | None = None
    sealed: bool | None = None
    reason: str | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object: `pins` is how many members hold its bytes now, or have sent a reference that is under way."""

    name: str
    type: str
    dtype: str | None
    shape: tuple[int, ...] | None
    bytes: int
    version: int
    pins: int
    mutable: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """A process that has the region open, or its keeper.

    `pid` is as seen from here, None for a process in another pid namespace or another user's that may not be
    looked at; `inner_pid` as it sees itself. `tables` and `private_tables` are bytes of page tables that
    serve this region alone; `estimate` says that they were not read from the tables themselves.
    """

    role: str
    pid: int | None
    inner_pid: int | None
    command: str | None
    uid: int | None
    owner: str | None
    access: str | None
    pins: int
    handles: int
    since: float | None
    tables: int | None = None
    private_tables: int | None = None
    alone_gib: int = 0
    huge_fraction: float | None = None
    estimate: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Leftover:
    """What the dead left: `kind` is "region", "segments" (a region half made or half removed), "catalog" (of a
    replacement half made), "socket" (of a keeper), or "block" (of shared_memory). `files` lie in /dev/shm.
    """

    kind: str
    name: str
    files: tuple[str, ...]
    bytes: int
    uid: int | None
    owner: str | None
    reclaimed: bool = False
    generation: int = field(default=0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {key: value for key, value in asdict(self).items() if key != "generation"}


# --- looking ---------------------------------------------------------------------------------------


def _user(uid: int | None) -> str | None:
    if uid is None:
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def _files() -> list[str]:
    try:
        return sorted(file for file in os.listdir(_native.SHM_DIR) if file.startswith(_PREFIX))
    except OSError:
        return []


def _stat(file: str) -> os.stat_result | None:
    try:
        return os.stat(os.path.join(_native.SHM_DIR, file), follow_symlinks=False)
    except (OSError, ValueError):
        return None


def _names() -> list[str]:
    return [file[len(_PREFIX) : -len(_CATALOG)] for file in _files() if file.endswith(_CATALOG)]


def _look(name: str) -> _native.Onlooker:
    if not isinstance(name, str):
        raise TypeError(f"a region's name is a str, not {type(name).__name__}")
    return _native.Onlooker(name)


class _Seen:
    """Who maps what: one pass over all processes, for all regions."""

    def __init__(self, files: Iterable[File]) -> None:
        wanted = frozenset(files)
        self.areas: dict[File, list[tuple[int, processes.Area]]] = {}
        self.unreadable: list[int] = []
        for pid in processes.pids() if wanted else ():
            found = processes.areas(pid, wanted)
            if found is None:
                self.unreadable.append(pid)
            for area in found or ():
                self.areas.setdefault(area.file, []).append((pid, area))

    def users(self, file: File) -> list[int]:
        return sorted({pid for pid, _ in self.areas.get(file, ())})

    def rows(self, members: File) -> dict[int, int]:
        """Row -> pid: whoever holds a row has exactly its page mapped."""
        return {
            area.offset // PAGE - 1: pid
            for pid, area in self.areas.get(members, ())
            if area.offset >= PAGE and area.end - area.start == PAGE
        }


@dataclass
class _Look:
    """A region that could be looked at, on the way to its RegionInfo."""

    info: RegionInfo
    data: File
    members: File
    rows: list[tuple[int, int, int, bool, int, int]]


def _failed(name: str, state: str, error: Exception) -> RegionInfo:
    info = _stat(_PREFIX + name + _CATALOG)
    uid = None if info is None else info.st_uid
    text = error.message if isinstance(error, SharedRegionError) else str(error)
    return RegionInfo(
        name,
        state,
        error=text,
        uid=uid,
        owner=_user(uid),
        mode=None if info is None else info.st_mode & 0o777,
    )


def _orphaned(name: str, head: Mapping[str, Any], live: int) -> bool:
    if live:
        return False
    if not head["flags"] & _native.PERSIST:
        return True
    if not head["flags"] & _native.KEPT:
        return False
    # Nameless memory of a region that persists is gone with its keeper.
    with contextlib.suppress(SharedRegionError):
        return _native.reclaim(name, True, head["uid"])
    return False


def _looked(name: str) -> _Look:
    onlooker = _look(name)
    head, stats, rows = onlooker.head(), onlooker.stats(), onlooker.members()
    kind, size = head["backend"], stats["size"]
    if stats["used"] > size or stats["largest"] > size:
        raise RegionCorrupt(f"the catalog of region '{name}' is damaged: bytes in use")
    persist = bool(head["flags"] & _native.PERSIST)
    state = "orphaned" if _orphaned(name, head, len(rows)) else "live" if rows else "idle"
    created = head["created_ns"] / 1e9
    files = head["files"]
    info = RegionInfo(
        name=name,
        state=state,
        backend=kind.partition("-")[0],
        kind=kind,
        page_size=PAGE_SIZES.get(kind),
        size=size,
        used=stats["used"],
        free=size - stats["used"],
        largest=stats["largest"],
        backed=stats["backed"],
        objects=stats["objects"],
        members=len(rows),
        huge_fraction=1.0 if kind.startswith("hugetlb") else None,
        tables={"hugetlb-1g": "none", "hugetlb-2m": "unknown", "msharefs": "region"}.get(kind, "own"),
        created=created,
        age=max(0.0, time.time() - created),
        uid=head["uid"],
        owner=_user(head["uid"]),
        mode=head["mode"] & 0o777,
        persist=persist,
        sealed=bool(stats["flags"] & _native.SEALED),
        reason=head["reason"],
    )
    return _Look(info, (files[0], files[1]), (files[2], files[3]), rows)


def _try(name: str) -> _Look | RegionInfo | None:
    """None for a region that is gone by now."""
    for tries in range(_LOOKS):
        try:
            return _looked(name)
        except RegionNotFound:
            return None
        except RegionDenied as error:
            return _failed(name, "denied", error)
        except (SharedRegionError, ValueError, OverflowError) as error:
            # Perhaps it was being removed just then.
            if _stat(_PREFIX + name + _CATALOG) is None:
                return None
            if tries == _LOOKS - 1:
                return _failed(name, "foreign" if "another build" in str(error) else "corrupt", error)
    return None


def regions() -> list[RegionInfo]:
    """Every region, by name: also those that are damaged, orphaned, or not the caller's to see."""
    found = [seen for seen in map(_try, _names()) if seen is not None]
    looks = [seen for seen in found if isinstance(seen, _Look)]
    details = _details(looks)
    return [details[id(seen)] if isinstance(seen, _Look) else seen for seen in found]


def region(name: str) -> RegionInfo:
    """One region. RegionNotFound; one that is damaged or denied is no error here."""
    _native.check_name(name)
    seen = _try(name)
    if seen is None:
        raise RegionNotFound(f"there is no region '{name}'", "sharedregion ls lists what there is")
    return _details([seen])[id(seen)] if isinstance(seen, _Look) else seen


def _details(looks: Sequence[_Look]) -> dict[int, RegionInfo]:
    """What only a look at the processes can tell: linked tables, large pages, keepers."""
    seen = _Seen([file for look in looks for file in (look.data, look.members)])
    linking = _linking([look for look in looks if look.info.kind == "hugetlb-2m"], seen)
    keepers = _keepers({look.members: look.info.name for look in looks if look.info.backed is None})
    result = {}
    for look in looks:
        info = look.info
        if look.members in keepers:
            pid, open_files = keepers[look.members]
            info = replace(info, keeper=pid, backed=(open_files or {}).get(look.data))
        if id(look) in linking:
            tables, alone = linking[id(look)]
            info = replace(info, tables=tables, alone=alone)
        if info.backend in ("thp", "shm", "msharefs"):
            info = replace(info, huge_fraction=_huge_fraction(look.data, seen))
        result[id(look)] = info
    return result


def _huge_fraction(data: File, seen: _Seen) -> float | None:
    """From the first process that has touched any of it and may be asked."""
    for pid in seen.users(data)[:_SMAPS_TRIED]:
        fraction = _fraction(processes.areas(pid, (data,), smaps=True))
        if fraction is not None:
            return fraction
    return None


def _fraction(areas: Sequence[processes.Area] | None) -> float | None:
    rss = sum(area.rss or 0 for area in areas or ())
    return min(1.0, sum(area.huge for area in areas or ()) / rss) if rss else None


def _keepers(wanted: Mapping[File, str]) -> dict[File, tuple[int, dict[File, int] | None]]:
    """Members file -> (pid of the keeper that holds it, its open files with their memory)."""
    found: dict[File, tuple[int, dict[File, int] | None]] = {}
    for pid in processes.pids() if wanted else ():
        if processes.command(pid) != "sr-keeper":
            continue
        held = processes.open_files(pid)
        if held is not None:
            found.update({file: (pid, held) for file in wanted if file in held})
    return found


# --- linked tables ---------------------------------------------------------------------------------


def _linking(looks: Sequence[_Look], seen: _Seen) -> dict[int, tuple[str, tuple[Alone, ...]]]:
    """Whether the GiBs of hugetlb regions are linked among those who map them, as the helper sees it."""
    shared = [(look, users) for look in looks if (users := seen.users(look.data))]
    result: dict[int, tuple[str, tuple[Alone, ...]]] = {
        id(look): ("untouched" if look.info.members == 0 else "unknown", ()) for look in looks
    }
    if not shared:
        return result
    from sharedregion.footprint import footprint

    pids = sorted({pid for _, users in shared for pid in users})
    try:
        found = footprint(*pids, regions=[(str(n), [look.data]) for n, (look, _) in enumerate(shared)])
    except ToolError:
        return result
    costs: dict[int, list[tuple[int, int, int]]] = {}
    for process in found.processes:
        for part in process.regions:
            costs.setdefault(int(part.region), []).append((process.pid, part.linked_bytes, part.alone_gib))
    for n, (look, users) in enumerate(shared):
        parts = costs.get(n, [])
        touched = [part for part in parts if part[1]]
        lonely = [part for part in parts if part[2]]
        alone: tuple[Alone, ...] = ()
        if not parts:
            verdict = "unknown"
        elif not touched:
            verdict = "untouched"
        elif len(users) == 1:
            verdict = "single"
        else:
            areas = (
                {pid: processes.areas(pid, (look.data,), smaps=True) or [] for pid in users} if lonely else {}
            )
            alone = tuple(alone_of(pid, gib, areas) for pid, _, gib in lonely)
            rest = len(touched) - len(lonely)
            if all(one.expected for one in alone):
                verdict = "linked" if rest else "single"
            else:
                verdict = "partly" if rest else "alone"
        result[id(look)] = verdict, alone
    return result


# --- objects and members ---------------------------------------------------------------------------

_TYPES = {
    codecs.ndarray.NUMBER: "array",
    codecs.text.NUMBER: "str",
    codecs.buffer.NUMBER: "bytes",
    codecs.pickled.NUMBER: "pickle",
    # Codecs of frameworks, which are not imported to look at what they placed.
    5: "tensor",
    6: "arrow",
}


def _shape(kind: str, meta: bytes) -> tuple[str | None, tuple[int, ...] | None]:
    """dtype and shape of an array or tensor, from the bytes that describe it. Nothing of them is evaluated."""
    if kind not in ("array", "tensor"):
        return None, None
    try:
        # arrays: form, order, dimensions, length of the dtype; tensors: 1, dimensions, length, 0, and strides.
        head = struct.unpack_from("<BBBB", meta)
        ndim = head[2] if kind == "array" else head[1]
        shape = struct.unpack_from(f"<{ndim}Q", meta, 4)
    except struct.error:
        return None, None
    text = meta[4 + 8 * ndim * (1 if kind == "array" else 2) :].decode("utf-8", "backslashreplace")
    return ("structured" if kind == "array" and head[0] != 1 else text), shape


def objects(name: str) -> list[ObjectInfo]:
    """The objects of a region, in the order of their publication. RegionNotFound, RegionDenied, RegionCorrupt."""
    for tries in range(_LOOKS):
        onlooker = _look(name)
        try:
            listed, holders = onlooker.objects(), onlooker.holders()
            break
        except RegionCorrupt:
            if tries == _LOOKS - 1:
                raise
        except UnicodeDecodeError:
            raise RegionCorrupt(f"the catalog of region '{name}' is damaged: the name of an object") from None
    found = []
    for object_name, kind, flags, meta, nbytes, _, version, _, block in sorted(
        listed, key=lambda item: item[5]
    ):
        type_ = _TYPES.get(kind, f"kind {kind}")
        dtype, shape = _shape(type_, meta)
        found.append(
            ObjectInfo(
                object_name,
                type_,
                dtype,
                shape,
                nbytes,
                version,
                holders.get(block, 0),
                bool(flags & _native.MUTABLE),
            )
        )
    return found


def members(name: str, *, footprints: bool = True) -> list[MemberInfo]:
    """Who has a region open, and its keeper. RegionNotFound, RegionDenied, RegionCorrupt.

    With `footprints` the helper tells what page tables the region costs each.
    """
    seen = _try(name)
    if isinstance(seen, RegionInfo) or seen is None:
        _look(name)  # raises what is the matter
        raise RegionNotFound(f"there is no region '{name}'", "sharedregion ls lists what there is")
    who = _Seen([seen.data, seen.members])
    pid_of = who.rows(seen.members)
    strangers = [status for pid in who.unreadable if (status := processes.status(pid))]
    grouped: dict[tuple[int | None, int], list[tuple[int, int, int, bool, int, int]]] = {}
    for row in seen.rows:
        pid = pid_of.get(row[0])
        if pid is None:
            # Not ours to look into: told by what it wrote of itself, if exactly one process fits.
            alike = [s.pid for s in strangers if s.inner_pids[-1:] == (row[1],) and s.uid == row[2]]
            pid = alike[0] if len(alike) == 1 else None
        grouped.setdefault((pid, row[1]), []).append(row)
    found = [_member(pid, rows) for (pid, _), rows in grouped.items()]
    for pid, _ in _keepers({seen.members: name}).values():
        status = processes.status(pid)
        uid = None if status is None else status.uid
        inner = status.inner_pids[-1] if status and status.inner_pids else None
        found.append(
            MemberInfo("keeper", pid, inner, processes.command(pid), uid, _user(uid), None, 0, 0, None)
        )
    return _priced(found, seen, footprints)


def _member(pid: int | None, rows: Sequence[tuple[int, int, int, bool, int, int]]) -> MemberInfo:
    uid = rows[0][2]
    return MemberInfo(
        role="member",
        pid=pid,
        inner_pid=rows[0][1],
        command=None if pid is None else processes.command(pid),
        uid=uid,
        owner=_user(uid),
        access="write" if any(row[3] for row in rows) else "read",
        pins=sum(row[5] for row in rows),
        handles=len(rows),
        since=min(row[4] for row in rows) / 1e9,
    )


def _priced(found: list[MemberInfo], look: _Look, footprints: bool) -> list[MemberInfo]:
    pids = [member.pid for member in found if member.pid is not None]
    costs: dict[int, dict[str, Any]] = {}
    if footprints and pids:
        from sharedregion.footprint import footprint

        with contextlib.suppress(ToolError):
            for process in footprint(*pids, regions=[("0", [look.data, look.members])]).processes:
                costs[process.pid] = {"tables": 0, "private_tables": 0, "estimate": process.estimate}
                for part in process.regions:
                    costs[process.pid] |= {
                        "tables": part.linked_bytes,
                        "private_tables": part.private_bytes,
                        "alone_gib": part.alone_gib,
                    }
    huge: dict[int, float | None] = {}
    for pid in pids if footprints else ():
        if look.info.kind in ("thp", "shm"):
            huge[pid] = _fraction(processes.areas(pid, (look.data,), smaps=True))
    return [
        replace(member, huge_fraction=huge.get(member.pid), **costs.get(member.pid, {}))
        if member.pid is not None and member.role == "member"
        else member
        for member in found
    ]


# --- what the dead left ----------------------------------------------------------------------------


def leftovers() -> list[Leftover]:
    """What lies in /dev/shm that no living process holds, as far as the caller may remove it."""
    return [*_orphans(), *_strays(), *_blocks()]


def _leftover(kind: str, name: str, files: Sequence[str], generation: int = 0) -> Leftover:
    stats = [info for file in files if (info := _stat(file))]
    uid = stats[0].st_uid if stats else None
    return Leftover(
        kind,
        name,
        tuple(files),
        sum(info.st_blocks * 512 for info in stats),
        uid,
        _user(uid),
        generation=generation,
    )


def _may_remove(file: str) -> bool:
    info = _stat(file)
    return info is not None and os.geteuid() in (0, info.st_uid)


def _orphans() -> list[Leftover]:
    found = []
    for name in _names():
        if not _may_remove(_PREFIX + name + _CATALOG):
            continue
        with contextlib.suppress(SharedRegionError, ValueError):
            head = _look(name).head()
            if not _native.reclaim(name, True, head["uid"]):
                continue
            end = "" if head["generation"] == 1 else f".{head['generation']}"
            files = [f"{_PREFIX}{name}{part}" for part in (_CATALOG, f".members{end}", f".data{end}")]
            files.append(f"{_PREFIX}{head['id'].hex()}.keeper")
            found.append(_leftover("region", name, [file for file in files if _stat(file)]))
    return found


def _strays() -> list[Leftover]:
    """Segments and sockets that no catalog speaks of."""
    found = []
    segments: dict[tuple[str, int], list[str]] = {}
    for file in _files():
        if match := _SEGMENT.fullmatch(file):
            segments.setdefault((match[1], int(match[3] or 1)), []).append(file)
        elif _may_remove(file):
            with contextlib.suppress(ValueError):
                if _native.remove_leftover(file, True):
                    kind = "socket" if file.endswith(".keeper") else "catalog"
                    found.append(_leftover(kind, file, [file]))
    for (name, generation), files in segments.items():
        if not all(map(_may_remove, files)):
            continue
        with contextlib.suppress(ValueError):
            if generation < 2**32 and _native.remove_half_made(name, generation, True):
                found.append(_leftover("segments", name, files, generation))
    return found


def _blocks() -> list[Leftover]:
    """Blocks of shared_memory that outlived the program that made them, since others still used them then."""
    from sharedregion import _tracking

    try:
        names = sorted(os.listdir(_native.SHM_DIR))
    except OSError:
        return []
    return [
        _leftover("block", file, [file])
        for file in names
        if not file.startswith(_PREFIX)
        and _tracking.is_orphan(os.path.join(_native.SHM_DIR, file))
        and _may_remove(file)
        and _unused(file, remove=False)
    ]


def _unused(file: str, *, remove: bool) -> bool:
    """Whether nobody has an orphaned block open or mapped; with `remove`, its name is then gone.

    The kernel grants a write lease only if nobody else has the file open, descriptors or none.
    """
    path = os.path.join(_native.SHM_DIR, file)
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or not info.st_mode & stat.S_ISVTX:
            return False
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        # The name may be another block's by now; who makes one anew over an orphan has the lease refused.
        if remove and os.lstat(path).st_ino == info.st_ino:
            os.unlink(path)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def collect(*, dry_run: bool = False) -> list[Leftover]:
    """Reclaim what no living process holds; returns what was found, and whether it is reclaimed now.

    A region is looked at again, under its locks, before anything of it is removed: one that somebody
    has joined meanwhile stays. Damaged regions stay too: `unlink` removes them.
    """
    found = []
    for left in leftovers():
        done = False
        if not dry_run:
            with contextlib.suppress(SharedRegionError, ValueError):
                if left.kind == "region":
                    done = _native.reclaim(left.name, False, left.uid or 0)
                elif left.kind == "segments":
                    done = _native.remove_half_made(left.name, left.generation)
                elif left.kind == "block":
                    done = _unused(left.name, remove=True)
                else:
                    done = _native.remove_leftover(left.name, False)
        found.append(replace(left, reclaimed=done))
    return found
