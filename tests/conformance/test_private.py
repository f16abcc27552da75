"""copy_on_write: views that a process writes to for itself, on every kind of memory."""

import errno
import gc
import os

import numpy as np
import pytest

import sharedregion as sr
from sharedregion import _native


def test_what_is_written_is_seen_by_nobody_else(region: sr.Region, reader: sr.Region) -> None:
    """A write to a private view changes neither the object, nor other views, nor its neighbours."""
    region["before"] = np.full(1000, 1)
    region["x"] = np.arange(100_000)
    region["after"] = np.full(1000, 2)
    for member in (region, reader):
        mine = member.get("x", copy_on_write=True)
        assert mine.flags.writeable and np.array_equal(mine, np.arange(100_000))
        mine[::100] = -1
        mine[-1] = -1
        assert (mine[::100] == -1).all() and mine[1] == 1
        assert np.array_equal(member["x"], np.arange(100_000))
        del mine
        assert np.array_equal(member.get("x", copy_on_write=True), np.arange(100_000))
    assert (region["before"] == 1).all() and (reader["after"] == 2).all()


def test_shows_the_version_it_was_made_of(region: sr.Region) -> None:
    """What replaces the object, or uses memory of its region again, does not shine through."""
    region["x"] = np.full(50_000, 7, "u1")
    mine = region.get("x", copy_on_write=True)
    mine[0] = 8
    del region["x"]
    for n in range(60):
        region[f"y{n}"] = np.full(50_000, 9, "u1")
    assert mine[0] == 8 and (mine[1:] == 7).all()
    del mine
    gc.collect()
    region._sweep()
    assert region.stats().withdrawn == 0


def test_of_every_kind_of_object(region: sr.Region) -> None:
    """bytes, text, structured arrays, pickles with arrays in them, empty ones: each its writable self."""
    region["b"] = b"abc"
    region["t"] = "text"
    region["s"] = np.zeros(3, [("a", "i4"), ("b", "f8")])
    region["d"] = {"x": np.arange(1000), "n": 3}
    region["e"] = np.zeros((0, 3))
    view = region.get("b", copy_on_write=True)
    view[0:1] = b"x"
    assert bytes(view) == b"xbc" and bytes(region["b"]) == b"abc"
    assert region.get("t", copy_on_write=True) == "text"
    table = region.get("s", copy_on_write=True)
    table["a"] = 5
    assert (region["s"]["a"] == 0).all()
    del table
    both = region.get("d", copy_on_write=True)
    both["x"] += 1
    assert both["n"] == 3 and np.array_equal(region["d"]["x"] + 1, both["x"])
    del both
    assert region.get("e", copy_on_write=True).shape == (0, 3)
    assert region.get("nothing", 5, copy_on_write=True) == 5


def test_outlives_close_and_holds_its_memory(region: sr.Region) -> None:
    """As every array, a private view outlives close(); with the last one all is given back."""
    region["x"] = np.arange(1000)
    member = sr.attach(region.name)
    mine = member.get("x", copy_on_write=True)
    member.close()
    mine[5] = 0
    assert mine.sum() == 499500 - 5
    assert len(region.members()) == 2
    del mine, member
    gc.collect()
    assert len(region.members()) == 1


def test_in_a_forked_child(region: sr.Region) -> None:
    """A child begins with what its parent had written, then each goes on with its own."""
    region["x"] = np.zeros(1000)
    mine = region.get("x", copy_on_write=True)
    mine[:] = 1
    pid = os.fork()
    if pid == 0:
        well = False
        try:
            inherited = bool((mine == 1).all())
            mine[:] = 2
            well = inherited and bool((mine == 2).all() and (region["x"] == 0).all())
        finally:
            os._exit(0 if well else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert (mine == 1).all()


def test_without_memory_it_says_so(region: sr.Region) -> None:
    """Huge pages are promised when the view is made, or the answer is RegionFull: never a SIGBUS later."""
    region["x"] = np.zeros(1000)
    assert (region.get("x", copy_on_write=True) == 0).all()
    if region.backend != "hugetlb" or region.page_size == 1 << 30:
        _native.fail_call("mmap", 1, errno.ENOMEM)
        with pytest.raises(sr.RegionFull):
            region.get("x", copy_on_write=True)
        _native.fail_none()
    else:
        views = []

        def take_all() -> None:
            while len(views) < 200:
                views.append(region.get("x", copy_on_write=True))

        with pytest.raises(sr.RegionFull, match="reserve more huge pages"):
            take_all()
        for view in views:
            view[:] = 3
        del view
        views.clear()
    assert (region.get("x", copy_on_write=True) == 0).all()


def test_without_a_name_it_says_so(region: sr.Region, reader: sr.Region) -> None:
    """A reader needs to open the memory again: with the name gone that is RegionLost, and its arrays stay."""
    region["x"] = np.arange(1000)
    x = reader["x"]
    region.unlink()
    if region._head()["flags"] & _native.KEPT:
        assert (reader.get("x", copy_on_write=True) == x).all()  # The keeper has it.
    else:
        with pytest.raises(sr.RegionLost, match="name"):
            reader.get("x", copy_on_write=True)
    assert (x == np.arange(1000)).all()
    assert (region.get("x", copy_on_write=True) == x).all()


@pytest.mark.parametrize("call", ["openat", "mmap"])
def test_a_call_that_fails_leaves_nothing(region: sr.Region, reader: sr.Region, call: str) -> None:
    """A descriptor or address that is not to be had is one error, and nothing stays open."""
    region["x"] = np.arange(1000)
    before = len(os.listdir("/proc/self/fd"))
    for nth in (1, 2):
        _native.fail_call(call, nth, errno.EMFILE if call == "openat" else errno.ENOMEM)
        try:
            reader.get("x", copy_on_write=True)
        except sr.SharedRegionError as error:
            assert error.errno in (errno.EMFILE, errno.ENOMEM)
        _native.fail_none()
    assert len(os.listdir("/proc/self/fd")) == before
    assert region.stats().members == 2 and (reader.get("x", copy_on_write=True) == np.arange(1000)).all()
