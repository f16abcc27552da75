"""Regions on msharefs: what is asked of the kernel, who owns it, and what is left when those are killed."""

import contextlib
import json
import mmap
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedregion as sr
from sharedregion import _native
from sharedregion._kernel.facts import gather

GIB = 1 << 30
MIB = 1 << 20
GRANULE = 2 * MIB
UNITS = [2 * MIB, GIB, 512 * GIB]

pytestmark = [pytest.mark.root]


REAL = os.environ.get("SHAREDREGION_TEST_KINDS", "").startswith("msharefs")


class Kernel:
    """The machine's own msharefs, into which nobody can look."""

    def __init__(self) -> None:
        there = gather().msharefs
        assert there.path is not None
        assert there.unit is not None
        self.path, self.unit = there.path, there.unit

    def regions(self) -> list[dict[str, Any]]:
        return []

    def files(self) -> list[str]:
        return [name for name in os.listdir(self.path) if name.startswith("sharedregion")]


@pytest.fixture(params=[0] if REAL else UNITS, ids=["real"] if REAL else ["2 MiB", "1 GiB", "512 GiB"])
def double(request: pytest.FixtureRequest, msharefs: Callable[[int], Any]) -> Any:
    if not REAL:
        return msharefs(request.param)
    if request.node.get_closest_marker("looks_inside"):
        pytest.skip("nobody can look into the machine's own msharefs")
    return Kernel()


@pytest.fixture
def region(double: Any, unique: str) -> Iterator[sr.Region]:
    """64 MiB, writable."""
    with sr.create(unique, size=64 * MIB, backend="msharefs") as made:
        yield made


def keeper_of(name: str) -> int:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[:2] == [b"sharedregion-keeper", name.encode()]:
                return int(pid)
    raise AssertionError("there is no keeper")


def end_keeper(name: str) -> None:
    """kill -9, and wait until it is gone."""
    keeper = os.pidfd_open(keeper_of(name))
    signal.pidfd_send_signal(keeper, signal.SIGKILL)
    assert select.select([keeper], [], [], 10)[0], "it does not end"
    os.close(keeper)


def shown(double: Any) -> list[tuple[int, int]]:
    """(start, end) of what the one region shows, neighbours together."""
    (one,) = double.regions()
    found: list[tuple[int, int]] = []
    for each in one["objects"]:
        assert each["prot"] == mmap.PROT_READ, "reading only is the object's protection: no other is enforced"
        assert each["flags"] & 0x100011 == 0x100011, "MAP_SHARED | MAP_FIXED | MAP_FIXED_NOREPLACE"
        end = each["at"] + each["length"]
        if found and found[-1][1] == each["at"]:
            found[-1] = (found[-1][0], end)
        else:
            found.append((each["at"], end))
    return found


def stays(double: Any) -> int:
    """Bytes that are shown and are no part of what the region commits: the first granule of each unit."""
    firsts = {
        at for start, end in shown(double) for at in range(start, end, GRANULE) if at % double.unit == 0
    }
    return len(firsts) * GRANULE


@pytest.mark.looks_inside
def test_the_keepers_main_thread_owns_a_file_without_a_name(region: sr.Region, double: Any) -> None:
    """So nothing remains in the mount whoever is killed, and nobody can remove or open it by name."""
    (one,) = double.regions()
    assert one["owner"] == keeper_of(region.name)
    assert one["names"] == 0
    assert not double.files()
    assert one["size"] % double.unit == 0
    assert one["size"] >= region.size


@pytest.mark.looks_inside
def test_memory_is_only_what_was_asked_for(region: sr.Region, double: Any) -> None:
    """What is committed is shown, granule by granule, and nothing beyond; more as it grows, less when trimmed."""
    assert shown(double) == [(0, GRANULE)]
    region["a"] = np.ones(20 * MIB, "u1")
    before = shown(double)
    assert before[0][0] == 0
    assert 20 * MIB <= before[0][1] <= 24 * MIB
    assert sum(end - start for start, end in before) == region.stats().committed + stays(double)
    with sr.attach(region.name) as reader:
        a = reader["a"]
        region["b"] = np.full(30 * MIB, 2, "u1")
        assert reader["b"].sum() == 60 * MIB, "what is shown later is seen by who was there"
        del region["b"]
        freed = region.trim()
        # The first granule of each unit stays; where a unit is no more than that, so does everything.
        assert (freed > 0) == (double.unit > GRANULE)
        assert sum(end - start for start, end in shown(double)) == region.stats().committed + stays(double)
        region["c"] = np.full(30 * MIB, 3, "u1")
        assert reader["c"].sum() == 90 * MIB
        assert a.sum() == 20 * MIB
    with pytest.raises(sr.RegionFull):
        region["d"] = np.ones(64 * MIB, "u1")


