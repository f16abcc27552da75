"""Processes that change their page tables while they are looked at."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from sharedregion.footprint import footprint

PAGE = 4096
GIB = 1 << 30
SPACE = 8 * GIB
TABLES = SPACE // (2 << 20)

# Maps 8 GiB, touches a page for every PTE table and fills it with ones, unmaps, again. What the
# kernel frees here as a table it soon hands out as a page full of ones: read as a table, that has 512
# entries, where a true one of this process has one.
CHURN = f"""
import mmap
ones = b"\\xff" * 4096
def cycle(size):
    m = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    m.madvise(mmap.MADV_NOHUGEPAGE)
    for i in range(0, size, 2 << 20):
        m[i:i + 4096] = ones
    m.close()
cycle(1 << 30)    # what its own code and heap need is there from now on
print("ready", flush=True)
sys.stdin.readline()
while True:
    cycle({SPACE})
"""
STILL = """
import mmap
m = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
m.madvise(mmap.MADV_NOHUGEPAGE)
for i in range(0, 1 << 30, 2 << 20):
    m[i] = 1
ready()
"""
LOOKS = 40


def look_with_pauses(helper: str, chance: random.Random, *pids: int) -> dict[str, Any]:
    """The answer of a helper that is stopped for a while every few milliseconds."""
    command = [helper, "--method", "walk", "--leaves", *map(str, pids)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            time.sleep(chance.uniform(0.002, 0.006))
            process.send_signal(signal.SIGSTOP)
            time.sleep(chance.uniform(0.0, 0.02))
            process.send_signal(signal.SIGCONT)
        answer: dict[str, Any] = json.loads(process.communicate()[0])
    return answer


def go(process: Any) -> int:
    process.stdin.write(b"\n")
    process.stdin.flush()
    pid: int = process.pid
    return pid


@pytest.mark.usefixtures("exact")
@pytest.mark.slow
def test_a_churning_process_never_yields_tables_that_are_not_its_own(
    worker: Callable[..., Any], helper: str
) -> None:
    """8 GiB mapped, touched and unmapped in a loop, twice over: no other page is ever taken for a table.

    The helper is stopped for a while again and again, so that all that it knows is old when it goes on.
    """
    still = worker(STILL).pid
    churners = [worker(CHURN) for _ in range(2)]
    churning = [process.pid for process in churners]
    first = {process.pid: process.to_dict() for process in footprint(still, *churning, leaves=True).processes}
    for process in churners:
        go(process)
    chance = random.Random(3)
    changed = seen = 0
    for _ in range(LOOKS):
        found = look_with_pauses(helper, chance, still, *churning)
        changed += found["looked_at"]["entries_changed"]
        by_pid = {process["pid"]: process for process in found["processes"]}
        for pid in churning:
            process, idle = by_pid[pid], first[pid]
            tables = process["tables"]["pte"] - idle["tables"]["pte"]
            seen += tables > TABLES // 8
            # One table and one page for each 2 MiB, a PMD table for each GiB, a few for the heap.
            assert tables <= TABLES + 4
            assert process["tables"]["pmd"] - idle["tables"]["pmd"] <= SPACE // GIB + 2
            # A table of this process has one entry, but for those of its code and heap, which stay.
            assert process["leaves"]["full_tables"] <= idle["leaves"]["full_tables"]
            assert process["leaves"]["4k"] - idle["leaves"]["4k"] <= tables + 64
            assert process["leaves"]["2m"] == process["leaves"]["1g"] == 0
            # A table that went from one process to another is not one that both share.
            assert process["shared_bytes"] == 0
        # Whoever holds still is read to the byte, whatever goes on around it. (Entries may get fewer,
        # where the kernel takes back a page of a file.)
        for key in ("linked_bytes", "moving", "shared_bytes", "tables"):
            assert by_pid[still][key] == first[still][key]
        assert by_pid[still]["leaves"]["4k"] <= first[still]["leaves"]["4k"]
    # Otherwise the race that this is about did not take place.
    assert seen > LOOKS // 4
    assert changed > 0


@pytest.mark.usefixtures("exact")
def test_what_would_not_hold_still_is_said(worker: Callable[..., Any]) -> None:
    """A process whose count changes under each of several looks is reported as moving, with its figures."""
    churning = go(worker(CHURN))
    found = []
    while len(found) < 30 or not any(process.moving > 0 for process in found):
        found.append(footprint(churning).processes[0])
        assert len(found) < 1000
    # The others agree with the kernel's count, which did not change during the look.
    for process in found:
        if process.moving == 0:
            assert process.linked_bytes == process.vm_pte_bytes + PAGE * process.tables.pgd


@pytest.mark.usefixtures("exact")
def test_a_process_that_ends_is_gone_or_whole(worker: Callable[..., Any]) -> None:
    """Processes that die during the look are in `gone`, or were read before: never half."""
    idle = worker("ready()")
    reference = footprint(idle.pid).processes[0]
    for _ in range(10):
        dying = [worker("ready()") for _ in range(8)]
        for process in dying[::2]:
            process.kill()
        found = footprint(*[process.pid for process in dying])
        assert {p.pid for p in found.processes} | set(found.gone) == {process.pid for process in dying}
        for seen in found.processes:
            if seen.moving == 0:
                assert seen.linked_bytes == seen.vm_pte_bytes + PAGE * seen.tables.pgd
        for process in dying[1::2]:
            assert process.pid in {p.pid for p in found.processes}
    assert footprint(idle.pid).processes[0].linked_bytes == reference.linked_bytes
