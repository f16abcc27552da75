"""gc takes all that the dead left, and nothing that anybody holds."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sharedregion as sr
from sharedregion import _native, inventory
from tests.kinds import KINDS, POOLS, make

SHM = Path("/dev/shm")
HOST = """
import sys
import sharedregion as sr
from tests.kinds import make
r = make(sys.argv[1], sys.argv[2], persist="persist" in sys.argv)
r["x"] = b"x" * 5000
print("ready", flush=True)
sys.stdin.read()
"""


def files(name: str) -> list[str]:
    return sorted(path.name for path in SHM.iterdir() if name in path.name)


def mine(name: str, **options: Any) -> list[inventory.Leftover]:
    return [left for left in inventory.collect(**options) if name in left.name]


def host(*arguments: str) -> "subprocess.Popen[bytes]":
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys\nsys.path.append({root!r})\n{HOST}"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with process:
        process.wait()


def keeper_of(name: str) -> int:
    (keeper,) = [one for one in inventory.members(name, footprints=False) if one.role == "keeper"]
    assert keeper.pid is not None
    return keeper.pid


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("msharefs")])
def test_a_killed_hosts_region_is_reclaimed_and_a_living_ones_is_not(
    kind: str, unique: str, pool: Callable[[int, int], None]
) -> None:
    """Of every kind; with a keeper, which is killed too (it would clean up by itself)."""
    if kind in POOLS:
        pool(*POOLS[kind])
    living = host(kind, unique)
    kept = inventory.region(unique).keeper is not None
    before = files(unique)
    assert mine(unique) == []
    assert files(unique) == before
    if kept:
        os.kill(keeper_of(unique), signal.SIGKILL)
        while inventory.region(unique).keeper is not None:
            time.sleep(0.01)
        # Its members still have it; nobody else can come.
        assert mine(unique) == []
        assert inventory.region(unique).state == "live"
    end(living)
    assert inventory.region(unique).state == "orphaned"
    (left,) = mine(unique, dry_run=True)
    assert (left.kind, left.reclaimed, left.uid) == ("region", False, os.geteuid())
    assert set(before) <= set(left.files)
    assert files(unique) == before
    (left,) = mine(unique)
    assert left.reclaimed
    assert files(unique) == []
    assert not any(SHM.joinpath(file).exists() for file in left.files)
    assert mine(unique) == []


def test_a_region_that_persists_is_kept_until_its_memory_is_gone(unique: str) -> None:
    """Without members it is idle, and with its keeper dead nobody can have it any more."""
    end(host("shm", unique, "persist"))
    assert mine(unique) == []
    with sr.attach(unique) as region:
        assert bytes(region["x"]) == b"x" * 5000
    sr.unlink(unique)
    end(host("shm-memfd", unique, "persist"))
    assert mine(unique) == []
    assert inventory.region(unique).state == "idle"
    os.kill(keeper_of(unique), signal.SIGKILL)
    while inventory.region(unique).state == "idle":
        time.sleep(0.01)
    (left,) = mine(unique)
    assert (left.kind, left.reclaimed) == ("region", True)
    assert files(unique) == []
    assert not any(SHM.joinpath(file).exists() for file in left.files)


def lock(path: Path) -> int:
    """Hold row 0 of a members file, as a member would."""
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 1, 0))
    return fd


@pytest.mark.parametrize("parts", [["members"], ["data"], ["members", "data"], ["members.2", "data.2"]])
def test_segments_without_a_catalog(unique: str, parts: list[str]) -> None:
    """A region half made by a host that was killed: nobody's, unless its maker still holds its row."""
    for part in parts:
        SHM.joinpath(f"sharedregion.{unique}.{part}").write_bytes(bytes(8192))
    members = [part for part in parts if part.startswith("members")]
    if members:
        held = lock(SHM / f"sharedregion.{unique}.{members[0]}")
        assert mine(unique) == []
        assert len(files(unique)) == len(parts)
        os.close(held)
    (left,) = mine(unique, dry_run=True)
    assert (left.kind, left.bytes) == ("segments", 8192 * len(parts))
    assert len(files(unique)) == len(parts)
    assert [one.reclaimed for one in mine(unique)] == [True]
    assert files(unique) == []


def test_segments_of_an_older_generation_beside_a_living_region(unique: str) -> None:
    """Left by a replacement that was killed at its end; those of the region itself stay, persisting without members too."""
    sr.create(unique, size="4 MiB", backend="shm", persist=True).close()
    now = files(unique)
    for part in ("members.7", "data.7"):
        SHM.joinpath(f"sharedregion.{unique}.{part}").write_bytes(bytes(4096))
    assert [one.reclaimed for one in mine(unique)] == [True]
    assert files(unique) == now
    with sr.attach(unique):
        assert mine(unique) == []
    sr.unlink(unique)


