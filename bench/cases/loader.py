"""PyTorch's DataLoader: a list of dicts, or the same in a region, over one epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from sharedregion.bench import workers
from sharedregion.bench.case import MIB, Case, Job, Sample, Setting

_LIST, _REGION = "a list, by descriptors", "SharedDataset, RegionBatches"
_EACH = 400  # Bytes of memory that an item of a list takes, about.


def plan(setting: Setting) -> list[Job]:
    """300,000 items in two forked workers; 5,000 in a quick run, where importing torch takes longest."""
    return workers.jobs(
        CASE.name,
        (_LIST, _REGION),
        setting,
        ("torch",),
        size=120 * MIB,
        quick=2 * MIB,
        workers=2,
        seconds=15,
    )


def measure(job: Job) -> Iterator[Sample]:
    """One epoch; workers are looked at when all has been read."""
    from torch.utils.data import DataLoader

    from sharedregion.integrations.torch import RegionBatches, SharedDataset

    items: Any = [
        {"path": f"images/{n:08d}.jpg", "caption": f"what is on picture {n}", "label": n, "box": [n, n + 1.0]}
        for n in range(int(job.params["size"]) // _EACH)
    ]
    count = len(items)
    region = job.subject == _REGION
    if region:
        items = SharedDataset(items)
    loader = DataLoader(
        items,
        64,
        num_workers=int(job.params["workers"]),
        collate_fn=RegionBatches() if region else None,
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    started, seen = time.perf_counter(), 0
    batches: Any = iter(loader)
    for batch in batches:
        if not seen:
            yield "start", time.perf_counter() - started
        seen += len(batch["label"])
    assert seen == count
    yield "rate", seen / (time.perf_counter() - started)
    yield from workers.costs([worker.pid for worker in batches._workers])


CASE = Case(
    name="loader",
    title="DataLoader over an epoch",
    plan=plan,
    measure=measure,
    metrics=workers.METRICS,
    charts=workers.bars("DataLoader"),
    notes=("Throughput is in items; PSS is that of a worker at the end of the epoch.",),
)
