"""Files that people have: read as they are, or refused with one clear sentence."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharedregion.errors import SharedRegionError
from sharedregion.files import read_input

ARRAYS = {
    "floats": np.arange(60, dtype="<f4").reshape(3, 4, 5),
    "none": np.empty((0, 7), "<i8"),
    "scalar": np.array(3.5),
    "flags": np.array([True, False]),
    "fortran": np.asfortranarray(np.arange(6, dtype="u1").reshape(2, 3)),
    "big-endian": np.arange(5, dtype=">i2"),
}


def same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@pytest.mark.parametrize("name", ARRAYS)
def test_npy(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.npy"
    np.save(path, ARRAYS[name])
    found = read_input(str(path))
    assert list(found.arrays) == [name]
    assert same(found.arrays[name], ARRAYS[name])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    found = read_input(str(tmp_path / "a.npz"))
    assert found.arrays.keys() == ARRAYS.keys()
    assert all(same(found.arrays[name], array) for name, array in ARRAYS.items())


def test_safetensors_as_its_own_library_writes_it(tmp_path: Path) -> None:
    arrays = {name: np.ascontiguousarray(a) for name, a in ARRAYS.items() if name != "big-endian"}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"made": "here"})
    found = read_input(str(tmp_path / "a.safetensors"))
    assert found.arrays.keys() == arrays.keys()
    assert all(same(found.arrays[name], array) for name, array in arrays.items())
    assert found.notes == ()


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_bfloat16_comes_as_its_bits_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(tensors({"w": entry("BF16", [2], [0, 4])}, b"\x80\x3f\x00\x40"))
    found = read_input(str(path))
    assert same(found.arrays["w"], np.array([0x3F80, 0x4000], "<u2"))
    assert "BF16" in found.notes[0]


def test_the_kind_is_told_by_content_where_the_name_does_not(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAYS["floats"])
    os.rename(tmp_path / "a.npy", tmp_path / "weights")
    assert same(read_input(str(tmp_path / "weights")).arrays["weights"], ARRAYS["floats"])


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_objects_are_refused_and_pickle_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    value = np.array([{"a": 1}, None], dtype=object)
    if suffix == ".npy":
        np.save(path, value, allow_pickle=True)
    else:
        np.savez(path, good=np.zeros(2), bad=value)
    with pytest.raises(SharedRegionError, match="dtype object") as caught:
        read_input(str(path))
    assert "pickle=True" in (caught.value.remedy or "")


def test_objects_inside_a_record_are_refused_too(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(2, dtype=[("x", "f4"), ("y", "O")]), allow_pickle=True)
    with pytest.raises(SharedRegionError, match="dtype object"):
        read_input(str(tmp_path / "a.npy"))


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": (".npy", b"", "is empty"),
    "text": (".txt", b"hello", "no kind that is known"),
    "a pickle in disguise": (".npy", b"\x80\x04N.", "damaged"),
    "npy cut in its header": (".npy", b"\x93NUMPY\x01\x00", "damaged"),
    "npy of a later version": (".npy", b"\x93NUMPY\x09\x00\x10\x00", "damaged"),
    "npz that is not a zip": (".npz", b"PK\x03\x04 and no more", "damaged"),
    "npz that is an npy": (".npz", b"\x93NUMPY\x01\x00v\x00{'descr'", "damaged"),
    "header longer than the file": (".safetensors", tensors({}, length=1 << 60), "longer than the file"),
    "header cut": (".safetensors", b"\x01\x00", "longer than the file"),
    "header no JSON": (".safetensors", tensors(b"{{{{"), "damaged"),
    "header no UTF-8": (".safetensors", tensors(b"\xff\xfe"), "damaged"),
    "header nested too deep": (".safetensors", tensors(b"[" * 100_000), "damaged"),
    "header a list": (".safetensors", tensors([1]), "not a table"),
    "no tensors": (".safetensors", tensors({"__metadata__": {}}), "no arrays"),
    "name twice": (".safetensors", tensors(b'{"a":1,"a":2}'), "twice"),
    "entry no table": (".safetensors", tensors({"a": 5}), "damaged"),
    "entry with a part missing": (".safetensors", tensors({"a": {"dtype": "F32"}}), "damaged"),
    "unknown dtype": (".safetensors", tensors({"a": entry("F99")}, b"1234"), "unknown dtype"),
    "dtype no text": (".safetensors", tensors({"a": {**entry(), "dtype": ["F32"]}}, b"1234"), "damaged"),
    "negative shape": (".safetensors", tensors({"a": entry(shape=[-1])}, b"1234"), "whole numbers"),
    "fractional shape": (".safetensors", tensors({"a": entry(shape=[1.0])}, b"1234"), "whole numbers"),
    "truth as a shape": (".safetensors", tensors({"a": entry(shape=[True])}, b"1234"), "whole numbers"),
    "three offsets": (".safetensors", tensors({"a": entry(offsets=[0, 4, 8])}, b"1234"), "damaged"),
    "outside the file": (
        ".safetensors",
        tensors({"a": entry(offsets=[0, 8], shape=[2])}, b"1234"),
        "outside the file",
    ),
    "offsets backwards": (".safetensors", tensors({"a": entry(offsets=[4, 0])}, b"1234"), "outside the file"),
    "shape and bytes differ": (
        ".safetensors",
        tensors({"a": entry(shape=[2])}, b"1234"),
        "not what its shape needs",
    ),
    "shape overflows": (
        ".safetensors",
        tensors({"a": entry(shape=[1 << 40, 1 << 40])}, b"1234"),
        "shape needs",
    ),
    "overlap": (".safetensors", tensors({"a": entry(), "b": entry()}, b"1234"), "overlap"),
    "gap": (".safetensors", tensors({"a": entry(offsets=[4, 8])}, b"12345678"), "overlap, or bytes between"),
    "bytes left over": (".safetensors", tensors({"a": entry()}, b"12345"), "belong to no tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_file_gives_one_error_that_names_the_file(tmp_path: Path, case: str) -> None:
    suffix, content, words = BAD[case]
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(SharedRegionError, match=words) as caught:
        read_input(str(path))
    assert caught.value.message.startswith(str(path))


def test_an_array_larger_than_memory_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", buffer.getvalue())
    with pytest.raises(SharedRegionError, match=r"a\.npz"):
        read_input(str(tmp_path / "a.npz"))


def test_a_truncated_npy_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAYS["floats"])
    os.truncate(tmp_path / "a.npy", os.path.getsize(tmp_path / "a.npy") - 1)
    with pytest.raises(SharedRegionError, match="damaged"):
        read_input(str(tmp_path / "a.npy"))


@pytest.mark.parametrize("path", ["/nonexistent/file.npy", "/", "a\0b"])
def test_what_cannot_be_opened_is_said(path: str) -> None:
    with pytest.raises(SharedRegionError, match="cannot be read"):
        read_input(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(data=st.data(), kind=st.sampled_from([".npy", ".npz", ".safetensors"]))
def test_no_damage_to_a_good_file_gives_anything_but_that_error(
    tmp_path: Path, data: st.DataObject, kind: str
) -> None:
    buffer = io.BytesIO()
    arrays = {"x": np.arange(9, dtype="<f4"), "y": np.ones((2, 2), "u1")}
    if kind == ".npy":
        np.save(buffer, arrays["x"])
    elif kind == ".npz":
        np.savez(buffer, **arrays)
    else:
        buffer.write(safetensors.numpy.save(arrays))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / f"fuzzed{kind}"
    path.write_bytes(content)
    try:
        found = read_input(str(path))
    except SharedRegionError as error:
        assert str(path) in error.message
    else:
        assert sum(array.nbytes for array in found.arrays.values()) <= len(content)
