"""A region of a million objects: attaching scans nothing, and looking all of them up costs few page tables."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import numpy as np

import sharedregion as sr
from sharedregion.bench.cases.report import say

COUNT = 1_000_000

WORKER = """
import sys, time, sharedregion as sr
name, count = sys.argv[1], int(sys.argv[2])
if name != "idle":
    started = time.perf_counter()
    region = sr.attach(name)
    print((time.perf_counter() - started) * 1e3, flush=True)
    started = time.perf_counter()
    for n in range(count):
        assert region[f"object {n}"][0] == n
    print((time.perf_counter() - started) / max(count, 1) * 1e6, flush=True)
else:
    # The same program and the same memory of its own, without a region.
    names = 0
    for n in range(count): names += len(f"object {n}")
    print(0, flush=True); print(0, flush=True)
sys.stdin.readline()
"""


def _worker(name: str, count: int) -> tuple[float, float, int]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    attach, lookup = float(process.stdout.readline()), float(process.stdout.readline())
    tables = sr.footprint(process.pid).processes[0].private_bytes
    process.communicate("\n")
    return attach, lookup, tables


def main() -> None:
    """Milliseconds to attach, microseconds a lookup, bytes of page tables beyond an idle worker's."""
    with sr.create("bench-million", size="1 GiB", backend="thp", replace=True) as region:
        started = time.perf_counter()
        for n in range(COUNT):
            region[f"object {n}"] = np.array([n])
        say("placing one of them", (time.perf_counter() - started) / COUNT * 1e6, "us")
        idle = statistics.median(_worker("idle", 1000)[2] for _ in range(5))
        attach = [_worker(region.name, 0) for _ in range(9)]
        say("attach", statistics.median(row[0] for row in attach), "ms")
        looked = [_worker(region.name, COUNT) for _ in range(3)]
        say("looking one of a million up", statistics.median(row[1] for row in looked), "us")
        say(
            "page tables of a worker that looked all up",
            (statistics.median(row[2] for row in looked) - idle) / 1024,
            "KiB beyond an idle one",
        )


if __name__ == "__main__":
    main()
