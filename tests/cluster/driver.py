"""Runs on one of the hosts: `python driver.py SCHEDULER SCENARIO [ARGUMENT]`, one line of JSON as answer.

It talks with the test by lines: it prints a word when something is to happen, and reads one when it has.
"""

import json
import operator
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


def addresses(value: Any) -> list[int]:
    """Where the large pieces of memory of an array, a frame, a table or a dictionary of them lie."""
    if isinstance(value, np.ndarray):
        return [value.__array_interface__["data"][0]]
    if isinstance(value, dict):
        return [address for part in value.values() for address in addresses(part)]
    module = type(value).__module__.partition(".")[0]
    if module == "pandas":
        columns = [value[name].array for name in value]
        numbers = [column.to_numpy() for column in columns if not hasattr(column, "__arrow_array__")]
        text = [column.__arrow_array__() for column in columns if hasattr(column, "__arrow_array__")]
        return [a for part in numbers for a in addresses(part)] + pieces(text)
    if module == "polars":
        import polars as pl

        value = value.to_arrow(compat_level=pl.CompatLevel.newest())
    if module in ("polars", "pyarrow"):
        return pieces(value.columns)
    return [value.data_ptr()] if module == "torch" else []


def pieces(columns: Any) -> list[int]:
    """Addresses of the buffers of Arrow's arrays, chunked or not."""
    chunks = [chunk for column in columns for chunk in getattr(column, "chunks", [column])]
    return [
        buffer.address for chunk in chunks for buffer in chunk.buffers() if buffer and buffer.size >= 1 << 16
    ]


def homes(dask_worker: Any) -> list[str]:
    """For each large piece of what a worker has: the file that it lies in, or "private"."""
    answer = []
    for address in [a for value in dask_worker.data.values() for a in addresses(value)]:
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


def total(value: Any) -> float:
    """A task: the sum of an array, or of the numbers of a frame."""
    numbers = value if hasattr(value, "sum") and not hasattr(value, "columns") else np.asarray(value["n"])
    return float(numbers.sum())


def strings(count: int) -> list[str]:
    """A task whose result is large, and of Python objects."""
    return [f"text {n}" for n in range(count)]


def kind_and_length(value: Any) -> tuple[str, int]:
    """A task that looks what it was given."""
    return type(value).__name__, len(value)


def frames(numbers: Any) -> dict[str, Any]:
    """The same numbers in each kind of frame, with text beside them; in a dictionary; as a tensor."""
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    import torch

    text = pa.array([f"text {n % 100}" for n in range(len(numbers))])
    table = pa.table({"n": numbers, "s": text})
    frame = pd.DataFrame({"n": numbers, "s": pd.array(text, dtype="string[pyarrow]")})
    return {
        "pandas": frame,
        "pyarrow": table,
        "polars": pl.from_arrow(table),
        "dictionary": {"n": numbers, "more": [1, "two"]},
        "torch": torch.from_numpy(numbers.copy()),
    }


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
    say("now")
    del future, sums
    return answer


def broadcast_frames(client: Client, size: int) -> dict[str, Any]:
    """The same for everything else that has large pieces, one after the other."""
    numbers = np.arange(size // 8, dtype="f8")
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    answer = {}
    for kind, value in frames(numbers).items():
        future = client.scatter(value, broadcast=True)
        sums = [client.submit(total, future, workers=[worker], pure=False) for worker in workers]
        right = all(found == numbers.sum() for found in client.gather(sums))
        answer[kind] = {"right": right, "homes": client.run(homes)}
        del future, sums
        while client.who_has():
            time.sleep(0.02)
    answer["counts"] = client.run(counts)
    return answer


def objects(client: Client, size: int) -> dict[str, Any]:
    """Large values of which each process needs a copy of its own all the same."""
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    answer = []
    for making in ((bytes, size), (operator.mul, "x", size), (strings, size // 256)):
        source = client.submit(*making, workers=[workers[0]], pure=False)
        found = client.submit(kind_and_length, source, workers=[workers[1]], pure=False)
        answer.append(found.result())
    return {"found": answer, "counts": client.run(counts)}


def late(client: Client, size: int) -> dict[str, Any]:
    """A worker gets the plugin after a neighbour that has it found it without."""
    first, second = sorted(client.scheduler_info(n_workers=-1)["workers"])[:2]

    async def add(dask_worker: Any) -> None:
        await dask_worker.plugin_add(NodePlugin(), "sharedregion")

    answer = []
    for worker in (second, first):
        client.run(add, workers=[worker])
        source = client.submit(make, size // 8, 3, workers=[first], pure=False)
        used = client.submit(total, source, workers=[second], pure=False)
        right = used.result() == float(make(size // 8, 3).sum())
        answer.append([right, client.run(counts, workers=[second])[second]["mapped"]])
    return {"answers": answer}


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
    say("now")
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
        scenarios = {
            f.__name__: f for f in (broadcast, broadcast_frames, objects, late, chain, same_key_again, lose)
        }
        answer = scenarios[scenario](client, int(size))
        print(json.dumps(answer), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
