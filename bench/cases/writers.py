"""Operations by several processes at once: contention must not cost throughput."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from sharedregion.bench.case import MIB, Bars, Case, Job, Lines, Metric, Sample, Setting
from sharedregion.bench.ours import subject, unusable_reason

OURS = ("thp",)
#: Operation, bytes of an object, numbers of processes.
KINDS = (("put-delete", 64, (1, 2, 8)), ("put-delete", MIB, (1, 8)), ("get", 64, (1, 8)))


def plan(setting: Setting) -> list[Job]:
    """One process, then more, in turn."""
    seconds = 0.1 if setting.quick else 1.0
    return [
        Job(
            CASE.name,
            name,
            {"operation": operation, "object": size, "processes": count},
            # More where a budget hangs on it, and of the peer that comes nearest.
            rounds=3 if name in (*OURS, "lmdb") and not setting.quick else 1,
            seconds=seconds + 0.6 + 0.15 * count + (8 if name == "ray" else 0),
            cannot=unusable_reason(name, setting) if name in OURS else None,
        )
        for operation, size, counts in (KINDS[:1] if setting.quick else KINDS)
        for count in ((1, 2) if setting.quick else counts)
        for name in [*OURS, *setting.peers]
    ]


def _work(job: Job, ticket: Any, seconds: float, start: Any, results: Any, number: int) -> None:
    value = np.arange(int(job.params["object"]) / 8)
    key = f"writer{number}"
    peer = subject(job.subject)
    assert peer.join is not None
    with peer.join(ticket) as store:

        def once() -> None:
            store.put(key, value)
            store.delete(key)

        def get() -> None:
            store.look(key)

        store.put(key, value)
        what = get if job.params["operation"] == "get" else once
        start.wait()
        count, began = 0, time.perf_counter()
        until = began + seconds
        while (now := time.perf_counter()) < until:
            for _ in range(20):
                what()
            count += 20
        results.put(count / (now - began))


def _next(workers: Sequence[BaseProcess], results: Any) -> float:
    """The next result; a worker that failed gives none, and the others wait for it."""
    while results.empty():
        for one in workers:
            if one.exitcode:
                raise RuntimeError(f"a process ended with {one.exitcode}")
        time.sleep(0.005)
    return float(results.get())


def measure(job: Job) -> Iterator[Sample]:
    """Operations a second, of all processes together."""
    context = multiprocessing.get_context("spawn")
    processes = int(job.params["processes"])
    peer = subject(job.subject)
    assert peer.store is not None
    seconds = 0.1 if job.quick else 1.0
    with peer.store(64 * MIB, (job.prefix, job.folder)) as store:
        start, results = context.Barrier(processes), context.Queue()
        workers = [
            context.Process(target=_work, args=(job, store.ticket, seconds, start, results, n), daemon=True)
            for n in range(processes)
        ]
        for worker in workers:
            worker.start()
        rates = [_next(workers, results) for _ in workers]
        for worker in workers:
            worker.join()
        yield "rate", sum(rates)
        yield "least", min(rates)


CASE = Case(
    name="writers",
    title="puts, deletes and gets by processes at once, in all",
    plan=plan,
    measure=measure,
    metrics={
        "rate": Metric("/s", "all", more=True),
        "least": Metric("/s", "the slowest", more=True),
    },
    charts=(
        Lines(
            "rate",
            "processes",
            "Pairs of put and delete of 64 bytes a second, all processes together",
            {"operation": "put-delete", "object": 64},
        ),
        Bars(
            "rate",
            "Pairs of put and delete of {object} a second, by {processes} processes",
            {"operation": "put-delete", "object": MIB, "processes": 8},
            log=True,
        ),
        Bars(
            "rate",
            "Gets of 64 bytes a second, by {processes} processes",
            {"operation": "get", "object": 64, "processes": 8},
            log=True,
        ),
    ),
    notes=(
        "Pairs of put and delete, or gets, a second; each process has a name of its own. A get reads one number.",
    ),
)
