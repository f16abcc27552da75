"""Which mapping each table is charged to."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sharedregion.footprint import Footprint, MappingFootprint, footprint

PAGE = 4096
MIB = 1 << 20

#: Maps the whole of file descriptor `fd` at an address that is `shift` bytes off a multiple of 1 GiB, with room
#: around it, and reads a byte of each page.
MAP = """
import ctypes, mmap
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
G = 1 << 30
fd, shift, flags = map(int, sys.argv[1:4])
size = os.fstat(fd).st_size
space = libc.mmap(None, size + 3 * G, 0, 0x4022, -1, 0)
at = (space + G - 1) // G * G + shift
assert libc.mmap(at, size, 1, 0x10 | flags, fd, 0) == at
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.munmap(space, at - space)
libc.munmap(at + size, space + size + 3 * G - at - size)
for i in range(0, size, 4096): ctypes.string_at(at + i, 1)
ready()
"""
SHARED, PRIVATE = 1, 2


def of_file(found: Footprint, inode: int) -> list[MappingFootprint]:
    return [mapping for mapping in found.mappings if mapping.inode == inode]


@pytest.fixture
def memory_file() -> Iterator[Callable[..., int]]:
    """A memfd of so many bytes, all of it there."""
    opened: list[int] = []

    def make(size: int, name: str = "weights") -> int:
        fd = os.memfd_create(name)
        opened.append(fd)
        os.posix_fallocate(fd, 0, size)
        return fd

    yield make
    for fd in opened:
        os.close(fd)


@pytest.mark.usefixtures("exact")
def test_tables_are_charged_to_the_file_that_they_serve(
    worker: Callable[..., Any], memory_file: Callable[..., int]
) -> None:
    """64 MiB in three processes: 32 PTE tables and a PMD table each, by name, and nothing of it anywhere else."""
    fd = memory_file(64 * MIB)
    idle = worker("import ctypes, mmap\nready()").pid
    pids = [worker(MAP, fd, 0, SHARED, pass_fds=[fd]).pid for _ in range(3)]
    found = footprint(*pids, idle, mappings=True)
    (mapping,) = of_file(found, os.fstat(fd).st_ino)
    assert (mapping.kind, mapping.shared, mapping.page_size, mapping.bytes) == ("file", True, 4096, 64 * MIB)
    assert (mapping.name, mapping.memory) == ("/memfd:weights (deleted)", "memfd")
    assert (mapping.processes, mapping.pte_links, mapping.pmd_links) == (3, 96, 3)
    assert mapping.linked_bytes == mapping.distinct_bytes == 99 * PAGE
    assert mapping.distinct_pte_bytes == 96 * PAGE
    assert sum(count for _, count in mapping.commands) == 3
    (extent,) = mapping.extents
    assert (extent.start_in_gib, extent.bytes, extent.file_offset, extent.writable, extent.processes) == (
        0, 64 * MIB, 0, False, 3,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["walk", "pagemap"])
def test_the_parts_are_the_whole(
    worker: Callable[..., Any],
    memory_file: Callable[..., int],
    method: str,
    request: pytest.FixtureRequest,
) -> None:
    """Every table is charged once: mappings, what several need and the upper levels add up to all."""
    if method == "walk":
        request.getfixturevalue("exact")
    fd = memory_file(16 * MIB)
    pids = [worker(MAP, fd, 8192, SHARED, pass_fds=[fd]).pid for _ in range(2)]
    pids.append(worker(MAP, fd, 8192, PRIVATE, pass_fds=[fd]).pid)
    for chosen in (pids, pids[:1], []):
        found = footprint(*chosen, mappings=True, method=method)
        assert sum(mapping.distinct_bytes for mapping in found.mappings) == found.distinct_bytes
        assert found.mappings_in_all >= len(found.mappings) > 3
    kinds = {mapping.kind for mapping in found.mappings}
    assert {"anonymous", "several", "upper", "file"} <= kinds
    assert "hidden" not in kinds


@pytest.mark.usefixtures("exact")
def test_a_file_mapped_shared_and_private_is_two_mappings(
    worker: Callable[..., Any], memory_file: Callable[..., int]
) -> None:
    """What a private mapping costs cannot be mended by the means for a shared one: they are told apart."""
    fd = memory_file(8 * MIB)
    pids = [worker(MAP, fd, 0, flags, pass_fds=[fd]).pid for flags in (SHARED, PRIVATE, PRIVATE)]
    both = of_file(footprint(*pids, mappings=True), os.fstat(fd).st_ino)
    assert {(mapping.shared, mapping.processes, mapping.pte_links) for mapping in both} == {
        (True, 1, 4),
        (False, 2, 8),
    }
    assert {mapping.memory for mapping in both} == {"memfd"}


@pytest.mark.hugepages
@pytest.mark.usefixtures("exact")
def test_linked_tables_of_a_mapping_count_once(
    worker: Callable[..., Any], huge_file: Callable[[int], int], map_shared: str
) -> None:
    """2 GiB of hugetlb memory in five processes: ten links, two tables; the page size is told."""
    fd = huge_file(2)
    pids = [worker(map_shared, fd, 2, 0, pass_fds=[fd]).pid for _ in range(5)]
    (mapping,) = of_file(footprint(*pids, mappings=True), os.fstat(fd).st_ino)
    assert (mapping.memory, mapping.page_size) == ("hugetlb", 2 * MIB)
    assert (mapping.pmd_links, mapping.linked_bytes, mapping.distinct_bytes) == (10, 10 * PAGE, 2 * PAGE)


@pytest.mark.usefixtures("exact")
def test_the_machine_is_what_was_seen_and_what_is_the_kernels(worker: Callable[..., Any]) -> None:
    """PageTables, less each table of each process once, is the kernel's own share, whoever was asked for."""
    worker(
        "import mmap\nm = mmap.mmap(-1, 16 << 30, flags=34 | 0x4000)\nm.madvise(mmap.MADV_NOHUGEPAGE)\n"
        "for i in range(0, 16 << 30, 2 << 20): bytes(m[i:i+1])\nready()"
    )
    found, one = footprint(mappings=True), footprint(os.getpid(), mappings=True)
    for look in (found, one):
        assert look.machine is not None
        assert look.machine.seen_bytes > 32 * MIB
        assert look.machine.seen_bytes + look.machine.kernel_bytes == look.machine.page_tables_bytes
        assert 0 < look.machine.kernel_bytes < 8 * MIB
    assert found.machine is not None
    assert found.machine.seen_bytes == found.distinct_bytes
    assert footprint(os.getpid()).machine is None


