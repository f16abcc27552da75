"""Workers that attach to what a host placed, and say what it took.

A template process has imported what its subject needs; workers are forked from it, so that a
hundred of them start at once and none pays for imports. What they map they map themselves: entries
of shared mappings are not copied by fork, and the template has none.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from sharedregion.bench import against
from sharedregion.bench.against import Bytes

__all__ = ["Crew", "crew", "touch"]


def touch(memory: Bytes, step: int = 4096) -> int:
    """Read one byte of every page; the sum keeps the reads from being left out."""
    return int(memory[::step].sum(dtype=np.uint64))


class Crew:
    """Workers, by number. `ask` is one question and its answer; `tell` and `hear` are its halves."""

    def __init__(self, process: subprocess.Popen[bytes], lines: Sequence[socket.socket]) -> None:
        self.process = process
        self._lines = lines
        self._files = [line.makefile("rwb") for line in lines]
        self.pids: list[int] = [self.hear(number) for number in range(len(lines))]

    def __len__(self) -> int:
        return len(self._lines)

    def tell(self, number: int, do: str, **words: Any) -> None:
        self._files[number].write(json.dumps({"do": do, **words}).encode() + b"\n")
        self._files[number].flush()

    def hear(self, number: int) -> Any:
        line = self._files[number].readline()
        if not line:
            raise RuntimeError(f"worker {number} ended before it had answered")
        answer = json.loads(line)
        if "failed" in answer:
            raise RuntimeError(f"worker {number}: {answer['failed']}")
        return answer["answer"]

    def ask(self, number: int, do: str, **words: Any) -> Any:
        self.tell(number, do, **words)
        return self.hear(number)

    def ask_all(self, do: str, **words: Any) -> list[Any]:
        """All at the same time."""
        for number in range(len(self)):
            self.tell(number, do, **words)
        return [self.hear(number) for number in range(len(self))]


@contextlib.contextmanager
def crew(subject: str, count: int, modules: Sequence[str] = ()) -> Iterator[Crew]:
    """So many workers of one subject, whose template has these modules too; they end with the context."""
    pairs = [socket.socketpair() for _ in range(count)]
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "sharedregion.bench.crew",
            subject,
            ",".join(modules),
            *(str(theirs.fileno()) for _, theirs in pairs),
        ],
        pass_fds=[theirs.fileno() for _, theirs in pairs],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        for _, theirs in pairs:
            theirs.close()
        yield Crew(process, [ours for ours, _ in pairs])
    finally:
        # A worker leaves when its line is closed, and the template when all have left.
        for ours, _ in pairs:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            ours.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ---- In a worker --------------------------------------------------------------------------------


class _Worker:
    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.held = contextlib.ExitStack()
        self.memory: Bytes = np.zeros(4096, np.uint8)
        self.verbs: dict[str, Any] = {"attach": self.attach, "idle": self.idle, "call": self.call}

    def attach(self, ticket: Any, step: int = 4096, passes: int = 2) -> dict[str, float]:
        """Attach, read every page for the first time, and again with no faults left."""
        from sharedregion.bench.ours import subject

        peer = subject(self.subject)
        assert peer.view is not None
        started = time.perf_counter()
        self.memory = self.held.enter_context(peer.view(ticket))
        times = {"attach": time.perf_counter() - started}
        for number in range(passes):
            before = time.perf_counter()
            touch(self.memory, step)
            times["first" if number == 0 else "again"] = time.perf_counter() - before
        return times

    def idle(self) -> None:
        """What any worker does that attaches, on a page of its own."""
        touch(np.zeros(4096, np.uint8))

    def call(self, where: str, **words: Any) -> Any:
        """A function of a case, module:name, with the memory that was attached."""
        module, _, name = where.partition(":")
        return getattr(importlib.import_module(module), name)(self.memory, **words)


def _live(subject: str, line: socket.socket) -> None:
    file = line.makefile("rwb")

    def answer(**words: Any) -> None:
        file.write(json.dumps(words).encode() + b"\n")
        file.flush()

    worker = _Worker(subject)
    answer(answer=os.getpid())
    with worker.held:
        for text in file:
            words = json.loads(text)
            try:
                answer(answer=worker.verbs[words.pop("do")](**words))
            # Whatever it is, the host turns it into a row.
            except Exception as error:  # noqa: BLE001
                traceback.print_exc()
                answer(failed=f"{type(error).__name__}: {error}")
        worker.memory = np.zeros(0, np.uint8)


def _template(subject: str, modules: Sequence[str], descriptors: Sequence[int]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in modules:
        importlib.import_module(name)
    if subject in against.NAMES:
        module = against.load(subject).module
        if module:
            importlib.import_module(module)
    else:
        import sharedregion

        # The face loads what is behind it when it is first asked for.
        _ = sharedregion.attach
    touch(np.zeros(4096, np.uint8))
    for number, descriptor in enumerate(descriptors):
        if os.fork() == 0:
            _child(subject, descriptor, [*descriptors[:number], *descriptors[number + 1 :]])
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    return 0


def _child(subject: str, descriptor: int, others: Sequence[int]) -> NoReturn:
    code = 1
    try:
        for other in others:
            with contextlib.suppress(OSError):
                os.close(other)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            _live(subject, socket.socket(fileno=descriptor))
        code = 0
    except BaseException:  # noqa: BLE001 - nothing of the template's may run in a child.
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(
        _template(sys.argv[1], sys.argv[2].split(",") if sys.argv[2] else [], [int(n) for n in sys.argv[3:]])
    )
