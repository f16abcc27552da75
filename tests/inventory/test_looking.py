"""What an onlooker sees of regions, and that it leaves no trace."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedregion as sr
from sharedregion import inventory
from sharedregion._kernel import processes
from tests.kinds import KINDS, POOLS, make

SHM = Path("/dev/shm")
COMMAND = [sys.executable, "-P", "-m", "sharedregion"]

WORKER = """
import sys
import sharedregion as sr
region = sr.attach(sys.argv[1], writable=len(sys.argv) > 2)
held = region["x"]
held.sum()
print("ready", flush=True)
sys.stdin.read()
"""


def info(name: str) -> inventory.RegionInfo:
    (one,) = [one for one in inventory.regions() if one.name == name]
    return one


def command(*arguments: str) -> Any:
    done = subprocess.run([*COMMAND, *arguments, "--json"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return json.loads(done.stdout)


def fill(region: sr.Region) -> None:
    region["x"] = np.arange(1 << 17, dtype="i4").reshape(256, 512)
    region["text"] = "a text"
    region["any"] = {"a": [1, 2]}
    region.zeros("m", (3, 4), mutable=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("msharefs")])
def test_a_region_of_every_kind_is_described(
    kind: str, unique: str, pool: Callable[[int, int], None], start: Callable[..., Any]
) -> None:
    """Backend, page size, use, members, huge fraction, tables, age, owner: as the region's own members say."""
    if kind in POOLS:
        pool(*POOLS[kind])
    with make(kind, unique, "8 MiB") as region:
        fill(region)
        start(WORKER, unique)
        one, stats = info(unique), region.stats()
        assert (one.state, one.backend, one.page_size) == ("live", region.backend, region.page_size)
        assert (one.size, one.used, one.free, one.largest) == (
            stats.size,
            stats.used,
            stats.free,
            stats.largest,
        )
        assert (one.objects, one.members, one.sealed) == (4, 2, False)
        assert one.huge_fraction == (0.0 if region.backend == "shm" else 1.0)
        tables = {"shm": "own", "thp": "own", "hugetlb-1g": "none"}.get(kind.removesuffix("-memfd"))
        # A table is linked only between mappings alike: not those of the host, which writes, and of a reader.
        assert one.tables == (tables or "single")
        assert one.backed is not None
        assert one.backed >= one.used or kind.startswith("hugetlb")
        assert one.age is not None
        assert 0 <= one.age < 300
        assert one.uid == os.geteuid()
        assert one.reason == region.reason
        assert (one.keeper is not None) == (kind.endswith("-memfd") or kind.startswith("hugetlb"))
        start(WORKER, unique)
        assert info(unique).tables == (tables or "linked")


def test_objects_with_type_shape_bytes_version_and_pins(unique: str, start: Callable[..., Any]) -> None:
    """Pins are the members that look at the object now, this process's among them."""
    with sr.create(unique, size="8 MiB", backend="shm") as region:
        fill(region)
        region["x"] = np.asfortranarray(np.ones((5, 7), "f4"))
        region["s"] = np.zeros(2, [("a", "i4"), ("b", "f8")])
        start(WORKER, unique)
        start(WORKER, unique)
        held = region["text"], region["x"]
        found = {one.name: one for one in inventory.objects(unique)}
        assert {name: (one.type, one.dtype, one.shape, one.mutable) for name, one in found.items()} == {
            "text": ("str", None, None, False),
            "any": ("pickle", None, None, False),
            "m": ("array", "<f8", (3, 4), True),
            "x": ("array", "<f4", (5, 7), False),
            "s": ("array", "structured", (2,), False),
        }
        assert found["x"].bytes == held[1].nbytes
        assert found["x"].version == region.version("x")
        assert found["m"].version == region.version("m")
        assert (found["x"].pins, found["m"].pins) == (3, 0)
        said = command("ls", unique)
        assert said["region"]["objects"] == len(said["objects"]) == 5
        assert [one["pins"] for one in said["objects"] if one["name"] == "x"] == [3]


@pytest.mark.parametrize("kind", ["shm", "thp-memfd"])
def test_looking_leaves_no_trace(kind: str, unique: str) -> None:
    """No byte, no page and no time of the region's files changes, and nobody is a member for it."""

    def state() -> list[Any]:
        found: list[Any] = []
        for path in sorted(SHM.glob(f"sharedregion.{unique}.*")):
            stat = path.stat()
            data = b""
            with path.open("rb") as file:
                # The start is where everything lies that a small region has.
                data = file.read(4 << 20)
            found.append(
                (path.name, stat.st_blocks, stat.st_mtime_ns, stat.st_ctime_ns, hashlib.sha256(data).digest())
            )
        return found

    with make(kind, unique) as region:
        fill(region)
        held = region["x"]
        before, members = state(), region.members()
        assert len(before) >= 2
        said = [
            command("ls"),
            command("ls", unique),
            command("ps", unique),
            command("ps"),
            command("gc", "--dry-run"),
        ]
        assert said[1]["region"]["members"] == 1
        assert [one["pid"] for one in said[2]["regions"][0]["members"] if one["role"] == "member"] == [
            os.getpid()
        ]
        assert state() == before
        assert region.members() == members
        assert held[0, 1] == 1


