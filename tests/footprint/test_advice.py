"""Advice: figures in, figures out. The rules are the kernel's; here they are checked by hand-made mappings."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest

from sharedregion._kernel.facts import Facts
from sharedregion._kernel.sysfs import HugepagePool, TransparentHugepages
from sharedregion.footprint import (
    Advice,
    Alternative,
    Footprint,
    MachineTables,
    MappingExtent,
    MappingFootprint,
    advise,
    footprint,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB


def pools(large: int = 0, free: int = 0, huge: bool = True) -> dict[int, HugepagePool]:
    made = {2 * MIB: HugepagePool(2 * MIB, large, free, 0, 0, 0)}
    if huge:
        made[GIB] = HugepagePool(GIB, 0, 0, 0, 0, 0)
    return made


def facts(**changes: Any) -> Facts:
    made = Facts(
        memory_total=512 * GIB, pools=pools(), thp=TransparentHugepages(present=True, shmem_enabled="never")
    )
    return dataclasses.replace(made, **changes)


def mapping(
    gib: int = 300,
    processes: int = 1500,
    start: int = 4096,
    offset: int = 0,
    name: str = "/dev/shm/features",
    **changes: Any,
) -> MappingFootprint:
    """`gib` GiB in 4 KiB pages, all of them touched by all."""
    size = gib * GIB
    pte = processes * gib * 512
    pmd = processes * gib
    made = MappingFootprint(
        kind="file",
        name=name,
        shared=True,
        device="0:1",
        inode=7,
        page_size=4096,
        bytes=size,
        processes=processes,
        linked_bytes=(pte + pmd) * PAGE,
        distinct_bytes=(pte + pmd) * PAGE,
        distinct_pte_bytes=pte * PAGE,
        pmd_links=pmd,
        pte_links=pte,
        commands=(("python", processes),),
        extents=(MappingExtent(start % GIB, size, offset, False, processes),),
        extents_left_out=0,
    )
    return dataclasses.replace(made, **changes)


def found(*mappings: MappingFootprint, others: int = 0) -> Footprint:
    distinct = sum(one.distinct_bytes for one in mappings) + others
    return Footprint(
        method="walk",
        reader="bpf",
        why=None,
        remedy=None,
        scope="all",
        distinct_bytes=distinct,
        processes=(),
        gone=(),
        denied=(),
        kernel_threads=(),
        shared_tables=(),
        share_count={},
        looked_at={"distinct_bytes": distinct},
        version="0",
        mappings=mappings,
        machine=MachineTables(distinct, distinct),
    )


def only(*mappings: MappingFootprint, machine: Facts | None = None) -> Advice:
    (advice,) = advise(found(*mappings), machine or facts())
    return advice


def named(advice: Advice, name: str) -> Alternative:
    (one,) = (one for one in advice.alternatives if one.name == name)
    return one


def test_the_story_at_full_size_is_told_in_its_own_figures() -> None:
    """300 GiB in 1500 clients: 881 GiB of tables; linked, little more than a MiB; each alternative has its price."""
    advice = only(mapping())
    assert advice.cost_bytes == 1500 * 300 * 513 * PAGE
    assert advice.share_of_memory is not None
    assert advice.share_of_memory > 1.7
    assert named(advice, "linked tables").table_bytes == 300 * PAGE
    assert named(advice, "1 GiB pages").table_bytes == 0
    assert (named(advice, "1 GiB pages").pages, named(advice, "2 MiB pages").pages) == (300, 300 * 512)
    assert [one.saved_bytes for one in advice.alternatives] == sorted(
        (one.saved_bytes for one in advice.alternatives), reverse=True
    )
    for one in advice.alternatives:
        assert one.estimate
        assert one.saved_bytes == advice.cost_bytes - one.table_bytes
        assert one.total_bytes == one.table_bytes


def test_whole_gib_at_like_addresses_are_linked_and_the_ends_are_not() -> None:
    """Forked from one parent, mapped 2 MiB off: of 4 GiB, 3 whole ones become three tables; two ends stay everyone's."""
    one = mapping(gib=4, processes=1000, start=2 * MIB, pmd_links=5000, distinct_bytes=1000 * 4 * 513 * PAGE)
    # 5 PMD tables each: 3 whole GiB, two pieces.
    assert named(only(one), "2 MiB pages").table_bytes == (3 + 2 * 1000) * PAGE


def test_unlike_addresses_and_unlike_permissions_are_not_linked() -> None:
    """Two classes of address, or read-only beside read-write: a set of tables for each class."""
    halves = tuple(MappingExtent(start, 4 * GIB, 0, False, 500) for start in (0, 2 * MIB))
    one = mapping(gib=4, processes=1000, extents=halves, pmd_links=500 * 4 + 500 * 5)
    assert named(only(one), "2 MiB pages").table_bytes == (4 + 3 + 2 * 500) * PAGE
    kinds = tuple(MappingExtent(0, 4 * GIB, 0, writable, 500) for writable in (False, True))
    one = mapping(gib=4, processes=1000, extents=kinds)
    assert named(only(one), "2 MiB pages").table_bytes == (4 + 4) * PAGE


