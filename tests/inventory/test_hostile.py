"""An onlooker meets bytes that another user chose: a right answer or "corrupt", never a crash, a hang or a change."""

import contextlib
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sharedregion as sr
from sharedregion import inventory
from tests.sanitizers import sanitized

SHM = Path("/dev/shm")
CASES = 400
#: Offsets of struct sr_head and sr_state in the catalog (native/region/sr_format.h).
HEAD, CRC_AT = 1024, 1020
SIZE, MAPPED, GENS, CATALOG_SIZE, GEN0, GRANULE, NAME_LEN, REASON = 32, 40, 60, 64, 72, 128, 140, 384
STATE = 1024
ENTRIES_HIGH, OBJECTS, USED, PENDING = STATE + 88, STATE + 192, STATE + 200, STATE + 216


def crc32c(data: bytes) -> int:
    """The checksum of the format, so that a made-up head passes for a real one."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def word(value: int, offset: int) -> int:
    """A word of sr_state that says of itself that it is sound."""
    salt = 1 << 56 | offset
    check = ((value ^ salt * 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1) >> 49
    return value << 16 | check << 1 | 1


class Victim:
    """A region that persists, whose files are changed and put back."""

    def __init__(self, name: str) -> None:
        self.name = name
        with sr.create(name, size="64 KiB", backend="shm", persist=True) as region:
            region["array"] = [1, 2, 3]
            region["a name that goes on in another entry " * 5] = "text"
            for n in range(20):
                region[f"object {n}"] = bytes(100)
        self.catalog = SHM / f"sharedregion.{name}.catalog"
        self.members = SHM / f"sharedregion.{name}.members"
        self.good = self.catalog.read_bytes()[: 1 << 18], self.members.read_bytes()[: 1 << 14]

    def write(self, path: Path, at: int, data: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def restore(self) -> None:
        self.write(self.catalog, 0, self.good[0])
        self.write(self.members, 0, self.good[1])

    def sign(self) -> None:
        head = self.catalog.read_bytes()[:CRC_AT]
        self.write(self.catalog, CRC_AT, struct.pack("<I", crc32c(head)))

    def set(self, at: int, value: int, size: int = 8) -> None:
        self.write(self.catalog, at, value.to_bytes(size, "little"))

    def glance(self) -> str:
        """The same, without a look at all processes."""
        seen = inventory._try(self.name)
        assert seen is not None
        with contextlib.suppress(sr.SharedRegionError):
            inventory.objects(self.name)
        return seen.info.state if isinstance(seen, inventory._Look) else seen.state

    def look(self) -> str:
        """Everything that looks, at once; the state that was told."""
        (one,) = [one for one in inventory.regions() if one.name == self.name]
        for ask in (inventory.objects, inventory.members):
            with contextlib.suppress(sr.SharedRegionError):
                ask(self.name)
        inventory.leftovers()
        return one.state


@pytest.fixture
def victim(unique: str) -> Iterator[Victim]:
    made = Victim(unique)
    yield made
    for path in SHM.glob(f"sharedregion.{unique}.*"):
        path.unlink()


def test_random_damage(victim: Victim) -> None:
    """Bytes changed anywhere in catalog and members, with the head signed anew in half of the cases."""
    random_ = random.Random(20_251_123)
    states = set()
    for number in range(CASES):
        for _ in range(random_.choice((1, 1, 2, 8))):
            path, good = random_.choice(((victim.catalog, victim.good[0]), (victim.members, victim.good[1])))
            start = random_.choice((0, STATE, 4096, 8192, len(good) // 2))
            at = min(len(good) - 8, start + int(random_.expovariate(1 / 600)))
            value = random_.choice((0, 1, 0xFF, 0x7F, random_.getrandbits(8)))
            victim.write(path, at, bytes([value] * random_.choice((1, 4, 8))))
        if number % 2:
            victim.sign()
        states.add(victim.look() if number % 40 == 0 else victim.glance())
        victim.restore()
    assert victim.look() == "idle"
    assert states == {"idle", "corrupt"}
    with sr.attach(victim.name) as region:
        assert region["array"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("field", "size", "value"),
    [
        (SIZE, 8, 1 << 62), (MAPPED, 8, 1 << 62), (GENS, 4, 18), (GENS, 4, 255), (CATALOG_SIZE, 8, 1 << 62),
        (GEN0, 8, 1 << 61), (GEN0, 8, 1 << 40), (GRANULE, 8, 1), (GRANULE, 8, 1 << 63), (NAME_LEN, 4, 0xFFFFFFFF),
        (ENTRIES_HIGH, 8, 0xFFFFFFFF), (PENDING, 8, 0xFFFFFFFF), (OBJECTS, 8, 0xFFFFFFFF), (USED, 8, 1 << 47),
    ],
)  # fmt: skip
def test_numbers_that_would_be_believed(victim: Victim, field: int, size: int, value: int) -> None:
    """With a checksum that is right, and a file that is as large as it says: no long loop, no vast memory."""
    if field >= STATE:
        value = word(value, field - STATE)
    victim.set(field, value, size)
    victim.sign()
    before = peak()
    victim.look()
    with victim.catalog.open("r+b") as file:
        file.truncate(1 << 42)
    victim.look()
    assert peak() - before < 64 << 20


def test_a_vast_catalog_of_holes(victim: Victim) -> None:
    """Eighteen generations, all numbers at their limits, and no memory behind any: told without taking any."""
    gen0 = struct.unpack_from("<Q", victim.good[0], GEN0)[0]
    victim.set(GENS, 18, 4)
    victim.set(CATALOG_SIZE, gen0 + (64 << 10) * ((1 << 18) - 1))
    victim.set(ENTRIES_HIGH, word(0xFFFFFFFF, ENTRIES_HIGH - STATE))
    victim.sign()
    with victim.catalog.open("r+b") as file:
        file.truncate(1 << 35)
    before, blocks = peak(), victim.catalog.stat().st_blocks
    assert victim.look() == "idle"
    assert peak() - before < 512 << 20
    assert victim.catalog.stat().st_blocks == blocks


def peak() -> int:
    """Bytes of memory that this process has had at once."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize("reason", [b"\xff\xfe\x1b[31m", b"\xc3"])
def test_texts_that_are_none(victim: Victim, reason: bytes) -> None:
    """What is no UTF-8 is shown as what it is."""
    victim.write(victim.catalog, REASON, reason)
    victim.sign()
    (one,) = [one for one in inventory.regions() if one.name == victim.name]
    assert one.state == "idle"
    assert one.reason is not None
    assert "\\x" in one.reason


@pytest.mark.parametrize("length", [0, 100, 1024, 4096, 8192, 70_000])
def test_truncated_files(victim: Victim, length: int) -> None:
    """Of either segment; and a members file that is gone."""
    for path in (victim.members, victim.catalog):
        with path.open("r+b") as file:
            file.truncate(length)
        assert victim.look() in ("corrupt", "idle")
    assert victim.look() == "corrupt"
    victim.members.unlink()
    assert victim.look() == "corrupt"


def test_files_truncated_and_replaced_while_they_are_looked_at(
    unique: str, start: Callable[..., Any]
) -> None:
    """Another process does that without a pause; the onlooker's command ends well each time, and says what it saw."""
    code = """
import os, sys, logging
import sharedregion as sr
logging.disable()
name = sys.argv[1]
catalog, members = (f"/dev/shm/sharedregion.{name}.{part}" for part in ("catalog", "members"))
print("ready", flush=True)
while True:
    r = sr.create(name, size="64 KiB", backend="shm", replace=True)
    for i in range(40): r[f"object {i}"] = bytes(i)
    r.close()
    r = sr.create(name, size="64 KiB", backend="shm", replace=True)
    for path in (members, catalog):
        try:
            os.truncate(path, 0)
            os.truncate(path, 1 << 20)
        except OSError: pass
    os.unlink(catalog)
    os._exit(0) if os.getppid() == 1 else None
    # Its memory is gone under it: only the names are left to take away.
    if os.path.exists(members): os.unlink(members)
    for file in os.listdir("/dev/shm"):
        if name in file: os.unlink("/dev/shm/" + file)
    r._closed = True
    keep = globals().setdefault("keep", [])
    keep.append(r)
    if len(keep) > 200: os.execv(sys.executable, [sys.executable, "-P", *sys.orig_argv[2:]])
"""
    other = start(code, unique)
    states = set()
    for _ in range(60):
        states |= {one.state for one in inventory.regions() if one.name == unique}
        for ask in (inventory.objects, inventory.members):
            with contextlib.suppress(sr.SharedRegionError):
                ask(unique)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sharedregion", "ls", "--json"], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    other.kill()
    other.wait()
    for path in SHM.glob(f"sharedregion.{unique}.*"):
        path.unlink()
    assert states <= {"live", "idle", "orphaned", "corrupt"}


def test_an_onlooker_reads_no_byte_out_of_place(tmp_path: Path) -> None:
    """The native onlooker under sanitizers: thousands of damaged regions, and files cut and grown while it reads."""
    rooms = ["base", "sys", "keeper", "backend", "region", "alloc", "catalog"]
    program = sanitized(tmp_path / "onlook", rooms, "tests/onlook.c", "tests/support.c")
    done = subprocess.run([program, "rounds=4000", "moving=500"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "were answered for in full" in done.stdout
