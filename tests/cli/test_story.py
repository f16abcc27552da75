"""The story, told for real on a small scale: it changes the machine, and gives it back as it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sharedregion import _story
from sharedregion._kernel.sysfs import hugepage_pools

MIB = 1 << 20
GIB = 1 << 30
HUGE = 2 * MIB

pytestmark = [pytest.mark.root, pytest.mark.hugepages]

# 16 GiB: 16 huge pages or 32 MiB of data, 32 MiB of tables for a client with 4 KiB pages.
SMALL = _story.Plan(16 * GIB, clients=40, limit=192 * MIB)


def groups() -> set[str]:
    return {path for path, _, _ in os.walk("/sys/fs/cgroup") if "sharedregion-story" in path}


def machine() -> tuple[object, set[str]]:
    return hugepage_pools()[HUGE].persistent, groups()


def test_linked_clients_cost_next_to_nothing_and_4_kib_clients_die_at_the_limit() -> None:
    before = machine()
    told: list[str] = []
    outcome = _story.run(SMALL, told.append)
    assert machine() == before
    assert len(told) == 2
    # One PMD table for each GiB is linked into all: without links each client would have 64 KiB of its own.
    assert outcome.per_client <= 16 * 1024
    small = outcome.small
    assert small
    assert small.reason is None
    assert small.killed
    assert small.tables
    assert abs(small.tables - SMALL.tables_bytes) <= 2 * MIB
    assert SMALL.lets_live
    assert 1 <= small.lived <= SMALL.lets_live


def alive(pid: str) -> bool:
    """False too for one that has ended and that its new parent has not yet buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


HOST = """
from sharedregion import _story
GIB = 1 << 30
try:
    _story.run(_story.Plan(64 * GIB, clients=3000, limit=None), lambda text: print(text, flush=True))
except KeyboardInterrupt:
    raise SystemExit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_story_gives_the_machine_back(number: signal.Signals) -> None:
    before = machine()
    with subprocess.Popen([sys.executable, "-P", "-c", HOST], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout
        assert host.stdout.readline()
        pool = hugepage_pools()[HUGE]
        children: list[str] = []
        # The first client means that the pool has been grown.
        while host.poll() is None and len(children) < 10:
            children = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()
            pool = hugepage_pools()[HUGE]
        assert pool.total >= 64
        host.send_signal(number)
        host.wait()
        # Clients and guardian hold the pipe's other end: its end is theirs.
        host.stdout.read()
    assert machine() == before
    # A process closes its files a moment before it is gone.
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in children)
