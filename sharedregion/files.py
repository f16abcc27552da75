"""Arrays from files that people have: .npy, .npz, .safetensors.

Files are mapped, not read, where their format allows. What is malformed gives one SharedRegionError
that names the file and the fault; nothing in a file is trusted, and no pickle is ever loaded.
"""

from __future__ import annotations

import json
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from sharedregion.codecs import tensor
from sharedregion.errors import SharedRegionError
from sharedregion.opening import create
from sharedregion.region import Region

__all__ = ["Input", "place_npz", "place_safetensors", "read_input"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Input:
    """The arrays of a file by name, and what had to be said about them."""

    path: str
    arrays: Mapping[str, Array]
    notes: tuple[str, ...] = ()


def _first_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise SharedRegionError(f"{path} cannot be read: {text}") from None
    if not start:
        raise SharedRegionError(f"{path} is empty")
    return start


@contextmanager
def _clear_errors(path: str) -> Iterator[None]:
    """Whatever a damaged file makes the parsers raise becomes one error that names the file."""
    try:
        yield
    except SharedRegionError:
        raise
    except MemoryError:
        raise SharedRegionError(f"{path} claims arrays that are larger than memory") from None
    # What numpy and zipfile raise for damaged files; the parsers raise nothing else for bad bytes.
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        OverflowError,
        SyntaxError,
    ) as error:
        raise SharedRegionError(f"{path} is damaged: {str(error) or type(error).__name__}") from None
    except (zipfile.BadZipFile, zlib.error, tokenize.TokenError, RuntimeError, RecursionError) as error:
        raise SharedRegionError(f"{path} is damaged: {error}") from None


def read_input(path: str) -> Input:
    """The arrays in the file. Which format it has is told by its name, or else by its first bytes."""
    start = _first_bytes(path)
    kind = os.path.splitext(path)[1].lower()
    with _clear_errors(path):
        if kind == ".safetensors":
            arrays, notes, _ = _safetensors(path)
        elif kind == ".npz" or start.startswith(b"PK\x03\x04"):
            arrays, notes = _npz(path), ()
        elif kind == ".npy" or start.startswith(b"\x93NUMPY"):
            arrays, notes = {os.path.splitext(os.path.basename(path))[0] or "array": _npy(path)}, ()
        else:
            raise SharedRegionError(
                f"{path} is of no kind that is known", "give a .npy, .npz or .safetensors file"
            )
    for name, array in arrays.items():
        if array.dtype.hasobject:
            _refuse_objects(path, name)
    if not arrays:
        raise SharedRegionError(f"{path} holds no arrays")
    return Input(path, arrays, notes)


def _refuse_objects(path: str, name: str) -> NoReturn:
    raise SharedRegionError(
        f"{path}: array {name!r} has dtype object, which holds pointers into one process",
        "convert it to numbers, or place it with region.put(name, value, pickle=True)",
    )


def _npy(path: str) -> Array:
    with open(path, "rb") as file:
        dtype, count = _npy_header(file)
        if dtype is not None and dtype.hasobject:
            _refuse_objects(path, os.path.basename(path))
        if count == 0:
            # An empty range of a file cannot be mapped.
            file.seek(0)
            return np.asarray(np.load(file, allow_pickle=False))
    return np.lib.format.open_memmap(path, mode="r")


def _npy_header(file: Any) -> tuple[np.dtype[Any] | None, int | None]:
    """(dtype, number of elements); (None, None) for a version that only numpy itself reads."""
    readers: dict[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    reader = readers.get(np.lib.format.read_magic(file))
    if reader is None:
        return None, None
    shape, _, dtype = reader(file)
    return dtype, math.prod(shape)


def _npz(path: str) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    # Opened here: numpy leaves a file open that it opened itself and found damaged.
    with open(path, "rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is not an .npz archive")
        with archive:
            for name in archive.files:
                try:
                    loaded = archive[name]
                except ValueError as error:
                    if "allow_pickle" in str(error):
                        _refuse_objects(path, name)
                    raise
                if not isinstance(loaded, np.ndarray):
                    raise ValueError(f"member {name!r} is not an array")
                arrays[name] = loaded
    return arrays


# The format's own names. numpy has no bfloat16 and no 8-bit floats: their bits are shared as they are.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "C64": "<c8",
}  # fmt: skip
_AS_BITS = {"BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1"}
#: What torch calls them.
_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_HEADER_LIMIT = 100_000_000


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice in the header")
    return table


