"""The region: a mapping from names to objects, and what a process owes it at its end."""

from __future__ import annotations

import atexit
import errno
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self, SupportsIndex, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sharedregion import _native, codecs, references
from sharedregion._sizes import format_size
from sharedregion.arrays import array_over, describe, dimensions
from sharedregion.codecs import pickled
from sharedregion.errors import (
    NotPlaceable,
    ObjectNotFound,
    ReadOnlyRegion,
    RegionClosed,
    RegionCorrupt,
    RegionDenied,
    RegionFull,
    RegionNotFound,
    RegionTimeout,
)
from sharedregion.records import Member, Stats

if TYPE_CHECKING:
    from sharedregion.footprint import Footprint
    from sharedregion.mapped import MappedFile, Shown

__all__ = ["PAGE", "Member", "Region", "Stats", "peek"]

PAGE = 4096
_PAGE_SIZE = {"msharefs": 2 << 20, "shm": PAGE, "thp": 2 << 20, "hugetlb-2m": 2 << 20, "hugetlb-1g": 1 << 30}
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
    #: "msharefs", "hugetlb", "thp" or "shm"
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
        self._shown: list[Shown] = []
        self._id = head["id"]
        self._allow_pickle = self.uid == os.geteuid() if allow_pickle is None else allow_pickle
        _track(self)
        references.remember(self)
        return self

    # --- objects -------------------------------------------------------------------------------

    def put(self, name: str, value: Any, *, mutable: bool = False, pickle: bool = False) -> int:
        """Place `value` under `name`, replacing what is there, whole and at once. Returns its version.

        Arrays, bytes-like objects (bytes, bytearray, memoryview, mmap, array.array) and str are placed as
        they are; other objects as a pickle whose buffers lie beside it. With `pickle`, so is what could
        not be placed otherwise: arrays and columns of Python objects, say. With `mutable`, members that
        may write can change the bytes in place. Raises NotPlaceable, RegionFull, ReadOnlyRegion.
        """
        if not isinstance(name, str):
            raise TypeError(f"an object's name is a str, not {type(name).__name__}")
        self._check_writable(name)
        flags = _native.MUTABLE if mutable else 0
        try:
            return codecs.codec_for(value).place(self, name, value, flags)
        except NotPlaceable:
            if not pickle:
                raise
        return pickled.place(self, name, value, flags)

    def get(self, name: str, default: Any = None, *, copy_on_write: bool = False) -> Any:
        """The object, or `default` if there is none of that name.

        With `copy_on_write` it is a view that may be written to: pages are shared until this process
        writes to one, which is then its own (on hugetlb a whole huge page, promised at once: RegionFull
        if the pool has none left, and a forked child has no such promise; with pages of 1 GiB it is a
        copy from the start, in ordinary memory). Nobody else sees what is written; sent to another
        process, the data goes, not a reference. Raises RegionFull, RegionLost.
        """
        try:
            return self._get_private(name) if copy_on_write else self[name]
        except ObjectNotFound:
            return default

    def _get_private(self, name: str) -> Any:
        while True:
            info = self._info(name)
            try:
                pin = self._get_exact(info[7], info[5])
            except ObjectNotFound:
                continue  # Replaced between the two looks.
            if self._kind == "hugetlb-1g":
                self._check_copy(info[4])
            try:
                view = pin._private()
            except RegionFull as error:
                remedy = (
                    "take a copy of the object, or reserve more huge pages"
                    if self._kind == "hugetlb-2m"
                    else error.remedy
                )
                raise RegionFull(error.message, remedy, error.errno) from None
            return self._decode(info[1], info[2], info[3], view, writable=True)

    def pop(self, name: str, default: Any = _MISSING) -> Any:
        """The object, which is then deleted; it stays valid for who holds it."""
        while True:
            try:
                info = self._info(name)
            except ObjectNotFound:
                if default is _MISSING:
                    raise
                return default
            try:
                value = self._open_exact(info[7], info[5])
                self._delete(name, info[5])
            except ObjectNotFound:
                continue  # Somebody else was faster: of several who pop, each gets another object.
            return value

    @contextmanager
    def allocate(
        self,
        name: str,
        shape: SupportsIndex | Iterable[SupportsIndex],
        dtype: DTypeLike = "f8",
        *,
        order: str = "C",
        mutable: bool = False,
    ) -> Iterator[NDArray[Any]]:
        """An array to fill in place; seen by others once the block ends well, and never if it raises.

        Its first contents are whatever lay there. After the block it is read-only, unless `mutable`.
        Views that were taken inside the block stay writable, which NumPy gives no means to change: a
        write to one after the block changes the published object under its readers.
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
        shape: SupportsIndex | Iterable[SupportsIndex],
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
        self,
        name: str,
        shape: SupportsIndex | Iterable[SupportsIndex],
        dtype: DTypeLike,
        order: str,
        mutable: bool,
    ) -> tuple[_native.Draft, NDArray[Any]]:
        if order not in ("C", "F"):
            raise ValueError(f"order {order!r} is neither 'C' nor 'F'")
        # What NumPy makes of a dtype: "(2,)f4" is a dimension more, "S" has one byte.
        item = np.empty(0, dtype)
        kind, dims = item.dtype, dimensions(shape, item)
        nbytes = math.prod(dims) * kind.itemsize
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

    def _decode(
        self,
        kind: int,
        flags: int,
        meta: bytes,
        pin: _native.Pin | _native.PrivateView,
        *,
        writable: bool = False,
    ) -> Any:
        if kind == pickled.NUMBER and not self._allow_pickle:
            raise RegionDenied(
                f"an object of region '{self.name}' is a pickle of user {self.uid}, and unpickling runs code of its maker",
                "attach(..., allow_pickle=True) if you trust that user",
                errno.EPERM,
            )
        writable = writable or (bool(flags & _native.MUTABLE) and self.writable)
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
        if nbytes < _HEADROOM_FROM:
            return
        fresh = self._fresh(nbytes)
        if fresh == 0 or (short := self._short_of(fresh)) is None:
            return
        # What the region has and does not need counts against the same limits, and has to move anyway.
        if self._give_back(fresh) and (short := self._short_of(self._fresh(nbytes))) is None:
            return
        raise self._over(nbytes, short)

    def _check_copy(self, nbytes: int) -> None:
        """The same for memory of this process alone, which is no huge page of the pool."""
        if nbytes >= _HEADROOM_FROM and (short := self._short_of(nbytes, hugetlb=False)) is not None:
            raise self._over(nbytes, short)

    @staticmethod
    def _over(nbytes: int, short: tuple[str, int]) -> RegionFull:
        group, headroom = short
        return RegionFull(
            f"{format_size(nbytes)} is more than the {format_size(headroom)} that the memory limit of {group} leaves",
            "raise the limit, or place less",
            wanted=nbytes,
            free=headroom,
            largest=headroom,
        )

    def _short_of(self, nbytes: int, *, hugetlb: bool | None = None) -> tuple[str, int] | None:
        """The first memory cgroup that has not so much left, and what it has."""
        from sharedregion._kernel import cgroup

        hugetlb = self.backend == "hugetlb" if hugetlb is None else hugetlb
        for limit in cgroup.memory_limits():
            if nbytes > limit.headroom and (limit.counts_hugetlb or not hugetlb):
                return limit.group, limit.headroom
        return None

    def map_file(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        dtype: DTypeLike | None = None,
        shape: int | tuple[int, ...] | None = None,
    ) -> MappedFile:
        """Place a file as an object: without a copy on msharefs, copied in elsewhere; the result says which, and why.

        With `dtype` it is an array of the file's bytes from its start, of `shape` or all of it; an `.npy`
        file is the array in it; any other comes back as a read-only memoryview. A mapped file is seen as it
        is: later changes of the file too, and if it is cut short, who reads beyond its end dies of SIGBUS.
        It takes no memory of the region, and stays mapped until the region ends or, after the object was
        deleted, `trim` is called by this process.
        """
        from sharedregion.mapped import map_file

        self._check_writable(name)
        return map_file(self, name, os.fspath(path), dtype, shape, self._shown)

    # --- the mapping ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        """Names, in the order in which the objects were published."""
        # By name, since one that was deleted and put again meanwhile may have been seen twice.
        found = {item[0]: item[5] for item in sorted(self._list(), key=lambda item: item[5])}
        return iter(sorted(found, key=found.__getitem__))

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

    def setdefault(self, name: str, default: Any = None) -> Any:
        """The object; where there is none, `default`, placed now. Who places one at the same time may win or lose."""
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, other: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any) -> None:
        """Place many objects, one after the other: each comes whole, and others see some before the rest."""
        for name, value in dict(other, **more).items():
            self[name] = value

    def popitem(self) -> tuple[str, Any]:
        """Name and object of what was published last, which is then deleted. ObjectNotFound where there is none."""
        while names := self.keys():
            value = self.pop(names[-1], _MISSING)
            if value is not _MISSING:
                return names[-1], value
        raise ObjectNotFound(f"region '{self.name}' has no objects")

    def clear(self) -> None:
        """Delete every object that is there now."""
        for name in self:
            with suppress(ObjectNotFound):
                del self[name]

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
            # The face gives it when it is asked for Region; one that was unpickled was not asked for.
            import_module("sharedregion")._load("Region")
        assert Region._look is not None
        return Region._look(self, leaves)

    def prefault(self) -> None:
        """Touch one byte of each page of every object, so that later reads do not fault. Nothing is decoded."""
        for info in self._list():
            with suppress(ObjectNotFound):  # Deleted meanwhile.
                pin = self._get_exact(info[7], info[5])
                seen = memoryview(pin)
                if seen:
                    flat = np.frombuffer(seen, np.uint8)
                    int(flat[:: min(self.page_size, 2 << 20)].sum(dtype="u8")) + int(flat[-1])

    def trim(self) -> int:
        """Give whole pages in which no object lies back to the system; returns their bytes.

        Nothing is given back where all memory was promised at creation (commit="full"): there, pages
        only move within the region, when a large object needs them in one piece.
        """
        self._sweep()
        if self._shown:
            from sharedregion.mapped import release

            release(self, self._shown)
        return self._trim()

    def repair(self) -> None:
        """Make pages large again where something has split them (thp).

        Any member may: no byte changes, and all of them map the large pages.
        """
        self._repair()

    def unlink(self) -> None:
        """Remove the name. Who has the region open keeps it."""
        current = peek(self.name)
        if current is not None and tuple(current["files"]) == tuple(self._head()["files"]):
            _native.unlink(self.name, self.uid)

    def __enter__(self) -> Self:
        if self.closed:
            raise RegionClosed("the region is closed")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _segments(self) -> list[tuple[int, int]]:
        """(device, inode) of data and members segment, and of the msharefs region that readers attach."""
        files = self._head()["files"]
        return list(zip(files[::2], files[1::2], strict=True))


MutableMapping.register(Region)


def peek(name: str) -> dict[str, Any] | None:
    """What the head of a region says; None where there is no region to be read."""
    try:
        return _native.peek(name)
    except (RegionNotFound, RegionCorrupt, PermissionError):
        return None


def _clock() -> Callable[[], float]:
    import time

    return time.monotonic


# --- the end of a process ----------------------------------------------------------------------

_open: weakref.WeakSet[Region] = weakref.WeakSet()
_registered_in: int | None = None
_forks_registered = False


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


#: Seconds that a process of multiprocessing waits at its end for who has not yet received what it sent.
_CLAIMS_TIMEOUT = 5.0


def _retire_all() -> None:
    """Remove the names of regions that end with this process. The kernel does the rest."""
    _await_claims()
    for region in list(_open):
        region._retire()


def _await_claims() -> None:
    """Let a result arrive that a process of multiprocessing sends as the last thing that it does.

    Its holds, and a region that only it has, end with it. Nobody waits for what the main process sends.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return
    import time

    until = time.monotonic() + _CLAIMS_TIMEOUT
    while any(region._tickets() for region in list(_open)) and time.monotonic() < until:
        time.sleep(0.001)
