"""A region of a million objects: attaching scans nothing, and looking all of them up costs few page tables."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from sharedregion.bench.case import GIB, Case, Job, Metric, Sample, Setting

WORKER = """
import sys, time, numpy, sharedregion as sr
# The face loads what is behind it when it is first asked for; the idle worker has it too.
sr.attach
name, count = sys.argv[1], int(sys.argv[2])
if name != "idle":
    started = time.perf_counter()
    region = sr.attach(name)
    print(time.perf_counter() - started, flush=True)
    started = time.perf_counter()
    for n in range(count):
        assert region[f"object {n}"][0] == n
    print((time.perf_counter() - started) / max(count, 1), flush=True)
else:
    # The same program and the same memory of its own, without a region.
    names = 0
    for n in range(count): names += len(f"object {n}")
    print(0, flush=True); print(0, flush=True)
sys.stdin.readline()
"""


def plan(setting: Setting) -> list[Job]:
    """A million; a quick run has fewer."""
    count = 20_000 if setting.quick else 1_000_000
    return [Job(CASE.name, "region (thp)", {"objects": count}, memory=GIB, seconds=1.5 + count / 40_000)]


def _worker(name: str, count: int) -> tuple[float, float, int]:
    import sharedregion as sr

    process = subprocess.Popen(
        [sys.executable, "-P", "-c", WORKER, name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    attach, lookup = float(process.stdout.readline()), float(process.stdout.readline())
    tables = sr.footprint(process.pid).processes[0].private_bytes
    process.communicate("\n")
    return attach, lookup, tables


def measure(job: Job) -> Iterator[Sample]:
    """Times, and bytes of page tables beyond an idle worker's."""
    import sharedregion as sr

    count = int(job.params["objects"])
    with sr.create(f"{job.prefix}million", size="1 GiB", backend="thp") as region:
        value = np.zeros(1, np.int64)
        started = time.perf_counter()
        for n in range(count):
            value[0] = n
            region[f"object {n}"] = value
        yield "place", (time.perf_counter() - started) / count
        rounds = 3 if job.quick else 9
        idle = statistics.median(_worker("idle", 1000)[2] for _ in range(3 if job.quick else 5))
        yield "attach", statistics.median(_worker(region.name, 0)[0] for _ in range(rounds))
        looked = [_worker(region.name, count) for _ in range(1 if job.quick else 3)]
        yield "look", statistics.median(row[1] for row in looked)
        yield "private", statistics.median(row[2] for row in looked) - idle


CASE = Case(
    name="million",
    title="a region of a million objects",
    plan=plan,
    measure=measure,
    metrics={
        "attach": Metric("s", "attach"),
        "look": Metric("s", "looking one up"),
        "place": Metric("s", "placing one"),
        "private": Metric("B", "its page tables"),
    },
    notes=("Page tables are those of a worker that looked all of them up, beyond an idle one.",),
)
