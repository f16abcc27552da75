"""A region and its name live while any process has it open; with persist, until unlink."""

import gc
import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

import sharedregion as sr

Make = Callable[..., sr.Region]

ATTACH_AND_WAIT = """
import sys, sharedregion as sr
region = sr.attach(sys.argv[1], writable=True)
held = region["x"]
print("ready", flush=True)
sys.stdin.readline()
print(int(held.sum()), int(region["x"].sum()))
"""


def names_of(name: str) -> list[str]:
    return sorted(file for file in os.listdir("/dev/shm") if file.startswith(f"sharedregion.{name}."))


def gone(name: str) -> bool:
    """A keeper removes names a moment after the last member."""
    deadline = time.monotonic() + 10
    while names_of(name) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not names_of(name)


def test_name_goes_with_the_last_member(make: Make) -> None:
    """close() of the last one removes the name; of an earlier one, not."""
    region = make()
    other = sr.attach(region.name)
    region.close()
    assert region.name in sr.regions()
    other.close()
    assert gone(region.name) and region.name not in sr.regions()
    with pytest.raises(sr.RegionNotFound):
        sr.attach(region.name)


def test_arrays_outlive_close(make: Make) -> None:
    """Arrays stay valid after close(), del and unlink(), and hold the region until they die."""
    region = make()
    region["x"] = np.arange(1000)
    x = region["x"][10:20]
    region.unlink()
    region.close()
    del region
    gc.collect()
    assert x.tolist() == list(range(10, 20))


def test_closed_says_so(make: Make) -> None:
    """Every use after close() is an error of the family."""
    region = make()
    region["x"] = 1
    region.close()
    region.close()
    for use in (
        lambda: region["x"],
        lambda: region.put("x", 1),
        lambda: "x" in region,
        lambda: len(region),
        lambda: list(region),
        region.stats,
        lambda: region.version("x"),
        lambda: region.zeros("z", 3),
    ):
        with pytest.raises(sr.RegionClosed, match="closed"):
            use()
    assert "closed" in repr(region)


def test_another_process_keeps_it(make: Make, start) -> None:
    """The host may close and go: a worker keeps region, name and objects."""
    region = make()
    region["x"] = np.arange(100)
    worker = start(ATTACH_AND_WAIT, region.name)
    region["x"] = np.arange(10)
    region.close()
    assert region.name in sr.regions()
    out, _ = worker.communicate("\n")
    assert out.split() == ["4950", "45"]
    assert gone(region.name)


def test_host_killed(make: Make, start, run, unique: str) -> None:
    """kill -9 of the host takes nothing from the workers, and the last one cleans up."""
    region = make()
    region["x"] = np.arange(100)
    first, second = start(ATTACH_AND_WAIT, region.name), start(ATTACH_AND_WAIT, region.name)
    region.close()
    first.send_signal(signal.SIGKILL)
    first.wait()
    with sr.attach(region.name, writable=True) as late:
        late["y"] = "placed after the kill"
        late._check()
    out, _ = second.communicate("\n")
    assert out.split() == ["4950", "4950"]
    assert gone(region.name)


def test_after_kill_of_all(make: Make, start) -> None:
    """What remains after kill -9 of every member is no region, and the next create takes the name."""
    region = make()
    region["x"] = np.arange(100)
    worker = start(ATTACH_AND_WAIT, region.name)
    name, size = region.name, region.size
    region.close()
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert name not in sr.regions()
    with pytest.raises(sr.RegionNotFound):
        sr.attach(name)
    again = make(size=size)
    assert len(again) == 0
    again.close()
    assert gone(name)


def test_persist(make: Make, run) -> None:
    """A persistent region outlives its members and ends with unlink()."""
    region = make(persist=True)
    region["x"] = np.arange(100)
    name = region.name
    try:
        region.close()
        assert name in sr.regions()
        out = run("import sys, sharedregion as sr\nprint(sr.attach(sys.argv[1])['x'].sum())", name)
        assert out.strip() == "4950"
        with pytest.raises(sr.RegionExists):
            make()
    finally:
        sr.unlink(name)
    assert gone(name)
    with pytest.raises(sr.RegionNotFound):
        sr.unlink(name)


