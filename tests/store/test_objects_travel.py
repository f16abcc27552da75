"""What travels beside arrays, and what is copied into a region without holding up the process."""

import array
import ctypes
import os
import pickle
import sys
import threading
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core._rational_tests import rational

import sharedregion as sr
from sharedregion.codecs import pickled

VIEWS = {
    "bytes": b"abc" * 1000,
    "numbers": array.array("d", range(100)),
    "empty": b"",
}


@pytest.mark.parametrize("what", VIEWS)
def test_memoryviews_travel(what: str) -> None:
    """A memoryview that lies in a region goes as a reference, its slices too; plain pickle still knows none."""
    value = VIEWS[what]
    shared = sr.share(value)
    for seen in (shared, shared[1:], shared[::2]):
        sent = ForkingPickler.dumps(seen)
        assert len(sent) < 300
        again = pickle.loads(sent)
        assert type(again) is memoryview and again.readonly and again == seen
        if seen:
            assert np.asarray(again).ctypes.data == np.asarray(seen).ctypes.data
    with pytest.raises(TypeError, match="memoryview"):
        pickle.dumps(shared)


@pytest.mark.parametrize(
    "value", [memoryview(b"abc" * 1000), memoryview(bytearray(b"xyz")), memoryview(np.ones((2, 3)))]
)
def test_memoryviews_elsewhere_travel_as_copies(value: memoryview) -> None:
    """One of memory that no region has goes with its data, as it was: writable or not, and of its shape."""
    sr.share(b"")
    again = pickle.loads(ForkingPickler.dumps(value))
    assert type(again) is memoryview
    assert again == value
    assert (again.readonly, again.shape) == (value.readonly, value.shape)


def _add(views: list[memoryview]) -> tuple[int, bool]:
    return sum(sum(view) for view in views), all(view.readonly for view in views)


def test_memoryviews_through_a_pool(unique: str) -> None:
    """Bytes of a region are arguments and results of a pool like arrays; a mutable one stays writable."""
    with sr.create(unique, size="1 MiB") as region, get_context("fork").Pool(1) as pool:
        region["x"] = b"\1" * 5000
        region.put("y", bytearray(100), mutable=True)
        assert pool.apply(_add, ([region["x"], region["x"][:10]],)) == (5010, True)
        assert not pool.apply(_add, ([region["y"]],))[1]
        again = pickle.loads(ForkingPickler.dumps(region["y"]))
        again[3] = 7
        assert region["y"][3] == 7


def test_foreign_dtypes_travel() -> None:
    """An array whose dtype is not NumPy's own comes out of a reference with that dtype."""
    shared = sr.share(np.array([rational(1, 3), rational(5)]))
    again = pickle.loads(ForkingPickler.dumps(shared))
    assert again.dtype == shared.dtype == rational
    assert again.tolist() == shared.tolist()
    assert again.ctypes.data == shared.ctypes.data


def test_containers_are_copied_without_the_gil(unique: str) -> None:
    """While the arrays of a container are copied in, other threads run."""
    with sr.create(unique, size="1 GiB", backend="thp") as region:
        gate, ran = threading.Event(), threading.Event()
        copied: list[int] = []

        class Draft:
            def __init__(self, draft: Any) -> None:
                self.draft = draft

            def fill(self, offset: int, data: Any) -> None:
                copied.append(len(data))
                if len(data) < 64 << 20:
                    self.draft.fill(offset, data)
                    return
                # With the GIL held, the other thread would never get its turn, however often.
                gate.set()
                for _ in range(1000):
                    self.draft.fill(offset, data)
                    if ran.is_set():
                        break

            def publish(self) -> int:
                version: int = self.draft.publish()
                return version

        class Place:
            def _make_room(self, nbytes: int) -> None:
                region._make_room(nbytes)

            def _begin(self, *what: Any) -> Draft:
                return Draft(region._begin(*what))

        def wait() -> None:
            gate.wait()
            ran.set()

        other = threading.Thread(target=wait)
        other.start()
        before = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            pickled.place(Place(), "d", {"a": np.ones(64 << 20, "u1"), "b": np.arange(10)}, 0)  # type: ignore[arg-type]
            assert ran.is_set()
        finally:
            sys.setswitchinterval(before)
            gate.set()
            other.join()
        assert copied[-2:] == [64 << 20, 80]
        assert (region["d"]["a"] == 1).all()
        assert region["d"]["b"].tolist() == list(range(10))


def test_a_draft_is_filled_within_its_bounds(unique: str) -> None:
    """What would lie outside the object, or come after its publication, is refused; nothing else is changed."""
    with sr.create(unique, size="1 MiB") as region:
        region["before"] = region["after"] = b"\1" * 64
        draft = region._begin("x", 2, 0, b"", 64)
        draft.fill(0, b"\0" * 64)
        draft.fill(60, b"abcd")
        draft.fill(64, b"")
        for offset, data in ((61, b"abcd"), (65, b""), (-1, b"a"), (1 << 63, b"a"), (0, b"x" * 65)):
            with pytest.raises(ValueError, match="outside"):
                draft.fill(offset, data)
        with pytest.raises((TypeError, BufferError)):
            draft.fill(0, "text")
        draft.publish()
        with pytest.raises(ValueError, match="published"):
            draft.fill(0, b"a")
        assert bytes(region["x"]) == b"\0" * 60 + b"abcd"
        assert bytes(region["before"]) == bytes(region["after"]) == b"\1" * 64


def test_readers_repair_too(unique: str) -> None:
    """Large pages that were split are made whole by any member, a reader too, for all; no byte changes."""
    with sr.create(unique, size="16 MiB", backend="thp") as region, sr.attach(unique) as reader:
        region["x"] = np.ones(8 << 20, "u1")
        x = region["x"]
        hole = x.ctypes.data - region._data()[0] + 4096
        with Path(f"/dev/shm/sharedregion.{unique}.data").open("r+b") as file:
            libc = ctypes.CDLL(None, use_errno=True)
            # Punches one small page out of a large one, and puts it back.
            for mode in (3, 0):
                assert libc.fallocate(file.fileno(), mode, ctypes.c_long(hole), ctypes.c_long(4096)) == 0, (
                    os.strerror(ctypes.get_errno())
                )
        region.prefault()
        reader.prefault()
        assert region.stats().huge_fraction < 1
        reader.repair()
        for member in (region, reader):
            member.prefault()
            assert member.stats().huge_fraction == 1
        assert x.sum() == (8 << 20) - 4096