def test_an_onlooker_keeps_no_region_alive(unique: str, run: Callable[..., str]) -> None:
    """The last member's end removes the names while an onlooker still holds its copies."""
    code = "import sys, sharedregion as sr\nr = sr.create(sys.argv[1], size='8 MiB', backend='shm')\nr['x'] = 'y'\nprint('ready', flush=True)\nsys.stdin.read()\nr.close()"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, unique], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as host:
        assert host.stdout is not None
        assert host.stdin is not None
        host.stdout.readline()
        onlooker = sr.region._native.Onlooker(unique)
        host.stdin.close()
        assert host.wait() == 0
    assert list(SHM.glob(f"sharedregion.{unique}.*")) == []
    assert [one[0] for one in onlooker.objects()] == ["x"]
    assert onlooker.members() == []


def test_states(unique: str, run: Callable[..., str]) -> None:
    """idle: persists without a member; orphaned: its last member was killed; corrupt: its bytes are wrong."""
    sr.create(unique, size="4 MiB", backend="shm", persist=True).close()
    assert info(unique).state == "idle"
    catalog = SHM / f"sharedregion.{unique}.catalog"
    with catalog.open("r+b") as file:
        file.seek(40)
        file.write(b"\xff" * 8)
    one = info(unique)
    assert (one.state, one.owner, one.mode, one.size) == (
        "corrupt",
        "root" if os.geteuid() == 0 else one.owner,
        0o600,
        None,
    )
    assert one.error
    with pytest.raises(sr.RegionCorrupt):
        inventory.objects(unique)
    with pytest.raises(sr.RegionCorrupt):
        inventory.members(unique)
    sr.unlink(unique)
    run(
        "import os, sys, signal, sharedregion as sr\nr = sr.create(sys.argv[1], size='4 MiB', backend='shm')\n"
        "r['x'] = b'1'\nos.kill(os.getpid(), signal.SIGKILL)",
        unique,
        expect=-9,
    )
    one = info(unique)
    assert (one.state, one.members, one.objects) == ("orphaned", 0, 1)
    assert [found.reclaimed for found in inventory.collect() if found.name == unique] == [True]


