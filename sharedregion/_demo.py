"""What the demo measures: the same arrays through each kind of memory, read by fresh workers.

A host places arrays; spawned workers attach, read every page of every array and checksum what they
read; one more worker of the same program does all of that on memory of its own, so that its cost
can be taken off. Findings are data; nothing here prints.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from sharedregion._kernel import procfs
from sharedregion._kernel.mounts import ShmSpace
from sharedregion._signals import become_child, deferred
from sharedregion.errors import ToolError

__all__ = [
    "STDLIB",
    "Figures",
    "Row",
    "Source",
    "Tables",
    "arrays_source",
    "compare",
    "look",
    "made_up_source",
    "room_for",
]

Array = NDArray[Any]
PAGE = 4096
MIB = 1 << 20

#: The row beside the backends.
STDLIB = "multiprocessing"


class Source(Protocol):
    """Arrays to place: read one at a time, so that a source larger than memory could serve."""

    @property
    def names(self) -> Sequence[str]:
        """Names, in the order of placing."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        ...

    def load(self, name: str) -> Array:
        """The array; the same bytes each time."""
        ...


@dataclass(frozen=True)
class _Arrays:
    arrays: Mapping[str, Array]

    @property
    def names(self) -> Sequence[str]:
        return list(self.arrays)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def load(self, name: str) -> Array:
        return self.arrays[name]


@dataclass(frozen=True)
class _MadeUp:
    shapes: Mapping[str, tuple[tuple[int, ...], str]]

    @property
    def names(self) -> Sequence[str]:
        return list(self.shapes)

    @property
    def nbytes(self) -> int:
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.shapes.values())

    def load(self, name: str) -> Array:
        shape, dtype = self.shapes[name]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        generator = np.random.Generator(np.random.SFC64(list(self.shapes).index(name)))
        return np.frombuffer(generator.bytes(size), dtype).reshape(shape)


def arrays_source(arrays: Mapping[str, Array]) -> Source:
    """Arrays that exist, in memory or mapped from a file."""
    return _Arrays(arrays)


