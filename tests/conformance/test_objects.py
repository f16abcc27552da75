"""What is placed comes back, the same, everywhere, with no copy."""

import array as numbers
import mmap
import pickle
from collections.abc import Callable, MutableMapping
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from numpy._core._rational_tests import rational  # a dtype that NumPy does not know by its name

import sharedregion as sr

RECORD = np.dtype([("id", "<u4"), ("when", "<M8[s]"), ("xyz", "<f8", (3,))])
ARRAYS = {
    "float": np.linspace(0, 1, 1000),
    "2d": np.arange(60, dtype="i2").reshape(3, 20),
    "fortran": np.asfortranarray(np.arange(60, dtype="f4").reshape(3, 20)),
    "gaps": np.arange(100, dtype="u8")[::7],
    "backwards": np.arange(100, dtype="u1")[::-1],
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 5), "f4"),
    "big-endian": np.arange(5, dtype=">i4"),
    "bool": np.array([True, False, True]),
    "complex": np.array([1 + 2j, -3j]),
    "half": np.array([1.5, -2], "f2"),
    "text": np.array(["a", "bcd", "日本"]),
    "bytes": np.array([b"x", b"yz"]),
    "void": np.zeros(3, "V7"),
    "when": np.array(["2026-01-01", "NaT"], "M8[D]"),
    "duration": np.array([1, 2], "m8[ms]"),
    "record": np.array([(1, "2020-02-02", (1, 2, 3)), (2, "NaT", (4, 5, 6))], RECORD),
    "fields out of order": np.arange(12, dtype="i4").view([("a", "i4"), ("b", "f4"), ("c", "i4")])[
        ["c", "a"]
    ],
    "union": np.arange(3, dtype="u4").view({"names": ["a", "b"], "formats": ["u4", "u2"], "offsets": [0, 0]}),
    "nested": np.zeros(3, [("p", np.dtype([("x", "i1"), ("y", ">f8")], align=True), (2,)), ("ä", "S3")]),
    "titles": np.ones(3, [(("The first", "a"), "i4"), ("b", "f4")]),
    "no fields": np.zeros(3, []),
    "250 fields": np.ones(2, [(f"column {n * 7919 % 10007}", "f8" if n % 3 else "S5") for n in range(250)]),
    "records": np.ones(3, np.dtype((np.record, [("a", "i4")]))),
    "64 dimensions": np.ones((1,) * 64, "i1"),
    "memmap": None,
}


@pytest.mark.parametrize("what", ARRAYS)
def test_arrays_come_back(region: sr.Region, reader: sr.Region, what: str, tmp_path) -> None:
    """Every plain dtype, order and shape comes back equal, in every member, read-only, aligned to 64 bytes."""
    array = ARRAYS[what]
    if array is None:
        array = np.memmap(tmp_path / "data", "f4", "w+", shape=(10,))
        array[:] = 4
    region["a"] = array
    for member in (region, reader):
        seen = member["a"]
        assert type(seen) is np.ndarray
        assert seen.dtype == array.dtype and seen.shape == array.shape
        assert (
            seen.dtype.type is array.dtype.type and seen.dtype.isalignedstruct == array.dtype.isalignedstruct
        )
        assert seen.tobytes() == array.tobytes()
        assert not seen.flags.writeable and not seen.flags.owndata
        assert seen.ctypes.data % 64 == 0 or seen.size == 0
        with pytest.raises(ValueError, match="read-only|not writeable|WRITEABLE"):
            seen.flags.writeable = True


def test_fortran_order_is_kept(region: sr.Region) -> None:
    """An array in Fortran order lies in the region as it is, not turned over."""
    region["a"] = ARRAYS["fortran"]
    assert region["a"].flags.f_contiguous and not region["a"].flags.c_contiguous


def mapped() -> mmap.mmap:
    memory = mmap.mmap(-1, 5000)
    memory[:3] = b"abc"
    return memory


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"\0abc\0", bytearray(b"xyz" * 5000), memoryview(b"0123456789")[::2]),
        *(mapped(), numbers.array("d", [1, 2.5]), numbers.array("b"), memoryview(np.arange(5, dtype="i2"))),
        memoryview(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    ],
    ids=["empty", "bytes", "bytearray", "gaps", "mmap", "array", "empty array", "numbers", "fortran"],
)
def test_bytes(region: sr.Region, reader: sr.Region, value) -> None:
    """bytes-like objects come back as read-only memoryviews over the region, of the same numbers in C order."""
    region["b"] = value
    seen = reader["b"]
    assert isinstance(seen, memoryview) and seen.readonly and seen.tobytes() == memoryview(value).tobytes()
    assert seen.format == memoryview(value).format
    if seen:
        low, length, _ = reader._data()
        assert low <= np.asarray(seen).ctypes.data < low + length


