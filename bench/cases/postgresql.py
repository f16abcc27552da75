"""Whether PostgreSQL's page tables with 2 MiB pages are those that the footprint's advice foretells."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sharedregion.bench.case import MIB, Case, Job, Metric, Sample, Setting
from sharedregion.bench.postgresql import BUFFERS, CONNECTIONS, cluster, foretold, programs


def plan(setting: Setting) -> list[Job]:
    """One server, first with small pages, then with large ones."""
    subject = f"shared_buffers={BUFFERS}, {CONNECTIONS} connections"
    job = Job(CASE.name, subject, pool=(2 * MIB, 560), memory=3500 * MIB, seconds=25)
    if setting.quick:
        return [dataclasses.replace(job, cannot="it takes half a minute: a quick run leaves it out")]
    if programs() is None:
        return [dataclasses.replace(job, cannot="PostgreSQL is not installed (Debian: postgresql)")]
    if not setting.root:
        return [dataclasses.replace(job, cannot="only root can reserve the pages for the second run")]
    return [job]


def measure(_: Job) -> Iterator[Sample]:
    """Each connection reads a table as large as the buffers; then one look at all processes of the server."""
    import sharedregion as sr

    folder = programs()
    assert folder is not None
    with cluster(folder) as server:
        server.start("off")
        server.fill()
        server.read_everywhere()
        small = sr.footprint(*server.pids(), mappings=True)
        server.stop()
        expected = foretold(small)
        needed = server.large_pages()
        yield "small", float(small.distinct_bytes)
        yield "buffers", float(small.mappings[0].distinct_bytes)
        yield "foretold", float(expected.total_bytes)
        yield "pages foretold", float(expected.pages)
        yield "pages needed", float(needed)
        server.start("on")
        server.read_everywhere()
        large = sr.footprint(*server.pids(), mappings=True)
        server.stop()
        yield "measured", float(large.distinct_bytes)
        yield "ratio", large.distinct_bytes / expected.total_bytes


CASE = Case(
    name="postgresql",
    title="PostgreSQL's page tables, and those foretold for 2 MiB pages",
    plan=plan,
    measure=measure,
    metrics={
        "small": Metric("B", "huge_pages=off"),
        "buffers": Metric("B", "of these, of the shared buffers"),
        "foretold": Metric("B", "huge_pages=on, foretold"),
        "measured": Metric("B", "huge_pages=on, measured"),
        "ratio": Metric("x", "measured / foretold"),
        "pages foretold": Metric("", "2 MiB pages, foretold"),
        "pages needed": Metric("", "2 MiB pages, by PostgreSQL's count"),
    },
)
