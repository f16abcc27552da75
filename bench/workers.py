"""What the cases about frameworks share: what a worker costs, once it has done its work."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Iterator, Sequence

from sharedregion.bench.case import MIB, Bars, Job, Metric, Sample, Setting

__all__ = ["METRICS", "bars", "busy", "costs", "jobs"]

METRICS = {
    "pss": Metric("B", "its memory (PSS)"),
    "tables": Metric("B", "its page tables"),
    "start": Metric("s", "first answer"),
    "rate": Metric("/s", "throughput", more=True),
    "estimated": Metric("", "estimates"),
}


def bars(what: str) -> tuple[Bars, ...]:
    """The three questions."""
    return (
        Bars("pss", f"{what}: memory of a worker, PSS", log=True),
        Bars("tables", f"{what}: page tables of a worker", log=True),
        Bars("rate", f"{what}: throughput"),
    )


def jobs(
    case: str,
    subjects: Sequence[str],
    setting: Setting,
    framework: tuple[str, ...],
    *,
    size: int,
    quick: int = 16 * MIB,
    workers: int,
    seconds: float,
) -> list[Job]:
    """Each subject with `size` bytes of data, `quick` in a quick run; a row that says so where the framework is not there."""
    workers = 2 if setting.quick else workers
    size = setting.small or (quick if setting.quick else size)
    missing = [name for name in framework if importlib.util.find_spec(name) is None]
    cannot = f"not installed: pip install {' '.join(missing)}" if missing else None
    return [
        Job(
            case,
            subject,
            {"size": size, "workers": workers},
            rounds=1 if setting.quick else 3,
            memory=size * (workers + 3) + workers * 400 * MIB,
            seconds=1 if setting.quick else seconds,
            cannot=cannot,
        )
        for subject in subjects
    ]


def busy(job: Job, seconds: float) -> float:
    """For how long throughput is measured: a quick run shows that it can be."""
    return 0.1 if job.quick else seconds


def _pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))


def costs(pids: Sequence[int]) -> Iterator[Sample]:
    """Of living workers. hugetlb pages are not in PSS; these cases use other memory."""
    import sharedregion as sr

    yield "pss", float(statistics.median(_pss(pid) for pid in pids))
    found = sr.footprint(*pids).processes
    yield "tables", float(statistics.median(one.private_bytes for one in found))
    yield "estimated", float(any(one.estimate for one in found))