@pytest.mark.usefixtures("exact")
def test_who_asks_for_one_process_learns_of_the_others_as_a_sum(
    worker: Callable[..., Any], memory_file: Callable[..., int]
) -> None:
    """Its own tables, each once, and its own mappings; of another, 32 MiB in the sum of all and not a word."""
    fd = memory_file(4 * MIB, "theirs")
    code = MAP.replace(
        "ready()",
        "import mmap\nm = mmap.mmap(-1, 16 << 30, flags=34 | 0x4000)\nm.madvise(mmap.MADV_NOHUGEPAGE)\n"
        "for i in range(0, 16 << 30, 2 << 20): bytes(m[i:i+1])\nready()",
    )
    other, mine = worker(code, fd, 0, SHARED, pass_fds=[fd]).pid, worker("ready()").pid
    one = footprint(mine, mappings=True)
    (process,) = one.processes
    assert process.pid == mine
    assert one.distinct_bytes == process.linked_bytes == sum(m.distinct_bytes for m in one.mappings)
    assert {mapping.processes for mapping in one.mappings} <= {0, 1}
    assert of_file(one, os.fstat(fd).st_ino) == []
    assert other not in {*one.gone, *one.denied, *process.shares_with}
    assert one.machine is not None
    assert one.machine.seen_bytes - one.distinct_bytes > 32 * MIB
    assert of_file(footprint(other, mappings=True), os.fstat(fd).st_ino)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b]0;x\x07\x1b[31m", r"/memfd:\x1b]0;x\x07\x1b[31m (deleted)"),
        ("two\nlines\r", r"/memfd:two\\012lines\x0d (deleted)"),
        ("\u202egnp.", r"/memfd:\u202egnp. (deleted)"),
        ('quote" back\\', r'/memfd:quote" back\\ (deleted)'),
        ("x" * 249, "/memfd:" + "x" * 249 + " (deleted)"),
    ],
)
@pytest.mark.parametrize("method", ["walk", "pagemap"])
def test_any_name_of_a_mapping_is_safe_to_print(
    worker: Callable[..., Any],
    memory_file: Callable[..., int],
    helper: str,
    name: str,
    shown: str,
    method: str,
    request: pytest.FixtureRequest,
) -> None:
    """Escape codes and newlines in the name of a file are shown, never sent."""
    if method == "walk":
        request.getfixturevalue("exact")
    fd = memory_file(4 * MIB, name)
    pid = worker(MAP, fd, 0, SHARED, pass_fds=[fd]).pid
    command = [helper, "--mappings", "--method", method, str(pid)]
    out = subprocess.run(command, capture_output=True, check=True).stdout
    assert not any(byte < 32 or byte == 127 for byte in out[:-1])
    inode = os.fstat(fd).st_ino
    assert [one["name"] for one in json.loads(out)["mappings"] if one["inode"] == inode] == [shown]


