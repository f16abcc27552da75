"""Arrays: their bytes as they are, in C or Fortran order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sharedregion.arrays import array_over, describe, flat_bytes, is_foreign

if TYPE_CHECKING:
    from sharedregion.codecs import Place

NUMBER = 1


def accepts(value: object) -> bool:
    """Plain arrays and memory maps. Other subclasses, and dtypes of other packages, are more than their bytes."""
    return (
        isinstance(value, np.ndarray)
        and type(value) in (np.ndarray, np.memmap)
        and not is_foreign(value.dtype)
    )


def size_of(value: NDArray[Any]) -> int:
    """The array's bytes, without gaps."""
    return value.nbytes


def place(region: Place, name: str, value: NDArray[Any], flags: int) -> int:
    """Fortran order is kept; anything else becomes C order."""
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    meta = describe(value.dtype, value.shape, fortran=fortran)
    region._make_room(value.nbytes)
    flat = flat_bytes(value)
    if flat is not None:
        return region._put(name, NUMBER, flags, meta, flat)
    draft = region._begin(name, NUMBER, flags, meta, value.nbytes)
    np.copyto(array_over(meta, draft, writable=True), value, casting="no")
    version: int = draft.publish()
    return version


def read(meta: bytes, pin: Any, *, writable: bool) -> NDArray[Any]:
    """Only for descriptions that the native core leaves to Python."""
    return array_over(meta, pin, writable=writable)
