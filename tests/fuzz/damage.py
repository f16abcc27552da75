"""A program: a region's small segments damaged in many ways, one after the other, and used each time.

damage.py NAME FOLDER FIRST: reads cases from standard input, one JSON list of [segment, offset,
bytes in hex, whether to exchange bits or bytes] a line, and carries out those from number FIRST on,
each on the bytes that lie in FOLDER. Writes the number of the case at work into FOLDER/progress, so
that whoever watches knows at which one it died. Prints what was wrong, and at the end what the
answers were.

Each time a living member holds some objects before the damage is done. Then a reader and a writer
join, look and change, and the writer takes all memory that it can get. Whatever is not RegionCorrupt
has to be right: each object found, the list complete, the figures what they are, and what is held
unchanged to the end.
"""

import collections
import gc
import json
import logging
import mmap
import os
import struct
import sys
from typing import Any

import numpy as np

import sharedregion as sr

#: Names that a living member holds from before the damage.
HELD = ("array", "text", "matrix")
#: What a reference under way holds.
SENT = "bytes"


def expected() -> dict[str, Any]:
    """What lies in the template."""
    return {
        "array": np.arange(40, dtype="i4"),
        "matrix": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "text": "a text of some length",
        "bytes": b"bytes as they are",
        "pickled": {"a": [1, 2, 3]},
        "a name that needs a continuation, since it is longer than an entry has room " * 2: np.array(
            [7, 8, 9]
        ),
        "mutable": np.array([1.5, 2.5]),
    }


class Segment:
    """A file of the region, and the bytes to which it is put back."""

    def __init__(self, name: str, kind: str, folder: str) -> None:
        fd = os.open(f"/dev/shm/sharedregion.{name}.{kind}", os.O_RDWR)
        self.map = mmap.mmap(fd, 0)
        os.close(fd)
        with open(f"{folder}/{kind}", "rb") as file:
            self.bytes = file.read()
        self.kept = len(self.bytes)

    def restore(self) -> None:
        self.map[: self.kept] = self.bytes
        if self.kept < len(self.map):
            self.map.madvise(mmap.MADV_REMOVE, self.kept, len(self.map) - self.kept)


class Wrong(Exception):
    """An answer that is taken for right and is not."""


def same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, np.ndarray):
        return (
            isinstance(value, np.ndarray)
            and value.dtype == wanted.dtype
            and value.shape == wanted.shape
            and value.tobytes("A") == wanted.tobytes("A")
        )
    if isinstance(wanted, bytes):
        return bytes(value) == wanted
    return bool(value == wanted)


Answers = collections.Counter[str]


def corrupt(answers: Answers) -> None:
    answers["RegionCorrupt"] += 1


def look(region: sr.Region, wanted: dict[str, Any], answers: Answers) -> None:
    """Each object is as it should be, and a name that is not there is not."""
    for name, value in wanted.items():
        try:
            got = region[name]
        except sr.RegionCorrupt:
            corrupt(answers)
            continue
        except sr.ObjectNotFound:
            raise Wrong(f"{name[:20]!r} is said not to be there") from None
        if not same(got, value):
            raise Wrong(f"{name[:20]!r} is {got!r}"[:100])
        answers["right"] += 1
    for name in ("nobody", "text of another"):
        try:
            if name in region:
                raise Wrong(f"{name!r} is said to be there")
            answers["right"] += 1
        except sr.RegionCorrupt:
            corrupt(answers)


def list_names(region: sr.Region, wanted: dict[str, Any], answers: Answers) -> None:
    try:
        listed = list(region)
    except sr.RegionCorrupt:
        corrupt(answers)
    else:
        if sorted(listed) != sorted(wanted):
            raise Wrong(f"listed: {[name[:20] for name in listed]}")
    try:
        count = len(region)
    except sr.RegionCorrupt:
        corrupt(answers)
    else:
        if count != len(wanted):
            raise Wrong(f"{count} objects, {len(wanted)} wanted")


#: What the figures of a region say that neither joining nor looking changes.
DAMAGED = 2
FIGURES = ("size", "used", "objects", "limbo", "pending", "recoveries", "flags")


def figures(region: sr.Region) -> tuple[Any, ...]:
    stats = region._stats()
    return (*(stats[key] for key in FIGURES), region.version("array"), region.version("mutable"))


def look_at_figures(region: sr.Region, right: tuple[Any, ...], answers: Answers) -> None:
    try:
        found = figures(region)
        if found[FIGURES.index("flags")] & DAMAGED:
            corrupt(answers)
        elif found != right:
            raise Wrong(f"figures {found}, not {right}")
        if {member[1] for member in region._members()} != {os.getpid()}:
            raise Wrong(f"members {region._members()}")
        answers["right"] += 1
    except sr.RegionCorrupt:
        corrupt(answers)


