"""The arithmetic of the story, and the guardian that gives the machine back."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sharedregion import _guardian, _story
from sharedregion._kernel.cgroup import MemoryLimit
from sharedregion._kernel.facts import Facts
from sharedregion._kernel.sysfs import HugepagePool

MIB = 1 << 20
GIB = 1 << 30
FACTS = Facts(
    root_user=True,
    memory_available=32 * GIB,
    pools={2 * MIB: HugepagePool(2 * MIB, 0, 0, 0, 0, 0)},
)


def test_the_story_s_own_figures() -> None:
    """300 GiB and 1500 clients: 600 MiB of entries, 601 MiB of tables each, 881 GiB in all, from 600 MiB of data."""
    made = _story.Plan()
    assert made.entries_bytes == 600 * MIB
    assert made.tables_bytes == 153_600 * 4096 + 300 * 4096 + 4096
    assert round(made.tables_bytes / MIB) == 601
    assert round(made.all_tables_bytes / GIB) == 881
    assert (made.huge_pages, made.pool_bytes) == (300, 600 * MIB)
    assert made.small_pages * 4096 == 600 * MIB
    assert made.lets_live == 5


def test_a_plan_fits_the_machine_or_says_what_is_missing() -> None:
    assert _story.plan(FACTS) == _story.Plan(limit=4 * GIB)
    small = _story.plan(replace(FACTS, memory_available=3 * GIB))
    assert isinstance(small, _story.Plan)
    assert small.limit is None
    for facts, word in (
        (replace(FACTS, root_user=False), "root"),
        (replace(FACTS, pools={}), "no 2 MiB"),
        (replace(FACTS, memory_available=GIB), "of memory"),
        (replace(FACTS, memory_limits=(MemoryLimit("/g", GIB, 0),)), "of memory"),
    ):
        refused = _story.plan(facts)
        assert isinstance(refused, _story.Refused)
        assert word in refused.reason


def test_the_words_carry_the_figures() -> None:
    small = _story.SmallSide(4 * GIB, lived=5, killed=True, tables=601 * MIB)
    outcome = _story.Outcome(_story.Plan(), 78 * MIB, 73 * MIB, 1.5, small)
    text = " ".join(_story.sentences(outcome))
    for part in (
        "300 GiB / 4 KiB x 8 B = 600 MiB",
        "601 MiB",
        "x 1500 clients = 881 GiB",
        "nothing a client",
        "5 clients lived",
    ):
        assert part in text
    bare = replace(outcome, small=replace(small, lived=3, killed=False, reason="no group can be made"))
    assert (
        "3 clients lived, each with 601 MiB of tables; no more were tried, since no group can be made."
        in (_story.sentences(bare)[-1])
    )
    grown = replace(outcome, linked_bytes=78 * MIB + 1500 * 2048, small=None)
    assert grown.per_client == 2048
    text = " ".join(_story.sentences(grown))
    assert "2 KiB a client" in text
    assert "left out" in text
    assert grown.as_dict()["hugetlb"]["per_client_bytes"] == 2048
    assert grown.as_dict()["4k"]["lived"] is None


def test_changes_of_a_pool_are_undone_once_and_last() -> None:
    announced = b'["pool", 7, 300]\n["group", "/a"]\n["group", "/b"]\n["pool", 7, -200]\n["pool", 9, 5]\n["pool", 9, -5]\n'
    assert [tuple(step) for step in _guardian._steps(announced)] == [
        ("group", "/b"),
        ("group", "/a"),
        ("pool", 7, 100),
    ]


HOST = """
import os, sys, signal
from sharedregion import _guardian
guardian = _guardian.Guardian(sys.argv[1])
guardian.announce("pool", 2 << 20, 40)
_guardian.write(sys.argv[1] + "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", 140)
print(guardian.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_pool_is_given_back_when_the_host_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB"
    folder.mkdir(parents=True)
    (folder / "nr_hugepages").write_text("100")
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HOST, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as host:
        assert host.stdout
        guardian = int(host.stdout.readline())
        assert (folder / "nr_hugepages").read_text() == "140"
        # Meanwhile someone else reserves three pages: they stay theirs.
        (folder / "nr_hugepages").write_text("143")
        host.send_signal(number)
        host.wait()
    deadline = time.monotonic() + 30
    while (folder / "nr_hugepages").read_text() != "103" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (folder / "nr_hugepages").read_text() == "103"
    assert guardian != host.pid


def test_clients_that_die_are_noticed_and_none_is_left() -> None:
    guardian = _guardian.Guardian()
    try:
        with _story._clients(guardian) as crew:
            first = crew.start(lambda: None)
            assert crew.wait(1) is None
            second = crew.start(lambda: os.kill(os.getpid(), signal.SIGKILL))
            status = crew.wait(1)
            assert status is not None
            assert os.WTERMSIG(status) == signal.SIGKILL
            assert crew.pids == [first]
    finally:
        guardian.undo()
    for pid in (first, second, guardian.pid):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
