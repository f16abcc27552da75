"""torch's shared tensors: share_memory_() with the file_system strategy, by which unrelated processes can attach."""

from __future__ import annotations

import base64
import contextlib
import pickle
from collections.abc import Iterator
from typing import Any

from sharedregion.bench.against import Bytes, Fill, Peer

_NO_NAMES = "tensors have no names: they travel through torch's own queues"


def _setup() -> Any:
    import torch
    import torch.multiprocessing

    torch.multiprocessing.set_sharing_strategy("file_system")
    return torch


@contextlib.contextmanager
def hold(size: int, fill: Fill, where: tuple[str, str]) -> Iterator[str]:
    torch = _setup()
    from multiprocessing.reduction import ForkingPickler

    tensor = torch.empty(size, dtype=torch.uint8).share_memory_()
    array = tensor.numpy()
    fill(array)
    # What a queue of torch's would send: a name, not the data.
    yield base64.b64encode(ForkingPickler.dumps(tensor)).decode()
    del array, tensor


@contextlib.contextmanager
def view(ticket: str) -> Iterator[Bytes]:
    _setup()
    # What the host of this benchmark made.
    yield pickle.loads(base64.b64decode(ticket)).numpy()  # noqa: S301


PEER = Peer(
    name="torch",
    title="torch, share_memory_",
    module="torch",
    distribution="torch",
    hold=hold,
    view=view,
    cannot={"objects": _NO_NAMES, "latency": _NO_NAMES, "writers": _NO_NAMES},
    leaves=("torch_{pid}_",),
    slow=3,
)