def test_unlink_keeps_members(make: Make) -> None:
    """unlink() takes the name; who has the region open keeps it, and the name is free."""
    region = make()
    region["x"] = np.arange(10)
    with sr.attach(region.name) as other:
        sr.unlink(region.name)
        assert region.name not in sr.regions()
        with pytest.raises(sr.RegionNotFound):
            sr.attach(region.name)
        region["y"] = 2
        assert other["y"] == 2 and other["x"].sum() == 45
        fresh = make()
        assert len(fresh) == 0 and len(region) == 2


def test_replace(make: Make) -> None:
    """replace=True moves the name to a new generation at once; members of the old keep theirs."""
    old = make()
    old["x"] = 1
    with pytest.raises(sr.RegionExists, match="replace=True") as caught:
        make()
    assert isinstance(caught.value, FileExistsError)
    new = make(replace=True)
    new["x"] = 2
    with sr.attach(new.name) as seen:
        assert seen["x"] == 2
    old["y"] = 3
    assert old["x"] == 1 and old["y"] == 3
    old.close()
    third = make(replace=True)
    assert len(third) == 0 and new["x"] == 2
    new.close()
    with sr.attach(third.name) as seen:
        assert len(seen) == 0
    third.close()
    assert gone(third.name)


def test_fork(make: Make) -> None:
    """A forked child is a member of its own: it reads, writes, and its exit takes nothing down."""
    region = make()
    region["x"] = np.arange(1000)
    held = region["x"]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            region["from child"] = int(held.sum()) + len(region.members())
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert region["from child"] == 499500 + 2
    assert len(region.members()) == 1
    region._check()


def test_pins_survive_fork(make: Make) -> None:
    """What the child looks at is held for it, though the parent has dropped it before the child ever ran."""
    region = make()
    region["x"] = np.full(100_000, 7, "u1")
    held = region["x"]
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.read(go_read, 1)
            code = 0 if (held == 7).all() else 2
        finally:
            os._exit(code)
    del held
    del region["x"]
    for n in range(40):
        region[f"other {n}"] = np.full(100_000, 9, "u1") if n < 20 else n
    os.write(go_write, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(go_read), os.close(go_write)
    region["last"] = 0
    region._sweep()
    assert region.stats().withdrawn == 0
    region._check()


def test_failed_attach_changes_nothing(make: Make) -> None:
    """Attaching to what is not there, or under a wrong owner, leaves the region as it was."""
    region = make()
    region["x"] = 1
    before = names_of(region.name), region.stats()
    with pytest.raises(sr.RegionDenied):
        sr.attach(region.name, owner=12345)
    with pytest.raises(sr.RegionNotFound):
        sr.attach(region.name + "-other")
    assert (names_of(region.name), region.stats()) == before


def test_lock_left_by_the_dead(make: Make, start) -> None:
    """Killed while it places objects without pause, a writer blocks no one and leaves whole objects."""
    region = make(size="16 MiB")
    region["kept"] = np.arange(1000)
    for _ in range(5):
        writer = start(
            """
import sys, numpy as np, sharedregion as sr
region = sr.attach(sys.argv[1], writable=True)
print("ready", flush=True)
n = 0
while True:
    n += 1
    region[f"w{n % 50}"] = np.full(1 + n % 3000, n)
    if n % 7 == 0: region.pop(f"w{n % 31}", None)
""",
            region.name,
        )
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        region["after"] = np.arange(500)
        for name, value in region.items():
            if name.startswith("w"):
                assert (value == value[0]).all() and len(value) == 1 + value[0] % 3000
        assert region["kept"].sum() == 499500
        region._sweep()
        region._check()
        stats = region.stats()
        assert stats.unfinished == 0 and stats.withdrawn == 0
