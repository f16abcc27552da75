"""What travels between processes: references to arrays that lie in a region.

Picklers that move objects between processes (multiprocessing's ForkingPickler: Pool,
ProcessPoolExecutor, Queue, Process arguments) send a reference for an array or view that lies in a
region, found by its address. `pickle.dumps`, `joblib.dump` and `copy` write the data: a checkpoint
is never empty.

A reference names region, entry and publication, and comes with a ticket: a hold on the block in the
sender's row, which the claimer takes over. So `queue.put(x); del x` is safe. If the object is gone
all the same, the claimer gets ObjectNotFound, never another object's bytes.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from sharedregion import _native, awaiting
from sharedregion.arrays import is_foreign
from sharedregion.errors import ObjectNotFound, ReadOnlyRegion, RegionClosed, RegionNotFound

if TYPE_CHECKING:
    from sharedregion.region import Region

__all__ = [
    "Reference",
    "attach_same",
    "claim",
    "open_reference",
    "place_of",
    "reduce",
    "register",
    "remember",
]

Array = NDArray[Any]

#: Handles of this process by identity of the region and access: a second reference to a region
#: uses the handle of the first. Weak: what an unpickled reference attached closes with its last array.
_handles: weakref.WeakValueDictionary[tuple[bytes, bool], Region] = weakref.WeakValueDictionary()


def remember(region: Region) -> None:
    """Make the region known for references that arrive, and arrays known for those that leave."""
    _handles[region._id, region.writable] = region
    _native.settle()
    register()


def _teach(module: Any) -> None:
    _native.set_reducer(reduce)
    module.ForkingPickler.register(np.ndarray, _native.reduce)
    module.ForkingPickler.register(memoryview, _reduce_view)
    awaiting.teach()


_registered = False


def register() -> None:
    """Teach ForkingPickler, now or when it is first imported, and frameworks likewise. Idempotent."""
    global _registered
    if _registered:
        return
    _registered = True
    awaiting.when_imported("multiprocessing.reduction", _teach)
    awaiting.await_frameworks()


def reduce(array: Array) -> Any:
    """What to send for an array that lies in a region; None if it reaches beyond one object."""
    place = place_of(array, ticket=True)
    return None if place is None else (claim, place)


def _reduce_view(view: memoryview) -> Any:
    """bytes-like objects come out of a region as memoryviews, which go as the arrays that they are: by reference."""
    return _view_again, (np.asarray(view), view.readonly)


def _view_again(array: Array, readonly: bool) -> memoryview:
    view = memoryview(cast(Any, array))
    return view.toreadonly() if readonly else view


def place_of(array: Array, *, ticket: bool = False) -> tuple[str, bytes, int, tuple[Any, ...]] | None:
    """What `claim` takes for an array that lies in a region, as plain values; None if it does not.

    With `ticket` the sender's row holds the object until it is claimed. Without, whoever sends it holds
    the array meanwhile, or takes ObjectNotFound for an answer.
    """
    if array.dtype.hasobject:
        return None
    low, high = np.lib.array_utils.byte_bounds(array)
    found = _native.locate(low, high - low)
    if found is None:
        return None
    handle, entry, seq, block, offset, flags = found
    row = handle._ticket(block) if ticket else None
    head = handle._head()
    start = array.__array_interface__["data"][0] - low + offset
    named = array.dtype.fields is None and not is_foreign(array.dtype)
    dtype: Any = array.dtype.str if named else array.dtype
    # A tensor's array says that it is writable, whatever it looks at.
    writable = bool(array.flags.writeable and flags & _native.MUTABLE and handle.writable)
    what = (entry, seq, block, row, start, dtype, array.shape, array.strides, writable)
    return head["name"], head["id"], head["uid"], what


def _known(identity: bytes, writable: bool) -> Region | None:
    """A handle of this process that still has the region mapped, closed or not."""
    for access in {writable, True}:
        handle = _handles.get((identity, access))
        if handle is not None and handle._mapped:
            return handle
    return None


def attach_same(name: str, identity: bytes, uid: int, *, writable: bool = False) -> Region:
    """A handle of exactly that region: an open one of this process if there is one. RegionNotFound."""
    from sharedregion.region import Region

    handle = _known(identity, writable)
    if handle is not None and not handle.closed:
        return handle
    try:
        region = Region._attach(name, writable, uid)
    except ReadOnlyRegion:  # Sealed since the array was made.
        region = Region._attach(name, False, uid)
    if region._head()["id"] != identity:
        region.close()
        raise RegionNotFound(f"region '{name}' was replaced by another of that name")
    return region._settle_in(None)


class Reference:
    """One version of an object, to be sent by any pickler. Made by `Region.ref`.

    Each time it is pickled, the sender's row gets a ticket that holds the object until the receiver
    has got it. ObjectNotFound if it was withdrawn all the same.
    """

    def __init__(
        self, region: Region, name: str, version: int, entry: int, block: int, row: int | None = None
    ) -> None:
        self._region = region
        self.name = name
        #: The publication that is meant; see `Region.version`.
        self.version = version
        self._entry = entry
        self._block = block
        self._row = row

    def get(self) -> Any:
        """The object. The same at every call, as long as any process holds it."""
        try:
            return self._region._open_exact(self._entry, self.version)
        finally:
            # Held here by now, or gone: either way the sender need not hold it any more.
            self._let_go()

    def _let_go(self) -> None:
        row, self._row = self._row, None
        if row is not None and self._region._mapped:
            self._region._claim(row, self._block)

    def __del__(self) -> None:
        if getattr(self, "_row", None) is not None:
            self._let_go()

    def ticketless(self) -> tuple[str, bytes, int, tuple[Any, ...]]:
        """What `open_reference` takes, of plain values; the sender itself holds the object meanwhile."""
        region = self._region
        return region.name, region._id, region.uid, (self.name, self.version, self._entry, self._block, None)

    def __repr__(self) -> str:
        return f"<Reference to {self.name!r} of region {self._region.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        region = self._region
        # First the ticket, then the look: were it the other way round, the object could go between.
        row = region._ticket(self._block)
        try:
            region._get_exact(self._entry, self.version)
        except ObjectNotFound:
            region._claim(row, self._block)
            raise
        what = (self.name, self.version, self._entry, self._block, row)
        return _arrived, (region.name, region._id, region.uid, what)


class _Lost(Reference):
    """What is unpickled when the region is gone: the error comes from `get`, where a task can meet it.

    Raised while arguments are unpickled, it would end the workers of an executor.
    """

    def __init__(self, name: str, version: int, region: str, said: str) -> None:
        self.name = name
        self.version = version
        self._home = region
        self._said = said

    def get(self) -> Any:
        raise ObjectNotFound(self._said)

    def ticketless(self) -> tuple[str, bytes, int, tuple[Any, ...]]:
        raise ObjectNotFound(self._said)

    def __repr__(self) -> str:
        return f"<Reference to {self.name!r} of region {self._home!r}, which is gone>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _Lost, (self.name, self.version, self._home, self._said)


def _arrived(name: str, identity: bytes, uid: int, what: tuple[Any, ...]) -> Reference:
    try:
        return open_reference(name, identity, uid, what)
    except ObjectNotFound as error:
        return _Lost(what[0], what[1], name, error.message)


def open_reference(name: str, identity: bytes, uid: int, what: tuple[Any, ...]) -> Reference:
    """The reference, attached to its region. ObjectNotFound if that is gone."""
    try:
        region = attach_same(name, identity, uid)
    except RegionNotFound as error:
        raise ObjectNotFound(
            f"the region '{name}' that the object lay in is gone, or on another machine"
        ) from error
    return Reference(region, *what)


def claim(name: str, identity: bytes, uid: int, what: tuple[Any, ...]) -> Array:
    """The array that a reference stands for. ObjectNotFound if its object is gone."""
    entry, seq, block, row, start, dtype, shape, strides, writable = what
    try:
        region = _known(identity, writable) or attach_same(name, identity, uid, writable=writable)
    except RegionNotFound as error:
        raise ObjectNotFound(
            f"the region '{name}' that the object lay in is gone, or on another machine"
        ) from error
    try:
        pin = region._get_exact(entry, seq)
    except RegionClosed as error:
        raise ObjectNotFound(
            f"the region '{name}' that the object lay in is gone, or on another machine"
        ) from error
    finally:
        # Held here by now, or gone: either way the sender need not hold it any more.
        if row is not None and region._mapped:
            region._claim(row, block)
    array: Array = np.ndarray(shape, np.dtype(dtype), cast(Any, pin), start, strides)
    if not writable:
        array.flags.writeable = False
    _native.settle()
    return array