@pytest.mark.usefixtures("exact")
def test_a_long_path_is_cut_at_its_beginning(worker: Callable[..., Any], tmp_path: Path) -> None:
    """A path of thousands of bytes neither fills the answer nor loses the end by which it is known."""
    folder = tmp_path
    for _ in range(8):
        folder /= "d" * 200
    folder.mkdir(parents=True)
    path = folder / "file"
    path.write_bytes(bytes(4 * MIB))
    with path.open("rb") as file:
        pid = worker(MAP, file.fileno(), 0, SHARED, pass_fds=[file.fileno()]).pid
        (mapping,) = of_file(footprint(pid, mappings=True), path.stat().st_ino)
    assert mapping.name.startswith("...d")
    assert mapping.name.endswith("/file")
    assert len(mapping.name) < 600


@pytest.mark.usefixtures("exact")
def test_more_mappings_than_can_be_told_are_a_sum(worker: Callable[..., Any]) -> None:
    """1500 files, each with a table of its own: the costliest thousand one by one, the rest as one."""
    code = (
        "import ctypes, resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
        "libc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\n"
        "M = 1 << 20\nspace = libc.mmap(None, 6 << 30, 0, 0x4022, -1, 0)\nat = (space + 4 * M - 1) // (4 * M) * (4 * M)\n"
        "libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]\nlibc.munmap(space, 6 << 30)\n"
        "for i in range(1500):\n"
        "    fd = os.memfd_create(f'file {i}')\n    os.ftruncate(fd, 4096)\n"
        "    assert libc.mmap(at + 4 * M * i, 4096, 1, 0x11, fd, 0) == at + 4 * M * i\n"
        "    ctypes.string_at(at + 4 * M * i, 1)\n    os.close(fd)\n"
        "ready()"
    )
    found = footprint(worker(code).pid, mappings=True)
    assert found.mappings_in_all > 1500
    (others,) = (mapping for mapping in found.mappings if mapping.kind == "others")
    assert len(found.mappings) == 1001
    assert others.distinct_bytes >= 500 * PAGE
    assert sum(mapping.distinct_bytes for mapping in found.mappings) == found.distinct_bytes


@pytest.mark.usefixtures("exact")
def test_many_ways_to_map_a_file_are_folded_and_bounded(
    worker: Callable[..., Any], memory_file: Callable[..., int]
) -> None:
    """Alike are one extent with a count; beyond a thousand that differ, only their number is told."""
    fd = memory_file(8 * MIB)
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\n"
        "fd = int(sys.argv[1])\n"
        "for i in range(1500): ctypes.string_at(libc.mmap(None, 4096 * (1 + i % 2), 1, 1, fd, 4096 * i), 1)\nready()"
    )
    (mapping,) = of_file(footprint(worker(code, fd, pass_fds=[fd]).pid, mappings=True), os.fstat(fd).st_ino)
    assert len(mapping.extents) == 1024
    assert mapping.extents_left_out == 1500 - 1024
    pids = [worker(MAP, fd, 4096, SHARED, pass_fds=[fd]).pid for _ in range(4)]
    (mapping,) = of_file(footprint(*pids, mappings=True), os.fstat(fd).st_ino)
    assert [(extent.start_in_gib, extent.processes) for extent in mapping.extents] == [(4096, 4)]


