"""What a worker's page tables cost, by the helper and by the kernel's own count, beside the standard library."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

import sharedregion as sr
from sharedregion._kernel.procfs import page_tables, refresh_statistics

pytestmark = [pytest.mark.root]

GIB = 1 << 30
WORKERS = 16

WORKER = """
import sys, mmap, json
import numpy as np, sharedregion as sr
from multiprocessing.shared_memory import SharedMemory
from multiprocessing import resource_tracker
kind, name = sys.argv[1:3]
total = 0
if kind == "region":
    region = sr.attach(name)
    for array in region.values():
        total += int(array[::4096].sum(dtype="u8"))
elif kind == "standard":
    resource_tracker.register = lambda *args: None
    memory = SharedMemory(name)
    array = np.frombuffer(memory.buf, "u1")
    total = int(array[::4096].sum(dtype="u8"))
print(total, flush=True)
sys.stdin.readline()
array = None
"""


@contextmanager
def workers(start: Callable[..., subprocess.Popen], kind: str, name: str, count: int) -> Iterator[list[subprocess.Popen]]:
    """`count` workers that have read a byte of every 4 KiB of what `name` names."""
    started = [start(WORKER, kind, name) for _ in range(count)]
    yield started
    for process in started:
        process.communicate("\n")


def kernel_count() -> int:
    """PageTables, once the counters of all processors have been added up and ended processes are gone."""
    time.sleep(0.2)
    refresh_statistics()
    total = page_tables()
    assert total is not None
    return total


def figures(start: Callable[..., subprocess.Popen], kind: str, name: str) -> tuple[dict, int, sr.Footprint, str]:
    """One more worker, and sixteen, beyond the same number of idle ones: by the helper, and by PageTables."""
    before = kernel_count()
    with workers(start, "idle", name, WORKERS) as idle:
        idle_each = (kernel_count() - before) / WORKERS
        looked = sr.footprint(*[process.pid for process in idle])
        idle_linked = max(p.linked_bytes for p in looked.processes)
    before = kernel_count()
    with workers(start, kind, name, WORKERS) as busy:
        # The first of them pays for tables that all share: what matters is a further one.
        each = (kernel_count() - before) / WORKERS
        regions = [(name, sr.attach(name)._segments())] if kind == "region" else []
        looked = sr.footprint(*[process.pid for process in busy], regions=regions)
        sums = {process.first for process in busy}
    assert len(sums) == 1, "workers read different bytes"
    assert looked.method == "walk", looked.why
    beyond = {
        "private": max(p.private_bytes for p in looked.processes) - idle_linked,
        "by the kernel": each - idle_each,
    }
    return beyond, idle_linked, looked, sums.pop()


def fill(region: sr.Region, size: int) -> int:
    """A byte pattern over `size` bytes in pieces of 512 MiB; the sum of what workers will read."""
    total = 0
    for n in range(size // (512 << 20)):
        with region.allocate(f"part {n}", 512 << 20, "u1") as part:
            part[...] = n + 1
            total += int(part[::4096].sum(dtype="u8"))
    return total


@pytest.mark.slow
def test_hugetlb_costs_a_worker_next_to_nothing(start, pool, unique: str) -> None:
    """4 GiB of 2 MiB pages, 16 spawned workers that touch all of it: 16 KiB or less each beyond an idle worker.

    The helper sees the four PMD tables linked by all of them, and the tables' own count agrees.
    """
    pool(2 << 20, 2048)
    with sr.create(unique, size="4 GiB", backend="hugetlb-2m", commit="lazy") as region:
        expected = fill(region, 4 * GIB)
        beyond, _, looked, read = figures(start, "region", unique)
        assert int(read) == expected
        print(json.dumps(beyond))
        assert beyond["private"] <= 16 << 10
        assert beyond["by the kernel"] <= 16 << 10
        for process in looked.processes:
            mine = next(r for r in process.regions if r.region == unique)
            assert mine.shared_bytes >= 4 * 4096, "the PMD tables of four GiB are linked"
            assert mine.alone_gib == 0


@pytest.mark.slow
def test_thp_beside_the_standard_library(start, unique: str) -> None:
    """A 2 GiB region of thp: 4 KiB per GiB + 16 KiB a worker; multiprocessing.shared_memory: 2 MiB per GiB."""
    size = 2 * GIB
    with sr.create(unique, size=size + (64 << 20), backend="thp") as region:
        expected = fill(region, size)
        assert region.stats().huge_fraction == 1.0
        beyond, _, _, read = figures(start, "region", unique)
        assert int(read) == expected
        assert beyond["private"] <= (4 << 10) * 3 + (16 << 10)
        assert beyond["by the kernel"] <= (4 << 10) * 3 + (16 << 10)
    memory = SharedMemory(unique, create=True, size=size)
    try:
        np.frombuffer(memory.buf, "u1")[...] = 1
        theirs, _, _, _ = figures(start, "standard", unique)
    finally:
        memory.unlink()
        memory.close()
    print(json.dumps({"thp": beyond, "multiprocessing.shared_memory": theirs}))
    assert theirs["by the kernel"] >= 4 << 20, "the peer's cost has changed: the README's table has to"
    assert theirs["private"] >= 4 << 20