def made_up_source(size: int) -> Source:
    """Random arrays of several types that fill 15/16 of `size` bytes (at least 64 KiB)."""
    unit = max(size // 16, PAGE) // 64 * 64
    return _MadeUp(
        {
            "features": ((8 * unit // 4 // 16, 16), "<f4"),
            "images": ((4 * unit // 64, 8, 8), "u1"),
            "targets": ((2 * unit // 8,), "<f8"),
            "ids": ((unit // 8,), "<i8"),
        }
    )


def room_for(source: Source) -> int:
    """A size of region in which the source fits, alignment of each array included."""
    needed = source.nbytes + len(source.names) * PAGE
    return -(-(needed + needed // 64) // (2 * MIB)) * 2 * MIB


@dataclass(frozen=True)
class Tables:
    """Page tables of one process, in bytes."""

    linked: int
    private: int | None
    proportional: int | None

    def beyond(self, idle: Tables) -> Tables:
        """What is here more than in `idle`."""

        def less(a: int | None, b: int | None) -> int | None:
            return None if a is None or b is None else a - b

        return Tables(
            self.linked - idle.linked,
            less(self.private, idle.private),
            less(self.proportional, idle.proportional),
        )


@dataclass(frozen=True)
class Figures:
    """What the helper said about some processes, and how it knows."""

    tables: Mapping[int, Tables]
    method: str
    estimate: bool = False
    why: str | None = None
    remedy: str | None = None


Look = Callable[[Sequence[int]], Figures]


@dataclass(frozen=True)
class Row:
    """One kind of memory. Tables are those of the median worker beyond the idle one; bytes and seconds.

    `growth` is what PageTables of the whole system grew by for each worker, None if not said.
    """

    name: str
    backend: str
    page_size: int
    place: str
    workers: int
    tables: Tables
    growth: float | None
    attach_seconds: float
    touch_seconds: float
    checksums_equal: bool
    wrong: tuple[str, ...]
    place_seconds: float


def _digest(array: Array) -> str:
    flat = np.ascontiguousarray(array).reshape(-1)
    return hashlib.blake2b(flat.view(np.uint8).data, digest_size=16).hexdigest()


def _touch(array: Array) -> int:
    """Read one byte of every page; the sum keeps the reads from being left out."""
    flat = array.reshape(-1).view(np.uint8)
    total = int(flat[::PAGE].sum(dtype=np.uint64))
    return total + (int(flat[-1]) if flat.size else 0)


# ---- In the worker ------------------------------------------------------------------------------


class _View(Protocol):
    def arrays(self) -> Mapping[str, Array]: ...

    def close(self) -> None: ...


class _RegionView:
    def __init__(self, name: str) -> None:
        import sharedregion as sr

        self.region = sr.attach(name)

    def arrays(self) -> Mapping[str, Array]:
        return {name: self.region[name] for name in self.region}

    def close(self) -> None:
        self.region.close()


class _StdlibView:
    def __init__(self, name: str, layout: Sequence[tuple[str, int, tuple[int, ...], str]]) -> None:
        self.memory = SharedMemory(name)
        self.layout = layout

    def arrays(self) -> Mapping[str, Array]:
        return {
            name: np.ndarray(shape, dtype, buffer=self.memory.buf, offset=offset)
            for name, offset, shape, dtype in self.layout
        }

    def close(self) -> None:
        self.memory.close()


class _IdleView:
    """A worker that does everything but attach."""

    def arrays(self) -> Mapping[str, Array]:
        return {"idle": np.zeros(PAGE, np.uint8)}

    def close(self) -> None:
        pass


def _open(ticket: tuple[Any, ...]) -> _View:
    kind, *rest = ticket
    if kind == "region":
        return _RegionView(*rest)
    return _StdlibView(*rest) if kind == "stdlib" else _IdleView()


def _worker(pipe: connection.Connection) -> None:
    """Answers one command at a time, attach and checksum, until it is told to leave or the host has gone."""
    become_child()
    import sharedregion

    assert sharedregion  # An idle worker of the same program has it loaded, too.
    view: _View | None = None
    arrays: Mapping[str, Array] = {}
    answer: Any = None
    reply = ("ready", answer)
    while True:
        try:
            pipe.send(reply)
            command, argument = pipe.recv()
        except (EOFError, OSError):
            # The host has gone.
            return
        if command == "leave":
            arrays = {}
            if view is not None:
                view.close()
            return
        try:
            if command == "attach":
                start = time.perf_counter()
                view = _open(argument)
                arrays = view.arrays()
                attached = time.perf_counter()
                for array in arrays.values():
                    _touch(array)
                answer = (attached - start, time.perf_counter() - attached)
            else:
                answer = {
                    name: (array.dtype.str, array.shape, _digest(array)) for name, array in arrays.items()
                }
            reply = ("done", answer)
        # Whatever it is, the host reports it; a worker's own traceback would only disturb the output.
        except Exception as error:  # noqa: BLE001
            reply = ("failed", f"{type(error).__name__}: {error}")


# ---- In the host --------------------------------------------------------------------------------


class _Crew:
    """Workers and the pipes to them. Leaving the context ends all of them, whatever happened."""

    def __init__(self, count: int) -> None:
        context = get_context("spawn")
        self._members: list[tuple[BaseProcess, connection.Connection]] = []
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_worker, args=(theirs,), daemon=True)
                with deferred():
                    process.start()
                    self._members.append((process, ours))
                # With the host's copy closed, a worker that dies is seen as the end of its pipe.
                theirs.close()
            for index in range(count):
                self._answer(index)
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process, _ in self._members]

    def _answer(self, index: int) -> Any:
        process, pipe = self._members[index]
        try:
            word, value = pipe.recv()
        except (EOFError, ConnectionResetError):
            process.join(5)
            raise ToolError(
                f"a worker of the demo ended before its work was done (exit code {process.exitcode})"
            ) from None
        if word == "failed":
            raise ToolError(f"a worker of the demo failed: {value}")
        return value

    def ask(self, index: int, command: str, argument: Any = None) -> Any:
        self.tell(index, command, argument)
        return self._answer(index)

    def tell(self, index: int, command: str, argument: Any = None) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._members[index][1].send((command, argument))

    def ask_all(self, command: str) -> list[Any]:
        for index in range(len(self._members)):
            self.tell(index, command)
        return [self._answer(index) for index in range(len(self._members))]

    def leave(self) -> None:
        """Let all end by themselves, as workers do."""
        for index, (process, _) in enumerate(self._members):
            self.tell(index, "leave")
            process.join(30)

    def end(self) -> None:
        for process, _ in self._members:
            if process.is_alive():
                process.terminate()
        for process, pipe in self._members:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
            pipe.close()
        self._members = []


@dataclass(frozen=True)
class _Placed:
    ticket: tuple[Any, ...]
    backend: str
    page_size: int
    place: str
    seconds: float


@contextlib.contextmanager
def _placed_in_region(source: Source, backend: str, size: int, place: str) -> Iterator[_Placed]:
    import sharedregion as sr

    start = time.perf_counter()
    region = sr.create(f"demo-{os.getpid()}-{backend}", size=size, backend=backend)
    try:
        for name in source.names:
            region[name] = source.load(name)
        seconds = time.perf_counter() - start
        yield _Placed(("region", region.name), region.backend, region.page_size, place, seconds)
    finally:
        # Unlinking first: a name that is left would outlive an error of close().
        try:
            region.unlink()
        finally:
            region.close()


@contextlib.contextmanager
def _placed_in_stdlib(source: Source) -> Iterator[_Placed]:
    start = time.perf_counter()
    layout: list[tuple[str, int, tuple[int, ...], str]] = []
    offset = 0
    for name in source.names:
        array = source.load(name)
        layout.append((name, offset, array.shape, array.dtype.str))
        offset += -(-array.nbytes // 64) * 64
    memory = SharedMemory(f"sharedregion-demo-{os.getpid()}", create=True, size=max(offset, 1))
    try:
        for name, begin, shape, dtype in layout:
            target: Array = np.ndarray(shape, dtype, buffer=memory.buf, offset=begin)
            target[...] = source.load(name)
            # A view that stays would keep close() from unmapping.
            del target
        yield _Placed(("stdlib", memory.name, layout), STDLIB, PAGE, "/dev/shm", time.perf_counter() - start)
    finally:
        try:
            memory.unlink()
        finally:
            memory.close()


def _measure(
    name: str, placed: _Placed, digests: Mapping[str, Any], workers: int, look: Look
) -> tuple[Row, Figures]:
    with _Crew(workers + 1) as crew:
        before, start = procfs.page_tables(), look(crew.pids)
        idle = workers
        # One after the other: on few processors, workers at once would time each other.
        times = [crew.ask(index, "attach", placed.ticket) for index in range(workers)]
        crew.ask(idle, "attach", ("idle",))
        read = crew.ask_all("checksum")[:workers]
        after = procfs.page_tables()
        figures = look(crew.pids)
        # Each against itself before it attached: address spaces are laid out at random, and a program
        # may need a table or two more than its twin. What the work itself adds, the idle one adds too.
        grown = [figures.tables[pid].beyond(start.tables[pid]) for pid in crew.pids]
        found = [worker.beyond(grown[idle]) for worker in grown[:workers]]
        crew.leave()
    # A name that a worker lacks, or has too many of, is as wrong as other bytes.
    wrong = sorted(
        {key for seen in read for key in seen.keys() | digests.keys() if seen.get(key) != digests.get(key)}
    )
    row = Row(
        name=name,
        backend=placed.backend,
        page_size=placed.page_size,
        place=placed.place,
        workers=workers,
        tables=_median(found),
        growth=None if before is None or after is None else (after - before) / workers,
        attach_seconds=statistics.median(attach for attach, _ in times),
        touch_seconds=statistics.median(touch for _, touch in times),
        checksums_equal=not wrong,
        wrong=tuple(wrong),
        place_seconds=placed.seconds,
    )
    return row, figures


def _median(found: Sequence[Tables]) -> Tables:
    def middle(values: Sequence[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return round(statistics.median(known)) if known else None

    return Tables(
        middle([t.linked for t in found]) or 0,
        middle([t.private for t in found]),
        middle([t.proportional for t in found]),
    )


def look(pids: Sequence[int]) -> Figures:
    """Ask the helper."""
    from sharedregion.footprint import footprint

    found = footprint(*pids)
    tables = {
        process.pid: Tables(process.linked_bytes, process.private_bytes, process.proportional_bytes)
        for process in found.processes
    }
    missing = set(pids) - tables.keys()
    if missing:
        raise ToolError(f"the helper said nothing about {len(missing)} of {len(pids)} workers")
    return Figures(tables, found.method, found.estimate, found.why, found.remedy)


def compare(
    source: Source,
    backends: Sequence[tuple[str, str]],
    size: int,
    workers: int,
    look: Look,
    shm: ShmSpace | None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[Row], Figures, list[str]]:
    """One row for each (backend, place), then one for multiprocessing.shared_memory, from one run.

    `look` asks the helper about processes. The last answer of the helper comes along, for what it
    says about itself; and what had to be left out, with the reason.
    """
    progress("checksums of the source")
    digests = {}
    for name in source.names:
        array = source.load(name)
        digests[name] = (array.dtype.str, array.shape, _digest(array))
    rows: list[Row] = []
    figures = Figures({}, "none")
    for backend, place in backends:
        progress(f"{backend}: {workers} workers")
        with _placed_in_region(source, backend, size, place) as placed:
            row, figures = _measure(backend, placed, digests, workers, look)
            rows.append(row)
    refusal = _stdlib_refusal(source, shm)
    if refusal:
        return rows, figures, [refusal]
    progress(f"multiprocessing.shared_memory: {workers} workers")
    with _placed_in_stdlib(source) as placed:
        row, figures = _measure(STDLIB, placed, digests, workers, look)
        rows.append(row)
    return rows, figures, []


def _stdlib_refusal(source: Source, shm: ShmSpace | None) -> str | None:
    """The standard library neither reserves nor checks: writing past what /dev/shm holds is SIGBUS."""
    needed = source.nbytes + 64 * len(source.names)
    if shm is None or not shm.writable:
        return "multiprocessing.shared_memory: there is no /dev/shm that can be written to"
    if shm.free is not None and shm.free < needed:
        return f"multiprocessing.shared_memory: it would crash, /dev/shm has only {shm.free} of {needed} bytes free"
    return None
