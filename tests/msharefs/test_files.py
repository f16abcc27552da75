"""Files in a region: mapped there without a copy on msharefs, copied in elsewhere, and it is said which."""

import os
import pickle
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedregion as sr

MIB = 1 << 20
GIB = 1 << 30


#: On the machine's own msharefs (make msharefs-check), and not on the stand-in.
REAL = os.environ.get("SHAREDREGION_TEST_KINDS", "").startswith("msharefs")


@pytest.fixture(params=["real"] if REAL else ["2 MiB", "512 GiB"])
def region(
    request: pytest.FixtureRequest, msharefs: Callable[[int], Any], unique: str
) -> Iterator[sr.Region]:
    """On msharefs."""
    if not REAL:
        msharefs(2 * MIB if request.param == "2 MiB" else 512 * GIB)
    with sr.create(unique, size=4 * MIB, backend="msharefs") as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 100,000 numbers."""
    np.arange(100_000, dtype="f8").tofile(tmp_path / "numbers")
    return tmp_path / "numbers"


@pytest.mark.root
def test_mapped_and_seen_by_all(region: sr.Region, path: Path, run: Callable[..., str]) -> None:
    """An array, a shape of it, an .npy file in either order, and bytes: by host, reader, writer and another process."""
    np.save(path.with_suffix(".npy"), np.asfortranarray(np.arange(12.0).reshape(3, 4)))
    with sr.attach(region.name) as reader, sr.attach(region.name, writable=True) as writer:
        used = region.stats().used
        done = region.map_file("a", path, dtype="f8")
        assert done.mapped
        assert done.version == region.version("a")
        assert str(path) in done.reason
        assert region.map_file("s", path, dtype="f8", shape=(100, 10)).mapped
        assert region.map_file("n", path.with_suffix(".npy")).mapped
        assert region.map_file("b", path).mapped
        assert region.stats().used - used < 8192, "it takes no memory of the region"
        for member in (region, reader, writer):
            assert np.array_equal(member["a"], np.arange(100_000.0))
            assert member["s"].shape == (100, 10)
            assert member["n"].flags.f_contiguous
            assert np.array_equal(member["n"], np.arange(12.0).reshape(3, 4))
            assert member["b"] == path.read_bytes()
            assert not member["a"].flags.writeable
            assert member["b"].readonly
            assert member["a"].base is not None
    program = "import sys, sharedregion as sr; r = sr.attach(sys.argv[1]); print(r['a'].sum(), len(r['b']))"
    assert run(program, region.name).split() == ["4999950000.0", "800000"]


@pytest.mark.root
def test_a_writers_tables_are_linked(region: sr.Region, path: Path, run: Callable[..., str]) -> None:
    """Who looks at a mapped file can hand it to the kernel at once (direct I/O, futexes), also after a fork."""
    region.map_file("a", path, dtype="f8")
    program = """
import os, sys, sharedregion as sr
region = sr.attach(sys.argv[1], writable=True)
address = region["a"].ctypes.data
def resident():
    inside, total = False, 0
    for line in open("/proc/self/smaps"):
        word = line.split()
        if "-" in word[0] and not word[0].endswith(":"):
            low, high = (int(part, 16) for part in word[0].split("-"))
            inside = low <= address < high
        elif inside and word[0] == "Rss:":
            return int(word[1])