@pytest.mark.parametrize("value", ["", "plain", "日本 \0 end", "\udcff lone surrogate"])
def test_text(region: sr.Region, reader: sr.Region, value: str) -> None:
    """Text comes back to the last character."""
    region["s"] = value
    assert reader["s"] == value


def test_other_objects_share_their_buffers(region: sr.Region, reader: sr.Region) -> None:
    """A dict with arrays comes back as a dict whose arrays look into the region, read-only."""
    region["d"] = {"x": np.arange(1000), "n": [1, None, "z"]}
    seen = reader["d"]
    assert seen["n"] == [1, None, "z"] and np.array_equal(seen["x"], np.arange(1000))
    assert not seen["x"].flags.writeable
    low, length, _ = reader._data()
    assert low <= seen["x"].ctypes.data < low + length


class Ticking:
    """Counts how often it is unpickled."""

    seen = 0

    def __reduce__(self) -> tuple:
        return tick, ()


def tick() -> Ticking:
    Ticking.seen += 1
    return Ticking()


HIDDEN = {
    "gaps": np.arange(100)[::3],
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    "fortran": np.asfortranarray(np.arange(60).reshape(3, 20)),
    "dates": np.asfortranarray(np.arange(6).reshape(2, 3)).astype("M8[s]"),
    "record with a date": ARRAYS["record"],
    "matrix": np.arange(4).reshape(2, 2).view(np.matrix),
    "record array": np.rec.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "masked": np.ma.masked_array([1, 2, 3], [0, 1, 0], fill_value=7),
    "without mask": np.ma.masked_array(np.arange(5.0), hard_mask=True),
    "masked record": np.ma.masked_array([(1, 2.0)], [(0, 1)], dtype=[("a", "i4"), ("b", "f8")]),
    "foreign dtype": np.array([rational(1, 3), rational(2)]),
}


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a dict"])
@pytest.mark.parametrize("what", HIDDEN)
def test_nothing_is_copied_into_a_pickle(
    region: sr.Region, reader: sr.Region, what: str, inside: bool
) -> None:
    """Arrays that NumPy itself would write into a pickle lie in the region too, read-only, and are what they were."""
    array = HIDDEN[what]
    region["a"] = {"in": array} if inside else array
    seen = reader["a"]["in"] if inside else reader["a"]
    assert type(seen) is type(array) and seen.dtype == array.dtype and seen.shape == array.shape
    assert seen.tobytes() == array.tobytes() and not seen.flags.writeable
    low, length, _ = reader._data()
    assert low <= seen.ctypes.data < low + length
    if isinstance(array, np.ma.MaskedArray):
        assert np.array_equal(seen.mask, array.mask) and seen.hardmask == array.hardmask
        assert seen.fill_value == array.fill_value
        if array.mask.dtype == bool and array.mask.shape:
            assert low <= seen.mask.ctypes.data < low + length


def test_memoryviews_in_containers(region: sr.Region, reader: sr.Region) -> None:
    """What bytes-like objects come back as can be placed again, as a part of something else."""
    region["b"] = b"abc" * 1000
    region["d"] = {"whole": region["b"], "gaps": region["b"][::2]}
    del region["b"]
    seen = reader["d"]
    low, length, _ = reader._data()
    for part, same in ((seen["whole"], b"abc" * 1000), (seen["gaps"], (b"abc" * 1000)[::2])):
        assert type(part) is memoryview and part.readonly and part == same
        assert low <= np.asarray(part).ctypes.data < low + length


def test_more_fields_than_fit(region: sr.Region) -> None:
    """A dtype whose fields take more room than an entry has is refused with the way that works, which then works."""
    names = np.random.default_rng(1).bytes(20_000).hex()
    array = np.ones(2, [(names[n : n + 40], "f8") for n in range(0, len(names), 40)])
    with pytest.raises(sr.NotPlaceable, match="1000 fields.*pickle=True"):
        region["a"] = array
    with pytest.raises(sr.NotPlaceable, match="1000 fields"):
        region.zeros("a", 2, array.dtype)
    assert "a" not in region
    region.put("a", array, pickle=True)
    assert (
        region["a"].dtype == array.dtype and (region["a"] == array).all() and not region["a"].flags.writeable
    )


