"""Runs on the first host: `python ray_driver.py SCENARIO ADDRESS`; one line of JSON as answer."""

import gc
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import sharedregion as sr
from sharedregion.integrations import ray as in_regions

SIZE = 16 << 20


def say(words: str) -> None:
    """Tell the test, and wait for its answer."""
    print(words, flush=True)
    sys.stdin.readline()


def home(array: Any) -> str:
    """The file that an array lies in."""
    return home_of(array.__array_interface__["data"][0])


def home_of(address: int) -> str:
    """The file that is mapped there."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, rights, _, device, inode, *_ = line.split()
            low, high = (int(end, 16) for end in span.split("-"))
            if low <= address < high:
                return f"{device}:{inode}" if rights.endswith("s") else "private"
    return "nowhere"


@ray.remote
def look(array: Any, seconds: float = 0.0) -> tuple[float, str, str]:
    """Its sum, what holds its memory, and where it lies."""
    time.sleep(seconds)
    return float(array.sum()), type(array.base).__name__, home(array)


@ray.remote
def make() -> Any:
    """A result that lies in a region."""
    return sr.share(np.ones(SIZE // 8))


@ray.remote
class Owner:
    """Puts an array and can be killed."""

    def put(self) -> Any:
        """A reference to it."""
        return [ray.put(sr.share(np.ones(SIZE // 8)))]

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()


def on(node: str) -> Any:
    """A task of that node."""
    return look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


def other_node() -> str:
    """The one that this driver is not on."""
    here = ray.get_runtime_context().get_node_id()
    return next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here)


def outlets() -> list[Any]:
    """Actors of ours that live."""
    return [one for one in ray.util.list_named_actors(True) if one["namespace"] == "sharedregion"]


def names() -> list[str]:
    """Of regions in this host's /dev/shm."""
    return [name for name in os.listdir("/dev/shm") if name.startswith("sharedregion.")]


def gone() -> bool:
    """Whether all names go within a while."""
    gc.collect()
    end = time.monotonic() + 60
    while names() and time.monotonic() < end:
        time.sleep(0.1)
    return not names()