assert resident() > 0
pid = os.fork()
if pid == 0:
    os._exit(0 if resident() > 0 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    run(program, region.name)


@pytest.mark.root
def test_travels_as_a_reference(region: sr.Region, path: Path) -> None:
    """Arrays of a mapped file, and views of them, are sent as other objects of the region are."""
    region.map_file("a", path, dtype="f8")
    with sr.attach(region.name) as reader:
        for member in (region, reader):
            sent = bytes(ForkingPickler.dumps(member["a"][10:20]))
            assert len(sent) < 300
            assert pickle.loads(sent).tolist() == list(range(10, 20))


@pytest.mark.root
def test_replaced_deleted_and_trimmed(region: sr.Region, path: Path) -> None:
    """Who holds the array keeps it; after the last one trim() takes the file out of the region, and its place serves again."""
    region.map_file("a", path, dtype="f8")
    held = region["a"]
    region["a"] = np.zeros(3)
    assert region["a"].tolist() == [0, 0, 0]
    region.trim()
    assert held.sum() == 4999950000.0
    del held
    region.trim()
    assert not region._shown
    for n in range(20):
        # More than the smallest region has room for at once.
        assert region.map_file("a", path, dtype="f8").mapped, n
        assert region["a"].sum() == 4999950000.0
        del region["a"]
        region.trim()
    region._check()


@pytest.mark.root
@pytest.mark.skipif(REAL, reason="refusals of the stand-in")
def test_no_room_for_it(msharefs: Callable[[int], Any], unique: str, path: Path) -> None:
    """Where address space or the kernel refuse, it is copied, and the reason is told."""
    double = msharefs(2 * MIB)
    with sr.create(unique, size=8 * MIB, backend="msharefs") as region:
        np.ones(5 * MIB, "u1").tofile(path)
        done = region.map_file("a", path, dtype="u1")
        assert not done.mapped
        assert "no address space left" in done.reason
        assert region["a"].sum() == 5 * MIB
        path.write_bytes(b"little")
        double.tell("refuse", "place", 19)
        done = region.map_file("b", path)
        assert not done.mapped
        assert "cannot be mapped into the msharefs region" in done.reason
        assert region["b"] == b"little"


@pytest.mark.parametrize("backend", ["shm", "thp"])
def test_elsewhere_it_is_copied_in(unique: str, path: Path, backend: str) -> None:
    """The same objects on other memory; later changes of the file are not seen."""
    with sr.create(unique, size=8 * MIB, backend=backend) as region, sr.attach(unique) as reader:
        done = region.map_file("a", path, dtype="f8")
        assert not done.mapped
        assert done.reason == "only msharefs regions can show a file"
        region.map_file("b", str(path))
        path.write_bytes(b"")
        assert reader["a"].sum() == 4999950000.0
        assert len(reader["b"]) == 800_000
        assert not region.map_file("e", path).mapped
        assert reader["e"] == b""
        assert region.map_file("z", path, dtype="f4").version == region.version("z")
        assert reader["z"].shape == (0,)


def test_a_file_that_says_it_is_empty(unique: str) -> None:
    """Files of /proc have no length, and bytes all the same."""
    with sr.create(unique, size=MIB, backend="shm") as region:
        done = region.map_file("a", "/proc/filesystems")
        assert (done.mapped, done.reason) == (False, "there is nothing to map")
        assert region["a"] == Path("/proc/filesystems").read_bytes() != b""


@pytest.mark.root
@pytest.mark.skipif(REAL, reason="places of the stand-in")
def test_beside_what_others_have_mapped(msharefs: Callable[[int], Any], unique: str, path: Path) -> None:
    """Who knows nothing of others' files leaps over them, and finds a gap where that leads nowhere."""
    double = msharefs(2 * MIB)
    page = 4096
    with sr.create(unique, size=4 * MIB, backend="msharefs") as region:

        def put(by: sr.Region, name: str, size: int) -> bool:
            path.write_bytes(name[0].encode() * size)
            return by.map_file(name, path.rename(path.with_name(name))).mapped

        for n, size in enumerate((page, page, page, 2 * MIB - 4 * page)):
            assert put(region, f"{n}", size)
        begin = 8 * MIB  # behind the memory: what there was room for is full but for its last page
        files = {one["at"] - begin for one in double.regions()[0]["objects"] if one["at"] >= begin}
        assert files == {0, page, 2 * page, 3 * page}
        del region["2"]
        region.trim()
        with sr.attach(unique, writable=True) as other:
            assert put(other, "gap", page), "the only places left are no leap away"
            assert put(other, "last", page)
            assert not put(other, "more", page)
            assert {name: region[name][0] for name in region} == {
                name: name.encode()[0] for name in ("0", "1", "3", "gap", "last", "more")
            }


def test_bad_input(unique: str, path: Path) -> None:
    """What cannot be is refused, and nothing is placed."""
    with sr.create(unique, size=MIB, backend="shm") as region:
        with pytest.raises(FileNotFoundError):
            region.map_file("a", path.with_name("nowhere"))
        with pytest.raises(IsADirectoryError):
            region.map_file("a", path.parent)
        with pytest.raises(ValueError, match="needs a dtype"):
            region.map_file("a", path, shape=3)
        with pytest.raises(ValueError, match="takes"):
            region.map_file("a", path, dtype="f8", shape=100_001)
        with pytest.raises(ValueError, match="negative"):
            region.map_file("a", path, dtype="f8", shape=-1)
        with open(path, "ab") as file:
            file.write(b"x")
        with pytest.raises(ValueError, match="whole number"):
            region.map_file("a", path, dtype="f8")
        with pytest.raises(sr.NotPlaceable):
            region.map_file("a", path, dtype=object)
        path.with_suffix(".npy").write_bytes(b"no array")
        with pytest.raises(ValueError, match=r"."):
            region.map_file("a", path.with_suffix(".npy"))
        with open(path.with_suffix(".npy"), "wb") as file:
            np.savez(file, x=np.ones(3))
        with pytest.raises(ValueError, match="does not hold one array"):
            region.map_file("a", path.with_suffix(".npy"))
        os.mkfifo(path.with_name("pipe"))
        for name in (os.devnull, path.with_name("pipe")):
            with pytest.raises(ValueError, match="no regular file"):
                region.map_file("a", name)
        assert "a" not in region
        with pytest.raises(sr.RegionFull):
            region.map_file("b", _large(path))
        assert "b" not in region
        with sr.attach(unique) as reader, pytest.raises(sr.ReadOnlyRegion):
            reader.map_file("a", path)


def _large(path: Path) -> Path:
    path.write_bytes(bytes(3 * MIB))
    return path