@pytest.mark.looks_inside
def test_the_first_page_of_each_unit_stays(double: Any, unique: str) -> None:
    """A reader that attaches touches it, so it is never given back, or that touch could be fatal."""
    with sr.create(unique, size=64 * MIB, backend="msharefs") as region:
        region["a"] = np.ones(60 * MIB, "u1")
        del region["a"]
        region.trim()
        starts = {start for start, _ in shown(double)}
        assert 0 in starts
        if double.unit == GRANULE:
            assert sum(end - start for start, end in shown(double)) >= 60 * MIB
        else:
            assert shown(double) == [(0, GRANULE)]
        with sr.attach(unique) as reader:
            assert len(reader) == 0


READER = """
import os, sys, json, sharedregion as sr
region = sr.attach(sys.argv[1])
share = region._segments()[2]
lines = open("/proc/self/smaps").read().splitlines()
found = {}
inside = False
for line in lines:
    head = line.split()
    if "-" in head[0] and not head[0].endswith(":"):
        major, minor = (int(word, 16) for word in head[3].split(":"))
        inside = os.makedev(major, minor) == share[0] and int(head[4]) == share[1]
        if inside: found = {"range": head[0], "perms": head[1]}
    elif inside and head[0] in ("VmFlags:", "Rss:", "Size:"):
        found[head[0]] = head[1:]
print(json.dumps(found), flush=True)
sys.stdin.readline()
print(int(region["x"].sum()))
"""


def test_how_a_reader_attaches(region: sr.Region, double: Any, start: Callable[..., Any]) -> None:
    """All of it in one mapping, for reading, at a multiple of the unit, kept out of core dumps, linked at once."""
    region["x"] = np.arange(1000)
    worker = start(READER, region.name)
    found = json.loads(worker.first)
    low, high = (int(word, 16) for word in found["range"].split("-"))
    assert low % double.unit == 0
    assert (high - low) % double.unit == 0
    assert high - low >= region.size
    assert found["perms"] == "r--s"
    assert "dd" in found["VmFlags:"], "not in a core dump, whose file would have 512 GiB"
    assert int(found["Rss:"][0]) > 0, "a present page was touched"
    assert worker.communicate("\n")[0].split() == ["499500"]


def test_a_write_by_a_reader_is_refused_by_the_kernel(region: sr.Region, run: Callable[..., str]) -> None:
    """Behind NumPy's back it is SIGSEGV; the memory stays as it was."""
    region["x"] = np.arange(1000)
    program = """
import ctypes, sys, sharedregion as sr
region = sr.attach(sys.argv[1])
ctypes.memset(region["x"].ctypes.data, 1, 8)
"""
    run(program, region.name, expect=-signal.SIGSEGV)
    assert region["x"][0] == 0


def test_writable_members_share_the_memory(region: sr.Region) -> None:
    """Their arrays lie in the memory itself; what they write is seen by readers at once."""
    array = region.zeros("m", 1000, "i8", mutable=True)
    with sr.attach(region.name, writable=True) as writer, sr.attach(region.name) as reader:
        seen = reader["m"]
        writer["m"][:] = 7
        assert array.sum() == seen.sum() == 7000
        array[0] = 8
        assert seen[0] == writer["m"][0] == 8
        assert not seen.flags.writeable


# --- killed ------------------------------------------------------------------------------------

WORKER = """
import sys, sharedregion as sr
region = sr.attach(sys.argv[1])
held = region["x"]
print("ready", int(held.sum()), flush=True)
for line in sys.stdin:
    word = line.split()
    try:
        if word[0] == "get":
            answer = int(region[word[1]].sum())
        elif word[0] == "wait":
            answer = region.wait(word[1], 1, newer_than=1 << 60)
        elif word[0] == "attach":
            with sr.attach(sys.argv[1]):
                answer = "attached"
        elif word[0] == "close":
            held = None
            region.close()
            answer = "closed"
    except (sr.SharedRegionError, KeyError) as error:
        answer = f"{type(error).__name__}: {error}"
    print(answer, flush=True)
"""

