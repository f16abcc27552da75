"""A real PostgreSQL: its tables go to the right mapping, and what is foretold for 2 MiB pages comes true."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sharedregion.bench.postgresql import CONNECTIONS, Cluster, cluster, foretold, programs
from sharedregion.footprint import Footprint, footprint

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed")
    with cluster(folder) as made:
        made.start("off")
        made.fill()
        yield made


@pytest.fixture(scope="module")
def small(server: Cluster) -> Footprint:
    """With huge_pages=off, after each connection has read a table of the size of the buffers."""
    server.read_everywhere()
    found = footprint(*server.pids(), mappings=True)
    server.stop()
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("exact")
def test_the_buffers_are_named_as_what_the_tables_are_for(small: Footprint) -> None:
    """1 GiB in 60 connections: the costliest mapping is the shared memory, two MiB of tables for each of them."""
    buffers = small.mappings[0]
    assert (buffers.memory, buffers.shared, buffers.page_size) == ("shared anonymous", True, 4096)
    assert GIB < buffers.bytes < GIB + 128 * MIB
    assert {name for name, _ in buffers.commands} == {"postgres"}
    assert CONNECTIONS < buffers.processes <= CONNECTIONS + 10
    # The table fills 126,000 of 131,072 buffers: 492 PTE tables and the ends.
    assert CONNECTIONS * 490 * 4096 < buffers.distinct_bytes < (CONNECTIONS + 3) * 540 * 4096
    assert buffers.distinct_bytes > 0.9 * small.distinct_bytes


@pytest.mark.slow
@pytest.mark.usefixtures("exact")
def test_the_sum_agrees_with_the_machines_page_tables(small: Footprint) -> None:
    """PageTables, less every table that was seen, leaves the kernel's own: a few MiB beside 127."""
    assert small.machine is not None
    assert sum(mapping.distinct_bytes for mapping in small.mappings) == small.distinct_bytes
    assert small.machine.seen_bytes >= small.distinct_bytes > 110 * MIB
    assert 0 < small.machine.kernel_bytes < 8 * MIB


@pytest.mark.slow
@pytest.mark.hugepages
@pytest.mark.usefixtures("exact")
def test_the_advice_for_large_pages_comes_true(
    server: Cluster, small: Footprint, pool: Callable[[int, int], None]
) -> None:
    """The same server with huge_pages=on, in as many pages as were foretold: tables and savings within a tenth."""
    expected = foretold(small)
    assert expected.estimate
    assert any("huge_pages" in (step.command or "") for step in expected.steps)
    needed = server.large_pages()
    assert abs(expected.pages - needed) <= needed // 100
    pool(2 * MIB, max(needed, expected.pages))
    server.start("on")
    assert server.ask("SHOW huge_pages") == "on"
    server.read_everywhere()
    large = footprint(*server.pids(), mappings=True)
    server.stop()
    assert len(large.processes) == len(small.processes)
    assert abs(large.distinct_bytes - expected.total_bytes) <= expected.total_bytes / 10
    saved = small.distinct_bytes - large.distinct_bytes
    assert abs(saved - expected.saved_bytes) <= expected.saved_bytes / 10
    # What is left of the buffers' own tables: none of the lowest level.
    buffers = [mapping for mapping in large.mappings if mapping.memory == "hugetlb"]
    assert all(mapping.pte_links == 0 for mapping in buffers)
    assert all(mapping.bytes < GIB // 2 for mapping in large.mappings if mapping.memory == "shared anonymous")
