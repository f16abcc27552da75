"""Small puts and deletes by several processes at once: contention must not cost throughput."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from sharedregion.bench.case import MIB, Case, Job, Lines, Metric, Sample, Setting
from sharedregion.bench.ours import subject, unusable_reason

OURS = ("thp",)
COUNTS = (1, 2, 8)


def plan(setting: Setting) -> list[Job]:
    """One process, then more, in turn."""
    counts = (1, 8) if setting.quick else COUNTS
    seconds = 0.3 if setting.quick else 1.0
    return [
        Job(
            CASE.name,
            name,
            {"processes": count},
            rounds=3 if name in OURS and not setting.quick else 1,
            seconds=seconds + 0.6 + 0.15 * count,
            cannot=unusable_reason(name, setting) if name in OURS else None,
        )
        for count in counts
        for name in [*OURS, *setting.peers]
    ]


def _write(name: str, ticket: Any, seconds: float, start: Any, results: Any, number: int) -> None:
    value = np.arange(8.0)
    key = f"writer{number}"
    peer = subject(name)
    assert peer.join is not None
    with peer.join(ticket) as store:
        start.wait()
        count, began = 0, time.perf_counter()
        until = began + seconds
        while (now := time.perf_counter()) < until:
            for _ in range(20):
                store.put(key, value)
                store.delete(key)
            count += 20
        results.put(count / (now - began))


def measure(job: Job) -> Iterator[Sample]:
    """Pairs of put and delete a second, of all processes together."""
    context = multiprocessing.get_context("spawn")
    processes = int(job.params["processes"])
    peer = subject(job.subject)
    assert peer.store is not None
    seconds = 0.3 if job.quick else 1.0
    with peer.store(64 * MIB, (job.prefix, job.folder)) as store:
        start, results = context.Barrier(processes), context.Queue()
        workers = [
            context.Process(target=_write, args=(job.subject, store.ticket, seconds, start, results, n))
            for n in range(processes)
        ]
        for worker in workers:
            worker.start()
        rates = [results.get(timeout=60) for _ in workers]
        for worker in workers:
            worker.join()
        yield "rate", sum(rates)
        yield "least", min(rates)


CASE = Case(
    name="writers",
    title="puts and deletes by processes at once, in all",
    plan=plan,
    measure=measure,
    metrics={
        "rate": Metric("/s", "pairs of put and delete", more=True),
        "least": Metric("/s", "of the slowest process", more=True),
    },
    charts=(Lines("rate", "processes", "Pairs of put and delete a second, all processes together"),),
    notes=("64 bytes; each process writes under a name of its own.",),
)
