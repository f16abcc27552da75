"""pandas: frames, series and indexes, as pickles whose columns lie in the region.

pandas keeps numbers in NumPy's arrays and text in Arrow's buffers, and lends both to pickles of
protocol 5; so a frame comes back as the one that it was, its columns parts of the region, read-only.
The labels of its axes are copied where they are Python objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedregion._frameworks import load
from sharedregion.codecs import pickled
from sharedregion.codecs.arrow import objects_in

if TYPE_CHECKING:
    from sharedregion.codecs import Place

#: They are pickles in every respect: whose they are is asked before they are read.
NUMBER = pickled.NUMBER


def accepts(value: object) -> bool:
    """Frames, series and indexes."""
    pandas = load("pandas")
    return isinstance(value, pandas.DataFrame | pandas.Series | pandas.Index)


def prepare(value: Any) -> pickled.Prepared:
    """The pickle and its columns. NotPlaceable for columns of Python objects, by name."""
    if isinstance(value, pickled.Prepared):
        return value
    dtypes = value.dtypes.items() if value.ndim == 2 else [(value.name, value.dtype)]
    objects = [name for name, dtype in dtypes if getattr(dtype, "hasobject", False)]
    if objects:
        raise objects_in(
            objects,
            'convert them: frame.convert_dtypes(dtype_backend="pyarrow"), or astype("category"); '
            "put(name, frame, pickle=True) places copies of the objects instead",
        )
    return pickled.prepare(value)


def size_of(value: Any) -> int:
    """Bytes of the pickle and its columns."""
    return prepare(value).size


def place(region: Place, name: str, value: Any, flags: int) -> int:
    """Takes a frame, or what `prepare` made of it."""
    return pickled.place(region, name, prepare(value), flags)


def read(meta: bytes, pin: Any, *, writable: bool) -> Any:
    """A pickle is a pickle."""
    return pickled.read(meta, pin, writable=writable)