@pytest.mark.usefixtures("exact")
def test_ways_of_many_files_together_are_bounded_too(worker: Callable[..., Any]) -> None:
    """Thirty files, each mapped in a thousand ways: the costliest are told, the answer stays small, none is lost."""
    code = (
        "import ctypes, resource\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\n"
        "for n in range(30):\n"
        "    fd = os.memfd_create('many ways')\n    os.ftruncate(fd, 8 << 20)\n"
        "    for i in range(1000): ctypes.string_at(libc.mmap(None, 4096 * (1 + i % 2), 1, 1, fd, 4096 * i), 1)\n"
        "ready()"
    )
    found = footprint(worker(code).pid, mappings=True)
    files = [mapping for mapping in found.mappings if mapping.name == "/memfd:many ways (deleted)"]
    assert len(files) == 30
    assert sum(len(mapping.extents) for mapping in found.mappings) == 16384
    assert {len(mapping.extents) + mapping.extents_left_out for mapping in files} == {1000}


@pytest.mark.usefixtures("exact")
def test_files_replaced_while_they_are_looked_at_cause_no_harm(
    worker: Callable[..., Any], tmp_path: Path
) -> None:
    """A file that is renamed over and mapped anew all the while: each answer is whole, its parts its sum."""
    code = (
        "import mmap, threading\npath = sys.argv[1]\n"
        "def churn():\n"
        "    while True:\n"
        "        with open(path + '.new', 'wb+') as f:\n"
        "            f.truncate(4 << 20)\n            m = mmap.mmap(f.fileno(), 4 << 20)\n"
        "            for i in range(0, 4 << 20, 4096): m[i] = 1\n"
        "        os.rename(path + '.new', path)\n        m.close()\n"
        "threading.Thread(target=churn, daemon=True).start()\nready()"
    )
    pid = worker(code, tmp_path / "region").pid
    for _ in range(50):
        found = footprint(pid, mappings=True)
        assert sum(mapping.distinct_bytes for mapping in found.mappings) == found.distinct_bytes
        json.dumps(found.to_dict())


def test_without_privilege_mappings_are_an_estimate_of_ones_own(
    worker: Callable[..., Any],
    ask: Callable[..., Any],
    nobody: tuple[str, ...],
    public_copy: Callable[[], Path],
    memory_file: Callable[..., int],
) -> None:
    """An ordinary user sees what their own tables serve, and of all others together only the kernel's count."""
    fd = memory_file(32 * MIB)
    mine = worker(MAP, fd, 0, SHARED, pass_fds=[fd], prefix=nobody).pid
    found = ask("--mappings", prefix=nobody, path=str(public_copy()))
    assert (found["method"], [one["pid"] for one in found["processes"]].count(mine)) == ("pagemap", 1)
    assert {os.stat(f"/proc/{one['pid']}").st_uid for one in found["processes"]} == {65534}
    (mapping,) = [one for one in found["mappings"] if one["inode"] == os.fstat(fd).st_ino]
    assert mapping["pte_links"] == 16
    assert found["looked_at"]["denied"] > 0
    assert found["looked_at"]["denied_bytes"] >= found["looked_at"]["denied"] * 2 * PAGE


@pytest.mark.usefixtures("exact")
def test_with_borrowed_privilege_maps_stay_hidden_that_the_caller_could_not_read(
    worker: Callable[..., Any],
    ask: Callable[..., Any],
    nobody: tuple[str, ...],
    public_copy: Callable[[], Path],
) -> None:
    """A process that closes itself to its own user gets its sizes told, but no name and no address."""
    import struct

    copy = public_copy()
    low, high = 1 << 19, 1 << (38 - 32) | 1 << (39 - 32)  # cap_sys_ptrace, cap_perfmon, cap_bpf
    try:
        os.setxattr(copy, "security.capability", struct.pack("<IIIII", 0x02000001, low, 0, high, 0))
    except OSError as error:
        pytest.skip(f"no file capabilities on this file system: {error}")
    closed = worker("import ctypes\nctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\nready()", prefix=nobody).pid
    open_one = worker("ready()", prefix=nobody).pid
    found = ask("--mappings", closed, prefix=nobody, path=str(copy))
    assert found["method"] == "walk"
    assert [(one["kind"], one["name"], one["extents"]) for one in found["mappings"]] == [("hidden", "", [])]
    assert found["mappings"][0]["distinct_bytes"] == found["distinct_bytes"] > 0
    found = ask("--mappings", open_one, prefix=nobody, path=str(copy))
    assert any(one["name"].startswith("/usr/") for one in found["mappings"])
    assert "hidden" not in {one["kind"] for one in found["mappings"]}