def test_parts_of_a_file_that_overlap_are_linked_where_they_do() -> None:
    """Processes that map different windows of a file share the tables of the GiB that both map."""
    windows = (MappingExtent(0, 4 * GIB, 0, False, 500), MappingExtent(0, 4 * GIB, 2 * GIB, False, 500))
    one = mapping(gib=6, processes=1000, extents=windows, pmd_links=1000 * 4)
    assert named(only(one), "2 MiB pages").table_bytes == 6 * PAGE


def test_where_extents_are_missing_nothing_is_promised() -> None:
    """Too many different ways to map it: the PMD tables that are there stay, in the estimate."""
    one = mapping(gib=4, processes=1000, extents_left_out=3)
    assert named(only(one), "2 MiB pages").table_bytes == 4000 * PAGE


@pytest.mark.parametrize(
    ("start", "offset", "possible"), [(2 * MIB, 0, True), (4096, 4096, True), (4096, 0, False)]
)
def test_collapsing_helps_only_who_maps_it_congruently(start: int, offset: int, possible: bool) -> None:
    """Equal modulo 2 MiB: PTE tables go; otherwise the advice says that it would not help."""
    advice = only(mapping(start=start, offset=offset))
    one = named(advice, "collapsed")
    assert one.possible is possible
    assert one.table_bytes == advice.cost_bytes - (advice.mapping.distinct_pte_bytes if possible else 0)
    assert bool(one.steps) is possible
    assert possible or "modulo 2 MiB" in (one.why or "")


def test_collapsing_says_for_how_many_it_works() -> None:
    """Half of the processes map it askew: half of it is saved, and said."""
    extents = (MappingExtent(0, 300 * GIB, 0, False, 750), MappingExtent(4096, 300 * GIB, 0, False, 750))
    advice = only(mapping(extents=extents))
    one = named(advice, "collapsed")
    assert one.saved_bytes == advice.mapping.distinct_pte_bytes // 2
    assert "50%" in (one.why or "")


