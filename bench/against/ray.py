"""Ray's object store: ray.put in the host, ray.get in drivers that join the same cluster."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer, Store, Values

# One machine, no outside: neither its network address nor statistics of use are wanted.
_LOCAL = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
_QUIET: dict[str, Any] = {
    "log_to_driver": False,
    "configure_logging": False,
    "namespace": "bench",
    "logging_level": logging.ERROR,
}


@contextlib.contextmanager
def _cluster(room: int, where: tuple[str, str]) -> Iterator[str]:
    os.environ.update(_LOCAL)
    import ray

    # Names of sockets below this folder must be short.
    folder = tempfile.mkdtemp(prefix="ray")
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=max(room, 80 << 20),
        _temp_dir=folder,
        _plasma_directory=where[1],
        _node_ip_address="127.0.0.1",
        **_QUIET,
    )
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _driver(address: str) -> Iterator[Any]:
    os.environ.update(_LOCAL)
    import ray

    if not ray.is_initialized():
        ray.init(address=address, _node_ip_address="127.0.0.1", **_QUIET)
    yield ray


@contextlib.contextmanager
def hold(size: int, fill: Fill, where: tuple[str, str]) -> Iterator[list[str]]:
    import ray
    import ray.cloudpickle

    data = np.empty(size, np.uint8)
    fill(data)
    with _cluster(size + size // 4 + (64 << 20), where) as address:
        reference = ray.put(data)
        del data
        yield [address, base64.b64encode(ray.cloudpickle.dumps(reference)).decode()]


@contextlib.contextmanager
def view(ticket: list[str]) -> Iterator[Bytes]:
    import pickle

    with _driver(ticket[0]) as ray:
        # What the host of this benchmark made.
        yield ray.get(pickle.loads(base64.b64decode(ticket[1])), timeout=60)  # noqa: S301


class _Store:
    """Names are the process's own: Ray's objects have none, they are found by reference."""

    def __init__(self, ticket: str) -> None:
        import ray

        self._ray = ray
        self._references: dict[str, Any] = {}
        self.ticket = ticket

    def put(self, name: str, value: Values) -> None:
        self._references[name] = self._ray.put(value)

    def look(self, name: str) -> float:
        return float(self._ray.get(self._references[name])[0])

    def delete(self, name: str) -> None:
        del self._references[name]


@contextlib.contextmanager
def store(room: int, where: tuple[str, str]) -> Iterator[Store]:
    with _cluster(room, where) as address:
        yield _Store(address)


@contextlib.contextmanager
def join(ticket: str) -> Iterator[Store]:
    with _driver(ticket):
        yield _Store(ticket)


PEER = Peer(
    name="ray",
    title="Ray, object store",
    module="ray",
    distribution="ray",
    hold=hold,
    view=view,
    copies=2.3,
    store=store,
    join=join,
    slow=6,
    note="each worker is a driver that joins the cluster; objects have no names, only references",
)