def test_a_dtype_that_is_not_numpys(region: sr.Region) -> None:
    """An array of it comes back as it was (above); made in place, it is refused, since its name would say V8."""
    with pytest.raises(sr.NotPlaceable, match="rational"):
        region.zeros("z", 3, rational)
    both = np.dtype((np.uint32, [("low", "u2"), ("high", "u2")]))
    with pytest.raises(sr.NotPlaceable, match="pickle=True"):
        region["z"] = np.zeros(3, both)
    region.put("z", np.full(3, 65537, "u4").view(both), pickle=True)
    assert region["z"].dtype == both and region["z"]["high"].tolist() == [1, 1, 1]


def test_prefault_decodes_nothing(region: sr.Region, reader: sr.Region) -> None:
    """Faulting pages in runs no code of a pickle, whoever made it, and touches what is no array too."""
    region["pickle"], region["empty"], region["b"] = Ticking(), b"", b"x" * 100_000
    before = Ticking.seen
    reader._allow_pickle = False
    reader.prefault()
    assert Ticking.seen == before
    b = np.asarray(reader["b"])
    with open("/proc/self/pagemap", "rb") as pages:
        for at in (b.ctypes.data, b.ctypes.data + b.nbytes - 1):
            pages.seek(at // mmap.PAGESIZE * 8)
            assert pages.read(8)[7] & 0x80, "the page is not mapped"


def test_objects_need_a_word(region: sr.Region) -> None:
    """An array of dtype object is refused with the way that works, which then works."""
    array = np.array([1, "two", None], object)
    with pytest.raises(sr.NotPlaceable, match="pickle=True"):
        region["o"] = array
    assert "o" not in region
    region.put("o", array, pickle=True)
    assert list(region["o"]) == [1, "two", None]


def test_unpicklable_is_named(region: sr.Region) -> None:
    """A value that cannot be placed says which type and why, and leaves nothing."""
    used = region.stats().used
    with pytest.raises(TypeError, match="cannot be pickled") as caught:
        region["f"] = lambda: None
    assert isinstance(caught.value, sr.NotPlaceable)
    assert "f" not in region and region.stats().used == used


def test_masked_arrays_keep_their_mask(region: sr.Region) -> None:
    """A subclass is more than its bytes, and comes back whole."""
    region["m"] = np.ma.masked_array([1, 2, 3], [0, 1, 0])
    assert region["m"].mask.tolist() == [False, True, False]


def test_replaced_arrays_stay_as_they_were(region: sr.Region, reader: sr.Region) -> None:
    """Who holds the old version keeps its bytes, whatever is placed afterwards."""
    region["x"] = np.full(10_000, 1)
    old, view = reader["x"], reader["x"][10:20]
    for n in range(2, 30):
        region["x"] = np.full(10_000, n)
        assert reader["x"][0] == n
    assert (old == 1).all() and (view == 1).all()


def test_memory_comes_back(region: sr.Region, reader: sr.Region) -> None:
    """A withdrawn object's memory is free again once the last view of it is gone, and not before."""
    empty = region.stats().used
    region["x"] = np.zeros(100_000, "u1")
    view = reader["x"][5:6]
    del region["x"]
    assert region.stats().withdrawn == 1 and region.stats().used > empty
    del view
    region["y"] = np.zeros(1)
    del region["y"]
    assert region.stats().withdrawn == 0 and region.stats().used == empty
    region._check()


def test_mapping(region: sr.Region) -> None:
    """A region is a mapping, in the order of placing, equal to itself alone, always true."""
    assert isinstance(region, MutableMapping) and region and len(region) == 0
    region["a"], region["b"], region["c"] = 1, 2, 3
    region["a"] = 4
    assert list(region) == ["b", "c", "a"] and len(region) == 3
    assert dict(region.items()) == {"a": 4, "b": 2, "c": 3} and sorted(region.values()) == [2, 3, 4]
    assert "a" in region and "z" not in region and 7 not in region
    assert region.get("z") is None and region.get("z", 5) == 5
    assert region.pop("a") == 4 and "a" not in region and region.pop("a", None) is None
    assert region == region and region != sr.create(size=4096) and hash(region) == hash(region)
    region.update({"d": 5}, e="text")
    region.update([("b", 6)])
    assert dict(region.items()) == {"c": 3, "d": 5, "e": "text", "b": 6}
    assert region.setdefault("d", 7) == 5 and region.setdefault("f", 8) == 8 == region["f"]
    assert region.popitem() == ("f", 8) and "f" not in region
    region.clear()
    assert len(region) == 0
    with pytest.raises(KeyError):
        region.popitem()
    with pytest.raises(KeyError):
        region.pop("a")
    with pytest.raises(sr.ObjectNotFound, match="'a'"):
        del region["a"]
    with pytest.raises(TypeError, match="str"):
        region[1]
    with pytest.raises(TypeError, match="str"):
        region[1] = 2


def test_names_that_are_no_text(region: sr.Region, reader: sr.Region) -> None:
    """No object has a name that UTF-8 cannot hold: nothing is found by it, and nothing can be placed."""
    name = "\udc80 name"
    assert name not in reader and reader.get(name, 5) == 5 and region.pop(name, 6) == 6
    for look in (lambda: reader[name], lambda: reader.version(name), lambda: region.__delitem__(name)):
        with pytest.raises(sr.ObjectNotFound, match="no object"):
            look()
    for place in (
        lambda: region.__setitem__(name, np.zeros(3)),
        lambda: region.__setitem__(name, {}),
        lambda: region.zeros(name, 3),
    ):
        with pytest.raises(ValueError, match="UTF-8") as caught:
            place()
        assert type(caught.value) is ValueError


@pytest.mark.parametrize("length", [1, 51, 52, 53, 160, 255])
def test_long_names(region: sr.Region, reader: sr.Region, length: int) -> None:
    """Object names up to 255 bytes of UTF-8; longer ones are refused."""
    name = "ü" * (length // 2) + "x" * (length % 2)
    region[name] = np.arange(length)
    assert name in reader and len(reader[name]) == length
    assert list(region) == [name]
    del region[name]
    assert name not in reader
    for bad in ("", "x" * 256):
        with pytest.raises(ValueError, match="name"):
            region[bad] = 1


def test_many_objects(region: sr.Region, reader: sr.Region) -> None:
    """The catalog grows by itself, and everything in it is found."""
    names = [f"object {n}" for n in range(5000)]
    for n, name in enumerate(names):
        region[name] = np.array(n)
    assert list(reader) == names
    assert all(reader[name] == n for n, name in enumerate(names))
    region._check()
    for name in names[::2]:
        del region[name]
    assert list(reader) == names[1::2]
    region._check()


def test_allocate(region: sr.Region, reader: sr.Region) -> None:
    """An allocated array is seen by others only once its block has ended, and then whole."""
    with region.allocate("y", (10, 20), "f4") as y:
        assert "y" not in reader
        y[:] = 7
    assert (reader["y"] == 7).all() and not y.flags.writeable
    before = region.stats().used
    filling = region.allocate("z", 1000)
    z = filling.__enter__()
    z[:] = 1
    assert not filling.__exit__(RuntimeError, RuntimeError("the block fails"), None), "it is not swallowed"
    del z, filling
    assert "z" not in region and region.stats().used == before
    region._check()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((3, "(2,)f4"), ((2, 3), "(4,5)i2"), (np.array([2, 3]), "f8"), ([4], "S"), (np.int8(3), "U")),
        *(((), "f8"), ((0, 3), "f4"), (2, [("a", "i4", (2,))]), ((0, 1 << 40), "f8")),
    ],
)
def test_zeros_are_as_numpys(region: sr.Region, shape, dtype) -> None:
    """zeros and allocate take shapes and dtypes as numpy.zeros does."""
    same = np.zeros(shape, dtype)
    with region.allocate("y", shape, dtype) as y:
        y[...] = same
    for made in (region.zeros("z", shape, dtype), region["y"]):
        assert made.shape == same.shape and made.dtype == same.dtype and made.tobytes() == same.tobytes()


