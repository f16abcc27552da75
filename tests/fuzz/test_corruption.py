"""Damaged bytes in catalog or members segment: RegionCorrupt or a right answer.

Never a signal, never a hang, never an object's bytes that are not that object's; nor a name that is
there and not found, a gap in a list, a figure that is not so, or memory used again that somebody holds.
"""

import json
import mmap
import os
import random
import secrets
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("damage.py")
PATIENCE = 15.0  # for one case; then it hangs
#: Regions that are damaged at the same time: who finds a dead holder's lock sleeps for 5 ms first, in each case.
PARTS = 4
#: Cases of random damage. `make fuzz` asks for 100,000.
RANDOM = int(os.environ.get("SHAREDREGION_FUZZ", "2000"))

#: Segment, offset, bytes, and whether their bits are exchanged or they put in the place of what is there.
Change = tuple[str, int, bytes, bool]

TEMPLATE = """
import os, signal, sys
import numpy as np, sharedregion as sr
sys.path.insert(0, sys.argv[1])
import damage
region = sr.create(sys.argv[2], size="256 KiB", backend="shm", persist=True)
region["gone"] = np.arange(100)
for name, value in damage.expected().items():
    region.put(name, value, mutable=name == "mutable")
region["between"] = np.arange(1000)
region["held"] = np.arange(500)
held = region["held"]
row = region._ticket(region._info("held")[8])
del region["held"], region["gone"]
draft = region._begin("never", 1, 0, b"", 2000)
region["between"] = np.arange(10)
del region["between"]
print(region._members()[0][0], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=["a dead writer", "a writer that died with the lock"])
def templates(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """Regions as a killed writer leaves them: objects, an unfinished and a withdrawn one, pins, a ticket."""
    names = [f"test-{secrets.token_hex(6)}" for _ in range(PARTS)]
    path = tmp_path / "template.py"
    path.write_text(TEMPLATE)
    try:
        for name in names:
            make_template(path, name, request.param == "a writer that died with the lock")
        yield names
    finally:
        for name in names:
            for kind in ("catalog", "members", "data"):
                Path(f"/dev/shm/sharedregion.{name}.{kind}").unlink(missing_ok=True)


def make_template(program: Path, name: str, with_the_lock: bool) -> None:
    done = subprocess.run(
        [sys.executable, str(program), str(PROGRAM.parent), name],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL and done.stdout
    if with_the_lock:
        row = int(done.stdout)
        with Segment(name, "members") as members, Segment(name, "catalog") as catalog:
            generation = struct.unpack_from("<I", members, 4096 * (1 + row))[0] >> 16
            struct.pack_into("<Q", catalog, 1024, lock_word(row, generation))


def lock_word(row: int, generation: int) -> int:
    """The lock as a holder leaves it (native/region/lock.c)."""
    value = (row + 1) | generation << 15 | 1 << 32
    mixed = (value ^ ((9 << 56) * 0x9E3779B97F4A7C15)) & (2**64 - 1)
    return value | ((mixed * 0xBF58476D1CE4E5B9 & (2**64 - 1)) >> 49 << 1 | 1) << 48


class Segment:
    """The bytes of a segment."""

    def __init__(self, name: str, kind: str) -> None:
        fd = os.open(f"/dev/shm/sharedregion.{name}.{kind}", os.O_RDWR)
        self.map = mmap.mmap(fd, 0)
        os.close(fd)

    def __enter__(self) -> mmap.mmap:
        return self.map

    def __exit__(self, *exception: object) -> None:
        self.map.close()


def keep_template(name: str, folder: Path) -> None:
    """Copies of what the segments use; the rest of each is empty."""
    for kind in ("catalog", "members", "data"):
        with Segment(name, kind) as segment:
            size = {
                "catalog": struct.unpack_from("<Q", segment, 72)[0] + (64 << 10),
                "members": 16 << 12,
                "data": len(segment),
            }
            (folder / kind).write_bytes(segment[: size[kind]])


def places(name: str) -> list[tuple[str, int]]:
    """Every byte of the small segments that means something."""
    with Segment(name, "catalog") as catalog, Segment(name, "members") as members:
        gen0 = struct.unpack_from("<Q", catalog, 72)[0]
        entries = struct.unpack_from("<Q", catalog, 1024 + 88)[0] >> 16
        blocks = struct.unpack_from("<I", catalog, 1024 + 96)[0]
        found = [("catalog", at) for at in range(1024)]
        found += [
            ("catalog", 1024 + at) for at in (*range(8), *range(64, 168), *range(192, 232), *range(256, 264))
        ]
        found += [("catalog", 4096 + at) for at in range(160 + 2 * 30 * 16 * 4)]
        found += [("catalog", 8192 + at) for at in range(8)]
        found += [("catalog", gen0 + at) for at in range(128, 128 * (entries + 1))]
        found += [("catalog", gen0 + (32 << 10) + at) for at in range(32, 32 * (blocks + 1))]
        slots = gen0 + (48 << 10)
        used = {
            at + 8 * step
            for at in range(slots, slots + (16 << 10), 8)
            if struct.unpack_from("<Q", catalog, at)[0] >> 16
            for step in (0, 1)
            if at + 8 * step < slots + (16 << 10)
        }
        found += [("catalog", at + k) for at in sorted(used) for k in range(8)]
        found += [("members", at) for at in range(80)]
        rows = struct.unpack_from("<I", members, 40)[0] >> 16
        for row in range(rows + 2):
            start = 4096 * (1 + row)
            found += [("members", start + at) for at in (*range(56), *range(64, 80), *range(832, 864))]
    return found


def run(cases: dict[str, list[list[Change]]], tmp_path: Path) -> Counter[str]:
    """Carry the cases of each region out, all regions at once. Fails with what went wrong."""
    folders = [tmp_path / name for name in cases]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(len(cases)) as pool:
        done = list(pool.map(run_one, cases, cases.values(), folders))
    wrong = [text for _, texts in done for text in texts]
    count = sum(map(len, cases.values()))
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong)
    answers = sum((found for found, _ in done), Counter[str]())
    print(f"{count} cases: {dict(answers)}")
    return answers


def run_one(name: str, cases: list[list[Change]], tmp_path: Path) -> tuple[Counter[str], list[str]]:
    """The answers, and what went wrong; after a death go on with the next case."""
    listing = tmp_path / "cases"
    with listing.open("w") as file:
        for case in cases:
            print(json.dumps([[kind, at, data.hex(), bits] for kind, at, data, bits in case]), file=file)
    progress = tmp_path / "progress"
    progress.write_bytes(bytes(8))
    wrong: list[str] = []
    answers: Counter[str] = Counter()
    keep_template(name, tmp_path)
    first = 0
    while first < len(cases) and len(wrong) < 5:
        with listing.open() as stdin, (tmp_path / "output").open("w+") as output:
            child = subprocess.Popen(
                [sys.executable, str(PROGRAM), name, str(tmp_path), str(first)], stdin=stdin, stdout=output
            )
            hangs = watch(child, progress)
            output.seek(0)
            for line in output:
                said = json.loads(line)
                answers.update(said.get("answers", {}))
                if "wrong" in said:
                    wrong.append(f"{describe(cases[said['case']])}: {said['wrong']}")
        if child.returncode == 0:
            break
        at = struct.unpack("<Q", progress.read_bytes())[0]
        wrong.append(f"{describe(cases[at])}: {'hangs' if hangs else f'ends with {child.returncode}'}")
        first = at + 1
    return answers, wrong


def watch(child: "subprocess.Popen[bytes]", progress: Path) -> bool:
    """Wait for its end; kill it if one case takes too long."""
    seen, since = None, time.monotonic()
    while True:
        try:
            child.wait(0.1)
        except subprocess.TimeoutExpired:
            now = progress.read_bytes()
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                child.kill()
                child.wait()
                return True
        else:
            return False


def describe(case: list[Change]) -> str:
    return ", ".join(f"{kind}[{at}]{'^' if bits else ''}={data.hex()}" for kind, at, data, bits in case)


def shares(names: list[str], of: Callable[[str], list[list[Change]]]) -> dict[str, list[list[Change]]]:
    """To each region its share of its own cases; together they are all cases of one."""
    return {name: of(name)[part :: len(names)] for part, name in enumerate(names)}


def flips(name: str, mask: int) -> list[list[Change]]:
    return [[(kind, at, bytes([mask]), True)] for kind, at in places(name)]


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_every_byte(templates: list[str], mask: int, tmp_path: Path) -> None:
    """Each byte that means something, flipped alone."""
    assert len({tuple(places(name)) for name in templates}) == 1
    cases = shares(templates, lambda name: flips(name, mask))
    answers = run(cases, tmp_path)
    # The damage was met, and most of a region is still good after most of it.
    count = sum(map(len, cases.values()))
    assert answers["RegionCorrupt"] > 100 and answers["right"] > 10 * count


INTERESTING: list[Callable[[random.Random], bytes]] = [
    lambda r: bytes([r.randrange(256)]),
    lambda r: struct.pack("<I", r.choice((0, 1, 2, 3, 5, 8, 255, 256, 511, 2047, 2**31, 2**32 - 1))),
    lambda r: struct.pack(
        "<Q", r.choice((0, 1, 64, 65, 66, 4096, 2**18, 2**32, 2**63, 2**64 - 1, 2**64 - 64))
    ),
    lambda r: struct.pack("<I", r.randrange(24)),
    lambda r: r.randbytes(r.choice((2, 4, 8, 16, 64))),
    lambda r: bytes(r.choice((4, 8, 32, 128, 512))),
]


def test_random_damage(templates: list[str], tmp_path: Path) -> None:
    """Several fields at once: numbers out of range, numbers of other things, zeros, noise; also from elsewhere."""
    seed = int(os.environ.get("SHAREDREGION_FUZZ_SEED", "0")) or secrets.randbits(32)
    print(f"SHAREDREGION_FUZZ_SEED={seed}")
    answers = run(shares(templates, lambda name: random_cases(name, seed)), tmp_path)
    assert answers["RegionCorrupt"] and answers["right"]


def random_cases(template: str, seed: int) -> list[list[Change]]:
    random_of = random.Random(seed)
    where = places(template)
    # Head bytes are under a checksum: one case of them is like another.
    where = [place for place in where if place >= ("catalog", 1024)]
    cases: list[list[Change]] = []
    with Segment(template, "catalog") as catalog, Segment(template, "members") as members:
        bytes_of = {"catalog": catalog, "members": members}
        for _ in range(RANDOM):
            case: list[Change] = []
            wanted = random_of.choice((1, 1, 2, 2, 3, 5, 8))
            while len(case) < wanted:
                kind, at = random_of.choice(where)
                if random_of.random() < 0.2:
                    # A field of one thing in the place of another's.
                    _, source = random_of.choice(
                        [place for place in random_of.sample(where, 8) if place[0] == kind] or [(kind, at)]
                    )
                    size = random_of.choice((4, 8, 32, 128))
                    at, source = at // size * size, source // size * size
                    if at == source:
                        continue  # what lay there before is no damage that a check could tell
                    data = bytes(bytes_of[kind][source : source + size])
                else:
                    data = random_of.choice(INTERESTING)(random_of)
                    at = at // min(len(data), 8) * min(len(data), 8) if len(data) > 1 else at
                case.append((kind, at, data, False))
            cases.append(case)
    return cases


def test_a_withdrawn_object_takes_no_other_with_it(templates: list[str], tmp_path: Path) -> None:
    """What an entry owns is put in the place of what another, unfinished or withdrawn, says that it owns."""
    run(shares(templates, exchanged), tmp_path)


def exchanged(template: str) -> list[list[Change]]:
    with Segment(template, "catalog") as catalog:
        gen0 = struct.unpack_from("<Q", catalog, 72)[0]
        entries = struct.unpack_from("<Q", catalog, 1024 + 88)[0] >> 16
        owned = {n: bytes(catalog[gen0 + 128 * n + 32 : gen0 + 128 * n + 64]) for n in range(1, entries)}
    return [
        [("catalog", gen0 + 128 * to + 32, owned[source], False)]
        for to in owned
        for source in owned
        if to != source
    ]
