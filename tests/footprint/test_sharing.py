"""Tables that processes share, as counted and as the kernel counts them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from sharedregion.footprint import footprint

PAGE = 4096
WORKERS = 16

pytestmark = [pytest.mark.usefixtures("exact"), pytest.mark.hugepages]


def as_region(fd: int, name: str = "weights") -> tuple[str, list[tuple[int, int]]]:
    info = os.fstat(fd)
    return name, [(info.st_dev, info.st_ino)]


def test_workers_share_the_tables_of_an_aligned_hugetlb_region(
    worker: Callable[..., Any], huge_file: Callable[[int], int], map_shared: str, ask: Callable[..., Any]
) -> None:
    """4 GiB, 16 workers: 4 PMD tables, each reached by 16, and the kernel's share count says so too."""
    fd = huge_file(4)
    idle = worker("import ctypes\nready()").pid
    pids = [worker(map_shared, fd, 4, 0, pass_fds=[fd]).pid for _ in range(WORKERS)]
    found = footprint(*pids, idle, regions=[as_region(fd)])
    assert [(s.level, s.tables, s.processes, s.links, s.share_count) for s in found.shared_tables] == [
        ("pmd", 4, WORKERS, WORKERS, WORKERS - 1)
    ]
    assert found.share_count == {"checked": 4, "agree": 4, "more": 0, "less": 0}
    by_pid = {process.pid: process for process in found.processes}
    assert by_pid[idle].regions == ()
    for pid in pids:
        process = by_pid[pid]
        (region,) = process.regions
        assert (region.region, region.linked_bytes, region.private_bytes, region.shared_bytes, region.alone_gib) == (
            "weights", 4 * PAGE, 0, 4 * PAGE, 0
        )  # fmt: skip
        assert process.shared_bytes == 4 * PAGE
        assert process.linked_bytes - process.shared_bytes == process.private_bytes
        # The share of each in the four tables; the PMD and PUD page of the mapping's place are its own.
        assert process.proportional_bytes == process.private_bytes + 4 * PAGE // WORKERS
        assert process.private_bytes - by_pid[idle].private_bytes <= 16 * 1024

    # Looking at one alone, only the kernel's share count can tell.
    alone = ask("--alone", pids[0])
    assert alone["shared"]["tables"] == [
        {"level": "pmd", "tables": 4, "processes": 1, "links": 1, "share_count": WORKERS - 1}
    ]
    assert alone["processes"][0]["shared_bytes"] == 4 * PAGE
    assert alone["shared"]["share_count"]["more"] == 4


def test_a_worker_that_maps_the_region_askew_is_named(
    worker: Callable[..., Any], huge_file: Callable[[int], int], map_shared: str
) -> None:
    """2 MiB off, nothing is shared: `alone_gib` counts what could be, for that worker and no other."""
    fd = huge_file(2)
    straight = [worker(map_shared, fd, 2, 0, pass_fds=[fd]).pid for _ in range(3)]
    askew = worker(map_shared, fd, 2, 2 << 20, pass_fds=[fd]).pid
    found = footprint(*straight, askew, regions=[as_region(fd)])
    alone = {process.pid: process.regions[0].alone_gib for process in found.processes}
    assert alone[askew] >= 2
    assert {alone[pid] for pid in straight} == {0}
    by_pid = {process.pid: process for process in found.processes}
    assert by_pid[askew].shared_bytes == 0
    assert by_pid[straight[0]].shared_bytes == 2 * PAGE


def test_the_only_user_of_a_region_is_not_called_alone(
    worker: Callable[..., Any], huge_file: Callable[[int], int], map_shared: str
) -> None:
    """With nobody to share with, tables are private and nothing is amiss."""
    fd = huge_file(2)
    pid = worker(map_shared, fd, 2, 0, pass_fds=[fd]).pid
    (process,) = footprint(pid, regions=[as_region(fd)]).processes
    (region,) = process.regions
    assert (region.private_bytes, region.shared_bytes, region.alone_gib) == (2 * PAGE, 0, 0)


