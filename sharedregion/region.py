"""Regions: create, attach, and the mapping that they are."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sharedregion import _native, codecs, references
from sharedregion._sizes import format_size, parse_size
from sharedregion.arrays import array_over, describe
from sharedregion.codecs import pickled
from sharedregion.errors import (
    BackendUnavailable,
    ObjectNotFound,
    ReadOnlyRegion,
    RegionClosed,
    RegionCorrupt,
    RegionExists,
    RegionFull,
    RegionNotFound,
    RegionTimeout,
    SharedRegionError,
)
from sharedregion.records import Member, Stats

if TYPE_CHECKING:
    from sharedregion._policy import Candidate
    from sharedregion.footprint import Footprint

__all__ = [
    "Member",
    "Region",
    "Stats",
    "attach",
    "backends",
    "create",
    "load_npz",
    "load_safetensors",
    "regions",
    "share",
    "unlink",
]

_KEEPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_bin", "sharedregion-keeper")
_PAGE = 4096
_PREFIX, _SUFFIX = "sharedregion.", ".catalog"
_ANONYMOUS = "anonymous-"
_PAGE_SIZE = {"shm": _PAGE, "thp": 2 << 20, "hugetlb-2m": 2 << 20, "hugetlb-1g": 1 << 30}
# A memory cgroup answers a commit beyond its limit with SIGKILL. Asking for its headroom first takes
# some system calls, which small objects are spared; what they can overrun is bounded by this.
_HEADROOM_FROM = 16 << 20
_MISSING: Any = object()


class Region(_native.RegionHandle):
    """Named shared memory: a mapping from names to objects that any number of processes see.

    Made by `create` and `attach`. Objects are read-only everywhere unless they were placed with
    `mutable=True`; a write through a read-only array raises, and a write behind NumPy's back is
    SIGSEGV. Arrays outlive `close()`: their memory is used again only when no living process looks
    at it. Two handles are equal if they are the same object, and a region is always true.
    """

    name: str
    #: "hugetlb", "thp" or "shm"
    backend: str
    #: Bytes that one page-table entry maps, when all goes well.
    page_size: int
    #: Why this backend was chosen.
    reason: str
    #: Bytes that objects may occupy.
    size: int
    #: Effective user id of the host.
    uid: int
    persist: bool

    _id: bytes
    _kind: str
    _committed_whole: bool
    _allow_pickle: bool
    _look: ClassVar[Callable[[Region, bool], Footprint] | None] = None

    def _settle_in(self, allow_pickle: bool | None) -> Self:
        head = self._head()
        self.name = head["name"]
        self._kind = head["backend"]
        self.backend = self._kind.partition("-")[0]
        self.page_size = _PAGE_SIZE[self._kind]
        self.reason = head["reason"]
        self.size = head["size"]
        self.uid = head["uid"]
        self.persist = bool(head["flags"] & _native.PERSIST)
        self._committed_whole = bool(head["flags"] & _native.COMMITTED)
        self._id = head["id"]
        self._allow_pickle = self.uid == os.geteuid() if allow_pickle is None else allow_pickle
        _track(self)
        references.remember(self)
        return self

    # --- objects -------------------------------------------------------------------------------

    def put(self, name: str, value: Any, *, mutable: bool = False, pickle: bool = False) -> int:
        """Place `value` under `name`, replacing what is there, whole and at once. Returns its version.

        Arrays, bytes-like objects and str are placed as they are; other objects as a pickle whose
        buffers lie beside it, and arrays of dtype object only if `pickle` says so. With `mutable`,
        members that may write can change the bytes in place. Raises NotPlaceable, RegionFull,
        ReadOnlyRegion.
        """
        if not isinstance(name, str):
            raise TypeError(f"an object's name is a str, not {type(name).__name__}")
        self._check_writable(name)
        codec = codecs.codec_for(value)
        if pickle and isinstance(value, np.ndarray) and value.dtype.hasobject:
            codec = pickled
        return codec.place(self, name, value, _native.MUTABLE if mutable else 0)

    def get(self, name: str, default: Any = None) -> Any:
        """The object, or `default` if there is none of that name."""
        try:
            return self[name]
        except ObjectNotFound:
            return default

    def pop(self, name: str, default: Any = _MISSING) -> Any:
        """The object, which is then deleted; it stays valid for who holds it."""
        try:
            value = self[name]
            del self[name]
        except ObjectNotFound:
            if default is _MISSING:
                raise
            return default
        return value

    @contextmanager
    def allocate(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: DTypeLike = "f8",
        *,
        order: str = "C",
        mutable: bool = False,
    ) -> Iterator[NDArray[Any]]:
        """An array to fill in place; seen by others once the block ends well, and never if it raises.

        Its first contents are whatever lay there. After the block it is read-only, unless `mutable`.
        """
        self._check_writable(name)
        draft, array = self._draft(name, shape, dtype, order, mutable)
        yield array
        draft.publish()
        if not mutable:
            array.flags.writeable = False

    def zeros(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: DTypeLike = "f8",
        *,
        order: str = "C",
        mutable: bool = False,
    ) -> NDArray[Any]:
        """A new array of zeros, placed at once. With `mutable`, every writable member may write to it."""
        self._check_writable(name)
        draft, array = self._draft(name, shape, dtype, order, mutable)
        array.view()[...] = np.zeros((), array.dtype)
        del array
        draft.publish()
        return cast("NDArray[Any]", self[name])

    def _draft(
        self, name: str, shape: int | tuple[int, ...], dtype: DTypeLike, order: str, mutable: bool
    ) -> tuple[_native.Draft, NDArray[Any]]:
        if order not in ("C", "F"):
            raise ValueError(f"order {order!r} is neither 'C' nor 'F'")
        kind = np.dtype(dtype)
        dims = tuple(int(n) for n in (shape if isinstance(shape, tuple | list) else (shape,)))
        if any(n < 0 for n in dims):
            raise ValueError(f"negative dimensions are not allowed: {dims}")
        nbytes = kind.itemsize
        for n in dims:
            nbytes *= n
        if nbytes > self.size:
            raise RegionFull(
                f"region '{self.name}' has {format_size(self.size)} in all, the array {format_size(nbytes)}",
                "create a larger region",
                wanted=nbytes,
                free=self.size,
                largest=self.size,
            )
        meta = describe(kind, dims, fortran=order == "F")
        self._make_room(nbytes)
        draft = self._begin(name, codecs.ndarray.NUMBER, _native.MUTABLE if mutable else 0, meta, nbytes)
        return draft, array_over(meta, draft, writable=True)

    def _decode(self, kind: int, flags: int, meta: bytes, pin: _native.Pin) -> Any:
        if kind == pickled.NUMBER and not self._allow_pickle:
            raise ReadOnlyRegion(
                f"an object of region '{self.name}' is a pickle of user {self.uid}, and unpickling runs code of its maker",
                "attach(..., allow_pickle=True) if you trust that user",
                1,
            )
        writable = bool(flags & _native.MUTABLE) and self.writable
        return codecs.codec_of(kind).read(meta, pin, writable=writable)

    def _check_writable(self, name: str) -> None:
        if self.closed:
            raise RegionClosed("the region is closed")
        if not self.writable:
            raise ReadOnlyRegion(
                f"region '{self.name}' is attached for reading, object {name!r} cannot be placed",
                "attach(..., writable=True)",
            )

    def _make_room(self, nbytes: int) -> None:
        """Raise RegionFull where a memory cgroup would answer the commit with SIGKILL."""
        if nbytes < _HEADROOM_FROM or self._committed_whole:
            return
        from sharedregion._kernel import cgroup

        for limit in cgroup.memory_limits():
            if nbytes > limit.headroom and (limit.counts_hugetlb or self.backend != "hugetlb"):
                raise RegionFull(
                    f"{format_size(nbytes)} is more than the {format_size(limit.headroom)} "
                    f"that the memory limit of {limit.group} leaves",
                    "raise the limit, or place less",
                    wanted=nbytes,
                    free=limit.headroom,
                    largest=limit.headroom,
                )

    # --- the mapping ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        """Names, in the order in which the objects were published."""
        return iter([item[0] for item in sorted(self._list(), key=lambda item: item[5])])

    def keys(self) -> list[str]:
        """Names, in the order in which the objects were published."""
        return list(self)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Names and objects; one that is deleted meanwhile is passed over."""
        for name in self:
            value = self.get(name, _MISSING)
            if value is not _MISSING:
                yield name, value

    def values(self) -> Iterator[Any]:
        """Objects; one that is deleted meanwhile is passed over."""
        return (value for _, value in self.items())

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        if self.closed:
            return f"<Region {self.name!r}, closed>"
        mode = "writable" if self.writable else "read-only"
        return (
            f"<Region {self.name!r}: {self.backend}, {format_size(self.size)}, {len(self)} objects, {mode}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """A region travels as its name and identity, and is attached for reading."""
        if self.closed:
            raise RegionClosed("a closed region cannot be sent")
        return references.attach_same, (self.name, self._id, self.uid)

    # --- versions ------------------------------------------------------------------------------

    def version(self, name: str) -> int:
        """Version of the object. Versions of a region only grow, are never used twice, and have gaps."""
        return self._info(name)[6]

    def wait(self, name: str, timeout: float | None = None, *, newer_than: int = 0) -> int:
        """Sleep until `name` has a version above `newer_than`; returns it.

        Sleeps on a futex in the region. `timeout` is in seconds, None waits for ever; RegionTimeout
        (a TimeoutError) when it is over.
        """
        if not 0 <= newer_than < 1 << 64:
            raise ValueError(f"{newer_than} is not a version: they are whole numbers from 0 to 2^64 - 1")
        if timeout is not None and timeout != timeout:
            raise ValueError("a timeout is a number of seconds, or None")
        clock = _clock()
        deadline = None if timeout is None else clock() + timeout
        while True:
            left = 1.0 if deadline is None else min(1.0, deadline - clock())
            version = self._wait(name, newer_than, max(0, int(left * 1e9)))
            if version is not None:
                return version
            if deadline is not None and clock() >= deadline:
                raise RegionTimeout(
                    f"object {name!r} of region '{self.name}' had no newer version within {timeout} s"
                )

    def watch(self, name: str, *, newer_than: int = 0) -> Iterator[int]:
        """Versions of `name` as they come, without end; the first may be there already.

        Versions that were replaced while nobody asked are passed over.
        """
        while True:
            newer_than = self.wait(name, newer_than=newer_than)
            yield newer_than

    def ref(self, name: str) -> references.Reference:
        """A handle of this very version of the object that any pickler can send; `get()` gives the object."""
        info = self._info(name)
        return references.Reference(self, name, info[5], info[7], info[8])

    def seal(self) -> None:
        """Refuse every later put, allocate, publish and delete, by anyone. It cannot be undone."""
        self._seal()

    # --- the region itself ---------------------------------------------------------------------

    def stats(self) -> Stats:
        """Numbers of this moment; `huge_fraction` is read from the kernel's view of this process."""
        from sharedregion._kernel import smaps

        s = self._stats()
        address, length, _ = self._data()
        return Stats(
            size=self.size,
            used=s["used"],
            free=s["size"] - s["used"],
            largest=s["largest"],
            committed=s["committed"],
            objects=s["objects"],
            withdrawn=s["limbo"],
            unfinished=s["pending"],
            members=s["members"],
            recoveries=s["recoveries"],
            sealed=bool(s["flags"] & _native.SEALED),
            huge_fraction=1.0 if self.backend == "hugetlb" else smaps.huge_fraction(address, length),
        )

    def members(self) -> list[Member]:
        """The living members."""
        return [Member(pid, uid, writer, ns / 1e9, pins) for _, pid, uid, writer, ns, pins in self._members()]

    def footprint(self, *, leaves: bool = False) -> Footprint:
        """What the members' page tables cost, by the helper."""
        if Region._look is None:
            raise SharedRegionError(
                "sharedregion.footprint is not loaded", "import sharedregion, not only this module"
            )
        return Region._look(self, leaves)

    def prefault(self) -> None:
        """Touch one byte of each page that has memory behind it, so that later reads do not fault."""
        for name in self:
            value = self.get(name)
            if isinstance(value, np.ndarray) and value.size:
                flat = value.ravel(order="K").view(np.uint8) if value.flags.forc else None
                if flat is not None:
                    int(flat[:: min(self.page_size, 2 << 20)].sum(dtype="u8"))

    def trim(self) -> int:
        """Give whole pages in which no object lies back to the system; returns their bytes.

        Nothing is given back where all memory was promised at creation (commit="full").
        """
        self._sweep()
        return self._trim()

    def repair(self) -> None:
        """Make pages large again where something has split them (thp)."""
        self._repair()

    def unlink(self) -> None:
        """Remove the name. Who has the region open keeps it."""
        current = _peek(self.name)
        if current is not None and tuple(current["files"]) == tuple(self._head()["files"]):
            _native.unlink(self.name, self.uid)

    def __enter__(self) -> Self:
        if self.closed:
            raise RegionClosed("the region is closed")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _segments(self) -> list[tuple[int, int]]:
        """(device, inode) of data and members segment."""
        files = self._head()["files"]
        return [(files[0], files[1]), (files[2], files[3])]


MutableMapping.register(Region)


def _clock() -> Callable[[], float]:
    import time

    return time.monotonic


# --- the end of a process ----------------------------------------------------------------------

_open: weakref.WeakSet[Region] = weakref.WeakSet()
_registered_in: int | None = None
_forks_registered = False
_anonymous_swept = False


def _track(region: Region) -> None:
    global _registered_in
    _open.add(region)
    if _registered_in == os.getpid():
        return
    if _registered_in is None:
        atexit.register(_retire_all)
        os.register_at_fork(before=_before_fork)
    _registered_in = os.getpid()
    _register_with_multiprocessing()


def _register_with_multiprocessing(_: object = None) -> None:
    """Processes of multiprocessing end by os._exit, and run these instead of atexit."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _retire_all, exitpriority=-100)


def _before_fork() -> None:
    """A forked process of multiprocessing forgets its parent's finalizers, then runs what is registered so."""
    global _forks_registered
    util = sys.modules.get("multiprocessing.util")
    if util is not None and not _forks_registered:
        _forks_registered = True
        util.register_after_fork(_open, _register_with_multiprocessing)


def _retire_all() -> None:
    """Remove the names of regions that end with this process. The kernel does the rest."""
    for region in list(_open):
        region._retire()


# --- verbs ---------------------------------------------------------------------------------------


def create(
    name: str | None = None,
    *,
    size: int | str,
    backend: str = "auto",
    commit: str = "auto",
    persist: bool = False,
    replace: bool = False,
    mode: int = 0o600,
) -> Region:
    """Make a region and be its first member.

    `size` is bytes, or text such as "8 GiB" (2^30 based); it is rounded up to whole pages of 4 KiB.
    `backend` is "auto", "msharefs", "hugetlb", "thp" or "shm"; the environment's SHAREDREGION_BACKEND
    stands in for "auto". `commit` is "full" (memory is taken now), "lazy" (as objects are placed; then
    `size` is a cap and may exceed memory) or "auto" (full for hugetlb, lazy otherwise). The region
    lives while any process has it open; with `persist`, until `unlink`. `replace` moves the name from
    an existing region to this one; members of the old one keep it. `mode` is as for open(2).

    Raises RegionExists, BackendUnavailable, ValueError.
    """
    # What only a host needs is loaded by hosts alone.
    import logging

    from sharedregion import _policy
    from sharedregion._kernel.facts import gather

    log = logging.getLogger("sharedregion")
    bytes_wanted = -(-parse_size(size) // _PAGE) * _PAGE
    request = _policy.resolve(bytes_wanted, commit, backend, os.environ)
    if name is None:
        _sweep_anonymous()
        name = f"{_ANONYMOUS}{os.urandom(8).hex()}"
    elif not isinstance(name, str):
        raise TypeError(f"a region's name is a str, not {type(name).__name__}")
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o777:
        raise ValueError(f"mode {mode!r} is not a set of permission bits between 0 and 0o777")
    _native.check_name(name)
    if (
        not replace
        and (head := _peek(name)) is not None
        and (head["live"] or head["flags"] & _native.PERSIST)
    ):
        raise RegionExists(
            f"a region '{name}' exists", "attach() to it, or create(..., replace=True), or unlink() it first"
        )
    failures: list[str] = []
    remedy: str | None = None
    number: int | None = None
    candidates = _policy.choose(gather(), request)
    for candidate in candidates:
        if not candidate.usable:
            failures.append(f"{candidate.name}: {candidate.reason}")
            remedy = remedy or candidate.remedy
            continue
        reason = "; ".join((candidate.reason, *candidate.notes))
        try:
            region = Region._create(
                name=name,
                size=bytes_wanted,
                backend=candidate.name,
                place="memfd" if candidate.place == "memfd" else "shm",
                mode=mode,
                persist=persist,
                replace=replace,
                commit_all=candidate.commit == "full",
                reason=reason,
                keeper=_KEEPER,
            )
        except BackendUnavailable as error:
            failures.append(f"{candidate.name}: {error.message}")
            number = error.errno
            if number == errno.ENOSPC and _native.SHM_DIR in error.message:
                remedy = f"make room: df {_native.SHM_DIR} says how full it is"
            log.info("backend %s does not serve region %r: %s", candidate.name, name, error)
            continue
        region._settle_in(None)
        level = logging.WARNING if candidate.backend == "shm" and bytes_wanted >= 2 << 20 else logging.INFO
        log.log(
            level,
            "region %r of %s is made of %s: %s",
            name,
            format_size(bytes_wanted),
            candidate.name,
            reason,
        )
        return region
    raise BackendUnavailable(
        f"no memory for a region of {format_size(bytes_wanted)}: " + "; ".join(failures),
        remedy or "sharedregion.backends() says what each kind of memory needs",
        number,
    )


def _sweep_anonymous() -> None:
    """Reclaim regions without a name of their own whose processes were killed: no create would ask for theirs."""
    global _anonymous_swept
    if _anonymous_swept:
        return
    _anonymous_swept = True
    start = _PREFIX + _ANONYMOUS
    with contextlib.suppress(OSError):
        for file in os.listdir(_native.SHM_DIR):
            if file.startswith(start) and file.endswith(_SUFFIX):
                with contextlib.suppress(SharedRegionError):
                    _native.reclaim(file[len(_PREFIX) : -len(_SUFFIX)])


def attach(
    name: str, *, writable: bool = False, allow_pickle: bool | None = None, owner: int | str | None = None
) -> Region:
    """Become a member of an existing region.

    With `writable`, objects can be placed and mutable ones written to. `allow_pickle` None allows
    objects that are pickles if the region belongs to this user. A region of another user is refused
    unless `owner` (a user id or name) says whose it is.

    Raises RegionNotFound, RegionDenied, RegionCorrupt, RegionLost.
    """
    if not isinstance(name, str):
        raise TypeError(f"a region's name is a str, not {type(name).__name__}")
    _native.check_name(name)
    uid = _uid_of(owner)
    region = Region._attach(name, writable) if uid is None else Region._attach(name, writable, uid)
    return region._settle_in(allow_pickle)


def _uid_of(owner: int | str | None) -> int | None:
    if owner is None or (isinstance(owner, int) and not isinstance(owner, bool)):
        if owner is not None and not 0 <= owner < 2**32 - 1:
            raise ValueError(f"{owner} is not a user id")
        return owner
    if not isinstance(owner, str):
        raise TypeError(f"owner is a user id or name, not {type(owner).__name__}")
    import pwd

    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {owner!r}") from None


def unlink(name: str, *, owner: int | str | None = None) -> None:
    """Remove a region's name. Members keep it until they close it. RegionNotFound."""
    uid = _uid_of(owner)
    if uid is None:
        _native.unlink(name)
    else:
        _native.unlink(name, uid)
    # Of a damaged region the generation is not known: whatever of its segments nobody holds goes too.
    pattern = re.compile(re.escape(f"{_PREFIX}{name}.") + r"(?:members|data)(?:\.([0-9]{1,10}))?")
    for file in os.listdir(_native.SHM_DIR):
        if match := pattern.fullmatch(file):
            _native.remove_half_made(name, int(match[1] or 1))


def _peek(name: str) -> dict[str, Any] | None:
    """What the head of a region says; None where there is no region to be read."""
    try:
        return _native.peek(name)
    except (RegionNotFound, RegionCorrupt, PermissionError):
        return None


def regions() -> list[str]:
    """Names of the regions that can be attached to, by whoever owns them, and of damaged ones."""
    found = []
    try:
        names = os.listdir(_native.SHM_DIR)
    except OSError:
        return []
    for file in sorted(names):
        if not (file.startswith(_PREFIX) and file.endswith(_SUFFIX)):
            continue
        name = file[len(_PREFIX) : -len(_SUFFIX)]
        try:
            head = _native.peek(name)
        except RegionCorrupt:
            found.append(name)
        except (SharedRegionError, ValueError):
            continue
        else:
            if head["live"] or head["flags"] & _native.PERSIST:
                found.append(name)
    return found


def backends(size: int | str | None = None) -> list[Candidate]:
    """What each kind of memory could do here, best first: whether it can serve, why, and what would enable it.

    With `size`, for a region of that size.
    """
    from sharedregion import _policy
    from sharedregion._kernel.facts import gather

    facts = gather()
    if size is None:
        return _policy.survey(facts)
    return _policy.choose(facts, _policy.Request(parse_size(size)))


def load_npz(path: str | os.PathLike[str], *, into: Region | None = None, **options: Any) -> Region:
    """Place every array of an `.npz` archive, with no second copy in memory; returns the region.

    Into the region `into`, or into one that is made for it (`options` are those of `create`).
    """
    from sharedregion.files import place_npz

    return place_npz(os.fspath(path), into, options)


def load_safetensors(path: str | os.PathLike[str], *, into: Region | None = None, **options: Any) -> Region:
    """Place every tensor of a `.safetensors` file, with no second copy in memory; returns the region.

    Into the region `into`, or into one that is made for it (`options` are those of `create`). Types that
    numpy has not (bfloat16, 8-bit floats) are placed as unsigned integers of their bits.
    """
    from sharedregion.files import place_safetensors

    return place_safetensors(os.fspath(path), into, options)


def share(value: Any, *, backend: str = "auto") -> Any:
    """Place `value` in a region of its own and return it from there.

    An array comes back as a read-only array; containers and other objects come back as themselves,
    their arrays read-only views of the region. Sent to other processes by multiprocessing, its
    arrays travel as references of less than 300 bytes. The memory is gone with the last holder.
    """
    codec = codecs.codec_for(value)
    if codec is pickled:
        value = pickled.prepare(value)
    with create(size=max(codec.size_of(value), 1) + _PAGE, backend=backend) as region:
        codec.place(region, "value", value, 0)
        return region["value"]
