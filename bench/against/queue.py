"""multiprocessing.Queue and pickle: every worker gets a copy of its own, through a pipe."""

from __future__ import annotations

import contextlib
import pickle
import socket
import threading
from collections.abc import Iterator

import numpy as np

from sharedregion.bench.against import Bytes, Fill, Peer

_CHUNK = 1 << 20


@contextlib.contextmanager
def hold(size: int, fill: Fill, where: tuple[str, str]) -> Iterator[str]:
    """A server thread stands for the queue's feeder: pickled bytes go to whoever asks for them."""
    data = np.empty(size, np.uint8)
    fill(data)
    address = f"\0{where[0]}queue"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(512)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = listener.accept()
                with line, contextlib.suppress(OSError):
                    text = pickle.dumps(data, protocol=5)
                    line.sendall(len(text).to_bytes(8, "little"))
                    line.sendall(text)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield address[1:]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@contextlib.contextmanager
def view(ticket: str) -> Iterator[Bytes]:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(f"\0{ticket}")
        with line.makefile("rb") as file:
            text = file.read(int.from_bytes(file.read(8), "little"))
    # What the peer sent is this benchmark's own.
    yield pickle.loads(text)  # noqa: S301


PEER = Peer(
    name="queue",
    title="Queue and pickle",
    hold=hold,
    view=view,
    copies=2,
    own_copy=True,
    cannot={
        "objects": "a queue keeps no objects by name",
        "latency": "a queue keeps no objects by name",
        "writers": "a queue keeps no objects by name",
    },
    note="each worker has a copy of its own: memory grows by the size of the data for each",
)
