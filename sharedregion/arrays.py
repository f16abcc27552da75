"""The description of an array, as it stands in the catalog beside the array's bytes.

`native/python/arrays.c` draws it and reads the plain kind: a dtype that `dtype.str` says all of. A
structured one is described by JSON and read here: a string; [dtype, shape] of a field that is an array;
{"names", "formats", "offsets", "itemsize"} of a structure, with "titles", "aligned" and "record" where
it has them. Where it is long, it is packed by zlib (kind 3).
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Iterable
from typing import Any, SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

from sharedregion.errors import NotPlaceable, RegionCorrupt

__all__ = ["array_over", "describe", "dimensions", "flat_bytes", "is_foreign"]

Array = NDArray[Any]

_PLAIN, _DESCRIBED, _PACKED = 1, 2, 3
_FORTRAN = 1
#: What the catalog takes (SR_META_MAX), less what the description of a mapped file has before this one.
_ROOM = 4096 - 16
_LONG = 256
#: Of what is unpacked: who made it may have meant it to fill memory.
_MOST = 1 << 16


def is_foreign(dtype: np.dtype[Any]) -> bool:
    """Whether a package other than NumPy says what the bytes mean (ml_dtypes.bfloat16, say)."""
    if dtype.fields is not None:
        return any(is_foreign(field[0]) for field in dtype.fields.values())
    if dtype.subdtype is not None:
        return is_foreign(dtype.subdtype[0])
    if dtype.hasobject:
        return False
    try:
        return np.dtype(dtype.str) != dtype
    except TypeError:
        return True


def describe(dtype: np.dtype[Any], shape: tuple[int, ...], *, fortran: bool = False) -> bytes:
    """The description of an array; NotPlaceable for a dtype whose bytes mean nothing elsewhere."""
    if dtype.hasobject:
        raise NotPlaceable(
            f"an array of dtype {dtype} holds references to Python objects, which mean nothing in another process",
            "put(name, array, pickle=True) places a pickle of it instead",
        )
    if is_foreign(dtype):
        raise NotPlaceable(
            f"NumPy alone does not know what the bytes of dtype {dtype} mean",
            "allocate unsigned integers of that size, and look at them by array.view(dtype)",
        )
    kind, text, text_len = _PLAIN, dtype.str.encode("ascii"), len(dtype.str)
    if dtype.fields is not None or text_len > 255 or np.dtype(dtype.str) != dtype:
        kind, text, text_len = _DESCRIBED, _structure(dtype), 0
        if len(text) > _LONG:
            from zlib import compress

            kind, text = (_PACKED, compress(text)) if len(text) <= _MOST else (_DESCRIBED, text)
    head = struct.pack("<BBBB", kind, _FORTRAN if fortran else 0, len(shape), text_len)
    meta = head + struct.pack(f"<{len(shape)}Q", *shape) + text
    if len(meta) > _ROOM:
        raise NotPlaceable(
            f"the names and types of {len(dtype.names or ())} fields take {len(meta)} bytes, {_ROOM} are possible",
            "put(name, array, pickle=True), which has no such limit, or place the fields one by one",
        )
    return meta


def _structure(dtype: np.dtype[Any]) -> bytes:
    import json

    try:
        text = json.dumps(_said(dtype), separators=(",", ":"))
        if _meant(json.loads(text)) == dtype:
            return text.encode("ascii")
    except (TypeError, ValueError):
        pass
    raise NotPlaceable(
        f"the dtype {dtype} is more than the names, types and places of its fields",
        "put(name, array, pickle=True), or place array.view() of a plainer dtype",
    )


def _said(dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        return [_said(dtype.subdtype[0]), dtype.subdtype[1]]
    if dtype.names is None or dtype.fields is None:
        return dtype.str
    if dtype.type not in (np.void, np.record):
        raise TypeError("numbers that have fields")
    fields = [dtype.fields[name] for name in dtype.names]
    said: dict[str, Any] = {
        "names": dtype.names,
        "formats": [_said(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
    }
    titles = [field[2] if len(field) > 2 else None for field in fields]
    if any(title is not None for title in titles):
        said["titles"] = titles
    if dtype.isalignedstruct:
        said["aligned"] = True
    if dtype.type is np.record:
        said["record"] = True
    return said


def _meant(said: Any) -> np.dtype[Any]:
    if isinstance(said, str):
        return np.dtype(said)
    if isinstance(said, list):
        base, shape = said
        return np.dtype((_meant(base), tuple(shape)))
    record = said.pop("record", False)
    dtype: np.dtype[Any] = np.dtype(said | {"formats": [_meant(one) for one in said["formats"]]})
    return np.dtype((np.record, dtype)) if record else dtype


def array_over(meta: bytes, buffer: Any, *, writable: bool) -> Array:
    """The array that `meta` describes, over `buffer`, with no copy. RegionCorrupt."""
    try:
        kind, flags, ndim, text_len = struct.unpack_from("<BBBB", meta)
        shape = struct.unpack_from(f"<{ndim}Q", meta, 4)
        text = meta[4 + 8 * ndim :]
        if kind == _PLAIN and text_len == len(text):
            dtype: np.dtype[Any] = np.dtype(text.decode("ascii"))
        elif kind in (_DESCRIBED, _PACKED):
            from json import loads

            dtype = _meant(loads(text if kind == _DESCRIBED else _unpacked(text)))
        else:
            raise ValueError("unknown kind of description")
        if dtype.hasobject:
            # Addresses that another process wrote: NumPy would follow them.
            raise ValueError("it is of Python objects")
        array: Array = np.ndarray(shape, dtype, buffer, order="F" if flags & _FORTRAN else "C")
    except (
        *(ValueError, TypeError, KeyError, AttributeError, OverflowError, struct.error),
        *(SyntaxError, MemoryError, RecursionError),
    ) as error:
        raise RegionCorrupt(f"the description of an array contradicts itself: {error}") from None
    if not writable:
        array.flags.writeable = False
    return array


def _unpacked(packed: bytes) -> bytes:
    import zlib

    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(packed, _MOST)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not unpacking.eof:
        raise ValueError("it is longer than any that is written")
    return text


def flat_bytes(array: Array) -> Array | bytes | None:
    """The array's bytes in the order of its memory with no copy, or None if they do not lie in one piece.

    dtypes that lend no buffer (datetime64) are seen as bytes.
    """
    if array.size == 0 or array.itemsize == 0:
        return b""
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        return None
    return array.ravel(order="K").view(np.uint8)


def dimensions(shape: SupportsIndex | Iterable[SupportsIndex], item: NDArray[Any]) -> tuple[int, ...]:
    """As NumPy takes them, and those that an item has of its own. TypeError, ValueError."""
    try:
        dims: tuple[int, ...] = (operator.index(cast("SupportsIndex", shape)),)
    except TypeError:
        if not isinstance(shape, Iterable):
            raise
        dims = tuple(operator.index(n) for n in shape)
    dims += item.shape[1:]
    if any(n < 0 for n in dims):
        raise ValueError(f"negative dimensions are not allowed: {dims}")
    if len(dims) > 64:
        raise ValueError(f"an array has 64 dimensions at most, not {len(dims)}")
    # Of no bytes, but the way from item to item must be a number that a machine has.
    if 0 in dims and math.prod(n or 1 for n in dims) * item.itemsize >= 1 << 63:
        raise ValueError(f"the dimensions are too large: {dims}")
    return dims