HOST = """
import sys, numpy as np, sharedregion as sr
region = sr.create(sys.argv[1], size="64 MiB", backend="msharefs")
region["x"] = np.arange(1000)
print("ready", flush=True)
sys.stdin.readline()
"""


def ask(worker: Any, words: str) -> str:
    print(words, file=worker.stdin, flush=True)
    answer: str = worker.stdout.readline().strip()
    return answer


def nothing_left(name: str) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [file for file in os.listdir("/dev/shm") if name in file]
        with contextlib.suppress(AssertionError):
            keeper_of(name)
            left.append("keeper")
        if not left:
            return
        time.sleep(0.01)
    raise AssertionError(left)


def kill(process: Any) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_host_killed(double: Any, unique: str, start: Callable[..., Any]) -> None:
    """The keeper owns what readers see, so workers go on, new ones come, and objects can be placed."""
    host = start(HOST, unique)
    worker = start(WORKER, unique)
    kill(host)
    assert ask(worker, "get x") == "499500"
    assert ask(worker, "attach") == "attached"
    with sr.attach(unique, writable=True) as late:
        late["y"] = np.ones(10 * MIB, "u1")
        late._check()
        assert ask(worker, "get y") == str(10 * MIB)
    assert ask(worker, "close") == "closed"
    nothing_left(unique)
    assert not double.regions()


def test_keeper_killed(double: Any, unique: str, start: Callable[..., Any]) -> None:
    """Readers get RegionLost at their next use, before they touch anything; a writer can still save what is there."""
    host = sr.create(unique, size=64 * MIB, backend="msharefs")
    host["x"] = np.arange(1000)
    worker = start(WORKER, unique)
    end_keeper(unique)
    assert not double.regions()
    assert ask(worker, "get x").startswith("RegionLost: the keeper of region")
    assert ask(worker, "get x").startswith("RegionLost")
    assert ask(worker, "wait x").startswith("RegionLost")
    assert ask(worker, "attach").startswith("RegionLost")
    assert host["x"].sum() == 499500
    for change in (
        lambda: host.put("y", 1),
        lambda: host.put("z", np.ones(30 * MIB, "u1")),
        lambda: host.zeros("z", 3),
        lambda: host.pop("x"),
        host.trim,
    ):
        with pytest.raises(sr.RegionLost, match="keeper"):
            change()
    with pytest.raises(sr.RegionLost):
        sr.attach(unique)
    assert worker.poll() is None, "no worker dies of it"
    assert ask(worker, "close") == "closed"
    host.close()
    nothing_left(unique)


def test_both_killed(double: Any, unique: str, start: Callable[..., Any]) -> None:
    """Workers are told, and the last one of them removes the names."""
    host = start(HOST, unique)
    workers = [start(WORKER, unique) for _ in range(2)]
    end_keeper(unique)
    kill(host)
    for worker in workers:
        assert ask(worker, "get x").startswith("RegionLost")
        assert ask(worker, "close") == "closed"
        assert worker.poll() is None
    nothing_left(unique)
    assert not double.regions()
    assert not double.files()


def test_all_killed(double: Any, unique: str, start: Callable[..., Any]) -> None:
    """With nobody left to clean up, the next create of that name does."""
    host, worker = start(HOST, unique), start(WORKER, unique)
    socket = Path(f"/dev/shm/sharedregion.{_native.Onlooker(unique).head()['id'].hex()}.keeper")
    assert socket.is_socket()
    end_keeper(unique)
    kill(host)
    kill(worker)
    assert not double.regions()
    with sr.create(unique, size=MIB, backend="shm") as region:
        region["x"] = 1
    nothing_left(unique)
    assert not socket.exists()


