"""How long single operations take, from the quickest to the slowest: small arrays and large ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from sharedregion.bench.against import Values
from sharedregion.bench.case import KIB, MIB, Bars, Case, Job, Metric, Sample, Setting
from sharedregion.bench.ours import subject, unusable_reason

OURS = ("thp",)
OPERATIONS = ("put", "get", "replace", "delete")


def plan(setting: Setting) -> list[Job]:
    """Each size of object; all operations of it in one process."""
    sizes = (64,) if setting.quick else (64, MIB)
    return [
        Job(
            CASE.name,
            name,
            {"object": size},
            rounds=1 if setting.quick or name == "ray" else 3,
            memory=512 * MIB,
            seconds=0.8 if setting.quick else 2,
            cannot=unusable_reason(name, setting) if name in OURS else None,
        )
        for size in sizes
        for name in [*OURS, *setting.peers]
    ]


def _times(what: Callable[[int], object], count: int) -> Values:
    clock = time.perf_counter_ns
    taken = np.empty(count)
    for number in range(count):
        started = clock()
        what(number)
        taken[number] = clock() - started
    return taken / 1e9


def measure(job: Job) -> Iterator[Sample]:
    """Each call by itself, on the clock; what reading the clock takes is in it."""
    size = int(job.params["object"])
    value = np.arange(size / 8)
    limit = 0.1 if job.quick else 0.5
    peer = subject(job.subject)
    assert peer.store is not None
    with peer.store(max(64 * MIB, 96 * size), (job.prefix, job.folder)) as store:
        # As many as fit into the time, by a first few that are thrown away.
        started = time.perf_counter()
        for _ in range(8):
            store.put("warm", value)
            store.look("warm")
            store.delete("warm")
        count = int(min(20_000, max(32, 24 * limit / (time.perf_counter() - started))))
        held = min(count, 64 if size > 64 * KIB else 512)
        for number in range(held):
            store.put(f"x{number}", value)
        found = {
            "get": _times(lambda n: store.look(f"x{n % held}"), count),
            "replace": _times(lambda n: store.put(f"x{n % held}", value), count),
        }
        puts, deletes = [], []
        for _ in range(-(-count // held)):
            deletes.append(_times(lambda n: store.delete(f"x{n}"), held))
            puts.append(_times(lambda n: store.put(f"x{n}", value), held))
        found["put"], found["delete"] = np.concatenate(puts), np.concatenate(deletes)
    for operation in OPERATIONS:
        half, most = np.quantile(found[operation], (0.5, 0.99))
        yield operation, float(half)
        yield f"{operation}-99", float(most)


CASE = Case(
    name="latency",
    title="single operations: the median, and what 99 of 100 stay below",
    plan=plan,
    measure=measure,
    metrics={
        f"{operation}{key}": Metric("s", f"{operation}{words}")
        for key, words in (("", ""), ("-99", ", 99 %"))
        for operation in OPERATIONS
    },
    charts=(
        Bars("put", "put of 1 MiB", {"object": MIB}, log=True),
        Bars("replace-99", "replacing 64 bytes: what 99 of 100 stay below", {"object": 64}, log=True),
    ),
    notes=(
        "Each call is timed by itself; two readings of the clock, about 0.1 us, are in each. get reads one number.",
    ),
)
