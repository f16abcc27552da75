"""iceoryx2: a publisher's sample in shared memory, which subscribers receive without a copy."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer

_NO_NAMES = "samples are published to subscribers; objects that are found by name are of a fixed type (its blackboard)"
_MANY = 300


def _node(prefix: str) -> Any:
    import iceoryx2 as iox

    iox.set_log_level(iox.LogLevel.Fatal)
    config = iox.config.default()
    # All that it makes in /dev/shm begins with our prefix.
    config.global_cfg.prefix = iox.FileName.new(prefix)
    return iox.NodeBuilder.new().config(config).create(iox.ServiceType.Ipc)


def _service(node: Any) -> Any:
    import iceoryx2 as iox

    return (
        node.service_builder(iox.ServiceName.new("held"))
        .publish_subscribe(iox.Slice[ctypes.c_uint8])
        .history_size(1)
        .subscriber_max_buffer_size(1)
        .max_subscribers(_MANY)
        .max_nodes(_MANY)
    )


@contextlib.contextmanager
def hold(size: int, fill: Fill, where: tuple[str, str]) -> Iterator[str]:
    service = _service(_node(where[0])).create()
    publisher = (
        service.publisher_builder()
        .initial_max_slice_len(size)
        .max_loaned_samples(1)
        .override_sample_preallocation(1)
        .create()
    )
    sample = publisher.loan_slice_uninit(size)
    fill(np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(sample.payload_ptr)))
    sample.assume_init().send()
    done = threading.Event()

    def deliver() -> None:
        # A late subscriber gets the history when the publisher looks who is there.
        while not done.wait(0.001):
            publisher.update_connections()

    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    try:
        yield where[0]
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def view(ticket: str) -> Iterator[Bytes]:
    import time

    service = _service(_node(ticket)).open()
    subscriber = service.subscriber_builder().create()
    deadline = time.monotonic() + 30
    while (sample := subscriber.receive()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError("no sample came within 30 s")
        time.sleep(0.0001)
    payload = sample.payload()
    yield np.frombuffer((ctypes.c_uint8 * payload.len()).from_address(payload.as_ptr()), np.uint8)
    del payload
    sample.delete()


PEER = Peer(
    name="iceoryx2",
    title="iceoryx2",
    module="iceoryx2",
    distribution="iceoryx2",
    hold=hold,
    view=view,
    cannot={"objects": _NO_NAMES, "latency": _NO_NAMES, "writers": _NO_NAMES},
    note="its publisher looks for new subscribers once in a millisecond here",
)