def near() -> dict[str, Any]:
    """Tasks of this node map the array; what was put is held until the last reference is gone."""
    here = ray.get_runtime_context().get_node_id()
    array = sr.share(np.arange(SIZE // 8, dtype="f8"))
    seen = ray.get([on(here).remote(array, 0.5) for _ in range(2)])
    plain = ray.get(on(here).remote(np.arange(SIZE // 8, dtype="f8")))
    actor = Reader.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote()
    held = ray.get(actor.hold.remote(array))
    del actor
    put = ray.put(array)
    own = home(array)
    del array
    gc.collect()
    time.sleep(2)
    later = ray.get(on(here).remote(put))
    del put
    return {"seen": seen, "plain": plain, "held": held, "later": later, "home": own, "gone": gone()}


@ray.remote
def look_at_frame(frame: Any) -> list[Any]:
    """Its sum, and the files that its numbers and its text lie in."""
    # pandas copies text when it is sent, and Ray makes new offsets for a table's.
    text = frame["s"].chunks if hasattr(frame, "schema") else []
    places = {home_of(chunk.buffers()[-1].address) for chunk in text}
    numbers = np.asarray(frame["n"])
    return [float(numbers.sum()), sorted({home(numbers)} | places)]


def frames() -> dict[str, Any]:
    """An Arrow table and a frame of pandas."""
    import pandas as pd
    import pyarrow as pa

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    numbers = np.arange(SIZE // 8, dtype="f8")
    text = pa.array([f"text {n % 100}" for n in range(len(numbers))])
    answer = {}
    for value in (
        pa.table({"n": numbers, "s": text}),
        pd.DataFrame({"n": numbers, "s": pd.array(text, dtype="string[pyarrow]")}),
    ):
        shared = sr.share(value)
        seen = ray.get(look_at_frame.options(scheduling_strategy=here).remote(shared))
        answer[type(value).__module__.partition(".")[0]] = [*seen, home(np.asarray(shared["n"]))]
        del shared
    return {"seen": answer, "gone": gone()}


def result() -> dict[str, Any]:
    """What a task returns lies in a region that lives as long as its reference."""
    made = make.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
    ).remote()
    ray.wait([made])
    time.sleep(2)
    seen = ray.get(on(ray.get_runtime_context().get_node_id()).remote(made))
    del made
    return {"seen": seen, "gone": gone()}


def far() -> dict[str, Any]:
    """Tasks of another node get the bytes, by Ray's store."""
    other = other_node()
    array = sr.share(np.arange(SIZE // 8, dtype="f8"))
    seen = ray.get([on(other).remote(array, 0.5) for _ in range(2)])
    answer = {"seen": seen, "home": home(array), "total": float(array.sum())}
    del array
    end = time.monotonic() + 120
    while outlets() and time.monotonic() < end:
        time.sleep(0.5)
    return answer | {"outlets": outlets(), "gone": gone()}


def owner_killed() -> dict[str, Any]:
    """What it put is lost, as Ray says of all that a process owned; nothing is left of it."""
    here = ray.get_runtime_context().get_node_id()
    owner = Owner.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote()
    [put] = ray.get(owner.put.remote())
    mapped = ray.get(put)
    os.kill(ray.get(owner.pid.remote()), signal.SIGKILL)
    time.sleep(2)
    try:
        ray.get(on(here).remote(put), timeout=60)
        error = "none"
    except ray.exceptions.RayError as raised:
        error = type(raised).__name__
    still = float(mapped.sum())
    del mapped, put
    gc.collect()
    sr.create(size=1).close()  # Sweeps what the killed left.
    return {"error": error, "still": still, "gone": gone()}


@ray.remote(max_retries=10)
def slow_sum(array: Any, part: int) -> float:
    """A task that takes a while."""
    time.sleep(0.5)
    return float(array[part::16].sum())


@ray.remote(max_retries=10)
def arange(count: int) -> Any:
    """A large result in Ray's store."""
    return np.arange(count, dtype="f8")


def host_cut() -> dict[str, Any]:
    """The other host is cut off in the middle; what is computed is right all the same."""
    other = other_node()
    there = NodeAffinitySchedulingStrategy(other, soft=True)
    array = sr.share(np.arange(SIZE // 8, dtype="f8"))
    data = arange.options(scheduling_strategy=there).remote(SIZE // 8)
    lost = make.options(scheduling_strategy=there, max_retries=0).remote()
    ray.wait([lost])
    spread = slow_sum.options(scheduling_strategy="SPREAD")
    refs = [spread.remote(of, part) for of in (array, data) for part in range(32)]
    ray.wait(refs, num_returns=4)
    say("now")
    values = ray.get(refs, timeout=240)
    try:
        ray.get(lost, timeout=120)
        error = "none"
    except Exception as raised:  # noqa: BLE001  Whatever it is, it is the answer.
        error = f"{type(raised).__name__}: {raised}"
    right = values == 2 * [float(array[part::16].sum()) for part in range(32)]
    answer = {"right": right, "error": error, "nodes": sum(node["Alive"] for node in ray.nodes())}
    del array, data, refs, lost
    return answer | {"gone": gone()}


def other_version() -> dict[str, Any]:
    """A clear error, and never wrong bytes."""
    in_regions.PROTOCOL = (1, 999)
    array = sr.share(np.ones(SIZE // 8))
    try:
        ray.get(look.remote(array))
        error = "none"
    except Exception as raised:  # noqa: BLE001  Whatever it is, it is the answer.
        error = f"{type(raised).__name__}: {raised}"
    return {"error": error}


@ray.remote(num_cpus=0)
class Reader:
    """Holds an array and says what that costs."""

    def memory(self) -> tuple[int, int]:
        """Bytes of this process: its proportional share of what it maps, and its page tables (VmPTE)."""
        with open("/proc/self/smaps_rollup") as rollup:
            pss = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        with open("/proc/self/status") as status:
            tables = next(int(line.split()[1]) for line in status if line.startswith("VmPTE:"))
        return pss << 10, tables << 10

    def hold(self, array: Any) -> tuple[float, str]:
        """Read all of it."""
        self.array = array
        return float(array.sum()), home(array)


def broadcast() -> dict[str, Any]:
    """One array, held by four actors on each of two nodes."""
    size, ours = int(os.environ["BROADCAST_BYTES"]), os.environ["BROADCAST_BY"] == "region"
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    here = ray.get_runtime_context().get_node_id()
    actors = {
        node: [
            Reader.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
            for _ in range(4)
        ]
        for node in nodes
    }
    everybody = [actor for group in actors.values() for actor in group]
    before = dict(zip(everybody, ray.get([actor.memory.remote() for actor in everybody]), strict=True))
    array = np.arange(size // 8, dtype="f8")
    started = time.monotonic()
    value = sr.share(array) if ours else array
    put = ray.put(value)
    sums = ray.get([actor.hold.remote(put) for actor in everybody])
    took = time.monotonic() - started
    after = dict(zip(everybody, ray.get([actor.memory.remote() for actor in everybody]), strict=True))
    held = dict(zip(everybody, sums, strict=True))
    return {
        "seconds": took,
        "right": {total for total, _ in sums} == {float(array.sum())},
        "nodes": {
            "driver's" if node == here else "other": {
                "copies": len({held[actor][1] for actor in group}),
                "pss": sum(after[actor][0] - before[actor][0] for actor in group),
                "tables": sum(after[actor][1] - before[actor][1] for actor in group),
            }
            for node, group in actors.items()
        },
    }


def register_for_tests() -> None:
    """As `register`, in each worker; an outlet that nobody asks ends after 10 s, not 30."""
    in_regions.KEEP = 10.0
    in_regions.register()


def main() -> None:
    """One scenario."""
    _, scenario, address = sys.argv
    ray.init(
        address=address, log_to_driver=False,
        runtime_env={"worker_process_setup_hook": register_for_tests},
    )  # fmt: skip
    in_regions.register()
    scenarios = {
        f.__name__: f for f in (near, frames, result, far, owner_killed, host_cut, other_version, broadcast)
    }
    say(json.dumps(scenarios[scenario]()))
    ray.shutdown()


if __name__ == "__main__":
    main()