@pytest.mark.parametrize(
    "shape", [3.7, "3", None, (2, 3.0), (1,) * 65, (0, 1 << 64), (0, 1 << 62, 1 << 62), -1, (2, -2)], ids=str
)
def test_shapes_that_are_none(region: sr.Region, shape) -> None:
    """What numpy.zeros refuses is refused with the same exception, and leaves nothing."""
    with pytest.raises((TypeError, ValueError)) as numpys:
        np.zeros(shape)
    for verb in (region.zeros, lambda *what: region.allocate(*what).__enter__()):
        with pytest.raises(numpys.type):
            verb("z", shape)
    assert len(region) == 0 and region.stats().used == 0


def test_zeros_and_mutable(make: Callable[..., sr.Region]) -> None:
    """A mutable array is one memory for all; those who may write see each other's writes, readers cannot write."""
    region = make()
    region["old"] = np.full(50_000, 255, "u1")
    del region["old"]
    z = region.zeros("z", (100, 10), "i4", mutable=True)
    assert (z == 0).all()
    with sr.attach(region.name, writable=True) as writer, sr.attach(region.name) as reader:
        writer["z"][3] = 5
        assert (z[3] == 5).all() and (reader["z"][3] == 5).all()
        assert not reader["z"].flags.writeable
        first = region.version("z")
        assert region.publish("z") > first and reader.version("z") == region.version("z")
        region["fixed"] = np.zeros(3)
        with pytest.raises(sr.ReadOnlyRegion, match="not mutable"):
            region.publish("fixed")


