"""Files in a region: mapped there without a copy on msharefs, copied in elsewhere."""

from __future__ import annotations

import math
import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from sharedregion import _native
from sharedregion.arrays import describe, dimensions
from sharedregion.codecs import file
from sharedregion.errors import BackendUnavailable, NotPlaceable

if TYPE_CHECKING:
    from sharedregion.region import Region

__all__ = ["MappedFile", "Shown", "map_file", "release"]


class MappedFile(NamedTuple):
    """What `Region.map_file` did: the object's version, whether the file is mapped, and if not, why it was copied."""

    version: int
    mapped: bool
    reason: str


class Shown(NamedTuple):
    """A file that this process has put into the region: where, and the publication that needs it."""

    at: int
    nbytes: int
    seq: int
    block: int
    process: int


class _Array(NamedTuple):
    """What part of a file is which array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def map_file(
    region: Region,
    name: str,
    path: str,
    dtype: DTypeLike | None,
    shape: int | tuple[int, ...] | None,
    shown: list[Shown],
) -> MappedFile:
    """See `Region.map_file`. What is mapped is noted in `shown`."""
    # A pipe without a writer would be waited for.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as opened:
        there = os.fstat(opened.fileno())
        if not stat.S_ISREG(there.st_mode):
            raise ValueError(f"{path} is no regular file")
        # NumPy opens by name what it maps: this is that very file, whatever has its name by then.
        same = f"/proc/self/fd/{opened.fileno()}"
        array = _described(path, same, there.st_size, dtype, shape)
        start, nbytes = (array.offset, array.nbytes) if array else (0, there.st_size)
        try:
            if nbytes == 0:
                raise BackendUnavailable("there is nothing to map")
            at = region._show_file(opened.fileno(), start + nbytes)
        except BackendUnavailable as error:
            version = _copy(region, name, opened, same, array)
            return MappedFile(version, mapped=False, reason=error.message)
    meta = file.PLACE.pack(at + start, nbytes)
    if array is not None:
        meta += describe(array.dtype, array.shape, fortran=array.fortran)
    try:
        # A byte of its own: the block is what members hold while they look at the file.
        region._put(name, file.NUMBER, 0, meta, b"\0")
    except BaseException:
        region._hide_file(at, start + nbytes)
        raise
    info = region._info(name)
    if info[3] == meta:
        shown.append(Shown(at, start + nbytes, info[5], info[8], os.getpid()))
    return MappedFile(info[6], mapped=True, reason=f"mapped from {path}")


def _described(
    path: str, same: str, size: int, dtype: DTypeLike | None, shape: int | tuple[int, ...] | None
) -> _Array | None:
    if dtype is None:
        if shape is not None:
            raise ValueError("a shape needs a dtype")
        if not path.endswith(".npy"):
            return None
        found = np.load(same, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError(f"{path} does not hold one array")
        fortran = bool(found.flags.f_contiguous and not found.flags.c_contiguous)
        offset = found.offset if isinstance(found, np.memmap) else 0
        return _Array(found.dtype, found.shape, fortran, offset)
    item = np.empty(0, dtype)
    kind = item.dtype
    if kind.hasobject or kind.itemsize == 0 or 0 in item.shape[1:]:
        raise NotPlaceable(f"a file does not hold an array of dtype {kind}")
    if shape is None:
        each = kind.itemsize * math.prod(item.shape[1:])
        if size % each:
            raise ValueError(f"{path} has {size} bytes, which is no whole number of {np.dtype(dtype)}")
        shape = size // each
    dims = dimensions(shape, item)
    array = _Array(kind, dims, fortran=False, offset=0)
    if array.nbytes > size:
        raise ValueError(f"{path} has {size} bytes, an array {dims} of {kind} takes {array.nbytes}")
    return array


def _copy(region: Region, name: str, opened: BinaryIO, same: str, array: _Array | None) -> int:
    if array is None:
        # Some files say that they are empty and are not (/proc).
        empty = os.fstat(opened.fileno()).st_size == 0
        whole: Any = opened.read() if empty else np.memmap(same, np.uint8, "r")
        return region.put(name, memoryview(whole))
    if array.nbytes == 0:
        return region.put(name, np.zeros(array.shape, array.dtype))
    order: Any = "F" if array.fortran else "C"
    return region.put(name, np.memmap(same, array.dtype, "r", array.offset, array.shape, order))


def release(region: Region, shown: list[Shown]) -> int:
    """Take files out of the region that no object needs and nobody looks at any more; returns their bytes.

    Each by the process that put it there. First what can be found is read, then who holds what: whoever
    found a file before it was deleted and still looks at it holds its block.
    """
    mine = [one for one in shown if one.process == os.getpid()]
    if not mine:
        return 0
    found = {info[5] for info in region._list()}
    held = _native.Onlooker(region.name).holders()
    freed = 0
    for one in mine:
        if one.seq not in found and one.block not in held:
            region._hide_file(one.at, one.nbytes)
            shown.remove(one)
            freed += one.nbytes
    return freed
