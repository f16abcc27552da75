"""Objects cannot move and memory can: what is left after much coming and going, for large objects."""

import random
from typing import Any

import numpy as np
import pytest

import sharedregion as sr

SIZE = 1 << 30
LARGEST = 64 << 20
PAGE = 2 << 20


def place(region: sr.Region, name: str, nbytes: int, stamp: int) -> None:
    """An object whose first and last bytes tell which it is."""
    with region.allocate(name, nbytes, "u1") as array:
        array[:32] = array[-32:] = stamp


def intact(region: sr.Region, name: str, nbytes: int, stamp: int) -> bool:
    array = region[name]
    return len(array) == nbytes and bool((array[:32] == stamp).all() and (array[-32:] == stamp).all())


def churn(region: sr.Region, operations: int, seed: int) -> dict[str, tuple[int, int]]:
    """Random puts and deletes of 64 B to 64 MiB, each doubling as likely, at 80 % fill."""
    chance = random.Random(seed)
    held: dict[str, tuple[int, int]] = {}
    names: list[str] = []
    used = 0
    for number in range(operations):
        nbytes = int(64 * 2 ** chance.uniform(0, np.log2(LARGEST / 64)))
        while used + nbytes > SIZE * 8 // 10:
            last = chance.randrange(len(names))
            names[last], names[-1] = names[-1], names[last]
            gone = names.pop()
            used -= held.pop(gone)[0]
            del region[gone]
        name = f"object {number}"
        held[name] = (nbytes, number % 251)
        names.append(name)
        place(region, name, *held[name])
        used += nbytes
    return held


def fill_with(region: sr.Region, nbytes: int) -> tuple[int, sr.RegionFull]:
    """Objects of that length until there is no room: how many, and what was said."""
    placed = 0
    while True:
        try:
            place(region, f"large {placed}", nbytes, 255)
        except sr.RegionFull as error:
            return placed, error
        placed += 1


@pytest.mark.parametrize(
    ("kind", "commit"), [("thp", "lazy"), ("thp", "full"), ("hugetlb-2m", "full"), ("hugetlb-2m", "lazy")]
)
def test_a_twentieth_fits_after_churn(kind: str, commit: str, pool: Any, unique: str) -> None:
    """At 80 % fill, after thousands of puts and deletes, less than 10 % is unusable for objects of 1/20.

    No object is harmed by the memory that moves, also as another member sees it; never does more than
    `size` have memory. Of hugetlb, the pool has not one page more than the region.
    """
    if kind == "hugetlb-2m":
        pool(PAGE, SIZE // PAGE)
    wanted = SIZE // 20
    with sr.create(unique, size=SIZE, backend=kind, commit=commit) as region, sr.attach(unique) as reader:
        for turn in range(3):
            held = churn(region, 1500, turn)
            before = region.stats()
            assert before.used >= SIZE * 7 // 10
            assert before.committed <= SIZE
            placed, error = fill_with(region, wanted)
            after = region.stats()
            assert after.committed <= SIZE
            unusable = (before.free - placed * wanted) / SIZE
            print(
                f"{kind}, {commit}: {before.free / SIZE:.1%} free, {placed} placed, {unusable:.1%} unusable"
            )
            assert unusable < 0.10
            assert (error.wanted, error.free) == (wanted, after.free)
            assert error.largest == after.largest < wanted
            # What it says to be the largest is.
            if after.largest:
                place(region, "largest", after.largest, 7)
                assert intact(reader, "largest", after.largest, 7)
            for name, said in held.items():
                assert intact(reader, name, *said), name
            for name in region:
                del region[name]
        region._check()
        assert region.stats().largest == SIZE
        committed = region.stats().committed
        assert region.trim() == (0 if commit == "full" else committed)


def test_memory_moves_only_when_it_must(unique: str) -> None:
    """What was freed is used again where it lies; what is trimmed is committed again."""
    with sr.create(unique, size="64 MiB", backend="thp", commit="lazy") as region:
        place(region, "a", 20 << 20, 1)
        first = region.stats().committed
        for stamp in range(5):
            place(region, "a", 20 << 20, stamp)
        assert region.stats().committed <= 2 * first
        del region["a"]
        assert region.trim() == 2 * first
        assert region.stats().committed == 0
        place(region, "a", 60 << 20, 3)
        assert region.stats().committed == 60 << 20
        assert intact(region, "a", 60 << 20, 3)
