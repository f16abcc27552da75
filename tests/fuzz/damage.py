"""A program: a region's small segments damaged in many ways, one after the other, and used each time.

damage.py NAME FOLDER FIRST: reads cases from standard input, one JSON list of [segment, offset,
bytes in hex] a line, and carries out those from number FIRST on, each on the bytes that lie in
FOLDER. Writes the number of the case at work into FOLDER/progress, so that whoever watches knows at
which one it died. Prints what was wrong, and at the end what the answers were.
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

Cuts = list[tuple[str, int, bytes]]


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


class Wrong(Exception):
    """An answer that is taken for right and is not."""


def look(region: sr.Region, wanted: dict[str, Any], answers: collections.Counter[str]) -> None:
    """Each object is as it should be, or there is an error of the family."""
    for name, value in wanted.items():
        try:
            got = region[name]
        except sr.SharedRegionError as error:
            answers[type(error).__name__] += 1
            continue
        if not same(got, value):
            raise Wrong(f"{name!r} is {got!r}"[:100])
        answers["right"] += 1


def list_names(region: sr.Region, wanted: dict[str, Any], answers: collections.Counter[str]) -> None:
    try:
        listed = list(region)
    except sr.SharedRegionError as error:
        answers[type(error).__name__] += 1
        return
    if len(set(listed)) != len(listed) or not set(listed) <= set(wanted):
        raise Wrong(f"listed: {listed}")


def change(region: sr.Region, wanted: dict[str, Any], answers: collections.Counter[str]) -> None:
    """Put, replace, delete; `wanted` follows. What failed may have been done or not."""
    for key, value in (
        ("new", np.full(300, 1, "i2")),
        ("array", np.full(500, 2, "i2")),
        ("text", None),
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
        except sr.SharedRegionError as error:
            answers[type(error).__name__] += 1
            wanted.pop(key, None)


def use(name: str, answers: collections.Counter[str]) -> None:
    wanted = expected()
    for writable in (False, True):
        try:
            region = sr.attach(name, writable=writable)
        except sr.SharedRegionError as error:
            answers[type(error).__name__] += 1
            continue
        try:
            list_names(region, wanted, answers)
            look(region, wanted, answers)
            if writable:
                change(region, wanted, answers)
                look(region, wanted, answers)
                try:
                    region._check()
                    answers["sound"] += 1
                except sr.SharedRegionError:
                    answers["unsound"] += 1
        finally:
            region.close()


def main() -> None:
    logging.disable()
    name, folder, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
    segments = {kind: Segment(name, kind, folder) for kind in ("catalog", "members", "data")}
    counter = os.open(f"{folder}/progress", os.O_RDWR)
    at_work = mmap.mmap(counter, 8)
    answers: collections.Counter[str] = collections.Counter()
    gc.disable()
    for number, line in enumerate(sys.stdin):
        if number < first:
            continue
        at_work[:] = struct.pack("<Q", number)
        for segment in segments.values():
            segment.restore()
        for kind, offset, data in json.loads(line):
            new = bytes.fromhex(data)
            segments[kind].map[offset : offset + len(new)] = new
        try:
            use(name, answers)
        except Wrong as error:
            print(json.dumps({"case": number, "wrong": str(error)}), flush=True)
        except Exception as error:  # noqa: BLE001  what it is, is the finding
            print(json.dumps({"case": number, "wrong": f"not of the family: {error!r}"}), flush=True)
        if number % 256 == 0:
            gc.collect()
    for segment in segments.values():
        segment.restore()
    print(json.dumps({"answers": answers}), flush=True)


if __name__ == "__main__":
    main()
