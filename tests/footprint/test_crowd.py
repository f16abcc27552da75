"""A thousand processes, and processes that come and go meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sharedregion.footprint import footprint

PAGE = 4096
COUNT = 1000

#: One process that maps 16 MiB of shared memory, and its children, which all read it.
CROWD = """
import mmap, os, sys
m = mmap.mmap(-1, 16 << 20)
for i in range(0, 16 << 20, 4096): m[i] = 1
children = []
for _ in range(int(sys.argv[1])):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        for i in range(0, 16 << 20, 2 << 20): m[i]
        os.write(write, b"x")
        sys.stdin.read()
        os._exit(0)
    os.read(read, 1)
    os.close(read), os.close(write)
    children.append(pid)
print("ready", *children, flush=True)
sys.stdin.read()
"""

#: Starts a program again and again, one after the other, each with a memory of its own.
CHURN = """
import ctypes
ctypes.CDLL(None).prctl(15, b"churner", 0, 0, 0)
print("ready", flush=True)
while True:
    pid = os.fork()
    if pid == 0: os.execv(sys.argv[1], ["churned"])
    os.waitpid(pid, 0)
"""


@pytest.fixture
def crowd() -> Iterator[list[int]]:
    """A thousand children."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", CROWD, str(COUNT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        yield [int(word) for word in process.stdout.readline().split()[1:]]


@pytest.mark.usefixtures("exact")
def test_a_thousand_processes_are_all_told_of_once(crowd: list[int]) -> None:
    """Each by its number, with the kernel's own count to the byte; the memory that they share is one mapping."""
    found = footprint(mappings=True)
    by_pid = {process.pid: process for process in found.processes}
    assert len(by_pid) == len(found.processes)
    assert set(crowd) <= set(by_pid)
    for pid in crowd:
        process = by_pid[pid]
        assert process.linked_bytes == process.vm_pte_bytes + PAGE * process.tables.pgd
        assert process.shares_with == ()
    ours = footprint(*crowd, mappings=True)
    shared = [mapping for mapping in ours.mappings if mapping.memory == "shared anonymous"]
    assert [mapping.processes for mapping in shared] == [COUNT]
    # 16 MiB somewhere: seven or eight PTE tables that serve nothing else, in each of them.
    assert 7 * COUNT <= shared[0].pte_links <= 8 * COUNT


@pytest.mark.usefixtures("exact")
def test_those_that_end_meanwhile_are_said_and_none_is_told_twice(
    worker: Callable[..., Any], helper: str, tmp_path: Path, crowd: list[int]
) -> None:
    """Programs start and end during each look, hundreds of others are killed: every answer is whole."""
    shutil.copy("/bin/true", tmp_path / "churned")
    for _ in range(2):
        worker(CHURN, tmp_path / "churned")
    said = 0
    doomed = list(crowd[: COUNT // 2])
    for _ in range(25):
        with subprocess.Popen([helper, "--mappings"], stdout=subprocess.PIPE) as looking:
            for pid in doomed[:20]:
                os.kill(pid, 9)
            out = looking.communicate()[0]
        del doomed[:20]
        assert looking.returncode == 0
        found = json.loads(out)
        pids = [process["pid"] for process in found["processes"]]
        assert len(pids) == len(set(pids))
        assert not set(pids) & set(found["gone"])
        assert len(found["gone"]) == found["looked_at"]["gone"]
        assert set(crowd[COUNT // 2 :]) <= set(pids)
        said += len(found["gone"])
        # A zombie has no memory any more: it is gone, and said to be.
        assert set(crowd) <= set(pids) | set(found["gone"])
        for process in found["processes"]:
            if process["command"] in ("churner", "churned"):
                # They fork and exec, and never vfork: each has a memory of its own.
                assert process["shares_with"] == []
        assert sum(one["distinct_bytes"] for one in found["mappings"]) == found["distinct_bytes"]
    assert said >= COUNT // 2


@pytest.mark.parametrize("method", ["walk", "pagemap", "status"])
def test_a_process_whose_first_thread_has_ended_is_seen_by_every_method(
    worker: Callable[..., Any], method: str, request: pytest.FixtureRequest
) -> None:
    """Also where page tables cannot be read: its memory is found through another thread."""
    if method == "walk":
        request.getfixturevalue("exact")
    code = (
        "import ctypes, mmap, threading, time\n"
        "m = mmap.mmap(-1, 64 << 20)\nfor i in range(0, 64 << 20, 4096): m[i] = 1\n"
        "def rest():\n"
        "    while open('/proc/self/status').read().find('State:\\tZ') < 0: time.sleep(0.01)\n"
        "    ready()\n"
        "threading.Thread(target=rest).start()\nctypes.CDLL(None).syscall(60, 0)"
    )
    pid = worker(code).pid
    found = footprint(pid, mappings=True, method=method)
    (process,) = found.processes
    assert process.linked_bytes == process.vm_pte_bytes + PAGE * process.tables.pgd
    assert process.linked_bytes >= 31 * PAGE
    if method == "status":
        # Without addresses nothing can be said about what the tables are for.
        assert [mapping.kind for mapping in found.mappings] == ["hidden"]
    else:
        assert max(m.pte_links for m in found.mappings if m.memory == "shared anonymous") in (31, 32)


@pytest.mark.parametrize("method", ["walk", "pagemap"])
def test_thousands_of_threads_are_one_process(
    worker: Callable[..., Any], method: str, request: pytest.FixtureRequest
) -> None:
    """3000 threads, the first of which has ended, one memory: one process, counted once."""
    if method == "walk":
        request.getfixturevalue("exact")
    code = (
        "import ctypes, threading, time\nthreading.stack_size(65536)\nstay = threading.Event()\n"
        "for _ in range(3000): threading.Thread(target=stay.wait).start()\n"
        "def rest():\n"
        "    while open('/proc/self/status').read().find('State:\\tZ') < 0: time.sleep(0.01)\n"
        "    print('ready', flush=True)\n    stay.wait()\n"
        "threading.Thread(target=rest).start()\nctypes.CDLL(None).syscall(60, 0)"
    )
    pid = worker(code).pid
    assert len(os.listdir(f"/proc/{pid}/task")) > 3000
    found = footprint(pid, mappings=True, method=method)
    (process,) = found.processes
    assert process.linked_bytes == process.vm_pte_bytes + PAGE * process.tables.pgd
    assert sum(mapping.distinct_bytes for mapping in found.mappings) == found.distinct_bytes


@pytest.fixture
def many_mappings() -> Iterator[None]:
    """More mappings than Linux lets a process have by itself; as root."""
    limit = Path("/proc/sys/vm/max_map_count")
    before = limit.read_text()
    if int(before) < 200_000:
        if os.geteuid() != 0:
            pytest.skip("only root can allow a process 100,000 mappings")
        limit.write_text("200000")
    yield
    if limit.read_text() != before:
        limit.write_text(before)


@pytest.mark.usefixtures("exact", "many_mappings")
def test_a_hundred_thousand_mappings_are_read_to_their_end(worker: Callable[..., Any]) -> None:
    """What lies behind them is still found, and the parts are the whole."""
    fd = os.memfd_create("weights")
    os.posix_fallocate(fd, 0, 8 << 20)
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\n"
        "fd, M, mmap = int(sys.argv[1]), 1 << 20, libc.mmap\n"
        "space = mmap(None, 1 << 30, 0, 0x4022, -1, 0)\nat = (space + 2 * M - 1) // (2 * M) * (2 * M)\n"
        "for i in range(55000): mmap(at + 16384 * i, 4096, 3, 0x32, -1, 0)\n"
        "region = at + 900 * M\nassert mmap(region, 8 * M, 1, 0x11, fd, 0) == region\n"
        "for i in range(0, 8 * M, 4096): ctypes.string_at(region + i, 1)\nready()"
    )
    try:
        pid = worker(code, fd, pass_fds=[fd]).pid
        assert Path(f"/proc/{pid}/maps").read_bytes().count(b"\n") > 100_000
        found = footprint(pid, mappings=True)
        (mapping,) = (one for one in found.mappings if one.inode == os.fstat(fd).st_ino)
    finally:
        os.close(fd)
    assert mapping.pte_links == 4
    assert sum(one.distinct_bytes for one in found.mappings) == found.distinct_bytes


@pytest.mark.usefixtures("exact")
def test_an_exec_in_the_place_of_one_that_ended_is_not_taken_for_it(
    worker: Callable[..., Any], helper: str, request: pytest.FixtureRequest
) -> None:
    """Looked at, ended, and its memory's structure given to the next exec: two processes, and none shares with the other."""
    # How long the helper takes to get between them depends on the machine.
    delays = (0.03, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5)
    on_one_processor = "os.sched_setaffinity(0, {0})\n"
    ending = [worker(on_one_processor + "ready()") for _ in delays]
    # A thousand others stand between them: there is time while the helper is at those.
    request.getfixturevalue("crowd")
    starting = [
        worker(
            on_one_processor + "print('ready', flush=True)\nsys.stdin.readline()\n"
            "os.execv('/bin/sleep', ['sleep', '100'])"
        )
        for _ in delays
    ]
    for first, second, delay in zip(ending, starting, delays, strict=True):
        with subprocess.Popen([helper, "--mappings"], stdout=subprocess.PIPE) as looking:
            time.sleep(delay)
            first.kill()
            first.wait()
            second.stdin.write(b"\n")
            second.stdin.flush()
            found = json.loads(looking.communicate()[0])
        ours = {first.pid, second.pid}
        assert [
            one["shares_with"] for one in found["processes"] if one["pid"] in ours and one["shares_with"]
        ] == []
