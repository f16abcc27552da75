"""torch.Tensor, of every dtype with whole bytes: bfloat16 too, which numpy has not.

torch is imported when the first tensor is placed or asked for, never by attaching. A tensor has no
flag that says read-only: a write in place to one that lies in a region is SIGSEGV, unless it was
placed with `mutable=True` or asked for with `copy_on_write=True`.

The description beside the entry:

     0  u8   1
     1  u8   number of dimensions, at most 64
     2  u8   length of the dtype's name
     3  u8   0
     4  u64  each dimension
     .  u64  each stride, in elements
     .  ...  the dtype's name, as in torch.bfloat16
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sharedregion import _native, references
from sharedregion._frameworks import load
from sharedregion.errors import NotPlaceable, RegionCorrupt

if TYPE_CHECKING:
    from sharedregion.codecs import Place

NUMBER = 5
_KIND = 1
_MAX_DIMS = 64

#: A torch.Tensor; torch is not imported for the type checker's sake.
Tensor = Any


def accepts(value: object) -> bool:
    """Tensors and parameters themselves. Other subclasses are more than their numbers."""
    torch = load("torch")
    return type(value) in (torch.Tensor, torch.nn.Parameter)


def size_of(value: Tensor) -> int:
    """The tensor's bytes, without gaps."""
    return int(value.numel()) * int(value.element_size())


def describe(dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> bytes:
    """The description of a tensor; C order if no strides are given."""
    if strides is None:
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    head = struct.pack("<BBBB", _KIND, len(shape), len(dtype), 0)
    return head + struct.pack(f"<{2 * len(shape)}Q", *shape, *strides) + dtype.encode("ascii")


def place(region: Place, name: str, value: Tensor, flags: int) -> int:
    """Dense tensors keep the order of their memory (channels_last); others become C order."""
    tensor, flat = bits_of(value)
    region._make_room(flat.nbytes)
    return region._put(name, NUMBER, flags, describe(dtype_name(tensor), *_layout(tensor)), flat)


def read(meta: bytes, pin: Any, *, writable: bool) -> Tensor:
    """A tensor over the region's memory, with no copy."""
    load("torch")
    try:
        kind, ndim, length, _ = struct.unpack_from("<BBBB", meta)
        numbers = struct.unpack_from(f"<{2 * ndim}Q", meta, 4)
        name = meta[4 + 16 * ndim :].decode("ascii")
        if kind != _KIND or ndim > _MAX_DIMS or len(name) != length:
            raise ValueError("unknown kind of description")
        return tensor_over(pin, name, numbers[:ndim], numbers[ndim:])
    except (ValueError, struct.error) as error:
        raise RegionCorrupt(f"the description of a tensor contradicts itself: {error}") from None


# --- tensors and their bytes -------------------------------------------------------------------


def dtype_name(tensor: Tensor) -> str:
    """ "bfloat16" of torch.bfloat16."""
    return str(tensor.dtype).removeprefix("torch.")


def _layout(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(tensor.shape), tuple(tensor.stride())


def _dense(tensor: Tensor) -> bool:
    """Whether the elements lie in one piece, each once, in whatever order."""
    expected = 1
    for stride, n in sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= n
    return True


def bits_of(value: Tensor) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """A dense tensor of the same numbers, the same one if it can be, and its bytes. NotPlaceable."""
    torch = sys.modules["torch"]
    if value.device.type != "cpu":
        raise NotPlaceable(
            f"the tensor is on device {value.device}, and a region is memory of the CPU",
            "place tensor.cpu(), and move it back where it is used",
        )
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        kind = "quantized" if value.is_quantized else "nested" if value.is_nested else str(value.layout)
        raise NotPlaceable(
            f"a {kind} tensor is more than one piece of memory", "place its parts, or tensor.to_dense()"
        )
    tensor = value.detach().resolve_conj().resolve_neg()
    if not _dense(tensor):
        tensor = tensor.contiguous()
    if tensor.numel() == 0:
        return tensor, np.empty(0, np.uint8)
    try:
        flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    except (RuntimeError, TypeError) as error:
        raise NotPlaceable(f"the bytes of a tensor of {tensor.dtype} cannot be had: {error}") from error
    return tensor, flat


class _Lent:
    """Memory for an array that says it is writable: torch warns of every array that is not.

    torch has no tensors that are read-only. What guards the memory is how it is mapped.
    """

    __slots__ = ("__array_interface__", "_flat")

    def __init__(self, flat: np.ndarray[Any, Any]) -> None:
        self._flat = flat
        at = flat.__array_interface__["data"][0]
        self.__array_interface__ = {
            "shape": flat.shape,
            "typestr": "|u1",
            "data": (at, False),
            "version": 3,
        }


def tensor_over(buffer: Any, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """The tensor of that description over `buffer`, which lives as long as the tensor's storage. ValueError."""
    torch = sys.modules["torch"]
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"{dtype!r} is no type of numbers that torch {torch.__version__} has")
    flat = buffer if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, np.uint8)
    try:
        if 0 in shape:
            return torch.empty_strided(shape, strides, dtype=kind)
        items = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if items * kind.itemsize > flat.nbytes:
            raise ValueError("it reaches beyond its memory")
        lent = np.asarray(_Lent(flat[: items * kind.itemsize]))
        return torch.from_numpy(lent).view(kind).as_strided(shape, strides)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"torch refuses it: {error}") from None