def _safetensors(path: str) -> tuple[dict[str, Array], tuple[str, ...], dict[str, str]]:
    """Arrays by name, notes, the format's types by name.

    8 bytes of header length (little-endian), a JSON header, the tensors' bytes without gaps.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise ValueError("the header is longer than the file, or the file is not a safetensors file")
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise TypeError("the header is not a table of tensors")
    header.pop("__metadata__", None)
    first, room = 8 + length, size - 8 - length
    arrays: dict[str, Array] = {}
    kinds: dict[str, str] = {}
    spans: list[tuple[int, int]] = []
    data = np.memmap(path, np.uint8, "r") if room else np.empty(size, np.uint8)
    for name, entry in header.items():
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if kind not in _DTYPES and kind not in _AS_BITS:
            raise ValueError(f"tensor {name!r} has an unknown dtype {kind!r}")
        numbers = (begin, end, *shape)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"tensor {name!r} has a shape or offsets that are no whole numbers")
        dtype = np.dtype(_DTYPES.get(kind) or _AS_BITS[kind])
        if not begin <= end <= room:
            raise ValueError(f"tensor {name!r} lies outside the file, which may be truncated")
        if math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"tensor {name!r} has {end - begin} bytes, which is not what its shape needs")
        kinds[name] = kind
        spans.append((begin, end))
        arrays[name] = data[first + begin : first + end].view(dtype).reshape(shape)
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise ValueError("tensors overlap, or bytes between them belong to none")
        reached = end
    if reached != room:
        raise ValueError(f"{room - reached} bytes at the end belong to no tensor")
    notes = tuple(
        f"{kind} is shared as its bits ({_AS_BITS[kind]}): numpy has no such type"
        for kind in sorted(_AS_BITS.keys() & set(kinds.values()))
    )
    return arrays, notes, kinds


# --- placing -----------------------------------------------------------------------------------


def place_safetensors(
    path: str, into: Region | None, options: dict[str, Any], *, tensors: bool = False
) -> Region:
    """Every tensor of the file, from the mapped file straight into the region; as arrays, or as torch's tensors."""
    _first_bytes(path)
    with _clear_errors(path):
        arrays, _, kinds = _safetensors(path)
    region = (
        into
        if into is not None
        else _sized(sum(array.nbytes for array in arrays.values()), len(arrays), options)
    )
    for name, array in arrays.items():
        if tensors:
            region._make_room(array.nbytes)
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            region._put(name, tensor.NUMBER, 0, tensor.describe(_TORCH[kinds[name]], array.shape), flat)
        else:
            region[name] = array
    return region


def place_npz(path: str, into: Region | None, options: dict[str, Any]) -> Region:
    """Every array of the archive, decompressed straight into the region: no array is held twice."""
    _first_bytes(path)
    with _clear_errors(path), zipfile.ZipFile(path) as archive:
        members: dict[str, tuple[str, tuple[int, ...], np.dtype[Any], bool]] = {}
        for info in archive.infolist():
            with archive.open(info) as file:
                shape, fortran, dtype = _any_header(file)
            name = info.filename.removesuffix(".npy")
            if dtype.hasobject:
                _refuse_objects(path, name)
            members[name] = (info.filename, shape, dtype, fortran)
        total = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype, _ in members.values())
    region = into if into is not None else _sized(total, len(members), options)
    with _clear_errors(path), zipfile.ZipFile(path) as archive:
        for name, (member, shape, dtype, fortran) in members.items():
            with (
                archive.open(member) as file,
                region.allocate(name, shape, dtype, order="F" if fortran else "C") as array,
            ):
                _any_header(file)
                if array.nbytes:
                    _read_exactly(file, memoryview(cast(Any, array.ravel(order="K").view(np.uint8))))
    return region


def _sized(nbytes: int, count: int, options: dict[str, Any]) -> Region:
    """A region with room for so many bytes, and for what placing each at its alignment may take."""
    # Large arrays begin a large page where they can: what is left between them is at most this part.
    gaps = nbytes // 16 + (4 << 20) if nbytes > 2 << 20 else 0
    return create(**({"size": nbytes + gaps + (count + 1) * 4096} | options))


def _any_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    reader: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if reader is None:
        raise ValueError(f"version {version} of the .npy format is not known")
    shape, fortran, dtype = reader(file)
    return shape, fortran, dtype


def _read_exactly(file: Any, into: memoryview) -> None:
    done = 0
    while done < len(into):
        got = file.readinto(into[done:])
        if not got:
            raise ValueError("an array is shorter than its header says")
        done += got
