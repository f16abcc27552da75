"""What a worker's page tables cost, by the helper and by the kernel's own count, beside the standard library."""

import json
import subprocess
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from statistics import median

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


def kernel_count() -> int:
    """PageTables, once the counters of all processors have been added up and ended processes are gone."""
    time.sleep(0.2)
    refresh_statistics()
    total = page_tables()
    assert total is not None
    return total


def cost(
    start: Callable[..., subprocess.Popen], kind: str, name: str, files: list[tuple[int, int]]
) -> tuple[float, sr.Footprint]:
    """Bytes of PageTables for each further worker after the first, and what the helper says of all.

    The first one also makes the tables that all of them share.
    """
    started = [start(WORKER, kind, name)]
    first = kernel_count()
    started += [start(WORKER, kind, name) for _ in range(WORKERS - 1)]
    each = (kernel_count() - first) / (WORKERS - 1)
    looked = sr.footprint(*[process.pid for process in started], regions=[(name, files)] if files else [])
    assert looked.method == "walk", looked.why
    read = {process.first for process in started}
    assert len(read) == 1, "workers read different bytes"
    looked_sum = read.pop()
    for process in started:
        process.communicate("\n")
    assert kind == "idle" or int(looked_sum) > 0
    return each, looked


def figures(
    start: Callable[..., subprocess.Popen],
    kind: str,
    name: str,
    files: list[tuple[int, int]],
    limit: float,
) -> tuple[dict[str, float], sr.Footprint]:
    """What a further worker costs beyond an idle one of the same program: by the helper, and by PageTables."""
    idle_each, idle = cost(start, "idle", name, [])
    each, busy = cost(start, kind, name, files)
    # PageTables is the whole machine's: a program that starts or ends meanwhile is in it. One look
    # that agrees with the helper is a witness; several that do not are not bad luck.
    for _ in range(3):
        if abs(each - idle_each) < 8 << 20 and each - idle_each <= limit:
            break
        idle_each, idle = cost(start, "idle", name, [])
        each, busy = cost(start, kind, name, files)
    # Where the kernel happens to place libraries moves a process by some tables either way.
    own = median(p.private_bytes for p in busy.processes) - median(p.private_bytes for p in idle.processes)
    return {"private": own, "by the kernel": each - idle_each}, busy


def fill(region: sr.Region, size: int) -> None:
    """A byte pattern over `size` bytes, in pieces of 512 MiB."""
    for n in range(size // (512 << 20)):
        with region.allocate(f"part {n}", 512 << 20, "u1") as part:
            part[...] = n + 1


@pytest.mark.slow
def test_hugetlb_costs_a_worker_next_to_nothing(start, pool, unique: str) -> None:
    """4 GiB of 2 MiB pages, 16 spawned workers that touch all of it: 16 KiB or less each beyond an idle worker.

    The helper sees the four PMD tables linked by all of them, and the tables' own count agrees.
    """
    pool(2 << 20, 2048)
    with sr.create(unique, size="4 GiB", backend="hugetlb-2m", commit="lazy") as region:
        fill(region, 4 * GIB)
        beyond, looked = figures(start, "region", unique, region._segments(), 16 << 10)
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
        fill(region, size)
        assert region.stats().huge_fraction == 1.0
        beyond, _ = figures(start, "region", unique, [], (4 << 10) * 2 + (16 << 10))
        assert beyond["private"] <= (4 << 10) * 2 + (16 << 10)
        assert beyond["by the kernel"] <= (4 << 10) * 2 + (16 << 10)
    memory = SharedMemory(unique, create=True, size=size)
    try:
        np.frombuffer(memory.buf, "u1")[...] = 1
        theirs, _ = figures(start, "standard", unique, [], 8 << 20)
    finally:
        memory.unlink()
        memory.close()
    print(json.dumps({"thp": beyond, "multiprocessing.shared_memory": theirs}))
    assert theirs["by the kernel"] >= 3 << 20, "the peer's cost has changed: the README's table has to"
    assert theirs["private"] >= 4 << 20
