"""One large array: into fresh memory, and into memory that was there.

A virtual machine's first touch of a page measures its hypervisor, so that as much memory as will be
used is touched and freed first, and the subjects take turns.
"""

from __future__ import annotations

import mmap
import statistics
import time
from multiprocessing.shared_memory import SharedMemory

import numpy as np

import sharedregion as sr
from sharedregion.bench.cases.report import say

SIZE = 1 << 30
ROUNDS = 5


def _warm_host(source: np.ndarray) -> None:
    with mmap.mmap(-1, 2 * SIZE) as memory:
        for at in range(0, 2 * SIZE, 4096):
            memory[at] = 1


def _standard(source: np.ndarray) -> float:
    started = time.perf_counter()
    memory = SharedMemory(create=True, size=SIZE)
    array = np.frombuffer(memory.buf, "u1")
    array[:] = source
    took = time.perf_counter() - started
    del array
    memory.close()
    memory.unlink()
    return took


def _region(source: np.ndarray) -> tuple[float, float]:
    started = time.perf_counter()
    with sr.create(size=SIZE + (4 << 20), backend="thp") as region:
        region["x"] = source
        fresh = time.perf_counter() - started
        del region["x"]
        started = time.perf_counter()
        region["x"] = source
        return fresh, time.perf_counter() - started


def _memcpy(source: np.ndarray) -> float:
    target = np.empty(SIZE, "u1")
    target[:] = 1
    started = time.perf_counter()
    target[:] = source
    return time.perf_counter() - started


def main() -> None:
    """Rates in GiB/s, medians of rounds in turn, and their ratios."""
    source = np.ones(SIZE, "u1")
    _warm_host(source)
    _standard(source), _region(source)
    times: dict[str, list[float]] = {
        "shared_memory, fresh": [],
        "region, fresh": [],
        "region, warm": [],
        "memcpy": [],
    }
    for turn in range(ROUNDS):
        order = [0, 1, 2] if turn % 2 else [2, 1, 0]
        for which in order:
            if which == 0:
                times["shared_memory, fresh"].append(_standard(source))
            elif which == 1:
                fresh, warm = _region(source)
                times["region, fresh"].append(fresh)
                times["region, warm"].append(warm)
            else:
                times["memcpy"].append(_memcpy(source))
    rates = {name: SIZE / (1 << 30) / statistics.median(values) for name, values in times.items()}
    for name, rate in rates.items():
        low, high = SIZE / (1 << 30) / max(times[name]), SIZE / (1 << 30) / min(times[name])
        say(name, rate, f"GiB/s, {low:.2f} to {high:.2f}")
    say("region fresh : shared_memory fresh", rates["region, fresh"] / rates["shared_memory, fresh"], "times")
    say("region warm : memcpy", rates["region, warm"] / rates["memcpy"], "times")


if __name__ == "__main__":
    main()