def test_versions_grow(region: sr.Region, reader: sr.Region) -> None:
    """A version is never used twice, also across deletion."""
    seen = []
    for n in range(5):
        region["x"] = n
        seen.append(reader.version("x"))
        if n == 2:
            del region["x"]
    assert seen == sorted(set(seen))
    assert reader.wait("x", 1, newer_than=seen[-1] - 1) == seen[-1]
    with pytest.raises(TimeoutError, match="newer"):
        reader.wait("x", 0.01, newer_than=seen[-1])


def test_full(region: sr.Region) -> None:
    """A full region says what was wanted and what there is, and loses nothing."""
    region["a"] = np.zeros(region.size // 2, "u1")
    with pytest.raises(sr.RegionFull, match="no room|largest|in all") as caught:
        region["b"] = np.zeros(region.size * 3 // 4, "u1")
    assert isinstance(caught.value, MemoryError)
    assert caught.value.wanted == region.size * 3 // 4 and caught.value.largest < caught.value.wanted
    assert list(region) == ["a"] and len(region["a"]) == region.size // 2
    del region["a"]
    region["b"] = np.zeros(region.size * 3 // 4, "u1")
    region._check()


def test_read_only_members_change_nothing(region: sr.Region, reader: sr.Region) -> None:
    """A reader's put, delete, publish and allocate are refused before anything happens."""
    region["x"] = np.arange(3)
    for change in (
        lambda: reader.put("x", 1),
        lambda: reader.__delitem__("x"),
        lambda: reader.publish("x"),
        lambda: reader.zeros("y", 3),
        lambda: reader.allocate("y", 3).__enter__(),
        reader.seal,
    ):
        with pytest.raises(sr.ReadOnlyRegion) as caught:
            change()
        assert isinstance(caught.value, PermissionError)
    assert list(region) == ["x"]


def test_sealed(region: sr.Region) -> None:
    """After seal nobody can change anything any more."""
    region["x"] = 1
    with sr.attach(region.name, writable=True) as writer:
        region.seal()
        assert region.stats().sealed
        for member in (region, writer):
            with pytest.raises(sr.ReadOnlyRegion, match="sealed"):
                member["y"] = 2
            with pytest.raises(sr.ReadOnlyRegion, match="sealed"):
                del member["x"]
    with pytest.raises(sr.ReadOnlyRegion, match="sealed"):
        sr.attach(region.name, writable=True)
    with sr.attach(region.name) as reader:
        assert region["x"] == reader["x"] == 1


def test_mutable_arrays_of_a_sealed_region_travel(region: sr.Region, run: Callable[..., str]) -> None:
    """Who is sent one can no longer write to it."""
    z = region.zeros("z", 1000, mutable=True)
    region.seal()
    code = (
        "import sys, pickle\nz = pickle.loads(bytes.fromhex(sys.argv[1]))\nprint(z.sum(), z.flags.writeable)"
    )
    assert run(code, ForkingPickler.dumps(z).hex()) == "0.0 False\n"


def test_errors_survive_pickling(region: sr.Region) -> None:
    """An error that does not unpickle would hang Pool.get."""
    with pytest.raises(sr.RegionFull) as caught:
        region["b"] = np.zeros(region.size + 1, "u1")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is sr.RegionFull and str(again) == str(caught.value)
    assert (again.wanted, again.errno, again.remedy) == (
        caught.value.wanted,
        caught.value.errno,
        caught.value.remedy,
    )
