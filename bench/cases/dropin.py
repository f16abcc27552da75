"""The drop-in beside multiprocessing.shared_memory: a block made and filled, then ten spawned workers that read it."""

from __future__ import annotations

import importlib
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from sharedregion.bench.case import GIB, MIB, Bars, Case, Job, Metric, Sample, Setting

MODULES = {"the drop-in": "sharedregion.shared_memory", "standard library": "multiprocessing.shared_memory"}


def plan(setting: Setting) -> list[Job]:
    """Both in turn, several times: what they take is compared as a ratio."""
    size = min(64 * MIB if setting.quick else GIB, setting.small or GIB)
    workers = 2 if setting.quick else 10
    return [
        Job(
            CASE.name,
            subject,
            {"size": size, "workers": workers},
            rounds=1 if setting.quick else 5,
            memory=3 * size + 256 * MIB,
            seconds=0.5 + 4 * size / GIB + 0.2 * workers,
        )
        for subject in MODULES
    ]


def _worker(module: str, name: str, orders: Any) -> None:
    orders.send("idle")
    orders.recv()
    block = importlib.import_module(module).SharedMemory(name)
    view = block.buf
    for at in range(0, len(view), 4096):
        view[at]
    orders.send("read")
    orders.recv()
    view = None
    block.close()


def _tables(pids: list[int]) -> dict[int, int]:
    from sharedregion.footprint import footprint

    return {one.pid: one.private_bytes for one in footprint(*pids).processes}


def _workers(module: str, name: str, count: int) -> Iterator[Sample]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_worker, args=(module, name, theirs), daemon=True))
            pipes.append(ours)
            processes[-1].start()
        for pipe in pipes:
            pipe.recv()
        pids = [process.pid for process in processes if process.pid is not None]
        before = _tables(pids)
        for pipe in pipes:
            pipe.send("read")
            pipe.recv()
        after = _tables(pids)
        yield "private", statistics.median(after[pid] - before[pid] for pid in pids)
        for pipe in pipes:
            pipe.send("end")
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()


def measure(job: Job) -> Iterator[Sample]:
    """Making and filling one block, and what reading it costs each worker."""
    size = int(job.params["size"])
    source = np.ones(size, "u1")
    # So that what follows touches memory that the host machine has backed.
    np.ones(size, "u1")
    module = MODULES[job.subject]
    make = importlib.import_module(module).SharedMemory
    started = time.perf_counter()
    block = make(f"{job.prefix}dropin", create=True, size=size)
    try:
        array = np.frombuffer(block.buf, "u1")
        array[:] = source
        yield "fresh", size / (time.perf_counter() - started)
        started = time.perf_counter()
        array[:] = source
        yield "warm", size / (time.perf_counter() - started)
        del array, source
        yield from _workers(module, block.name, int(job.params["workers"]))
    finally:
        block.unlink()
        block.close()


CASE = Case(
    name="dropin",
    title="the drop-in for multiprocessing.shared_memory",
    plan=plan,
    measure=measure,
    metrics={
        "fresh": Metric("B/s", "made and filled", more=True),
        "warm": Metric("B/s", "filled again", more=True),
        "private": Metric("B", "tables"),
    },
    charts=(Bars("private", "Page tables of a worker that read a block of 1 GiB"),),
    notes=(
        "Made and filled: from the call that makes the block to the last byte, on memory that was touched and freed before.",
        "Tables: by the helper, the median worker's own beyond what it had before it attached.",
    ),
)
