"""Writers killed at random moments while the memory grows and is given back: nothing is lost, torn or left behind."""

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sharedregion as sr

MIB = 1 << 20
KILLS = int(os.environ.get("SHAREDREGION_KILLS", "10"))

WRITER = """
import random, sys, numpy as np, sharedregion as sr
name, me, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
dice = random.Random(seed)
region = sr.attach(name, writable=True)
print("ready", flush=True)
n = 0
while True:
    n += 1
    key = f"{me}/{dice.randrange(6)}"
    what = dice.random()
    try:
        if what < 0.6:
            value = np.full(dice.choice([10, 5000, 300_000]), seed * 1000 + n, "i8")
            region[key] = value
        elif what < 0.85:
            region.pop(key, None)
        else:
            region.trim()
    except sr.RegionFull:
        pass
"""


def _whole(array: Any) -> bool:
    return bool((array == array[0]).all())


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("unit", [2 * MIB, 512 << 30], ids=["2 MiB", "512 GiB"])
def test_writers_killed(
    msharefs: Callable[[int], Any], unique: str, start: Callable[..., Any], unit: int
) -> None:
    """After each kill every object is whole for a reader that was there all the time, and every invariant holds."""
    msharefs(unit)
    seed = int.from_bytes(os.urandom(3), "little")
    print(f"seed {seed}")
    dice = random.Random(seed)
    with sr.create(unique, size=24 * MIB, backend="msharefs") as region, sr.attach(unique) as reader:
        region["fixed"] = np.arange(100_000)
        fixed = reader["fixed"]
        writers = [start(WRITER, unique, str(me), str(seed + me)) for me in range(2)]
        seen = 0
        for n in range(KILLS):
            time.sleep(dice.uniform(0.001, 0.03))
            which = n % 2
            writers[which].send_signal(signal.SIGKILL)
            writers[which].wait()
            region._check()
            for value in reader.values():
                seen += 1
                assert value is not None
                if len(value) != len(fixed):
                    assert _whole(value)
            value = None
            assert fixed[-1] == 99_999
            writers[which] = start(WRITER, unique, str(which), str(seed + 2 + n))
        assert seen > KILLS
        for writer in writers:
            writer.kill()
            writer.wait()
        region._sweep()
        for name in list(region):
            del region[name]
        region._check()
        assert region.stats().used == fixed.nbytes
        region["y"] = np.full(20 * MIB, 3, "u1")
        assert reader["y"].sum() == 60 * MIB