def change(region: sr.Region, wanted: dict[str, Any], answers: Answers) -> None:
    """Put, replace, delete; `wanted` follows. What failed may have been done or not."""
    for key, value in (
        ("new", np.full(300, 1, "i2")),
        ("array", np.full(500, 2, "i2")),
        ("text", None),
        (SENT, None),
        ("matrix", None),
        ("newer", np.full(700, 3, "i2")),
    ):
        try:
            if value is None:
                del region[key]
                wanted.pop(key, None)
            else:
                region[key] = value
                wanted[key] = value
            answers["changed"] += 1
        except sr.RegionCorrupt:
            corrupt(answers)
            wanted.pop(key, None)
        except sr.RegionFull:
            answers["RegionFull"] += 1
            wanted.pop(key, None)


def take_all(region: sr.Region, answers: Answers) -> None:
    """Put until there is no room, so that what is free by mistake is overwritten."""
    junk = np.full(4096, 0xA5, "u1")
    for number in range(200):
        try:
            region[f"junk {number}"] = junk[: 4096 >> number % 7]
        except sr.RegionCorrupt:
            corrupt(answers)
            return
        except sr.RegionFull:
            if number % 7 == 6:
                return


class Held:
    """What a living member holds: by arrays, and by a reference under way."""

    def __init__(self, name: str, data: mmap.mmap) -> None:
        self.region = sr.attach(name)
        self.values = {name: self.region[name] for name in HELD}
        view = np.frombuffer(self.region[SENT], "u1")
        self.at = view.__array_interface__["data"][0] - self.region._data()[0]
        self.len = view.nbytes
        self.region._ticket(self.region._info(SENT)[8])
        self.data = data

    def check(self) -> None:
        wanted = expected()
        for name, value in self.values.items():
            # A text is no view of the region; its block is held by nobody.
            if isinstance(value, np.ndarray) and not same(value, wanted[name]):
                raise Wrong(f"what is held of {name!r} has changed")
        if self.data[self.at : self.at + self.len] != wanted[SENT]:
            raise Wrong(f"what a reference holds of {SENT!r} has changed")

    def close(self) -> None:
        self.values.clear()
        self.region.close()


def use(name: str, right: tuple[Any, ...], answers: Answers) -> None:
    wanted = expected()
    for writable in (False, True):
        try:
            region = sr.attach(name, writable=writable)
        except sr.RegionCorrupt:
            corrupt(answers)
            continue
        try:
            if not writable:
                look_at_figures(region, right, answers)
            list_names(region, wanted, answers)
            look(region, wanted, answers)
            if writable:
                change(region, wanted, answers)
                look(region, wanted, answers)
                try:
                    region._check()
                    answers["sound"] += 1
                except sr.RegionCorrupt:
                    answers["unsound"] += 1
                take_all(region, answers)
                look(region, wanted, answers)
        finally:
            region.close()


def damage(segment: Segment, offset: int, new: bytes, exchange_bits: bool) -> None:
    if exchange_bits:
        new = bytes(a ^ b for a, b in zip(segment.map[offset : offset + len(new)], new, strict=True))
    segment.map[offset : offset + len(new)] = new


def main() -> None:
    logging.disable()
    name, folder, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
    segments = {kind: Segment(name, kind, folder) for kind in ("catalog", "members", "data")}
    counter = os.open(f"{folder}/progress", os.O_RDWR)
    at_work = mmap.mmap(counter, 8)
    answers: Answers = collections.Counter()
    gc.disable()
    # Who went on after a death would take what that case left for right.
    for segment in segments.values():
        segment.restore()
    with sr.attach(name) as region:
        right = figures(region)
    for number, line in enumerate(sys.stdin):
        if number < first:
            continue
        at_work[:] = struct.pack("<Q", number)
        for segment in segments.values():
            segment.restore()
        held = Held(name, segments["data"].map)
        for kind, offset, data, exchange_bits in json.loads(line):
            damage(segments[kind], offset, bytes.fromhex(data), exchange_bits)
        try:
            use(name, right, answers)
            held.check()
        except Wrong as error:
            print(json.dumps({"case": number, "wrong": str(error)}), flush=True)
        except Exception as error:  # noqa: BLE001  what it is, is the finding
            print(json.dumps({"case": number, "wrong": f"not of the family: {error!r}"}), flush=True)
        held.close()
        if number % 256 == 0:
            gc.collect()
    for segment in segments.values():
        segment.restore()
    print(json.dumps({"answers": answers}), flush=True)


if __name__ == "__main__":
    main()