def test_segments_beside_a_catalog_that_cannot_be_read_are_left_alone(unique: str) -> None:
    """They may be its own, and a process may have it open: `unlink` decides."""
    with make("shm", unique) as region:
        region["x"] = 1
        catalog = SHM / f"sharedregion.{unique}.catalog"
        good = catalog.read_bytes()[:1024]
        with catalog.open("r+b") as file:
            file.write(b"\xff" * 1024)
        before = files(unique)
        assert mine(unique) == []
        assert files(unique) == before
        with catalog.open("r+b") as file:
            file.write(good)
        assert region["x"] == 1


def test_a_catalog_on_its_way_to_its_name(unique: str) -> None:
    """Left by `create(replace=True)` killed between two steps; while its maker lives, it is not touched."""
    with make("shm", unique) as region:
        region["x"] = 1
        source = SHM / f"sharedregion.{unique}.catalog"
        link = SHM / f"sharedregion.{unique}.0123.new"
        os.link(source, link)
        assert mine(unique) == []
        assert link.exists()
        # The maker is a member of its own region; this one goes, so that its catalog alone stays.
        copy = link.with_suffix(".copy")
        shutil.copyfile(source, copy)
        link.unlink()
    copy.rename(link)
    (left,) = mine(unique)
    assert (left.kind, left.reclaimed) == ("catalog", True)
    assert files(unique) == []


def test_a_socket_that_nobody_listens_at(unique: str) -> None:
    """A keeper that was killed leaves it; one that listens is a living keeper's."""
    import socket

    path = SHM / f"sharedregion.{unique}.keeper"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert _native.remove_leftover(path.name, True) is False
        assert path.exists()
    (left,) = mine(unique)
    assert (left.kind, left.reclaimed) == ("socket", True)
    assert not path.exists()


def test_a_block_of_shared_memory_that_outlived_its_program(unique: str) -> None:
    """Marked as an orphan when its program ended; taken once nobody has it open or mapped any more."""
    import mmap

    path = SHM / f"{unique}-block"
    path.write_bytes(bytes(8192))
    assert mine(unique) == []
    path.chmod(0o1600)
    with path.open("r+b") as file:
        assert mine(unique) == []
        held = mmap.mmap(file.fileno(), 0)
    assert mine(unique) == []
    held.close()
    (left,) = mine(unique, dry_run=True)
    assert (left.kind, left.bytes, left.reclaimed) == ("block", 8192, False)
    assert path.exists()
    assert [one.reclaimed for one in mine(unique)] == [True]
    assert not path.exists()