def test_a_false_word_of_the_keepers_end_is_asked_about(region: sr.Region) -> None:
    """Any member can write the word; RegionLost is said only when the keeper does not answer."""
    region["x"] = np.arange(10)
    with (
        sr.attach(region.name) as reader,
        open(f"/dev/shm/sharedregion.{region.name}.members", "r+b") as file,
    ):
        file.seek(52)
        word = file.read(4)
        file.seek(52)
        file.write((int.from_bytes(word, "little") | 0x40000000).to_bytes(4, "little"))
        file.flush()
        assert reader["x"].sum() == 45
        assert reader["x"].sum() == 45


def test_fork_links_again(region: sr.Region, run: Callable[..., str]) -> None:
    """Tables are not linked into a forked child before it touches them; the library does it for each unit."""
    region["x"] = np.arange(1000)
    program = """
import os, sys, sharedregion as sr
region = sr.attach(sys.argv[1])
address, length, _ = region._data()
def resident():
    inside, total = False, 0
    for line in open("/proc/self/smaps"):
        word = line.split()
        if "-" in word[0] and not word[0].endswith(":"):
            inside = int(word[0].split("-")[0], 16) == address
        elif inside and word[0] == "Rss:":
            total = int(word[1])
    return total
pid = os.fork()
if pid == 0:
    os._exit(0 if resident() > 0 and int(region["x"].sum()) == 499500 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run(program, region.name).strip() == "0"


def test_closed_descriptors_are_fetched_again(region: sr.Region, run: Callable[..., str]) -> None:
    """A program that becomes a daemon closes what it finds: a writer still grows the region, a reader still reads."""
    program = """
import os, sys, numpy as np, sharedregion as sr
region = sr.attach(sys.argv[1], writable=True)
reader = sr.attach(sys.argv[1])
os.closerange(3, 1000)
region["y"] = np.ones(40 << 20, "u1")
print(int(reader["y"].sum()))
"""
    assert run(program, region.name).strip() == str(40 * MIB)


@pytest.mark.skipif(REAL, reason="units of the stand-in")
def test_many_units(msharefs: Callable[[int], Any], unique: str) -> None:
    """A region over 32 units: each is linked, and each keeps its first page."""
    double = msharefs(2 * MIB)
    with sr.create(unique, size=64 * MIB, backend="msharefs", commit="full") as region:
        assert shown(double) == [(0, 64 * MIB)]
        with sr.attach(unique) as reader:
            address, _, _ = reader._data()
            assert address % (2 * MIB) == 0
            region["x"] = np.arange(7 * MIB, dtype="i8")
            assert reader["x"][-1] == 7 * MIB - 1


@pytest.mark.looks_inside
def test_persistent(double: Any, unique: str, run: Callable[..., str]) -> None:
    """With persist=True the keeper stays when nobody has the region open, until unlink()."""
    with sr.create(unique, size=4 * MIB, backend="msharefs", persist=True) as region:
        region["x"] = np.arange(10)
    assert double.regions()
    assert (
        run("import sys, sharedregion as sr; print(sr.attach(sys.argv[1])['x'].sum())", unique).strip()
        == "45"
    )
    sr.unlink(unique)
    nothing_left(unique)
    assert not double.regions()


@pytest.mark.parametrize("double", [512 * GIB], indirect=True)
def test_the_helper_knows_the_region(double: Any, unique: str, start: Callable[..., Any]) -> None:
    """Tables that map what readers attach are the region's, by the helper; RSS and VmPTE know nothing of them."""
    with sr.create(unique, size=256 * MIB, backend="msharefs") as region:
        region["x"] = np.ones(200 * MIB, "u1")
        worker = start(WORKER, unique)
        looked = sr.footprint(worker.pid, regions=[(unique, region._segments())])
        if REAL and looked.method != "walk":
            pytest.skip(f"here page tables can only be estimated: {looked.why}")
        (process,) = looked.processes
        mine = next(one for one in process.regions if one.region == unique)
        # One PMD table for the GiB in which it lies, and the PUD table of 512 GiB that are all its own.
        assert mine.linked_bytes >= 2 * 4096
        worker.communicate("")


def test_doctor_names_the_interface(msharefs: Callable[[int], Any]) -> None:
    """Found by asking the mount, not by the kernel's version."""
    from sharedregion import doctor

    double = msharefs(1 << 39)
    one = next(found for found in doctor.examine().findings if found.check == "msharefs")
    assert f"mounted at {double.path}" in one.evidence
    assert "interface: series v3 of the patches" in one.evidence
