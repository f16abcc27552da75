"""The walk over images of kernel memory: recorded ones, and machines that are drawn here.

An image is an ELF core file of the form of /proc/kcore, so it also tests the provider that reads that
file, on machines whose kernel has none.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE = 4096
GIB = 1 << 30
NOTE_TASK = 4


class Memory:
    """Bytes at kernel addresses, most of which are not there."""

    def __init__(self) -> None:
        self.pages: dict[int, tuple[bytearray, bytearray]] = {}

    def write(self, at: int, data: bytes) -> None:
        for i in range(len(data)):
            page, offset = divmod(at + i, PAGE)
            data_of, known = self.pages.setdefault(page, (bytearray(PAGE), bytearray(PAGE)))
            data_of[offset] = data[i]
            known[offset] = 1

    def segments(self) -> Iterator[tuple[int, bytes]]:
        start, run = 0, bytearray()
        for page in sorted(self.pages):
            data, known = self.pages[page]
            for offset in range(PAGE):
                at = page * PAGE + offset
                if known[offset] and run and at == start + len(run):
                    run.append(data[offset])
                elif known[offset]:
                    if run:
                        yield start, bytes(run)
                    start, run = at, bytearray([data[offset]])
        if run:
            yield start, bytes(run)


def elf(memory: Memory, task: bytes) -> bytes:
    """An ELF core file with `memory` and the task of who made it."""
    note = struct.pack("<III8s", 5, len(task), NOTE_TASK, b"CORE") + task
    parts = [(4, 0, note), *((1, at, data) for at, data in memory.segments())]
    offset = 64 + 56 * len(parts) + 64
    headers, body = b"", b""
    for kind, at, data in parts:
        headers += struct.pack("<IIQQQQQQ", kind, 4, offset + len(body), at, 0, len(data), len(data), 1)
        body += data
    many = len(parts) >= 0xFFFF
    first = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, len(parts), 0, 0)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH",
        4,
        62,
        1,
        0,
        64,
        64 + 56 * len(parts),
        0,
        64,
        56,
        0xFFFF if many else len(parts),
        64,
        1,
        0,
    )
    return head + headers + first + body


@pytest.mark.usefixtures("exact")
def test_an_image_of_what_was_read_gives_the_same_answer(
    worker: Callable[..., Any], helper: str, tmp_path: Path
) -> None:
    """All that the walk read through BPF, put into a core file and walked again: the same figures."""
    codes = [
        "ready()",
        "import mmap\nm = mmap.mmap(-1, 64 << 20)\nm.write(bytes(64 << 20))\nready()",
        "import mmap\nm = mmap.mmap(-1, 64 << 20, flags=34)\nm.madvise(mmap.MADV_HUGEPAGE)\nm.write(bytes(64 << 20))\nready()",
    ]
    pids = [str(worker(code).pid) for code in codes]
    stream = tmp_path / "stream"
    with stream.open("wb") as file:
        command = [helper, "--method", "walk", "--leaves", "--alone", "--record", str(file.fileno()), *pids]
        live = json.loads(
            subprocess.run(command, pass_fds=[file.fileno()], capture_output=True, check=True).stdout
        )
    memory, task, nonce, data, at = Memory(), b"", b"", stream.read_bytes(), 0
    while at < len(data):
        address, length = struct.unpack_from("<QQ", data, at)
        piece = data[at + 16 : at + 16 + length]
        at += 16 + length
        if address == 1:
            task = piece
        elif address == 2:
            nonce = piece
        else:
            memory.write(address, piece)
    image = tmp_path / "image"
    image.write_bytes(elf(memory, task))
    recorded = f"{struct.unpack('<Q', nonce[:8])[0]}:{nonce[8:].hex()}"
    command = [
        helper,
        "--method",
        "walk",
        "--leaves",
        "--alone",
        "--kcore",
        str(image),
        "--recorded",
        recorded,
    ]
    again = json.loads(subprocess.run([*command, *pids], capture_output=True, check=True).stdout)
    assert again["reader"] == "kcore"
    assert again["processes"] == live["processes"]
    assert len(again["processes"]) == 3
    assert again["processes"][2]["held_tables"] > 0
    assert again["distinct_bytes"] == live["distinct_bytes"]

    # Another nonce is not there: nothing is believed then.
    other = recorded[:-2] + f"{int(recorded[-2:], 16) ^ 1:02x}"
    command[-1] = other
    done = subprocess.run([*command, *pids], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"nonce" in done.stderr


# --- a machine that is drawn ----------------------------------------------------------------------

# Offsets that are like no real kernel's, some in anonymous members (second element).
STRUCTS: dict[str, tuple[int, dict[str, int], dict[str, int]]] = {
    "task_struct": (
        4096,
        {
            "flags": 40,
            "mm": 1200,
            "tgid": 88,
            "signal": 96,
            "thread_pid": 104,
            "thread_node": 112,
            "pid_links": 136,
            "cred": 200,
        },
        {"comm": 3000},
    ),
    "signal_struct": (64, {"thread_head": 24}, {}),
    "mm_struct": (512, {}, {"pgd": 72, "pgtables_bytes": 136}),
    "cred": (64, {"uid": 8, "suid": 16, "euid": 24, "fsuid": 32}, {}),
    "pid": (96, {"level": 4, "tasks": 16, "numbers": 64}, {}),
    "upid": (16, {"nr": 0, "ns": 8}, {}),
    "pid_namespace": (128, {"idr": 32}, {}),
    "idr": (24, {"idr_rt": 0, "idr_base": 16}, {}),
    "xarray": (16, {"xa_head": 8}, {}),
    "xa_node": (24 + 8 * 64 + 16, {"shift": 0, "slots": 24}, {}),
    "page": (64, {}, {"lru": 8}),
    "ptdesc": (64, {}, {"pt_mm": 24, "pmd_huge_pte": 16, "pt_share_count": 24}),
}


def btf(structs: dict[str, tuple[int, dict[str, int], dict[str, int]]] = STRUCTS) -> bytes:
    """The description of those structures, as the kernel would give it."""
    strings, types = bytearray(b"\0"), bytearray()

    def name(text: str) -> int:
        strings.extend(text.encode() + b"\0")
        return len(strings) - len(text) - 1

    types += struct.pack("<IIII", name("int"), 1 << 24, 4, 32)
    number = 2
    for title, (size, fields, nested) in structs.items():
        # An anonymous member, which begins at byte 8 if all in it lies behind.
        shift = 8 if nested and min(nested.values()) >= 8 else 0
        if nested:
            types += struct.pack("<III", 0, 4 << 24 | len(nested), size - shift)
            for field, offset in nested.items():
                types += struct.pack("<III", name(field), 1, (offset - shift) * 8)
        types += struct.pack("<III", name(title), 4 << 24 | (len(fields) + bool(nested)), size)
        for field, offset in fields.items():
            types += struct.pack("<III", name(field), 1, offset * 8)
        if nested:
            types += struct.pack("<III", 0, number, shift * 8)
        number += 1 + bool(nested)
    return (
        struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings
    )


PRESENT, HUGE, PROT_NONE = 1, 1 << 7, 1 << 8
# Bits that are no address and that a walk must not trip over: NX, a protection key, software bits.
NOISE = 1 << 63 | 5 << 59 | 0x7F << 52 | 0x66
NONCE = bytes(range(1, 33))
OWN_PAGE = 0x7F1234567000


class Machine:
    """Some processes with page tables, in a drawn kernel."""

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.memory = Memory()
        self.direct = 0xFF11000040000000 if levels == 5 else 0xFFFF888000000000 + 7 * GIB
        self.vmemmap = 0xFFD4000000000000 if levels == 5 else 0xFFFFEA0000000000 + 3 * GIB
        self.next_frame = 5 * GIB
        self.next_object = self.direct + 64 * (1 << 20)
        self.tables: dict[int, int] = {}
        self.pids: dict[int, int] = {}
        self.counts: dict[int, dict[str, int]] = {}
        self.ns = self.object(128)

    def object(self, size: int) -> int:
        at = self.next_object
        self.next_object += (size + 63) // 64 * 64
        self.memory.write(at, bytes(size))
        return at

    def put(self, at: int, kind: str, field: str, value: int, width: str = "Q") -> None:
        offset = {**STRUCTS[kind][1], **STRUCTS[kind][2]}[field]
        self.memory.write(at + offset, struct.pack("<" + width, value))

    def frame(self) -> int:
        frame = self.next_frame
        self.next_frame += PAGE
        self.memory.write(self.direct + frame, bytes(PAGE))
        return frame

    def page_struct(self, frame: int) -> int:
        at = self.vmemmap + frame // PAGE * 64
        if at // PAGE not in self.memory.pages:
            self.memory.write(at, bytes(64))
        return at

    def set_entry(self, table: int, index: int, raw: int) -> None:
        self.memory.write(self.direct + table + 8 * index, struct.pack("<Q", raw & (1 << 64) - 1))

    def shifts(self) -> list[int]:
        return [48, 39, 30, 21, 12] if self.levels == 5 else [39, 30, 21, 12]

    def map(self, pgd: int, va: int, raw: int, depth: int, given: int | None = None) -> int:
        """Entry `raw` in the table `depth` levels below the PGD; `given` is linked there as that table."""
        table = pgd
        for level, shift in enumerate(self.shifts()[:depth]):
            key = (table << 9) + (va >> shift & 511)
            if key not in self.tables:
                self.tables[key] = given if given is not None and level == depth - 1 else self.frame()
                self.set_entry(table, va >> shift & 511, self.tables[key] | NOISE | PRESENT)
            table = self.tables[key]
        self.set_entry(table, va >> self.shifts()[depth] & 511, raw)
        return table

    def task(self, pid: int, comm: bytes, uid: int = 0, kernel: bool = False) -> tuple[int, int]:
        """A process; its task and the frame of its PGD."""
        task, cred, signal = self.object(4096), self.object(64), self.object(64)
        number, mm, pgd = self.object(96), self.object(512), self.frame()
        for field in ("uid", "suid", "euid", "fsuid"):
            self.put(cred, "cred", field, uid, "I")
        self.put(number, "pid", "level", 0, "I")
        self.memory.write(number + 64, struct.pack("<IIQ", pid, 0, self.ns))
        self.memory.write(number + 16 + 8, struct.pack("<Q", task + 136 + 16))
        self.put(mm, "mm_struct", "pgd", self.direct + pgd)
        for field, value in (("mm", mm), ("signal", signal), ("thread_pid", number), ("cred", cred)):
            self.put(task, "task_struct", field, 0 if kernel and field == "mm" else value)
        self.put(task, "task_struct", "flags", 0x200000 if kernel else 0, "I")
        self.memory.write(task + 3000, comm.ljust(16, b"\0"))
        self.memory.write(signal + 24, struct.pack("<Q", signal + 24))
        self.pids[pid] = number
        self.page_struct(pgd)
        self.put(self.page_struct(pgd), "ptdesc", "pt_mm", mm)
        return task, pgd

    def count(self, task: int, tables: int) -> None:
        """The kernel's own count of a task's tables."""
        mm = self.read(task + 1200)
        self.put(mm, "mm_struct", "pgtables_bytes", tables * PAGE)

    def read(self, at: int, length: int = 8) -> int:
        page, offset = divmod(at, PAGE)
        return int.from_bytes(self.memory.pages[page][0][offset : offset + length], "little")

    def finish(self, own: int, own_pgd: int) -> bytes:
        """The tree of pids, the kernel's half of the top table, and the file."""

        def node(shift: int, prefix: int) -> int:
            inside = {pid for pid in self.pids if pid >> (shift + 6) == prefix}
            at = self.object(STRUCTS["xa_node"][0])
            self.memory.write(at, bytes([shift]))
            for slot in {pid >> shift & 63 for pid in inside}:
                child = (
                    self.pids[(prefix << 6) + slot] if shift == 0 else node(shift - 6, (prefix << 6) + slot)
                )
                self.memory.write(at + 24 + 8 * slot, struct.pack("<Q", child))
            return at + 2

        self.memory.write(self.ns + 32 + 8, struct.pack("<Q", node(12, 0)))
        table = own_pgd
        for shift in self.shifts()[:-3]:
            child = self.frame()
            self.set_entry(table, self.vmemmap >> shift & 511, child | PRESENT)
            table = child
        self.set_entry(table, self.vmemmap >> 30 & 511, self.frame() | PRESENT)
        # A few that are something else, before and after.
        for slot in (0, 1, 400):
            self.set_entry(table, slot, self.frame() | PRESENT)
        data = self.frame()
        self.memory.write(self.direct + data, NONCE)
        self.map(own_pgd, OWN_PAGE, data | NOISE | PRESENT, self.levels - 1)
        pages = self.memory.pages[own // PAGE][0], self.memory.pages[own // PAGE + 1][0]
        task = (bytes(pages[0]) + bytes(pages[1]))[own % PAGE : own % PAGE + 4096]
        return elf(self.memory, task)


def draw(levels: int) -> bytes:
    """Two processes that share a PMD table, one with all kinds of entries, a kernel thread."""
    machine = Machine(levels)
    own, own_pgd = machine.task(100, b"own")
    pmd, pte = machine.levels - 2, machine.levels - 1
    va = 0x7F0000000000

    first, pgd = machine.task(200, b"first")
    shared = machine.map(pgd, va, 6 * GIB | HUGE | PRESENT | NOISE, pmd)
    machine.page_struct(shared)
    machine.put(machine.page_struct(shared), "ptdesc", "pt_share_count", 1, "I")
    machine.count(first, 2)  # a PUD and the PMD

    second, pgd = machine.task(70000, b"second")
    machine.map(pgd, va + 512 * GIB, 6 * GIB | HUGE | PRESENT | NOISE, pmd, given=shared)
    machine.map(pgd, 0x10000, 7 * GIB | PRESENT | NOISE, pte)  # a page: PUD, PMD, PTE
    machine.map(pgd, 0x11000, 7 * GIB | PRESENT | HUGE, pte)  # in a PTE that bit is PAT
    machine.map(pgd, 0x12000, 7 * GIB | PROT_NONE | NOISE & ~1, pte)  # mapped, not accessible
    machine.map(pgd, 0x13000, 0x5A5A5A000 << 3 & ~PROT_NONE & ~PRESENT, pte)  # swapped out
    machine.map(pgd, 3 * GIB, 8 * GIB | HUGE | PRESENT | NOISE, pmd - 1)  # 1 GiB at once
    huge = machine.map(pgd, 4 * GIB + (2 << 20), 9 * GIB | HUGE | PRESENT | 1 << 12, pmd)  # 2 MiB, with PAT
    machine.map(pgd, 4 * GIB + (4 << 20), 10 * GIB | HUGE | PROT_NONE, pmd)
    held = [machine.frame() for _ in range(2)]
    ring = [machine.page_struct(frame) + 8 for frame in held]
    for at, after in zip(ring, ring[1:] + ring[:1], strict=True):
        machine.memory.write(at, struct.pack("<Q", after))
    machine.put(machine.page_struct(huge), "ptdesc", "pmd_huge_pte", ring[0] - 8)
    # 2 PUDs, 3 PMDs (one shared), 1 PTE, 2 put aside.
    machine.count(second, 8)
    machine.task(4000, b"kthread", kernel=True)
    return machine.finish(own, own_pgd)


@pytest.fixture
def look(sanitized_helper: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs the helper on an image. It is built anew, so that a sanitizer sees every access."""

    def run(image: bytes, *arguments: str, types: bytes = btf()) -> subprocess.CompletedProcess[bytes]:
        (tmp_path / "image").write_bytes(image)
        (tmp_path / "btf").write_bytes(types)
        command = [
            sanitized_helper,
            "--method",
            "walk",
            "--leaves",
            "--kcore",
            str(tmp_path / "image"),
            "--btf",
            str(tmp_path / "btf"),
        ]
        command += ["--recorded", f"{OWN_PAGE}:{NONCE.hex()}", *arguments]
        return subprocess.run(command, capture_output=True, check=False, timeout=60)

    return run


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("isolation", [False, True])
def test_a_drawn_machine_is_read_as_it_was_drawn(
    look: Callable[..., Any], levels: int, isolation: bool
) -> None:
    """Four and five levels, page-table isolation, huge pages, bits that are no address, a shared table, tables put aside."""
    done = look(
        draw(levels), *(["--isolation"] if isolation else []), "200", "70000", "4000", "4001", "999999999"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first, second = found["processes"]
    p4d = 1 if levels == 5 else 0
    pgd = 2 * PAGE if isolation else PAGE
    assert (first["command"], second["command"]) == ("first", "second")
    assert first["tables"] == {"pgd": 1, "p4d": p4d, "pud": 1, "pmd": 1, "pte": 0}
    assert second["tables"] == {"pgd": 1, "p4d": p4d, "pud": 2, "pmd": 3, "pte": 3}
    assert second["held_tables"] == 2
    assert first["linked_bytes"] == pgd + (p4d + 2) * PAGE
    assert first["shared_bytes"] == second["shared_bytes"] == PAGE
    assert second["leaves"] == {"4k": 3, "2m": 3, "1g": 1, "full_tables": 0}
    for process in (first, second):
        assert process["linked_bytes"] == process["vm_pte_bytes"] + pgd + p4d * PAGE
        assert process["moving"] == 0
    assert found["distinct_bytes"] == first["linked_bytes"] + second["linked_bytes"] - PAGE
    assert found["shared"]["tables"] == [
        {"level": "pmd", "tables": 1, "processes": 2, "links": 2, "share_count": 1}
    ]
    assert found["kernel_threads"] == [4000]
    assert found["gone"] == [4001, 999999999]


def draw_msharefs() -> bytes:
    """Three processes; two have linked the PUD table of an msharefs region, which no process's own count includes."""
    machine = Machine(4)
    own, own_pgd = machine.task(100, b"own")
    pmd, va = machine.levels - 2, 0x7E8000000000
    first, pgd = machine.task(200, b"reader")
    machine.map(pgd, va, 6 * GIB | HUGE | PRESENT | NOISE, pmd)
    machine.map(pgd, va + (2 << 20), 7 * GIB | HUGE | PRESENT | NOISE, pmd)
    machine.map(pgd, va + 3 * GIB, 8 * GIB | PRESENT | NOISE, machine.levels - 1)  # a page of a file beside
    machine.count(first, 0)
    region = machine.tables[(pgd << 9) + (va >> 39 & 511)]
    link = machine.tables[(region << 9) + (va >> 30 & 511)] | NOISE | PRESENT
    second, pgd = machine.task(201, b"reader")
    machine.map(pgd, va + 512 * GIB, link, 1, given=region)
    machine.map(pgd, 0x10000, 9 * GIB | PRESENT | NOISE, machine.levels - 1)
    machine.count(second, 3)
    third, pgd = machine.task(202, b"other")
    machine.map(pgd, 0x10000, 9 * GIB | PRESENT | NOISE, machine.levels - 1)
    machine.count(third, 3)
    return machine.finish(own, own_pgd)


def test_tables_linked_from_an_msharefs_region_are_shared_tables(look: Callable[..., Any]) -> None:
    """They are found in each process that linked them, counted once, though VmPTE leaves them out everywhere."""
    done = look(draw_msharefs(), "200", "201", "202")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first, second, third = found["processes"]
    # A PUD table, a PMD table for each of two GiB, and a PTE table.
    assert first["shared_bytes"] == second["shared_bytes"] == 4 * PAGE
    assert third["shared_bytes"] == 0
    assert first["private_bytes"] == PAGE
    assert second["private_bytes"] == third["private_bytes"] == 4 * PAGE
    assert (first["vm_pte_bytes"], second["vm_pte_bytes"]) == (0, 3 * PAGE)
    assert [process["moving"] for process in (first, second, third)] == [0, 0, 0]
    assert found["distinct_bytes"] == (1 + 4 + 4 + 4) * PAGE
    levels = {one["level"]: (one["tables"], one["processes"]) for one in found["shared"]["tables"]}
    assert levels == {"pud": (1, 2), "pmd": (2, 2), "pte": (1, 2)}


def test_a_kernel_whose_types_lack_a_field_is_refused_by_name(look: Callable[..., Any]) -> None:
    """What is needed and not described is named; what is optional is left out."""
    lacking = {**STRUCTS, "mm_struct": (512, {}, {"pgtables_bytes": 136})}
    done = look(draw(4), "200", types=btf(lacking))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"mm_struct.pgd" in done.stderr
    older = {key: value for key, value in STRUCTS.items() if key != "ptdesc"}
    found = json.loads(look(draw(4), "200", "70000", types=btf(older)).stdout)
    assert found["shared"]["tables"] == [
        {"level": "pmd", "tables": 1, "processes": 2, "links": 2, "share_count": None}
    ]
    # The tables put aside cannot be counted then: that one figure is no longer exact, and says so.
    assert [process["estimate"] for process in found["processes"]] == [True, True]


@pytest.mark.parametrize(
    ("struct_", "size", "fields"),
    [
        ("xa_node", 600, {"shift": 601, "slots": 24}), ("xa_node", 2048, {"shift": 0, "slots": 2032}),
        ("xa_node", 4096, {"shift": 0, "slots": 24}), ("xa_node", 30, {"shift": 0, "slots": 24}),
        ("task_struct", 4096, {**STRUCTS["task_struct"][1], "cred": 1 << 28}),
        ("task_struct", 4096, {**STRUCTS["task_struct"][1], "mm": 1 << 28}),
        ("page", 8, {"lru": 8}), ("page", 1 << 20, {"lru": 8}), ("upid", 4096, {"nr": 0, "ns": 8}),
    ],
)  # fmt: skip
def test_types_that_cannot_be_true_are_refused(
    look: Callable[..., Any], struct_: str, size: int, fields: dict[str, int]
) -> None:
    """Sizes and places by which something would be read beyond its end: nothing is read by them."""
    lying = {**STRUCTS, struct_: (size, fields, STRUCTS[struct_][2])}
    done = look(draw(4), "200", types=btf(lying))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"sizes that cannot be true" in done.stderr


@pytest.mark.parametrize("what", ["image", "btf"])
def test_broken_bytes_give_an_answer_or_an_error(look: Callable[..., Any], what: str) -> None:
    """300 images and type descriptions with wrong bytes, or cut off: never a crash, a hang or half an answer."""
    whole = {"image": draw(4), "btf": btf()}
    chance = random.Random(1)
    failed = 0
    for _ in range(300):
        broken = bytearray(whole[what])
        if chance.random() < 0.2:
            del broken[chance.randrange(len(broken)) :]
        elif chance.random() < 0.5:
            # Whole words: sizes, offsets and addresses beyond all bounds.
            words = [at for at in range(0, len(broken) - 8, 8) if any(broken[at : at + 8])]
            for at in chance.sample(words, chance.randrange(1, 6)):
                value = int.from_bytes(broken[at : at + 8], "little")
                odd = chance.choice(
                    [(1 << 64) - 1, 1 << 63, 1 << 32, 4096, 1, value + 1, value - 8, value << 12, ~value]
                )
                broken[at : at + 8] = (odd & (1 << 64) - 1).to_bytes(8, "little")
        else:
            # In what is not zero lies what is believed.
            places = [chance.randrange(len(broken)) for _ in range(400)]
            for at in [at for at in places if broken[at]][: chance.randrange(1, 12)] or places[:1]:
                broken[at] = chance.choice([0, 0xFF, chance.randrange(256)])
        done = look(bytes(broken if what == "image" else whole["image"]), "200", "70000",
                    types=bytes(broken if what == "btf" else whole["btf"]))  # fmt: skip
        assert done.returncode in (0, 1), done
        assert b"Sanitizer" not in done.stderr
        assert b"runtime error" not in done.stderr
        if done.returncode == 0:
            json.loads(done.stdout)
        else:
            failed += 1
            assert done.stdout == b""
            assert done.stderr
    assert 0 < failed < 300


def test_a_top_table_that_can_be_none_is_nobodys(look: Callable[..., Any]) -> None:
    """An address that no table can have is not walked from: that process is gone, the other one is told."""
    for wrong in (5, 1 << 62, -(1 << 46)):
        machine = Machine(4)
        own, own_pgd = machine.task(100, b"own")
        first, pgd = machine.task(200, b"first")
        machine.put(
            machine.read(first + 1200), "mm_struct", "pgd", (machine.direct + pgd + wrong) & (1 << 64) - 1
        )
        second, pgd = machine.task(201, b"second")
        machine.map(pgd, 0x10000, 7 * GIB | PRESENT | NOISE, 3)
        machine.count(second, 3)
        done = look(machine.finish(own, own_pgd), "200", "201")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert ([one["pid"] for one in found["processes"]], found["gone"]) == ([201], [200])


# --- the arithmetic -------------------------------------------------------------------------------

PROGRAM = r"""
#include "x86_64.h"
#include <stdio.h>
int main(void)
{
    unsigned levels, level;
    unsigned long long mask, raw, va;
    while (scanf("%u %llx %u %llx %llx", &levels, &mask, &level, &raw, &va) == 5) {
        struct pt_format f = pt_format_make(levels, mask, false);
        struct pt_entry e = pt_decode(&f, level, raw);
        printf("%d %d %llx %u %u %d %llx\n", e.kind, e.pending, (unsigned long long)e.frame, pt_entry_shift(&f, level),
               pt_index(&f, level, va), level ? (int)pt_child_level(&f, level) : -1,
               (unsigned long long)pt_kernel_address(&f, 256 + raw % 256));
    }
    return 0;
}
"""
NATIVE = Path(__file__).parents[2] / "native"


def test_entries_are_decoded_as_the_manual_says(tmp_path: Path) -> None:
    """Every level, four and five of them, with and without a memory encryption bit, against arithmetic done here."""
    compiler = shutil.which("cc")
    if compiler is None or not NATIVE.is_dir():
        pytest.skip("needs a C compiler and the sources")
    (tmp_path / "t.c").write_text(PROGRAM)
    source = [str(tmp_path / "t.c"), str(NATIVE / "ptwalk/x86_64.c")]
    include = [f"-I{NATIVE / 'base'}", f"-I{NATIVE / 'ptwalk'}"]
    subprocess.run([compiler, "-std=gnu11", *include, *source, "-o", str(tmp_path / "t")], check=True)
    chance = random.Random(2)
    cases = []
    for _ in range(20_000):
        raw = chance.choice(
            [
                0,
                chance.getrandbits(64),
                chance.getrandbits(64) & ~PRESENT,
                chance.getrandbits(64) | PRESENT | HUGE,
            ]
        )
        cases.append(
            (
                chance.choice([4, 5]),
                chance.choice([0, 1 << 47, 1 << 51]),
                chance.randrange(5),
                raw,
                chance.getrandbits(64),
            )
        )
    text = "".join(f"{levels} {mask:x} {level} {raw:x} {va:x}\n" for levels, mask, level, raw, va in cases)
    out = subprocess.run([str(tmp_path / "t")], input=text.encode(), capture_output=True, check=True).stdout
    lines = out.decode().splitlines()
    assert len(lines) == len(cases)
    for (levels, mask, level, raw, va), line in zip(cases, lines, strict=True):
        frame = raw & 0x000FFFFFFFFFF000 & ~mask
        page = level == 0 or (level in (1, 2) and bool(raw & HUGE))
        there = raw & (PRESENT | PROT_NONE) if page else raw & PRESENT
        kind = 0 if not there else 2 if page else 1
        if kind == 2 and level:
            frame &= ~0x1FFFFF
        shift = 39 if level == 4 and levels == 4 else 12 + 9 * level
        child = -1 if level == 0 else 2 if level == 4 and levels == 4 else level - 1
        top = 256 + raw % 256 << (39 if levels == 4 else 48)
        kernel = top | (2**64 - (1 << (48 if levels == 4 else 57)))
        expected = f"{kind} {int(bool(raw) and not there)} {frame if kind else 0:x} {shift} {va >> shift & 511} {child} {kernel:x}"
        assert line == expected, (levels, hex(mask), level, hex(raw))
