"""The description of an array, as it stands in the catalog beside the array's bytes.

`native/python/arrays.c` reads the same bytes and says what they are. A plain dtype is described by
`dtype.str` and read in C; a structured one by the literal that `numpy.save` uses, and read here.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.lib.format import descr_to_dtype, dtype_to_descr
from numpy.typing import NDArray

from sharedregion.errors import NotPlaceable, RegionCorrupt

__all__ = ["array_over", "describe", "flat_bytes"]

Array = NDArray[Any]

_PLAIN, _DESCRIBED = 1, 2
_FORTRAN = 1


def describe(dtype: np.dtype[Any], shape: tuple[int, ...], *, fortran: bool = False) -> bytes:
    """The description of an array; NotPlaceable for a dtype whose bytes mean nothing elsewhere."""
    if dtype.hasobject:
        raise NotPlaceable(
            f"an array of dtype {dtype} holds references to Python objects, which mean nothing in another process",
            "put(name, array, pickle=True) places a pickle of it instead",
        )
    text = dtype.str.encode("ascii")
    if dtype.fields is None and dtype.subdtype is None and len(text) < 256 and np.dtype(dtype.str) == dtype:
        head = struct.pack("<BBBB", _PLAIN, _FORTRAN if fortran else 0, len(shape), len(text))
        return head + struct.pack(f"<{len(shape)}Q", *shape) + text
    literal = repr(dtype_to_descr(dtype)).encode()
    head = struct.pack("<BBBB", _DESCRIBED, _FORTRAN if fortran else 0, len(shape), 0)
    return head + struct.pack(f"<{len(shape)}Q", *shape) + literal


def array_over(meta: bytes, buffer: Any, *, writable: bool) -> Array:
    """The array that `meta` describes, over `buffer`, with no copy."""
    try:
        kind, flags, ndim, text_len = struct.unpack_from("<BBBB", meta)
        shape = struct.unpack_from(f"<{ndim}Q", meta, 4)
        text = meta[4 + 8 * ndim :]
        if kind == _PLAIN and text_len == len(text):
            dtype = np.dtype(text.decode("ascii"))
        elif kind == _DESCRIBED:
            from ast import literal_eval

            dtype = descr_to_dtype(literal_eval(text.decode()))
        else:
            raise ValueError("unknown kind of description")
        array: Array = np.ndarray(shape, dtype, buffer, order="F" if flags & _FORTRAN else "C")
    except (ValueError, TypeError, SyntaxError, struct.error, MemoryError, RecursionError) as error:
        raise RegionCorrupt(f"the description of an array contradicts itself: {error}") from None
    if not writable:
        array.flags.writeable = False
    return array


def flat_bytes(array: Array) -> Array | bytes | None:
    """The array's bytes in the order of its memory with no copy, or None if they do not lie in one piece.

    dtypes that lend no buffer (datetime64) are seen as bytes.
    """
    if array.size == 0 or array.itemsize == 0:
        return b""
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        return None
    return array.ravel(order="K").view(np.uint8)