def test_the_same_table_linked_twice_into_one_process_counts_once(
    worker: Callable[..., Any], huge_file: Callable[[int], int], map_shared: str
) -> None:
    """A process that maps a region twice reaches each shared table twice; it is one table, and no process more."""
    fd = huge_file(1)
    twice = map_shared.replace("ready(os.getpid())", "") + (
        "space = libc.mmap(None, 3 * G, 0, 0x4022, -1, 0)\nother = (space + G - 1) // G * G\n"
        "assert libc.mmap(other, G, 1, 0x4011, fd, 0) == other\nctypes.string_at(other, 1)\nready()"
    )
    pid = worker(twice, fd, 1, 0, pass_fds=[fd]).pid
    found = footprint(pid)
    assert [(s.processes, s.links, s.share_count) for s in found.shared_tables] == [(1, 2, 1)]
    (process,) = found.processes
    assert process.shared_bytes == 0
    assert process.vm_pte_bytes - (process.linked_bytes - PAGE * process.tables.pgd) == PAGE


def test_the_estimate_finds_the_same_sharing(
    worker: Callable[..., Any], huge_file: Callable[[int], int], map_shared: str
) -> None:
    """From pagemap alone: what a well-mapped region costs each worker agrees with what is there."""
    fd = huge_file(2)
    pids = [worker(map_shared, fd, 2, 0, pass_fds=[fd]).pid for _ in range(3)]
    pids.append(worker(map_shared, fd, 2, 2 << 20, pass_fds=[fd]).pid)
    region = as_region(fd)
    exact, estimate = footprint(*pids, regions=[region]), footprint(*pids, regions=[region], method="pagemap")
    assert estimate.method == "pagemap"
    assert estimate.estimate
    assert estimate.why
    for true, guess in zip(exact.processes, estimate.processes, strict=True):
        assert guess.estimate
        assert guess.linked_bytes == true.linked_bytes
        assert guess.shared_bytes == true.shared_bytes
        assert guess.regions == true.regions


def test_pages_of_a_gib_have_no_tables_in_an_estimate_either(
    worker: Callable[..., Any], pool: Callable[[int, int], None]
) -> None:
    """Their entries lie in the PUD table: the estimate is the kernel's own count, as it is for any other process."""
    pool(1 << 30, 1)
    fd = os.memfd_create("gigantic", os.MFD_HUGETLB | os.MFD_HUGE_1GB)
    try:
        os.ftruncate(fd, 1 << 30)
        code = "import mmap\nm = mmap.mmap(int(sys.argv[1]), 1 << 30)\nm[0] = 1\nready()"
        pid = worker(code, fd, pass_fds=[fd]).pid
        for method in ("walk", "pagemap"):
            found = footprint(pid, mappings=True, method=method)
            (process,) = found.processes
            assert process.linked_bytes == process.vm_pte_bytes + PAGE * process.tables.pgd
            (mapping,) = [one for one in found.mappings if one.inode == os.fstat(fd).st_ino] or [None]
            # What is one's own of it is at most the PUD table.
            assert mapping is None or (mapping.page_size, mapping.pmd_links, mapping.pte_links) == (
                1 << 30,
                0,
                0,
            )
    finally:
        os.close(fd)


def test_regions_are_told_apart_by_their_files(worker: Callable[..., Any], one: Callable[..., Any]) -> None:
    """A PTE table counts for a region only if nothing else lies in the 2 MiB that it covers."""
    code = (
        "import ctypes, mmap\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\n"
        "a, b = map(int, sys.argv[1:3])\nM = 1 << 20\nspace = libc.mmap(None, 1 << 30, 0, 0x4022, -1, 0)\n"
        "at = (space + 2 * M - 1) // (2 * M) * (2 * M)\n"
        # Two tables for a alone, one with both, one for b alone.
        "assert libc.mmap(at, 5 * M, 3, 0x11, a, 0) == at\n"
        "assert libc.mmap(at + 5 * M, 3 * M, 3, 0x11, b, 0) == at + 5 * M\n"
        "ctypes.memset(at, 1, 8 * M)\nlibc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]\n"
        "libc.munmap(space, at - space)\nlibc.munmap(at + 8 * M, space + (1 << 30) - at - 8 * M)\nready()"
    )
    a, b = os.memfd_create("a"), os.memfd_create("b")
    try:
        for fd in (a, b):
            os.ftruncate(fd, 8 << 20)
        process = one(
            worker(code, a, b, pass_fds=[a, b]).pid,
            regions=[as_region(a, "a"), as_region(b, 'b "\x1b'), as_region(0, "c")],
        )
    finally:
        os.close(a)
        os.close(b)
    assert {r.region: r.linked_bytes for r in process.regions} == {"a": 2 * PAGE, 'b "\x1b': PAGE}
