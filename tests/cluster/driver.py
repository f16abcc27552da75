"""Runs on one of the hosts: `python driver.py SCHEDULER SCENARIO [ARGUMENT]`, one line of JSON as answer.

It talks with the test by lines: it prints a word when something is to happen, and reads one when it has.
"""

import json
import sys
import time
from typing import Any

import numpy as np
from distributed import Client, wait

from sharedregion.integrations.dask import NodePlugin


def counts(dask_worker: Any) -> dict[str, int]:
    """What the plugin of a worker did."""
    found = [plugin.counts for plugin in dask_worker.plugins.values() if hasattr(plugin, "counts")]
    return found[0] if found else {}


def homes(dask_worker: Any) -> list[str]:
    """For each array that a worker has: the file that it lies in, or "private"."""
    answer = []
    for value in dask_worker.data.values():
        if not isinstance(value, np.ndarray):
            continue
        address = value.__array_interface__["data"][0]
        for line in open("/proc/self/maps"):  # noqa: SIM115
            span, rights, _, device, inode, *_ = line.split()
            low, high = (int(end, 16) for end in span.split("-"))
            if low <= address < high:
                answer.append(f"{device}:{inode}" if rights.endswith("s") else "private")
    return answer


def memory(dask_worker: Any) -> tuple[int, int]:
    """Bytes of a worker: its proportional share of what it maps, and its page tables (VmPTE)."""
    with open("/proc/self/smaps_rollup") as rollup:
        pss = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    with open("/proc/self/status") as status:
        tables = next(int(line.split()[1]) for line in status if line.startswith("VmPTE:"))
    return pss << 10, tables << 10


def say(word: str) -> None:
    """Tell the test, and wait for its answer."""
    print(word, flush=True)
    sys.stdin.readline()


def total(array: Any) -> float:
    """A task."""
    return float(array.sum())


def make(count: int, seed: int) -> Any:
    """A task whose result is large, and whose sum is exact in any order."""
    return np.random.default_rng(seed).integers(0, 1000, count).astype("f8")


def slow_sum(array: Any, part: int) -> float:
    """A task that takes a while."""
    time.sleep(0.3)
    return float(array[part::16].sum())


def broadcast(client: Client, size: int) -> dict[str, Any]:
    """Scatter one array to all workers."""
    array = np.arange(size // 8, dtype="f8")
    before = client.run(memory)
    started = time.monotonic()
    future = client.scatter(array, broadcast=True)
    took = time.monotonic() - started
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    sums = [client.submit(total, future, workers=[worker], pure=False) for worker in workers]
    right = all(value == array.sum() for value in client.gather(sums))
    answer = {"right": right, "homes": client.run(homes), "counts": client.run(counts), "seconds": took}
    after = client.run(memory)
    answer["grown"] = {worker: [after[worker][i] - before[worker][i] for i in (0, 1)] for worker in after}
    say("placed")
    del future, sums
    return answer


def chain(client: Client, size: int) -> dict[str, Any]:
    """A large result of one worker, used by all others."""
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    source = client.submit(make, size // 8, 7, workers=[workers[0]])
    wait(source)
    sums = {w: client.submit(total, source, workers=[w], pure=False) for w in workers}
    expected = float(make(size // 8, 7).sum())
    right = all(future.result() == expected for future in sums.values())
    return {"right": right, "counts": client.run(counts)}


def same_key_again(client: Client, size: int) -> dict[str, Any]:
    """A key that means something else a moment later."""
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    sums = []
    for seed in range(4):
        source = client.submit(make, size // 8, seed, key="the-key", workers=[workers[0]])
        wait(source)
        uses = [client.submit(total, source, workers=[w], pure=False) for w in workers[1:]]
        sums.append({future.result() for future in uses})
        source.release()
        del source, uses
        while "the-key" in str(client.who_has()):
            time.sleep(0.02)
    return {
        "right": sums == [{float(make(size // 8, seed).sum())} for seed in range(4)],
        "counts": client.run(counts),
    }


def lose(client: Client, size: int) -> dict[str, Any]:
    """Something dies in the middle; what is computed is right all the same."""
    array = np.arange(size // 8, dtype="f8")
    data = client.submit(np.arange, size // 8, dtype="f8")
    futures = [client.submit(slow_sum, data, part, retries=10) for part in range(48)]
    wait(futures[:4])
    say("running")
    values = client.gather(futures)
    return {"right": values == [float(array[part::16].sum()) for part in range(48)]}


def main() -> None:
    """One scenario."""
    _, scheduler, scenario, workers, size, *options = sys.argv
    with Client(scheduler, timeout=60) as client:
        client.wait_for_workers(int(workers), timeout=60)
        if "engine" not in options:
            backend = next((word for word in options if word.startswith("backend=")), "backend=auto")
            client.register_plugin(NodePlugin(backend=backend.partition("=")[2]))
        scenarios = {f.__name__: f for f in (broadcast, chain, same_key_again, lose)}
        answer = scenarios[scenario](client, int(size))
        print(json.dumps(answer), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
