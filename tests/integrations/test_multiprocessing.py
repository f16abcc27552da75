"""Region, array, shared container: as argument, initializer argument, through a queue, as result; each way to start a process."""

import pytest

PROGRAM = """
import sys, numpy as np, sharedregion as sr
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

held = None

def start(*values):
    global held
    held = values

def inside(array):
    return sr._native.locate(array.__array_interface__["data"][0], array.nbytes) is not None

def look(what, value):
    if what == "region":
        value = value["x"]
    if what == "container":
        value = value["deep"][0]
    return inside(value), float(value.sum()), bool(value.flags.writeable)

def look_held(what): return look(what, held[["region", "array", "view", "container"].index(what)])
def give(what, value): return value
def put(queue, what, value): queue.put(look(what, value))
def make(n): return {"made": sr.share(np.full(n, 2.0)), "n": n}

if __name__ == "__main__":
    context = get_context(sys.argv[1])
    region = sr.create(size="2 MiB")
    region["x"] = np.arange(20_000.0)
    array = sr.share(np.arange(20_000.0))
    things = {"region": region, "array": array, "view": array.reshape(200, 100)[::2], "container": sr.share({"deep": [np.arange(20_000.0)]})}
    wanted = {k: (True, float((v["x"] if k == "region" else v["deep"][0] if k == "container" else v).sum()), False) for k, v in things.items()}

    with context.Pool(1, start, tuple(things.values())) as pool:
        for what, value in things.items():
            assert pool.apply(look, (what, value)) == wanted[what], (what, "Pool argument")
            assert pool.apply(look_held, (what,)) == wanted[what], (what, "Pool initializer")
            assert look(what, pool.apply(give, (what, value))) == wanted[what], (what, "Pool result")
        made = pool.apply(make, (1000,))
        assert inside(made["made"]) and made["made"].sum() == 2000
    assert made["made"][-1] == 2, "a result outlives its maker"

    with ProcessPoolExecutor(1, mp_context=context, initializer=start, initargs=tuple(things.values())) as pool:
        for what, value in things.items():
            assert pool.submit(look, what, value).result() == wanted[what], (what, "executor argument")
            assert pool.submit(look_held, what).result() == wanted[what], (what, "executor initializer")
            assert look(what, pool.submit(give, what, value).result()) == wanted[what], (what, "executor result")

    queue = context.Queue()
    for what, value in things.items():
        process = context.Process(target=put, args=(queue, what, value))
        process.start()
        assert queue.get(timeout=120) == wanted[what], (what, "Process")
        process.join()
        assert process.exitcode == 0
    print("well")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_everything_goes_every_way(run, method: str) -> None:
    """All of them arrive over the same memory, read-only, by every route of Pool, ProcessPoolExecutor and Process."""
    assert run(PROGRAM, method) == "well\n"


GONE = """
import sys, numpy as np, sharedregion as sr
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
import time

def look(ref): return float(ref.get().sum())
def total(x): return float(x.sum())
def hold(event): event.wait(100)

if __name__ == "__main__":
    context = get_context("spawn")
    manager = context.Manager()
    for by_reference in (True, False):
        region = sr.create(size="2 MiB")
        region["x"] = np.ones(1000)
        block, event = region._info("x")[8], manager.Event()
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(hold, event)
            pending = pool.submit(look, region.ref("x")) if by_reference else pool.submit(total, region["x"])
            while not region._tickets(block): time.sleep(0.01)
            region.unlink()
            region.close()
            event.set()
            try: print(pending.result(timeout=100))
            except (sr.ObjectNotFound, BrokenProcessPool) as error: print(type(error).__name__)
            if by_reference:
                print(pool.submit(total, np.ones(3)).result())
"""


def test_a_region_that_goes_away_while_tasks_refer_to_it(run) -> None:
    """By region.ref() the task gets ObjectNotFound and the pool lives on; arguments that cannot be had end an executor, never hang it."""
    assert run(GONE).splitlines() == ["ObjectNotFound", "3.0", "BrokenProcessPool"]


KILLED = """
import os, signal, numpy as np, sharedregion as sr
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

def die(x): os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    region = sr.create(size="1 MiB")
    region["x"] = np.ones(50_000)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        try: pool.submit(die, region["x"]).result()
        except BrokenProcessPool: print("broken")
    del region["x"]
    region._sweep()
    print(region.stats().withdrawn, region.stats().used)
    region["y"] = np.ones(100_000)
"""


def test_a_worker_killed_while_it_holds_pins(run) -> None:
    """The block that a killed worker held is free at once, whole."""
    assert run(KILLED) == "broken\n0 0\n"
