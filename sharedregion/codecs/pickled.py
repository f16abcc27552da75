"""Any other object: a pickle of protocol 5 whose large buffers lie beside it (PEP 574).

The block:

     0  u64  number of buffers n
     8  u64  length of the pickle
    16  u64  offset of buffer 0, u64 its length, and so on for n buffers
     .  the pickle
     .  the buffers, each at a multiple of 64

When the object is read, its arrays look at their buffers in the region, with no copy. What NumPy and
torch would write into the pickle itself goes the same way (REDUCERS): tensors, arrays with gaps, dates
and times, which lend no buffer, memory maps, record arrays, matrices, masked arrays and memoryviews.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from sharedregion import awaiting
from sharedregion._frameworks import LEAST, load
from sharedregion.arrays import flat_bytes
from sharedregion.errors import NotPlaceable, RegionCorrupt

if TYPE_CHECKING:
    from sharedregion.codecs import Place

NUMBER = 4
_ALIGN = 64


Array = np.ndarray[Any, Any]


def _array(value: Array, _: dict[Any, Any]) -> Any:
    if value.dtype.hasobject or not value.nbytes:
        return NotImplemented
    plain = np.asarray(value)
    flat = flat_bytes(plain)
    if flat is None:
        flat = flat_bytes(np.ascontiguousarray(plain))
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    return _array_again, (pickle.PickleBuffer(cast("Any", flat)), value.dtype, value.shape, fortran)


def _array_again(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> Array:
    return np.ndarray(shape, dtype, buffer, order="F" if fortran else "C")


def _subclass(value: Array, _: dict[Any, Any]) -> Any:
    return _subclass_again, (value.view(np.ndarray), type(value))


def _subclass_again(array: Array, kind: type[Array]) -> Array:
    return array.view(kind)


def _view(value: memoryview, _: dict[Any, Any]) -> Any:
    return memoryview, (np.asarray(value),)


def _masked(value: np.ma.MaskedArray[Any, Any], _: dict[Any, Any]) -> Any:
    mask = np.ma.getmask(value)
    parts = value.data, None if mask is np.ma.nomask else mask, value.fill_value, value.hardmask
    return _masked_again, parts


def _masked_again(data: Any, mask: Any, fill_value: Any, hard: bool) -> Any:
    return np.ma.MaskedArray(
        data,
        mask=np.ma.nomask if mask is None else mask,
        fill_value=fill_value,
        hard_mask=hard,
        copy=False,
    )


#: Types whose own pickling would copy: (value, what this pickler has seen) -> what to pickle.
REDUCERS: dict[type, Callable[[Any, dict[Any, Any]], Any]] = {
    np.ndarray: _array,
    np.memmap: _array,
    np.recarray: _subclass,
    np.matrix: _subclass,
    memoryview: _view,
}


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self._seen: dict[Any, Any] = {}

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        reduce = REDUCERS.get(kind)
        if reduce is None and kind.__name__ == "MaskedArray" and kind is np.ma.MaskedArray:
            reduce = _masked  # numpy.ma is loaded by whoever has one.
        return NotImplemented if reduce is None else reduce(value, self._seen)


def _dumps(value: object, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> bytes:
    awaiting.teach()
    file = io.BytesIO()
    _Pickler(file, buffer_callback).dump(value)
    return file.getvalue()


class Prepared(NamedTuple):
    """A pickle and where its parts will lie."""

    body: bytes
    buffers: tuple[memoryview, ...]
    offsets: tuple[int, ...]
    size: int


def prepare(value: object) -> Prepared:
    """Pickle `value`, its buffers out of band. NotPlaceable if it cannot be pickled."""
    found: list[pickle.PickleBuffer] = []
    try:
        body = _dumps(value, found.append)
        buffers = tuple(buffer.raw() for buffer in found)
    except NotPlaceable:
        raise
    except Exception as error:
        raise NotPlaceable(
            f"a {type(value).__name__} cannot be pickled: {error}",
            "place its arrays one by one, or an object that can be pickled",
        ) from error
    at = 16 + 16 * len(buffers) + len(body)
    offsets = []
    for buffer in buffers:
        at = -(-at // _ALIGN) * _ALIGN
        offsets.append(at)
        at += buffer.nbytes
    return Prepared(body, buffers, tuple(offsets), at)


def accepts(value: object) -> bool:
    """Anything; whether it can be pickled is found by trying."""
    return True


def size_of(value: object) -> int:
    """Bytes of the pickle and its buffers."""
    return (value if isinstance(value, Prepared) else prepare(value)).size


def place(region: Place, name: str, value: object, flags: int) -> int:
    """Takes a value, or what `prepare` made of it."""
    made = value if isinstance(value, Prepared) else prepare(value)
    region._make_room(made.size)
    draft = region._begin(name, NUMBER, flags, b"", made.size)
    for at, part in _parts(made):
        draft.fill(at, part)  # Without the GIL, by several threads.
    version: int = draft.publish()
    return version


def write(made: Prepared, view: memoryview) -> None:
    """The block, into memory of `made.size` bytes."""
    for at, part in _parts(made):
        view[at : at + len(part)] = part


def _parts(made: Prepared) -> Iterator[tuple[int, bytes | memoryview]]:
    """What lies where in the block."""
    places = zip(made.offsets, made.buffers, strict=True)
    head = struct.pack("<QQ", len(made.buffers), len(made.body))
    head += b"".join(struct.pack("<QQ", at, part.nbytes) for at, part in places)
    yield 0, head
    yield len(head), made.body
    yield from zip(made.offsets, made.buffers, strict=True)


def read(meta: bytes, pin: Any, *, writable: bool) -> Any:
    """Unpickle; whether that may be done is the caller's decision."""
    return unpickle(memoryview(pin) if writable else memoryview(pin).toreadonly())


def unpickle(view: memoryview) -> Any:
    """The object of a block, its buffers parts of `view`. RegionCorrupt."""
    try:
        count, length = struct.unpack_from("<QQ", view)
        if count > len(view) // 16:
            raise ValueError("more buffers than fit")
        places = [struct.unpack_from("<QQ", view, 16 + 16 * i) for i in range(count)]
        body = view[16 + 16 * count : 16 + 16 * count + length]
        if len(body) != length or any(at + size > len(view) for at, size in places):
            raise ValueError("parts lie outside the object")
    except (struct.error, ValueError) as error:
        raise RegionCorrupt(f"a pickled object contradicts itself: {error}") from None
    try:
        return pickle.loads(body, buffers=[view[at : at + size] for at, size in places])
    except ModuleNotFoundError as error:
        framework = (error.name or "").partition(".")[0]
        if framework in LEAST:
            load(framework)  # Says which version is needed, if it is not there or too old.
        raise
