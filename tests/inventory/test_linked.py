"""Whether the GiBs of a hugetlb region are linked among its members, told of real processes; and why not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sharedregion as sr
from sharedregion import inventory
from sharedregion._kernel.processes import Area
from sharedregion.footprint import footprint

pytestmark = [pytest.mark.hugepages]

READER = "import sys\nimport sharedregion as sr\nr = sr.attach(sys.argv[1])\nx = bytes(r['x'])\nprint('ready', flush=True)\nsys.stdin.read()"

#: Maps the data segment by itself, as a program does that does not use the library; argv: how.
OTHER = """
import ctypes, os, sys
import sharedregion as sr
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
r = sr.attach(sys.argv[1])
G, M = 1 << 30, 1 << 20
how = sys.argv[2]
address, length, _ = r._data()
if how == "advised":
    assert libc.madvise(address + 2 * M, 2 * M, 16) == 0    # MADV_DONTDUMP on a part
elif how == "askew":
    fd = os.open(f"/proc/{os.getpid()}/map_files/{address:x}-{address + length:x}", os.O_RDONLY)
    space = libc.mmap(None, 3 * G, 0, 0x4022, -1, 0)
    at = (space + G - 1) // G * G + 2 * M
    address = libc.mmap(at, G, 1, 0x4011, fd, 0)
    assert address == at
ctypes.string_at(address, 1)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def huge(unique: str, pool: Callable[[int, int], None]) -> Any:
    if os.geteuid() != 0 or footprint(os.getpid()).method != "walk":
        pytest.skip("page tables can only be read by root")
    pool(2 << 20, 16)
    with sr.create(unique, size="8 MiB", backend="hugetlb") as region:
        region["x"] = bytes(5 << 20)
        yield region


def test_three_readers_beside_their_host(huge: sr.Region, start: Callable[..., Any]) -> None:
    """Linked: the readers share, the host that writes has tables of its own, which is as it should be."""
    alone = inventory.region(huge.name)
    assert (alone.tables, alone.alone) == ("single", ())
    for _ in range(3):
        start(READER, huge.name)
    one = inventory.region(huge.name)
    assert one.tables == "linked"
    assert [(who.pid, who.expected) for who in one.alone] == [(os.getpid(), True)]
    assert "for writing" in one.alone[0].why
    said = subprocess.run(
        [sys.executable, "-P", "-m", "sharedregion", "ls", huge.name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "for itself" not in said


@pytest.mark.root
@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("advised", "cut within a GiB"),
        ("askew", "not congruent to the file modulo 1 GiB"),
    ],
)
def test_a_member_that_is_alone_is_named_with_the_reason(
    huge: sr.Region, start: Callable[..., Any], how: str, why: str
) -> None:
    """In ls, ps and doctor, in text and JSON."""
    for _ in range(3):
        start(READER, huge.name)
    other = start(OTHER, huge.name, how)
    one = inventory.region(huge.name)
    assert one.tables == "partly"
    (amiss,) = [who for who in one.alone if not who.expected]
    assert amiss.pid == other.pid
    assert why in amiss.why
    command = [sys.executable, "-P", "-m", "sharedregion"]
    text = subprocess.run([*command, "ls"], capture_output=True, text=True, check=True).stdout
    assert f"{huge.name}: process {other.pid} has tables of 1 GiB for itself: " in text
    listed = json.loads(
        subprocess.run([*command, "ps", huge.name, "--json"], capture_output=True, check=True).stdout
    )
    assert {m["pid"] for m in listed["regions"][0]["members"] if m["alone_gib"]} >= {other.pid}
    done = subprocess.run([*command, "doctor", "--json"], capture_output=True, check=False)
    (linked,) = [f for f in json.loads(done.stdout)["findings"] if f["check"] == "linked"]
    assert linked["status"] == "less"
    assert any(why in evidence for evidence in linked["evidence"])


def test_without_privilege_it_is_estimated(
    huge: sr.Region, start: Callable[..., Any], as_nobody: Callable[..., Any]
) -> None:
    """An ordinary user's own region: readers are found to share by what the kernel counts for each."""
    name = f"{huge.name}-nobody"
    host = as_nobody(
        f"r = sr.create('{name}', size='2 MiB', backend='hugetlb')\nr['x'] = b'1'\nprint('ready', flush=True)\nsys.stdin.read()",
        wait=False,
    )
    assert host.stdout.readline() == "ready\n"
    readers = [
        as_nobody(
            f"r = sr.attach('{name}')\nx = bytes(r['x'])\nprint('ready', flush=True)\nsys.stdin.read()",
            wait=False,
        )
        for _ in range(3)
    ]
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    said = as_nobody(
        f"from sharedregion import inventory\none = inventory.region('{name}')\nprint(one.tables, one.members, one.backed)"
    )
    assert said.split() == ["linked", "4", str(2 << 20)]
    for process in (*readers, host):
        process.stdin.close()
        process.wait()
    assert not list(Path("/dev/shm").glob(f"*{name}*"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, "nobody else has touched"),
        ({"start": 1 << 40 | 2 << 20, "end": 1 << 41}, "not congruent"),
        ({"end": (1 << 40) + (2 << 20)}, "cut within a GiB"),
        ({"flags": frozenset({"rd", "mr", "me", "um"})}, "userfaultfd"),
        ({"flags": frozenset({"rd", "mr", "me", "mw"})}, "opened for writing"),
        ({"flags": frozenset({"rd", "wr", "mr", "me", "mw"})}, "mapped for writing"),
        ({"flags": frozenset({"rd", "mr", "me", "sd"})}, "soft-dirty"),
        ({"flags": frozenset({"rd", "mr", "me", "dd"})}, "MADV_DONTDUMP"),
        ({"flags": frozenset({"rd", "mr"})}, "executed from"),
        ({"flags": frozenset({"rd", "mr", "me", "zz"})}, "flags differ from the others': zz"),
        ({"flags": frozenset({"rd", "mr", "me", "lo"})}, "nobody else has touched"),
    ],
)
def test_every_reason(change: dict[str, Any], why: str) -> None:
    """As huge_pmd_share() in the kernel decides: place, extent, flags but for mlock, userfaultfd."""
    usual: dict[str, Any] = {
        "start": 1 << 40, "end": (1 << 40) + (1 << 30), "writable": False, "offset": 0, "file": (1, 2),
        "flags": frozenset({"rd", "mr", "me"}),
    }  # fmt: skip
    areas = {1: [Area(**usual | change)], 2: [Area(**usual)], 3: [Area(**usual)]}
    assert why in inventory.why_alone(1, areas)
    assert "may not be looked at" in inventory.why_alone(9, areas)
