"""PyTorch: datasets that workers do not copy, batches that come back by region, weights from a file.

Placing and getting tensors, modules and state dicts, and sending them by torch.multiprocessing, needs
no import of this file: `region["w"] = tensor`, `sr.share(model)`.

A tensor of a region must not be written to in place (SIGSEGV), unless it was placed with
`mutable=True`, or asked for with `region.get(name, copy_on_write=True)`. What the classes of this
file give may be written to, unless their text says otherwise.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sharedregion import _native, opening
from sharedregion._frameworks import load
from sharedregion.codecs import pickled
from sharedregion.errors import NotPlaceable, RegionFull
from sharedregion.files import place_safetensors
from sharedregion.region import Region

torch = load("torch")

from torch.utils.data import Dataset, get_worker_info  # noqa: E402 - after the check that torch is there
from torch.utils.data._utils.collate import collate, default_collate_fn_map  # noqa: E402 - likewise

__all__ = ["RegionBatches", "SharedDataset", "load_safetensors"]

_ALIGN = 64
_PAGE = 4096


class SharedDataset(Dataset):
    """Items of any kind (strings, dicts, tensors, tuples of them) in one region, for any number of workers.

    A list of Python objects grows in every forked worker, since reading an object writes its reference
    count and so copies its page; a spawned worker gets a copy of it all. Here items lie in a region as
    pickles with their arrays beside them: workers get a reference, and reading writes nothing.

    `items` is anything that can be iterated over once, another map-style dataset too. `transform` is
    applied to each item when it is asked for, in the worker. Items are the asker's own and may be
    written to; with `copy=False` their arrays and tensors look at the region instead, read-only: a
    write in place to such a tensor is SIGSEGV. The memory is gone with the last process that has it.
    """

    def __init__(
        self,
        items: Iterable[Any],
        *,
        transform: Callable[[Any], Any] | None = None,
        copy: bool = True,
        backend: str = "auto",
    ) -> None:
        made = [pickled.prepare(item) for item in _each(items)]
        starts = np.zeros(len(made) + 1, np.uint64)
        at = 0
        for n, one in enumerate(made):
            starts[n] = at
            # Buffers lie at multiples of 64 from the start of their block.
            at = -(-(at + one.size) // _ALIGN) * _ALIGN
        starts[-1] = at
        size = max(at, 1) + starts.nbytes + 2 * _PAGE
        with opening.create(size=size, backend=backend) as region:
            with region.allocate("items", at, "u1") as block:
                view = memoryview(block)  # type: ignore[arg-type]
                for start, one in zip(starts.tolist(), made, strict=False):
                    pickled.write(one, view[start : start + one.size])
                view.release()
            region["starts"] = starts
            self._items = region["items"]
            self._starts = region["starts"]
        self._copy = copy
        self.transform = transform

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Any:
        n = operator.index(index)
        if n < 0:
            n += len(self)
        if not 0 <= n < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        block = memoryview(self._items)[int(self._starts[n]) : int(self._starts[n + 1])]
        item = pickled.unpickle(memoryview(bytearray(block)) if self._copy else block)
        return item if self.transform is None else self.transform(item)


def _each(items: Any) -> Any:
    # Map-style datasets have no end of their own when they are iterated over.
    if hasattr(items, "__getitem__") and hasattr(items, "__len__") and not isinstance(items, dict):
        return (items[n] for n in range(len(items)))
    return iter(items)


def _stack(batch: Any, *, collate_fn_map: Any = None) -> Any:
    return torch.stack(list(batch), 0)


def _collate(items: list[Any]) -> Any:
    # torch's own, but for tensors: in a worker it would make each batch a file of its own to be sent.
    return collate(items, collate_fn_map=default_collate_fn_map | {torch.Tensor: _stack})


class RegionBatches:
    """A `collate_fn` for DataLoader whose batches come back by region instead of by descriptors.

    By itself a worker sends each tensor as a file descriptor, which stays open in the main process as
    long as the tensor: batches that are kept end in "Too many open files". Here each worker has one
    region of `size` (memory is taken as it is used) for as long as it lives, and sends references. A
    batch may be written to. Its memory is used again once the main process has let go of it; when a
    worker's region is full of batches that are still held, further ones go by torch's own way.

    `collate_fn` makes the batch out of the items, torch's default one if None.
    """

    def __init__(
        self,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        size: int | str = "1 GiB",
        backend: str = "auto",
    ) -> None:
        self._collate = collate_fn or _collate
        self._size = size
        self._backend = backend
        self._region: Region | None = None
        self._owner = 0
        self._count = 0
        self._sent: list[tuple[str, int, int, int]] = []

    def __call__(self, items: list[Any]) -> Any:
        batch = self._collate(items)
        if get_worker_info() is None:
            return batch  # Made where it is used.
        region = self._own_region()
        self._withdraw(region)
        name = str(self._count)
        self._count += 1
        try:
            region.put(name, batch, mutable=True)
        except (NotPlaceable, RegionFull):
            return batch
        info = region._info(name)
        pin = region._get_exact(info[7], info[5])
        at = np.frombuffer(pin, np.uint8).__array_interface__["data"][0]  # type: ignore[call-overload]
        self._sent.append((name, info[8], at, info[4]))
        return region[name]

    def _withdraw(self, region: Region) -> None:
        """Take back the names of batches that have arrived; whoever holds them keeps their memory."""
        under_way = []
        for sent in self._sent:
            name, block, at, nbytes = sent
            # Looked at in this order: what this process holds may not have been sent yet.
            if _native.locate(at, nbytes) is not None or region._tickets(block):
                under_way.append(sent)
            else:
                del region[name]
        self._sent = under_way

    def _own_region(self) -> Region:
        if self._region is None or self._owner != os.getpid():
            self._region = opening.create(size=self._size, backend=self._backend, commit="lazy")
            self._owner = os.getpid()
            self._count = 0
            self._sent = []
        return self._region

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_region": None, "_owner": 0, "_sent": []}


def load_safetensors(path: str | os.PathLike[str], *, into: Region | None = None, **options: Any) -> Region:
    """Place every tensor of a `.safetensors` file, with no second copy in memory; `region[name]` is a tensor.

    As `sharedregion.load_safetensors`, which gives arrays; bfloat16 and 8-bit floats are tensors of
    these types here.
    """
    return place_safetensors(os.fspath(path), into, options, tensors=True)