def test_what_does_not_exist_is_an_error_with_a_remedy() -> None:
    """ls, ps and unlink of a name that there is not, or cannot be."""
    for verb in ("ls", "ps", "unlink"):
        done = subprocess.run([*COMMAND, verb, "no-such-region"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(
            "sharedregion: there is no region 'no-such-region'\n  try: sharedregion"
        )
    done = subprocess.run([*COMMAND, "ls", "a/b"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "may not contain '/'" in done.stderr


def test_members_with_the_pids_that_they_have_here(unique: str, start: Callable[..., Any]) -> None:
    """Reader, writer, one with two handles, a forked child, and one in another pid namespace."""
    with sr.create(unique, size="4 MiB", backend="shm") as region:
        fill(region)
        reader, writer = start(WORKER, unique), start(WORKER, unique, "writable")
        twice = start(
            "import sys, os\nimport sharedregion as sr\na, b = sr.attach(sys.argv[1]), sr.attach(sys.argv[1])\n"
            "x = a['x']\nr, w = os.pipe()\npid = os.fork()\nif pid == 0:\n    os.close(w)\n"
            "    print(os.getpid(), flush=True)\n    os.read(r, 1)\n    os._exit(0)\nsys.stdin.read()",
            unique,
        )
        child = int(twice.first)
        by_pid = {one.pid: one for one in inventory.members(unique)}
        assert by_pid.keys() == {os.getpid(), reader.pid, writer.pid, twice.pid, child}
        assert [by_pid[pid].access for pid in (os.getpid(), reader.pid, writer.pid)] == [
            "write",
            "read",
            "write",
        ]
        assert (by_pid[reader.pid].pins, by_pid[twice.pid].pins, by_pid[child].pins) == (1, 1, 1)
        assert (by_pid[twice.pid].handles, by_pid[child].handles) == (2, 2)
        assert by_pid[reader.pid].command == processes.command(reader.pid)
        assert all(one.inner_pid == one.pid for one in by_pid.values())


@pytest.mark.root
def test_a_member_in_another_pid_namespace_is_found(unique: str, tmp_path: Path) -> None:
    """It says of itself that it is process 1 or so; from here it has another number."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with sr.create(unique, size="4 MiB", backend="shm") as region:
        fill(region)
        with subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-P", str(script), unique],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as outer:
            assert outer.stdout is not None
            assert outer.stdout.readline() == b"ready\n"
            (other,) = [one for one in inventory.members(unique) if one.pid != os.getpid()]
            assert other.inner_pid == 1
            assert other.pid is not None
            assert Path(f"/proc/{other.pid}/stat").read_text().rsplit(")", 1)[1].split()[1] == str(outer.pid)
            outer.kill()


def test_a_member_whose_first_thread_has_ended_is_still_seen(unique: str, start: Callable[..., Any]) -> None:
    """Then /proc/PID/maps is empty, and the process lives on in its threads."""
    code = (
        "import ctypes, sys, threading, time\nimport sharedregion as sr\nr = sr.attach(sys.argv[1])\nx = r['x']\nx.sum()\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\nprint('ready', flush=True)\n"
        "sys.stdin.readline()\nctypes.CDLL(None).pthread_exit(None)"
    )
    with sr.create(unique, size="4 MiB", backend="shm") as region:
        fill(region)
        worker = start(code, unique)
        worker.stdin.write("\n")
        worker.stdin.flush()
        while Path(f"/proc/{worker.pid}/maps").read_text():
            os.sched_yield()
        (other,) = [one for one in inventory.members(unique) if one.pid != os.getpid()]
        assert (other.pid, other.pins) == (worker.pid, 1)


@pytest.mark.root
def test_root_sees_everybodys_and_others_see_that_there_is_something(
    unique: str, as_nobody: Callable[..., Any]
) -> None:
    """Another user's region is listed with its owner as denied; root looks into it like its owner."""
    host = as_nobody(
        f"r = sr.create('{unique}', size='4 MiB', backend='shm')\nr['x'] = 'nobody'\nprint('ready', flush=True)\nsys.stdin.read()",
        wait=False,
    )
    assert host.stdout.readline() == "ready\n"
    one = info(unique)
    assert (one.state, one.uid, one.objects, one.members) == ("live", 65534, 1, 1)
    assert [found.name for found in inventory.objects(unique)] == ["x"]
    assert [found.pid for found in inventory.members(unique)] == [host.pid]
    mine = f"{unique}-root"
    with sr.create(mine, size="4 MiB", backend="shm"):
        said = as_nobody(
            "from sharedregion import inventory\nimport json\n"
            f"print(json.dumps([(o.name, o.state, o.uid) for o in inventory.regions() if o.name.startswith('{unique}')]))\n"
            f"print([o.pid for o in inventory.members('{unique}')])\n"
            f"try:\n    inventory.objects('{mine}')\nexcept sr.RegionDenied as error:\n    print(error.message)"
        ).splitlines()
    assert sorted(json.loads(said[0])) == [[unique, "live", 65534], [mine, "denied", 0]]
    assert said[1] == f"[{host.pid}]"
    assert mine in said[2]
    host.stdin.close()
    assert host.wait() == 0


def test_names_and_commands_of_others_reach_no_terminal(unique: str, start: Callable[..., Any]) -> None:
    """A process named with escape codes and newlines, an object too; JSON stays valid, text has no control character."""
    code = (
        "import sys\nimport sharedregion as sr\nr = sr.attach(sys.argv[1], writable=True)\n"
        "open('/proc/self/comm', 'wb').write(b'\\x1b[2J\\n\\xff\\x07')\nprint('ready', flush=True)\nsys.stdin.read()"
    )
    with sr.create(unique, size="4 MiB", backend="shm") as region:
        region["\x1b]0;title\x07\n"] = 1
        worker = start(code, unique)
        for arguments in (["ps", unique], ["ps"], ["ls", unique], ["ls"]):
            done = subprocess.run([*COMMAND, *arguments], capture_output=True, check=True)
            assert not set(done.stdout) & {*range(0x0A), *range(0x0B, 0x20), 0x7F}
            done.stdout.decode("ascii")
        (one,) = [one for one in command("ps", unique)["regions"][0]["members"] if one["pid"] == worker.pid]
        assert one["command"].startswith("\x1b[2J\n")
        assert command("ls", unique)["objects"][0]["name"] == "\x1b]0;title\x07\n"


def test_a_hundred_thousand_mappings(tmp_path: Path) -> None:
    """The lines that matter are found among all the others, also in an smaps without end."""
    proc = tmp_path / "proc" / "7"
    proc.mkdir(parents=True)
    line = "%x-%x r--s %08x 00:19 %d                        /dev/shm/a b\n"
    lines = [line % (i * 8192, i * 8192 + 4096, 0, 5) for i in range(100_000)]
    lines[50_000] = line % (1 << 40, (1 << 40) + 4096, 8192, 77)
    lines[60_000] = "nonsense\n"
    (proc / "maps").write_text("".join(lines))
    wanted = (os.makedev(0, 0x19), 77)
    (area,) = processes.areas(7, {wanted}, str(tmp_path)) or ()
    assert (area.start, area.offset, area.file, area.writable) == (1 << 40, 8192, wanted, False)
    assert processes.areas(8, {wanted}, str(tmp_path)) is None
    smaps = "".join(
        text + "Rss:   8 kB\nShmemPmdMapped:  4 kB\nVmFlags: rd mr\n" for text in lines[49_990:50_010]
    )
    (proc / "smaps").write_text(smaps)
    (area,) = processes.areas(7, {wanted}, str(tmp_path), smaps=True) or ()
    assert (area.rss, area.huge, area.flags) == (8192, 4096, frozenset({"rd", "mr"}))
