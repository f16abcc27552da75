"""The figures against the kernel's own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharedregion.footprint import footprint, page_tables_total

PAGE = 4096
MIB = 1 << 20

# Kinds of process, by what is in their page tables.
KINDS = {
    "idle": "ready()",
    "anonymous": "import mmap\nm = mmap.mmap(-1, 64 << 20, flags=34)\nm.write(bytes(64 << 20))\nready()",
    "shared": "import mmap\nm = mmap.mmap(-1, 64 << 20)\nm.write(bytes(64 << 20))\nready()",
    "huge": (
        "import mmap\nm = mmap.mmap(-1, 64 << 20, flags=34)\nm.madvise(mmap.MADV_HUGEPAGE)\n"
        "m.write(bytes(64 << 20))\nready()"
    ),
    "huge, some split": (
        "import mmap\nm = mmap.mmap(-1, 64 << 20, flags=34)\nm.madvise(mmap.MADV_HUGEPAGE)\n"
        "m.write(bytes(64 << 20))\nm.madvise(mmap.MADV_DONTNEED, 8 << 20, 4096)\n"
        "m.madvise(mmap.MADV_DONTNEED, 16 << 20, 8 << 20)\nready()"
    ),
    "sparse": (
        "import mmap\nm = mmap.mmap(-1, 1 << 40, flags=34 | 0x4000)\n"
        "for i in range(0, 1 << 40, 1 << 34): m[i] = 1\nready()"
    ),
    "emptied": (
        "import mmap\nm = mmap.mmap(-1, 256 << 20)\nm.write(bytes(256 << 20))\n"
        "m.madvise(mmap.MADV_DONTNEED)\nready()"
    ),
    "threads": (
        "import threading, time\n"
        "for _ in range(20): threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()\nready()"
    ),
    "file": "import mmap\nf = open(os.__file__, 'rb')\nm = mmap.mmap(f.fileno(), 0, access=1)\nbytes(m)\nready()",
    "protected": (
        "import mmap, ctypes\nm = mmap.mmap(-1, 8 << 20, flags=34)\nm.write(bytes(8 << 20))\n"
        "a = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(a), ctypes.c_size_t(4 << 20), 0) == 0\nready()"
    ),
}


def kernel_count(pid: int) -> int:
    """VmPTE, in bytes; the kernel leaves the PGD out."""
    match = re.search(
        r"^VmPTE:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(errors="replace"), re.MULTILINE
    )
    assert match
    return int(match[1]) * 1024


@pytest.mark.usefixtures("exact")
def test_tables_equal_the_kernels_count_for_every_kind_of_process(worker: Callable[..., Any]) -> None:
    """Linked tables are VmPTE plus the PGD, to the byte, whatever a process maps."""
    kinds = [*KINDS, *KINDS]
    pids = [worker(KINDS[kind]).pid for kind in kinds]
    before = [kernel_count(pid) for pid in pids]
    found = {process.pid: process for process in footprint(*pids).processes}
    after = [kernel_count(pid) for pid in pids]
    still = [(k, p, b) for k, p, b, a in zip(kinds, pids, before, after, strict=True) if b == a]
    assert len(still) >= 16
    for kind, pid, count in still:
        process = found[pid]
        pgd = process.tables.pgd * PAGE
        assert (kind, process.linked_bytes) == (kind, count + pgd)
        assert process.vm_pte_bytes == count
        tables = process.tables
        assert process.linked_bytes == PAGE * (tables.pgd + tables.p4d + tables.pud + tables.pmd + tables.pte)
        assert process.linked_bytes == process.private_bytes + process.shared_bytes
        assert process.moving == 0
        assert not process.estimate


@pytest.mark.usefixtures("exact")
def test_every_process_of_the_machine_equals_the_kernels_count() -> None:
    """Not only processes made for the purpose: all that live through the look and hold still."""
    for _ in range(5):
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        counts: dict[int, set[int]] = {}

        def note(counts: dict[int, set[int]] = counts, pids: list[int] = pids) -> None:
            for pid in pids:
                try:
                    counts.setdefault(pid, set()).add(kernel_count(pid))
                except (OSError, AssertionError):
                    counts.setdefault(pid, set()).update((-1, -2))

        note()
        found = footprint()
        note()
        compared = [p for p in found.processes if len(counts.get(p.pid, ())) == 1]
        assert compared
        wrong = [p for p in compared if p.linked_bytes - p.tables.pgd * PAGE not in counts[p.pid]]
        if not wrong:
            return
        # A process may have mapped and unmapped between the two readings: it is not wrong every time.
    assert not wrong


@pytest.mark.usefixtures("exact")
def test_distinct_tables_agree_with_the_machines_page_tables(worker: Callable[..., Any]) -> None:
    """Each table once, plus the kernel's own, is PageTables, also after 128 MiB more of them."""

    def kernels_own() -> tuple[int, int]:
        for _ in range(10):
            before = page_tables_total()
            distinct = footprint().distinct_bytes
            after = page_tables_total()
            if abs(before - after) < MIB // 4:
                break
        return (before + after) // 2 - distinct, (before + after) // 2

    own, _ = kernels_own()
    assert 0 < own < 8 * MIB
    code = (
        "import mmap\nm = mmap.mmap(-1, 16 << 30, flags=34 | 0x4000)\nm.madvise(mmap.MADV_NOHUGEPAGE)\n"
        "for i in range(0, 16 << 30, 2 << 20): bytes(m[i:i+1])\nready()"
    )
    for _ in range(4):
        worker(code)
    loaded, total = kernels_own()
    assert total > 128 * MIB
    assert abs(loaded - own) <= max(2 * MIB, total // 100)


@pytest.mark.usefixtures("exact")
def test_proportional_bytes_add_up_to_distinct_bytes() -> None:
    """Dividing each table by those who reach it loses and invents nothing."""
    found = footprint()
    total = sum(process.proportional_bytes for process in found.processes)
    if found.share_count["more"] == 0:
        assert abs(total - found.distinct_bytes) <= len(found.processes)
    assert sum(process.private_bytes for process in found.processes) <= found.distinct_bytes


@pytest.mark.usefixtures("exact")
def test_leaves_are_counted_by_size(worker: Callable[..., Any], one: Callable[..., Any]) -> None:
    """`leaves` counts the entries: one for each page that is there."""
    empty = one(worker(KINDS["idle"]).pid, leaves=True).leaves
    full = one(worker(KINDS["shared"]).pid, leaves=True).leaves
    # The libraries of two equal programs are mapped by faults around the touched page: not to the page.
    assert abs(full.small - empty.small - (64 << 20) // PAGE) < 600
    assert full.full_tables - empty.full_tables in (31, 32)  # 64 MiB, aligned or not
    huge = one(worker(KINDS["huge"]).pid, leaves=True)
    assert huge.leaves.large == huge.held_tables > 0
    assert one(worker(KINDS["idle"]).pid).leaves is None


def test_the_whole_machine_is_read_from_the_root_that_is_given(tmp_path: Path) -> None:
    """`page_tables_total` adds the counters up first, and reads the tree that it is given."""
    (tmp_path / "proc/sys/vm").mkdir(parents=True)
    (tmp_path / "proc/sys/vm/stat_refresh").write_text("")
    (tmp_path / "proc/meminfo").write_text("MemTotal:  100 kB\nPageTables:       12 kB\n")
    assert page_tables_total(str(tmp_path)) == 12 * 1024
    assert (tmp_path / "proc/sys/vm/stat_refresh").read_text() == "1"


def test_the_handshake_names_program_version_and_schema(ask: Callable[..., Any]) -> None:
    """`--version` is JSON by which a library knows whether it understands this helper."""
    assert ask("--version") == {"name": "sharedregion-ptwalk", "version": "0.1.0", "schema": 3}


@pytest.mark.parametrize(
    "arguments",
    [["0"], ["-1"], ["1x"], ["99999999999"], ["--region", "x"], ["--region", "=1:2:3"], ["--region", "a=1:2"], ["--method", "x"],
     ["--nothing"], ["--region"], ["--recorded", "1:00"]],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(helper: str, arguments: list[str]) -> None:
    """Exit status 2, usage on standard error, nothing on standard output."""
    done = subprocess.run([helper, *arguments], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"usage" in done.stderr
