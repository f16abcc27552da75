"""What `import sharedregion` takes beyond NumPy, which any user of it has loaded anyway."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator

from sharedregion.bench.case import Case, Job, Metric, Sample, Setting

_TIMED = """
import sys, time
import numpy
before = set(sys.modules)
started = time.perf_counter()
exec(sys.argv[1])
print(time.perf_counter() - started, len(set(sys.modules) - before))
"""
#: What is run, by subject: what comes with Python is there to compare with.
_PROGRAMS = {
    "import sharedregion": "import sharedregion",
    "import it and ask it for attach": "import sharedregion; sharedregion.attach",
    "import multiprocessing.pool": "import multiprocessing.pool",
}


def plan(setting: Setting) -> list[Job]:
    """Both, in turn."""
    return [
        Job(CASE.name, subject, {}, rounds=1 if setting.quick else 3, seconds=0.6 if setting.quick else 1.5)
        for subject in _PROGRAMS
    ]


def measure(job: Job) -> Iterator[Sample]:
    """The median of fresh interpreters; the first is left out, since it may write byte code or read a disk."""
    times, count = [], 0
    for _ in range(2 if job.quick else 10):
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TIMED, _PROGRAMS[job.subject]],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds, modules = done.stdout.split()
        times.append(float(seconds))
        count = int(modules)
    yield "seconds", statistics.median(times[1:])
    yield "modules", count


CASE = Case(
    name="imports",
    title="importing it, in a process that has NumPy",
    plan=plan,
    measure=measure,
    metrics={"seconds": Metric("s", "time"), "modules": Metric("", "modules loaded")},
)