def processes_with(mark: str) -> dict[int, bytes]:
    """pid -> command line of the processes in whose environment the mark is."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes()
    return found


def test_a_block_that_the_drop_in_left_in_use(unique: str, start: Callable[..., Any]) -> None:
    """A program is killed whose block a stranger uses; its tracker leaves the name, and is killed too: gc's, once the stranger ends."""
    name = f"{unique}-dropin"
    code = (
        "import os, signal, sys\nfrom sharedregion import shared_memory\n"
        "block = shared_memory.SharedMemory(sys.argv[1], create=True, size=10000)\nblock.buf[:5] = b'hello'\n"
        "print('ready', flush=True)\nsys.stdin.readline()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    # The standard library's, which knows nothing of marks.
    stranger = (
        "import sys\nfrom multiprocessing import shared_memory, resource_tracker\n"
        "resource_tracker.register = lambda *a: None\nblock = shared_memory.SharedMemory(sys.argv[1])\n"
        "assert bytes(block.buf[:5]) == b'hello'\nprint('ready', flush=True)\nsys.stdin.readline()"
    )
    os.environ["SHAREDREGION_TEST_MARK"] = unique
    try:
        program = start(code, name)
    finally:
        del os.environ["SHAREDREGION_TEST_MARK"]
    user = start(stranger, name)
    assert mine(unique) == []
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.wait() == -signal.SIGKILL
    while not SHM.joinpath(name).stat().st_mode & stat.S_ISVTX:
        time.sleep(0.01)
    # What waits for the stranger's end is the tracker, or what it split off.
    while waiting := processes_with(f"SHAREDREGION_TEST_MARK={unique}"):
        for pid, command in waiting.items():
            assert b"resource_tracker" in command
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert mine(unique) == []
    user.stdin.write("\n")
    user.stdin.flush()
    assert user.wait() == 0
    (left,) = mine(unique, dry_run=True)
    assert (left.kind, left.name, left.files, left.reclaimed) == ("block", name, (name,), False)
    assert left.bytes >= 10000
    assert [one.reclaimed for one in mine(unique)] == [True]
    assert not SHM.joinpath(name).exists()


def test_files_of_others_in_dev_shm_are_no_leftovers(unique: str) -> None:
    """Whatever they are called: gc knows its own kinds, and no directory, link or pipe is one."""
    names = [
        f"{unique}",
        f"sharedregion.{unique}",
        f"sharedregion.{unique}.txt",
        f"sharedregion.{unique}.new",
        f"x.sharedregion.{unique}.data",
    ]
    for name in names:
        SHM.joinpath(name).write_bytes(b"theirs")
    SHM.joinpath(f"sharedregion.{unique}.d.members").mkdir()
    SHM.joinpath(f"sharedregion.{unique}.l.members").symlink_to("/etc/passwd")
    os.mkfifo(SHM / f"sharedregion.{unique}.p.catalog")
    SHM.joinpath(f"sharedregion.{unique}.\x1b[2J.members").write_bytes(b"")
    try:
        before = files(unique)
        assert mine(unique) == []
        assert files(unique) == before
        states = {one.state for one in inventory.regions() if unique in one.name}
        assert states == {"corrupt"}
    finally:
        for name in files(unique):
            path = SHM / name
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_gc_beside_hosts_that_come_and_go(unique: str, start: Callable[..., Any]) -> None:
    """Two processes make, replace and close regions as fast as they can, all the while, and never miss one to gc."""
    code = (
        "import itertools, logging, select, sys\nimport sharedregion as sr\nlogging.disable()\nprint('ready', flush=True)\n"
        "name, persist = sys.argv[1:3]\n"
        "for i in itertools.count():\n"
        "    if i >= 150 and select.select([sys.stdin], [], [], 0)[0]: break\n"
        "    with sr.create(name, size='64 KiB', backend='shm', replace=bool(i % 2), persist=persist == 'persist') as r:\n"
        "        r['x'] = i\n"
        "        with sr.attach(name) as other: assert other['x'] == i\n"
        "        if i % 3 == 0:\n"
        "            with sr.create(name, size='64 KiB', backend='shm', replace=True, persist=persist == 'persist') as s:\n"
        "                s['x'] = -i\n"
        "                with sr.attach(name) as other: assert other['x'] == -i\n"
        "    if persist == 'persist':\n        sr.attach(name).close()\n        sr.unlink(name)\n"
        "print('done', flush=True)\n"
    )
    hosts = [start(code, f"{unique}-{persist}", persist) for persist in ("persist", "not")]
    # The hosts go on until they are told: the collector has all its rounds beside them.
    for _ in range(30):
        inventory.collect()
        inventory.regions()
        assert [one.poll() for one in hosts] == [None, None]
    for one in hosts:
        one.stdin.close()
    while any(one.poll() is None for one in hosts):
        inventory.collect()
    assert [one.returncode for one in hosts] == [0, 0]
    assert mine(unique) == []
    assert files(unique) == []


@pytest.mark.root
def test_root_reclaims_everybodys_and_nobody_only_their_own(
    unique: str, as_nobody: Callable[..., Any]
) -> None:
    """An ordinary user's gc does not see what it may not remove; root's takes it."""
    killed = (
        "r = sr.create('{0}', size='4 MiB', backend='shm')\nr['x'] = 'y'\nimport os\nos.kill(os.getpid(), 9)"
    )
    as_nobody(killed.format(unique + "-a"), expect=-9)
    as_nobody(killed.format(unique + "-b"), expect=-9)
    code = f"import sharedregion as sr\n{killed.format(unique + '-r')}"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == -9
    said = as_nobody(
        "from sharedregion import _native, inventory\n"
        f"print([one.name for one in inventory.leftovers() if '{unique}' in one.name])\n"
        f"_native.reclaim('{unique}-a')\n"
    )
    assert said == f"['{unique}-a', '{unique}-b']\n"
    assert {left.name for left in mine(unique)} == {f"{unique}-b", f"{unique}-r"}
    assert files(unique) == []


def test_the_commands_json_and_exit_code(unique: str) -> None:
    """--dry-run changes nothing; then it is done; then there is nothing left."""
    end(host("shm", unique))
    command = [sys.executable, "-P", "-m", "sharedregion", "gc", "--json"]

    def run(*more: str) -> list[dict[str, Any]]:
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
        document = json.loads(done.stdout)
        assert document["dry_run"] == bool(more)
        return [one for one in document["leftovers"] if one["name"] == unique]

    assert [one["reclaimed"] for one in run("--dry-run")] == [False]
    assert [one["reclaimed"] for one in run()] == [True]
    assert run() == []
