"""The story at full size: a 300 GiB region and 1500 clients, on a machine of any size.

The data is sparse and the page tables are real. With linked tables one 2 MiB page in each GiB makes
the kernel build every table that a full region would have; with 4 KiB pages one page in each 2 MiB
does. So 300 GiB need 600 MiB of memory on either side, and the difference is in the tables alone.

It changes the machine for a while: it reserves huge pages and makes a memory control group. A
guardian process undoes both however this process ends, SIGKILL included.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sharedregion._guardian import Guardian, memory_group, reserve, write
from sharedregion._kernel import procfs
from sharedregion._kernel.facts import Facts
from sharedregion._native import Mapping, Segment
from sharedregion._signals import become_child, deferred
from sharedregion._sizes import format_size
from sharedregion.errors import ToolError

__all__ = [
    "Grown",
    "Outcome",
    "Plan",
    "Refused",
    "SmallSide",
    "linked_side",
    "plan",
    "run",
    "sentences",
    "small_side",
]

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE = 4 * KIB
HUGE = 2 * MIB
ENTRY = 8

# An idle forked client: its own tables, and the pages that it soon copies.
_IDLE_CLIENT = MIB

#: Clients with 4 KiB pages that a plan has room for at least.
FEW = 3

#: What is asked about processes while they live, by pid.
Look = Callable[[Sequence[int]], Any]

# What a client keeps mapped: a mapping ends with its object.
_mapped: list[Mapping] = []


# ---- Arithmetic: pure -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How large the story is. `limit` is the memory that 4 KiB clients may use, None to leave them out."""

    size: int = 300 * GIB
    clients: int = 1500
    limit: int | None = 4 * GIB

    @property
    def huge_pages(self) -> int:
        """2 MiB pages that hold the sparse data: one in each GiB."""
        return -(-self.size // GIB)

    @property
    def pool_bytes(self) -> int:
        """What those pages take."""
        return self.huge_pages * HUGE

    @property
    def small_pages(self) -> int:
        """4 KiB pages that hold the sparse data of the other side: one in each 2 MiB."""
        return -(-self.size // HUGE)

    @property
    def entries_bytes(self) -> int:
        """The entries that map the region with 4 KiB pages, in one client."""
        return self.size // PAGE * ENTRY

    @property
    def tables_bytes(self) -> int:
        """The tables of one client with 4 KiB pages: those that hold the entries, and those above them."""
        levels = (-(-self.size // HUGE), -(-self.size // GIB), -(-self.size // (512 * GIB)))
        return sum(levels) * PAGE

    @property
    def all_tables_bytes(self) -> int:
        """The tables of all clients with 4 KiB pages."""
        return self.tables_bytes * self.clients

    @property
    def lets_live(self) -> int | None:
        """How many 4 KiB clients the limit should let live, their common data taken off."""
        return (
            None
            if self.limit is None
            else max(0, (self.limit - self.small_pages * PAGE) // self.tables_bytes)
        )


@dataclass(frozen=True)
class Refused:
    """Why the story cannot be told here, and what would help."""

    reason: str
    remedy: str | None = None


def plan(facts: Facts, size: int = 300 * GIB, clients: int = 1500) -> Plan | Refused:
    """A plan that this machine can carry, with a limit for the 4 KiB side that it does not feel."""
    if not facts.root_user:
        return Refused("reserving huge pages and making a control group need root", "sudo sharedregion demo")
    if not facts.supported or HUGE not in facts.pools:
        return Refused("this kernel has no 2 MiB huge pages")
    bare = Plan(size, clients, None)
    room = facts.memory_available or 0
    for limit in facts.memory_limits:
        room = min(room, limit.headroom)
    needed = bare.pool_bytes + clients * _IDLE_CLIENT
    if room < needed:
        return Refused(f"it needs {format_size(needed)} of memory, {format_size(room)} are available")
    # Two clients at least must live, or there is nothing to see. Both sides run one after the other.
    least = bare.small_pages * PAGE + FEW * bare.tables_bytes
    limit_bytes = max(least, min(4 * GIB, room // 4))
    return Plan(size, clients, limit_bytes if limit_bytes <= room // 2 else None)


@dataclass(frozen=True)
class SmallSide:
    """The 4 KiB side: who lived under the limit. `tables` is VmPTE of one client, in bytes.

    `reason` says why there was no limit: then a few clients ran without one.
    """

    limit: int
    lived: int
    killed: bool
    tables: int | None
    reason: str | None = None
    seen: Any = None


@dataclass(frozen=True)
class Outcome:
    """What was measured. Bytes of PageTables for all clients; seconds until all had touched everything."""

    plan: Plan
    idle_bytes: int
    linked_bytes: int
    seconds: float
    small: SmallSide | None

    @property
    def per_client(self) -> float:
        """Page tables of one client beyond an idle one."""
        return (self.linked_bytes - self.idle_bytes) / self.plan.clients

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        small = self.small
        return {
            "size": self.plan.size,
            "clients": self.plan.clients,
            "hugetlb": {
                "pool_bytes": self.plan.pool_bytes,
                "page_tables_bytes": self.linked_bytes,
                "idle_page_tables_bytes": self.idle_bytes,
                "per_client_bytes": self.per_client,
                "seconds": self.seconds,
            },
            "4k": {
                "expected_per_client_bytes": self.plan.tables_bytes,
                "expected_bytes": self.plan.all_tables_bytes,
                "limit_bytes": small.limit if small else None,
                "lived": small.lived if small else None,
                "killed": small.killed if small else None,
                "per_client_bytes": small.tables if small else None,
                "reason": small.reason if small else "no memory for it",
            },
        }


def sentences(outcome: Outcome) -> list[str]:
    """The outcome in words, with the arithmetic."""
    made = outcome.plan
    four = (
        f"With 4 KiB pages: {format_size(made.size)} / 4 KiB x {ENTRY} B = {format_size(made.entries_bytes)} of entries, "
        f"{format_size(made.tables_bytes)} of tables in each client; x {made.clients} clients = "
        f"{format_size(made.all_tables_bytes)}."
    )
    linked = (
        f"With linked tables: {made.clients} clients that reach all of {format_size(made.size)} took "
        f"{format_size(outcome.linked_bytes)} of page tables in all, {made.clients} idle ones "
        f"{format_size(outcome.idle_bytes)}: {_per_client(outcome.per_client)} ({outcome.seconds:.1f} s, from "
        f"{format_size(made.pool_bytes)} of huge pages)."
    )
    told = [four, linked]
    small = outcome.small
    if small is None:
        told.append("The 4 KiB side was left out: there is not enough memory to let two clients live.")
        return told
    each = f", each with {format_size(small.tables)} of tables" if small.tables else ""
    end = "the kernel killed the next one" if small.killed else "no more were tried"
    if small.reason:
        told.append(f"With 4 KiB pages: {small.lived} clients lived{each}; {end}, since {small.reason}.")
    else:
        told.append(
            f"With 4 KiB pages and a memory limit of {format_size(small.limit)}: {small.lived} clients lived{each}; {end}."
        )
    return told


def _per_client(size: float) -> str:
    # PageTables moves a little by itself, so the difference may fall below zero.
    return (
        f"{format_size(size)} a client beyond its idle cost"
        if size > 0
        else "nothing a client beyond its idle cost"
    )


# ---- Clients --------------------------------------------------------------------------------------


class _Clients:
    """Forked processes that do one thing, say that it is done, and wait. They end with the host."""

    def __init__(self, guardian: Guardian) -> None:
        self.pids: list[int] = []
        self._guardian = guardian
        self._gate, self._gate_writer = os.pipe()
        self._ready, self._ready_writer = os.pipe()

    def start(self, work: Callable[[], None]) -> int:
        """Fork one client."""
        try:
            with deferred():
                pid = os.fork()
                if pid == 0:
                    self._live(work)
                self.pids.append(pid)
        except OSError as error:
            raise ToolError(
                f"only {len(self.pids)} clients could be started: {error.strerror}",
                "raise the limit on processes (ulimit -u, pids.max)",
            ) from None
        return pid

    def _live(self, work: Callable[[], None]) -> NoReturn:
        code = 1
        try:
            become_child()
            # Ends of pipes that would keep the host's death from being seen.
            os.close(self._guardian.pipe)
            os.close(self._gate_writer)
            work()
            os.write(self._ready_writer, b".")
            os.read(self._gate, 1)
            code = 0
        finally:
            os._exit(code)

    def wait(self, count: int) -> int | None:
        """Until `count` clients have said that they are done; the wait status of one that died instead."""
        while count:
            if select.select([self._ready], [], [], 0.1)[0]:
                count -= len(os.read(self._ready, count))
                continue
            for pid in self.pids:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.pids.remove(pid)
                    return status
        return None

    def end(self) -> None:
        """Let all go and wait for them; those that do not hear are killed."""
        for descriptor in (self._gate_writer, self._gate, self._ready, self._ready_writer):
            os.close(descriptor)
        deadline = time.monotonic() + 10
        for pid in self.pids:
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    break
                time.sleep(0.001)
        self.pids = []


@contextlib.contextmanager
def _clients(guardian: Guardian) -> Iterator[_Clients]:
    crew = _Clients(guardian)
    try:
        yield crew
    finally:
        crew.end()


@dataclass(frozen=True)
class Grown:
    """What so many clients added to PageTables, how long it took, and what `look` said about them."""

    page_tables: int
    seconds: float
    seen: Any = None


def _fork_all(guardian: Guardian, count: int, work: Callable[[], None], look: Look | None = None) -> Grown:
    before = procfs.page_tables() or 0
    start = time.perf_counter()
    with _clients(guardian) as crew:
        for _ in range(count):
            crew.start(work)
        status = crew.wait(count)
        if status is not None:
            raise ToolError(f"a client of the story ended before its work was done (wait status {status})")
        seconds = time.perf_counter() - start
        grown = (procfs.page_tables() or 0) - before
        return Grown(grown, seconds, look(crew.pids) if look else None)


# ---- Both sides -----------------------------------------------------------------------------------


def linked_side(
    guardian: Guardian,
    made: Plan,
    kind: str = "hugetlb-2m",
    *,
    step: int = GIB,
    group: str | None = None,
    look: Look | None = None,
) -> tuple[Grown, Grown]:
    """(idle, linked): clients that map nothing, and clients that reach all of a segment of that kind.

    There is a page in each `step` bytes; 2 MiB makes it dense, or, of 4 KiB pages, builds all their
    tables. Clients go into the control group, if one is given; the data was made outside of it. What
    `look` says about their pids comes along.
    """
    size = -(-made.size // step) * step
    if kind == "hugetlb-2m":
        reserve(guardian, size // step)
    segment = Segment.create(kind, size, "memfd")
    if kind != "shm":
        # Small pages come when they are first read.
        for offset in range(0, size, step):
            segment.commit(offset, HUGE)
    # A client's mapping is its own; nothing of this one is to be counted.
    segment.unmap()

    def idle() -> None:
        if group is not None:
            write(f"{group}/cgroup.procs", os.getpid())

    def reach() -> None:
        idle()
        _read(segment, size, step)

    without = _fork_all(guardian, made.clients, idle, look)
    return without, _fork_all(guardian, made.clients, reach, look)


def _read(segment: Segment, size: int, step: int) -> None:
    """Map the segment for reading, as a worker does, and leave it mapped until the process ends."""
    mapping = segment.map(False)
    mapping.touch(0, size, step)
    _mapped.append(mapping)


def small_side(
    guardian: Guardian, made: Plan, limit: int, *, dense: bool = False, look: Look | None = None
) -> SmallSide:
    """Clients with 4 KiB pages under that limit, one after the other until the kernel kills one.

    With `dense` every page is there, made outside of the limit, and all clients are started. Where no limit
    can be made, `FEW` are started: more of them would take the memory of the whole machine.
    """
    group, reason = None, None
    count = made.clients if dense else min(made.clients, (made.lets_live or 0) + 4)
    try:
        group = memory_group(guardian, limit, f"sharedregion-story-{os.getpid()}")
    except (OSError, ToolError) as error:
        reason, count = str(error), min(count, FEW)
    segment = Segment.create("shm", made.size, "memfd")
    if dense:
        for offset in range(0, made.size, GIB):
            segment.commit(offset, min(GIB, made.size - offset))
    segment.unmap()

    def touch_all() -> None:
        if group is None:
            _read(segment, made.size, HUGE)
            return
        # The newcomer is the one to be killed, not one that has already lived.
        write("/proc/self/oom_score_adj", 1000)
        write(f"{group}/cgroup.procs", os.getpid())
        _read(segment, made.size, HUGE)
        write("/proc/self/oom_score_adj", 0)

    killed = False
    with _clients(guardian) as crew:
        tables = None
        for _ in range(count):
            pid = crew.start(touch_all)
            status = crew.wait(1)
            if status is not None:
                killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
                if not killed:
                    raise ToolError(f"a client of the story failed (wait status {status})")
                break
            tables = procfs.process_status(pid).get("VmPTE")
        seen = look(crew.pids[:1]) if look and crew.pids else None
        return SmallSide(limit, len(crew.pids), killed, tables, reason, seen)


def run(made: Plan, progress: Callable[[str], None] = lambda _: None) -> Outcome:
    """Tell the story. Whatever happens, the machine is given back as it was."""
    guardian = Guardian()
    try:
        progress(f"{made.clients} clients, {format_size(made.size)}, linked tables")
        idle, linked = linked_side(guardian, made)
        small = None
        if made.limit is not None:
            progress(f"4 KiB pages, under a memory limit of {format_size(made.limit)}")
            small = small_side(guardian, made, made.limit)
        return Outcome(made, idle.page_tables, linked.page_tables, linked.seconds, small)
    finally:
        guardian.undo()
