"""joblib and scikit-learn: arrays go to workers by region, nothing is left, what is written is whole."""

import gc
import io
import os
import signal
import subprocess
import sys
import time

import cloudpickle
import joblib
import numpy as np
import pytest

import sharedregion as sr
import sharedregion.integrations.joblib
from sharedregion import _native, region

# Workers cannot import a test file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def base_of(array):
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return type(array).__name__


def look(array, *_):
    return base_of(array), array.flags.writeable, float(array.sum())


@pytest.fixture(autouse=True, scope="module")
def _workers_end():
    yield
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def run_all(jobs, **options):
    with joblib.parallel_config(backend="sharedregion", n_jobs=2):
        return joblib.Parallel(**options)(jobs)


def own_names() -> set[str]:
    """Regions without a name of their own that this process has mapped."""
    return {r.name for r in region._open if r._mapped and r.name.startswith("anonymous-")}


def test_large_arrays_go_by_region() -> None:
    """Above max_nbytes an array is placed once for all tasks; views too; in workers it is read-only and no temporary file."""
    x = np.arange(200_000.0)
    strided, fortran = x.reshape(400, 500)[:, ::2], np.asfortranarray(x.reshape(400, 500))
    for array in (x, fortran):
        assert set(run_all([joblib.delayed(look)(array, n) for n in range(6)])) == {("Pin", False, x.sum())}
    assert run_all([joblib.delayed(look)(strided)], max_nbytes=1000) == [("Pin", False, strided.sum())]
    small = np.arange(10.0)
    assert run_all([joblib.delayed(look)(small)])[0][0] != "Pin", "small ones go as ever"
    assert run_all([joblib.delayed(look)(x)], max_nbytes=None)[0][0] != "Pin", "and all, if so asked"


def test_what_lies_in_a_region_goes_as_it_is() -> None:
    """Below any size, a reference; and in a list, a dictionary, an object."""
    small = sr.share(np.arange(10.0))
    assert run_all([joblib.delayed(look)(small[2:4])]) == [("Pin", False, 5.0)]
    assert run_all([joblib.delayed(lambda d: look(d["x"][0]))({"x": [small]})]) == [("Pin", False, 45.0)]


def test_a_later_call_sees_later_contents() -> None:
    """What was placed for one call is not taken for the next: the array may have changed."""
    x = np.ones(200_000)
    assert run_all([joblib.delayed(look)(x)])[0][2] == 200_000
    x[:] = 3
    assert run_all([joblib.delayed(look)(x)])[0][2] == 600_000


def test_nothing_is_left_after_a_call() -> None:
    """With the call its regions end, though the workers stay."""
    before = own_names()
    array = np.ones(200_000)
    during = run_all([joblib.delayed(look)(array, n) for n in range(4)])
    assert during[0][0] == "Pin"
    gc.collect()
    _native.settle()
    assert own_names() <= before


def test_copies_go_with_their_arrays() -> None:
    """A long call that makes arrays as it goes holds the copies of those that are under way, not of all."""
    before = own_names()
    most = 0

    def arrays():
        nonlocal most
        for n in range(24):
            gc.collect()
            _native.settle()
            most = max(most, len(own_names() - before))
            yield joblib.delayed(look)(np.full(200_000, float(n)))

    assert [total for *_, total in run_all(arrays(), pre_dispatch=2, batch_size=1)] == [
        200_000.0 * n for n in range(24)
    ]
    assert 1 <= most <= 8, most


def grab(array):
    if array.shape == (200_001,):
        os.kill(os.getpid(), signal.SIGKILL)
    return float(array[0])


def test_a_worker_killed_while_it_holds_arrays() -> None:
    """joblib says that a worker died; the next call works, and nothing of the failed one is left for long."""
    with pytest.raises(Exception, match=r"(?i)terminat"):
        run_all([joblib.delayed(grab)(np.ones(200_001)), joblib.delayed(grab)(np.ones(200_000))])
    assert run_all([joblib.delayed(grab)(np.ones(200_000))]) == [1.0]


KILLED = """
import os, signal, sys, time, joblib, numpy as np
import sharedregion.integrations.joblib
def hold(x):
    open(sys.argv[1] + str(os.getpid()), "w").close()
    time.sleep(600)
with joblib.parallel_config(backend="sharedregion", n_jobs=2):
    joblib.Parallel()(joblib.delayed(hold)(x) for x in [np.ones(300_000)] * 2)
"""


def test_nothing_is_left_after_everything_was_killed(tmp_path) -> None:
    """The program and its workers killed in the middle of tasks: the next region that is made finds and removes what they left."""
    before = set(os.listdir("/dev/shm"))
    program = tmp_path / "program.py"
    program.write_text(KILLED)
    main = subprocess.Popen(
        [sys.executable, "-P", str(program), str(tmp_path / "worker")], start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(workers := [n[6:] for n in os.listdir(tmp_path) if n.startswith("worker")]) < 2:
        assert main.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    pids = [int(pid) for pid in workers]
    names = {n for n in set(os.listdir("/dev/shm")) - before if "anonymous" in n}
    assert names
    os.killpg(main.pid, signal.SIGKILL)
    main.wait()
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    code = "import sharedregion as sr; sr.create(size='1 MiB').close()"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    assert not names & set(os.listdir("/dev/shm"))
    # joblib makes its folders whether they are used or not: the arrays were not in them. Its semaphores stay, too.
    for name in os.listdir("/dev/shm"):
        if name.startswith(f"sem.loky-{main.pid}-"):
            os.unlink(f"/dev/shm/{name}")
        if name.startswith(f"joblib_memmapping_folder_{main.pid}_"):
            assert not os.listdir(f"/dev/shm/{name}")
            os.rmdir(f"/dev/shm/{name}")


def test_a_cross_validated_forest() -> None:
    """scikit-learn on its own data: the same scores as with joblib's own way."""
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    x, y = load_digits(return_X_y=True)
    x = np.tile(x, (2, 1))
    y = np.tile(y, 2)
    assert x.nbytes > 1 << 20
    forest = RandomForestClassifier(5, random_state=0)
    wanted = cross_val_score(forest, x, y, cv=3)
    with joblib.parallel_config(backend="sharedregion", n_jobs=2):
        placed = cross_val_score(forest, x, y, cv=3)
        shared = cross_val_score(forest, sr.share(x), sr.share(y), cv=3)
    assert np.array_equal(wanted, placed) and np.array_equal(wanted, shared)


def test_dump_writes_the_data() -> None:
    """joblib.dump of an array in a region writes its numbers, and they are read back where the region is gone."""
    x = sr.share(np.arange(300_000.0))
    file = io.BytesIO()
    joblib.dump({"x": x, "part": x[::3]}, file)
    assert len(file.getvalue()) > x.nbytes
    again = b"".join([file.getvalue()])
    del x
    gc.collect()
    loaded = joblib.load(io.BytesIO(again))
    assert np.array_equal(loaded["x"], np.arange(300_000.0)) and np.array_equal(
        loaded["part"], loaded["x"][::3]
    )


def test_without_room_joblib_does_it_its_own_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no region can be made, tasks run all the same, and a warning says why they cost more."""
    monkeypatch.setattr("sharedregion.integrations.joblib.opening.share", _no_room)
    assert run_all([joblib.delayed(look)(np.ones(200_000))])[0][0] in ("mmap", "memmap")
    assert "joblib's own way" in caplog.text


def _no_room(_):
    raise sr.BackendUnavailable("no memory for a region")