def _finished(tensor: Tensor, parameter: bool, requires_grad: bool) -> Tensor:
    if parameter:
        return sys.modules["torch"].nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_() if requires_grad else tensor


# --- in pickles that lie in a region (share, put) ----------------------------------------------


class _Bits:
    """The bytes of one tensor, once in a pickle however many names it has there."""

    def __init__(self, value: Tensor) -> None:
        self.tensor, self.flat = bits_of(value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _bytes_again, (PickleBuffer(cast(Any, self.flat)),)


def _bytes_again(buffer: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(buffer, np.uint8) if len(buffer) else np.empty(0, np.uint8)


def in_pickle(value: Tensor, seen: dict[Any, Any]) -> Any:
    """What to pickle for a tensor. `seen` lives as long as the pickler; tied weights stay tied."""
    if value.requires_grad and not value.is_leaf:
        raise NotPlaceable(
            "a tensor in the middle of a computation cannot be placed", "place tensor.detach()"
        )
    at = value.data_ptr() if value.device.type == "cpu" else id(value)
    key = (at, value.dtype, value.is_conj(), value.is_neg(), *_layout(value))
    bits = seen.setdefault(key, None) or _Bits(value)
    seen[key] = bits
    parameter = type(value) is sys.modules["torch"].nn.Parameter
    described = (dtype_name(bits.tensor), *_layout(bits.tensor))
    return _from_pickle, (bits, described, parameter, bool(value.requires_grad))


def _from_pickle(flat: Any, described: tuple[Any, ...], parameter: bool, requires_grad: bool) -> Tensor:
    load("torch")
    return _finished(tensor_over(flat, *described), parameter, requires_grad)


# --- what travels ------------------------------------------------------------------------------


def _reference(at: int, nbytes: int) -> Any:
    """(claim, its arguments) of bytes that lie in a region, or None."""
    if nbytes == 0 or _native.locate(at, nbytes) is None:
        return None
    lent = _Lent.__new__(_Lent)
    lent.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (at, False), "version": 3}
    return references.reduce(np.asarray(lent))


def _reducer_of_tensors(otherwise: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    torch = sys.modules["torch"]

    def reduce_tensor(tensor: Tensor) -> Any:
        plain = tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_quantized
        if (
            plain
            and not (tensor.requires_grad and not tensor.is_leaf)
            and not tensor.is_conj()
            and not tensor.is_neg()
        ):
            shape, strides = _layout(tensor)
            items = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
            nbytes = 0 if 0 in shape else items * tensor.element_size()
            found = _reference(tensor.data_ptr(), nbytes)
            if found is not None:
                described = (dtype_name(tensor), shape, strides)
                parameter = type(tensor) is torch.nn.Parameter
                return _claimed_tensor, (found[1], described, parameter, bool(tensor.requires_grad))
        return otherwise(tensor)

    return reduce_tensor


def _claimed_tensor(what: Any, described: tuple[Any, ...], parameter: bool, requires_grad: bool) -> Tensor:
    flat = references.claim(*what)
    load("torch")
    return _finished(tensor_over(flat, *described), parameter, requires_grad)


def _reducer_of_storages(otherwise: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def reduce_storage(storage: Any) -> Any:
        if storage.device.type == "cpu":
            found = _reference(storage.data_ptr(), storage.nbytes())
            if found is not None:
                return _claimed_storage, (found[1],)
        return otherwise(storage)

    return reduce_storage


def _claimed_storage(what: Any) -> Any:
    flat = references.claim(*what)
    load("torch")
    return tensor_over(flat, "uint8", flat.shape, (1,)).untyped_storage()


def teach(pickler: Any) -> None:
    """Teach ForkingPickler, after torch.multiprocessing has, and the pickles that lie in regions."""
    from sharedregion.codecs import pickled

    torch = sys.modules["torch"]
    for kind in (torch.Tensor, torch.nn.Parameter):
        pickled.REDUCERS[kind] = in_pickle
    if pickler is None:
        return
    former = pickler._extra_reducers
    for kind in (torch.Tensor, torch.nn.Parameter):
        pickler.register(kind, _reducer_of_tensors(former[kind]))
    pickler.register(torch.UntypedStorage, _reducer_of_storages(former[torch.UntypedStorage]))
