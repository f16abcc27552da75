"""What asking for page tables takes: for one process, and for a thousand."""

from __future__ import annotations

import os
import select
import signal
import statistics
import time
from collections.abc import Iterator

from sharedregion.bench.case import MIB, Case, Job, Metric, Sample, Setting


def plan(setting: Setting) -> list[Job]:
    """One process, then many: forked ones that have some memory of their own."""
    many = 100 if setting.quick else 1000
    return [
        Job(CASE.name, "one process", {"processes": 1}, rounds=1 if setting.quick else 3, seconds=1),
        Job(
            CASE.name,
            f"{many} processes",
            {"processes": many},
            rounds=1 if setting.quick else 2,
            memory=many * 2 * MIB,
            seconds=0.4 + many / 150,
        ),
        Job(
            CASE.name,
            f"{many} processes, by mapping",
            {"processes": many, "mappings": 1},
            rounds=1 if setting.quick else 2,
            memory=many * 2 * MIB,
            seconds=0.4 + many / 150,
        ),
    ]


def measure(job: Job) -> Iterator[Sample]:
    """The whole answer, from the call to the last figure: start, proof of the method, reading, JSON."""
    import sharedregion as sr

    pids: list[int] = []
    ready, writer = os.pipe()
    try:
        for _ in range(int(job.params["processes"])):
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                own = bytearray(MIB)
                own[::4096] = b"x" * len(own[::4096])
                os.write(writer, b".")
                signal.pause()
                os._exit(0)
            pids.append(pid)
        waiting = len(pids)
        while waiting and select.select([ready], [], [], 30)[0]:
            waiting -= len(os.read(ready, waiting))
        times, found = [], None
        for _ in range(3 if job.quick else 5):
            started = time.perf_counter()
            found = sr.footprint(*pids, mappings="mappings" in job.params)
            times.append(time.perf_counter() - started)
        assert found is not None
        assert len(found.processes) == len(pids)
        yield "seconds", statistics.median(times)
        yield "tables", float(found.distinct_bytes)
        yield "estimated", float(found.estimate)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


CASE = Case(
    name="helper",
    title="asking for page tables",
    plan=plan,
    measure=measure,
    metrics={
        "seconds": Metric("s", "time"),
        "tables": Metric("B", "tables that were read"),
        "estimated": Metric("", "an estimate"),
    },
)
