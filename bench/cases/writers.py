"""Small puts and deletes by eight processes at once, beside one alone: contention must not cost throughput."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from typing import Any

import numpy as np

import sharedregion as sr
from sharedregion.bench.cases.report import say

SECONDS = 2.0
ROUNDS = 3


def _write(name: str, start: Any, results: Any, number: int) -> None:
    value = np.arange(8.0)
    key = f"writer {number}"
    with sr.attach(name, writable=True) as region:
        start.wait()
        count, until = 0, time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            for _ in range(100):
                region[key] = value
                del region[key]
            count += 100
    results.put(count)


def _rate(processes: int) -> float:
    context = multiprocessing.get_context("spawn")
    with sr.create(size="64 MiB", backend="thp") as region:
        start, results = context.Barrier(processes), context.Queue()
        workers = [
            context.Process(target=_write, args=(region.name, start, results, n)) for n in range(processes)
        ]
        for worker in workers:
            worker.start()
        total = sum(results.get() for _ in workers)
        for worker in workers:
            worker.join()
        region._check()
        return total / SECONDS


def main() -> None:
    """Pairs of put and delete a second, in total."""
    rates: dict[int, list[float]] = {1: [], 8: []}
    for turn in range(ROUNDS):
        for processes in (1, 8) if turn % 2 else (8, 1):
            rates[processes].append(_rate(processes))
    one, eight = statistics.median(rates[1]), statistics.median(rates[8])
    say("one process", one, "pairs/s")
    say("eight processes in total", eight, "pairs/s")
    say("eight : one", eight / one, "times")


if __name__ == "__main__":
    main()