@pytest.mark.parametrize(
    ("changes", "machine", "name", "words"),
    [
        ({}, {"pools": {}}, "2 MiB pages", "no pages of 2 MiB"),
        ({}, {"pools": pools(huge=False)}, "1 GiB pages", "no pages of 1 GiB"),
        ({"bytes": 600 * GIB}, {}, "2 MiB pages", "more than this machine's memory"),
        ({"name": "/srv/weights.bin", "start": 0}, {}, "collapsed", "disk"),
        ({"start": 0}, {"thp": TransparentHugepages(True, shmem_enabled="deny")}, "collapsed", "switched off"),
        (
            {"start": 0},
            {"thp": TransparentHugepages(True, shmem_enabled="always", per_size=MappingProxyType({2 * MIB: "never"}))},
            "collapsed",
            "switched off",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_said_with_its_reason(
    changes: dict[str, Any], machine: dict[str, Any], name: str, words: str
) -> None:
    """No pool, no such page size, no room, no collapse: not possible, why, and no steps."""
    start = changes.pop("start", 4096)
    one = named(only(mapping(start=start, **changes), machine=facts(**machine)), name)
    assert not one.possible
    assert words in (one.why or "")
    assert one.steps == ()


def test_the_pool_that_is_there_is_counted() -> None:
    """Free pages need not be reserved again; used ones stay in the number to be set."""
    commands = {
        have: [step.command for step in named(only(mapping(gib=4), machine=facts(pools=pools(*have))), "2 MiB pages").steps]
        for have in ((0, 0), (100, 100), (100, 0), (5000, 2048))
    }  # fmt: skip
    assert commands[0, 0][0] == "sysctl -w vm.nr_hugepages=2048"
    assert commands[100, 100][0] == "sysctl -w vm.nr_hugepages=2048"
    assert commands[100, 0][0] == "sysctl -w vm.nr_hugepages=2148"
    assert not any("nr_hugepages" in (command or "") for command in commands[5000, 2048])


def test_a_known_program_is_advised_by_its_own_settings() -> None:
    """PostgreSQL: huge_pages; and not to use a library that it cannot use."""
    advice = only(mapping(name="/dev/zero (deleted)", commands=(("psql", 2), ("postgres", 60))))
    assert advice.program == "PostgreSQL"
    assert any("huge_pages = 'on'" in (step.command or "") for step in named(advice, "2 MiB pages").steps)
    assert any(
        "huge_page_size = '1GB'" in (step.command or "") for step in named(advice, "1 GiB pages").steps
    )
    assert not named(advice, "linked tables").possible
    # The same name on other memory is no buffer of PostgreSQL's.
    assert only(mapping(commands=(("postgres", 60),))).program is None


def test_a_block_of_the_standard_library_is_sent_to_the_drop_in() -> None:
    """multiprocessing.shared_memory names its blocks psm_*."""
    one = named(only(mapping(name="/dev/shm/psm_0a1b2c3d")), "linked tables")
    assert "from sharedregion import shared_memory" in [step.command for step in one.steps]


@pytest.mark.parametrize(
    "name", ["/dev/shm/x; rm -rf ~", "/dev/shm/$(id)", "/dev/shm/a b", "/dev/shm/\\x1b[31m"]
)
def test_no_name_that_a_shell_could_take_for_more_gets_into_a_command(name: str) -> None:
    """The file's name is chosen by whoever made it; commands are there to be copied."""
    advice = only(mapping(start=0, name=name))
    assert not any(name in (step.command or "") for one in advice.alternatives for step in one.steps)


@pytest.mark.parametrize(
    ("tables", "memory", "wanted"),
    [(64 * MIB, 512 * GIB, 0), (64 * MIB + PAGE, 512 * GIB, 1), (52 * MIB, GIB, 1), (51 * MIB, GIB, 0), (63 * MIB, None, 0)],
)  # fmt: skip
def test_only_what_is_dear_is_advised_on(tables: int, memory: int | None, wanted: int) -> None:
    """More than 64 MiB of tables, or more than 5 % of memory."""
    one = mapping(distinct_bytes=tables, distinct_pte_bytes=tables)
    assert len(advise(found(one), facts(memory_total=memory))) == wanted


def test_private_memory_of_one_process_is_no_matter_of_sharing() -> None:
    """A heap, or a file that one process maps for itself, however large: no advice. Shared memory has it with one user too."""
    assert advise(found(mapping(kind="anonymous", name="")), facts()) == ()
    lone = mapping(processes=1, gib=300)
    assert advise(found(dataclasses.replace(lone, shared=False)), facts()) == ()
    (advice,) = advise(found(lone), facts())
    assert (advice.mapping, advice.cost_bytes) == (lone, lone.distinct_bytes)


def test_the_costliest_comes_first_and_totals_leave_the_others_alone() -> None:
    """Each alternative changes one mapping; the rest of what was looked at stays in its total."""
    small, large = mapping(gib=10), mapping(gib=300)
    first, second = advise(found(small, large, others=5 * MIB), facts())
    assert (first.mapping, second.mapping) == (large, small)
    assert named(second, "1 GiB pages").total_bytes == large.distinct_bytes + 5 * MIB


def test_memory_that_has_large_pages_is_advised_on_what_is_left() -> None:
    """2 MiB hugetlb pages mapped askew: linking and 1 GiB pages; not what is there already."""
    names = {one.name for one in only(mapping(page_size=2 * MIB, distinct_pte_bytes=0)).alternatives}
    assert names == {"linked tables", "1 GiB pages"}
    assert {one.name for one in only(mapping(page_size=GIB)).alternatives} == {"linked tables"}


def test_advice_is_data() -> None:
    """It goes into JSON as it is; without mappings it is refused, not guessed."""
    text = json.loads(json.dumps([one.to_dict() for one in advise(found(mapping()), facts())]))
    assert text[0]["alternatives"][0]["estimate"] is True
    with pytest.raises(ValueError, match="mappings=True"):
        advise(dataclasses.replace(found(), machine=None), facts())


@pytest.mark.usefixtures("exact")
def test_the_advice_to_collapse_comes_true(worker: Callable[..., Any], unique: str) -> None:
    """Four processes that map a file congruently, one that does not: the command that is advised saves what was foretold."""
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\n"
        "fd, shift = os.open(sys.argv[1], os.O_RDWR), int(sys.argv[2])\nsize = os.fstat(fd).st_size\nG = 1 << 30\n"
        "space = libc.mmap(None, 4 * G, 0, 0x4022, -1, 0)\nat = (space + G - 1) // G * G + shift\n"
        "assert libc.mmap(at, size, 3, 0x11, fd, 0) == at\n"
        "while True:\n"
        "    for i in range(0, size, 4096): ctypes.string_at(at + i, 1)\n"
        "    print('ready', flush=True)\n    if not sys.stdin.readline(): break\n"
    )
    path = f"/dev/shm/{unique}"
    size = 128 * MIB
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    try:
        workers = [worker(code, path, shift) for shift in (0, 0, 2 * MIB, 0, 4096)]
        pids = [one.pid for one in workers]
        before = footprint(*pids, mappings=True)
        advice = next(one for one in advise(before, facts(), least_bytes=0) if one.mapping.name == path)
        expected = named(advice, "collapsed")
        assert expected.possible
        assert "80%" in (expected.why or "")
        (step,) = expected.steps
        assert step.command == f"sharedregion collapse {path}"
        done = subprocess.run(
            [sys.executable, "-P", "-m", *step.command.split()], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        for one in workers:
            one.stdin.write(b"\n")
            one.stdin.flush()
            assert one.stdout.readline() == b"ready\n"
        after = footprint(*pids, mappings=True)
        (cost,) = [one.distinct_bytes for one in after.mappings if one.name == path]
    finally:
        os.unlink(path)
    assert abs(cost - expected.table_bytes) <= expected.table_bytes // 10
    saved = advice.cost_bytes - cost
    assert abs(saved - expected.saved_bytes) <= expected.saved_bytes // 10
