"""Bad input gives one clear error of the family, says what to do, and leaves nothing behind."""

import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import sharedregion as sr

SHM = Path("/dev/shm")


@contextmanager
def nothing_changes() -> Iterator[None]:
    """Descriptors and maps of this process, and names that a region would have, stay as they were."""

    def state() -> tuple[int, int]:
        maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "sharedregion" in line]
        return len(os.listdir("/proc/self/fd")), len(
            [line for line in maps if "/dev/shm" in line or "memfd" in line]
        )

    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (0, "size"),
        (-1, "size"),
        ("0 GiB", "size"),
        ("-5 MiB", "size"),
        ("many", "size"),
        ("1e400", "size"),
        (True, "size"),
        (2**60, "size|address"),
        ("10 EiB", "size"),
    ],
)
def test_sizes(unique: str, size, says: str) -> None:
    """A size that means nothing is a ValueError (or TypeError) that says so."""
    with nothing_changes(), pytest.raises((ValueError, TypeError), match=says):
        sr.create(unique, size=size)


@pytest.mark.parametrize("backend", ["thp", "shm", "auto"])
def test_more_than_memory(unique: str, backend: str) -> None:
    """Larger than memory with commit="full" is refused before memory is taken, with what would work."""
    with nothing_changes(), pytest.raises(sr.BackendUnavailable, match="memory") as caught:
        sr.create(unique, size="40 TiB", backend=backend, commit="full")
    assert caught.value.remedy and caught.value.errno
    # As a cap, the same size is fine.
    with sr.create(unique, size="1 TiB", backend="shm" if backend == "auto" else backend) as region:
        region["x"] = np.arange(10)
        assert region["x"].sum() == 45


def test_backend_that_cannot_serve(unique: str) -> None:
    """A backend asked for by name that cannot serve raises with its reason, and the way to get it."""
    with nothing_changes():
        with pytest.raises(sr.BackendUnavailable, match="msharefs") as caught:
            sr.create(unique, size="1 MiB", backend="msharefs")
        assert isinstance(caught.value, OSError) and caught.value.errno
        with pytest.raises(sr.BackendUnavailable, match="hugetlb"):
            sr.create(unique, size="20 TiB", backend="hugetlb")
        with pytest.raises(ValueError, match="tape.*auto.*hugetlb"):
            sr.create(unique, size="1 MiB", backend="tape")
        with pytest.raises(ValueError, match="sometimes.*full"):
            sr.create(unique, size="1 MiB", commit="sometimes")


@pytest.mark.parametrize(
    "name", ["", "a/b", "a\0b", "x" * 300, "ü" * 150, "a\nb", "\x1b[31m", "../x", "\udc80"]
)
def test_region_names(name: str) -> None:
    """Names that could not be a file's, or would upset a terminal, are refused by create, attach and unlink."""
    for verb in (lambda: sr.create(name, size=4096), lambda: sr.attach(name), lambda: sr.unlink(name)):
        with nothing_changes(), pytest.raises(ValueError, match="name|null") as caught:
            verb()
        assert type(caught.value) is ValueError


@pytest.mark.parametrize("name", ["x" * 230, "ü" * 115, "日本", ". .", "-rf", "a.catalog", "%s%n", "q\"'"])
def test_unusual_names_work(name: str) -> None:
    """Every other name works."""
    with sr.create(name, size=4096) as region:
        region["x"] = name
        assert name in sr.regions()
        with sr.attach(name) as seen:
            assert seen["x"] == name


def test_wrong_types(unique: str) -> None:
    """Names are str, modes are permission bits, owners are users."""
    for wrong in (
        lambda: sr.create(5, size=4096),
        lambda: sr.attach(None),
        lambda: sr.create(unique, size=4096, mode="rw"),
        lambda: sr.create(unique, size=4096, mode=0o1777),
        lambda: sr.attach(unique, owner="nobody in particular"),
        lambda: sr.attach(unique, owner=-2),
        lambda: sr.attach(unique, owner=1.5),
    ):
        with nothing_changes(), pytest.raises((TypeError, ValueError)):
            wrong()


def test_missing() -> None:
    """What is not there is RegionNotFound, a FileNotFoundError with ENOENT."""
    for verb in (sr.attach, sr.unlink):
        with nothing_changes(), pytest.raises(sr.RegionNotFound, match="no-such") as caught:
            verb("no-such-region")
        assert isinstance(caught.value, FileNotFoundError) and caught.value.errno == 2


def segment(name: str, which: str) -> Path:
    return SHM / f"sharedregion.{name}.{which}"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x" * 100_000),
        lambda path: path.write_bytes(b"\0" * 100_000),
        lambda path: os.truncate(path, 5000),
        lambda path: os.truncate(path, 1 << 20),
        lambda path: path.write_bytes(os.urandom(100_000)),
    ],
    ids=["empty", "foreign", "zeros", "cut short", "cut", "noise"],
)
@pytest.mark.parametrize("which", ["catalog", "members", "data"])
def test_damaged_segments(unique: str, which: str, damage, run) -> None:
    """An attach to damaged, foreign or truncated segments is RegionCorrupt, and unlink mends it.

    Object bytes are the application's own: damage to them that keeps their number is not looked for.
    """
    region = sr.create(unique, size="4 MiB", backend="thp", persist=True)
    region["x"] = np.arange(1000)
    region.close()
    damage(segment(unique, which))
    code = """
import sys, sharedregion as sr
try:
    with sr.attach(sys.argv[1]) as region:
        print("attached", region["x"].shape)
except sr.RegionCorrupt as error:
    print("corrupt", error.errno, bool(error.remedy))
"""
    said = run(code, unique).split()
    if which == "data" and segment(unique, "data").stat().st_size >= 4 << 20:
        assert said[0] == "attached"
    else:
        assert said == ["corrupt", "117", "True"]
    if which == "catalog":
        with pytest.raises(sr.RegionExists, match="replace=True"):
            sr.create(unique, size=4096)
        assert unique in sr.regions()
    sr.unlink(unique)
    with sr.create(unique, size=4096) as fresh:
        assert len(fresh) == 0
    assert not list(SHM.glob(f"sharedregion.{unique}.*"))


def test_another_build(unique: str) -> None:
    """A region of another format version or build is refused by name of both."""
    with sr.create(unique, size=4096) as region:
        path = segment(unique, "catalog")
        with path.open("r+b") as file:
            file.seek(8)
            own = file.read(4)
            file.seek(8)
            file.write(struct.pack("<I", 99))
        with pytest.raises(sr.RegionCorrupt, match="another build.*format 99"):
            sr.attach(unique)
        with path.open("r+b") as file:
            file.seek(8)
            file.write(own)
        sr.attach(unique).close()
        assert len(region) == 0


def test_swapped_segments(unique: str) -> None:
    """Segments of another region under this name are never taken for its own."""
    with (
        sr.create(unique, size="1 MiB", backend="shm") as a,
        sr.create(unique + "-b", size="1 MiB", backend="shm") as b,
    ):
        a["x"], b["x"] = 1, 2
        segment(unique, "data").rename(segment(unique, "keep"))
        shutil.copy(segment(unique + "-b", "data"), segment(unique, "data"))
        with pytest.raises(sr.RegionCorrupt, match="not there"):
            sr.attach(unique)
        segment(unique, "keep").rename(segment(unique, "data"))
        with sr.attach(unique) as seen:
            assert seen["x"] == 1


OBJECTS = [
    '"|O"',
    '"O"',
    '{"names":["a"],"formats":["|O"]}',
    '["O",[2]]',
    '{"names":["a"],"formats":[{"names":["b"],"formats":["O"]}]}',
]
NONSENSE = [
    *(
        "",
        "nonsense",
        "[]",
        "{}",
        "5",
        "null",
        '"nonsense"',
        '"(2,)f4,f4',
        "'|O'",
        "[('a','|O')]",
        "[" * 3000,
    ),
    *(
        '["f4",-1]',
        '["f4",[4000000000]]',
        '{"names":["a"]}',
        '{"names":["a"],"formats":["f8"],"offsets":[-8]}',
    ),
    *('{"names":["a"],"formats":["f8"],"offsets":[1e99]}', '{"names":["a","a"],"formats":["f8","f8"]}'),
    *('{"names":["a"],"formats":["f8"],"itemsize":1}', '{"formats":5}', '[{"names":1,"formats":"f8"},[1]]'),
    *(
        '{"names":["a"],"formats":["f8"],"offsets":[1000000]}',
        '{"names":["a"],"formats":["f8"],"offsets":[Infinity]}',
    ),
]


@pytest.mark.parametrize("kind", [2, 3], ids=["plain", "packed"])
def test_crafted_descriptions(unique: str, kind: int) -> None:
    """Whatever another member wrote beside an entry: RegionCorrupt, and never Python objects made of its bytes."""
    with sr.create(unique, size="1 MiB", backend="shm") as region, sr.attach(unique) as reader:
        descriptions = []
        for text in (*OBJECTS, *NONSENSE):
            body = text.encode() if kind == 2 else zlib.compress(text.encode())
            descriptions += [struct.pack("<BBBBQ", kind, 0, 1, 0, 1) + body]
            descriptions += [struct.pack("<BBBB65Q", kind, 0, 65, 0, *[1] * 65) + body]
        good = b'"<f8"' if kind == 2 else zlib.compress(b'"<f8"')
        for head in (
            b"",
            struct.pack("<BBBBQ", kind, 0, 1, 0, 1 << 63),
            struct.pack("<BBBBQ", kind, 0, 1, 0, 1000),
        ):
            descriptions += [head + good, head[:3]]
        # A few kilobytes that would become a gigabyte; a stream that is cut short, and one that is none.
        bomb = zlib.compressobj()
        huge = b"".join(bomb.compress(b" " * (1 << 20)) for _ in range(3)) + bomb.flush()
        descriptions += [struct.pack("<BBBBQ", 3, 0, 1, 0, 1) + body for body in (huge, good[:-3], b"none")]
        for meta in descriptions:
            for number, start in ((1, b""), (7, struct.pack("=QQ", 0, 8))):
                region._put("x", number, 0, start + meta, b"\x41" * 16)
                with pytest.raises(sr.RegionCorrupt):
                    reader["x"]
        region._put("x", 1, 0, struct.pack("<BBBBQ", kind, 0, 1, 0, 2) + good, b"\0" * 16)
        assert reader["x"].tolist() == [0.0, 0.0]
        region._put("b", 2, 0, b"O", b"\x41" * 16)
        with pytest.raises(sr.RegionCorrupt):
            reader["b"]


def test_no_descriptors_left(run) -> None:
    """Too many open files is said as that, and what helps; not as a want of memory. Afterwards all goes on."""
    code = """
import errno, resource, numpy as np, sharedregion as sr
first = sr.share(np.arange(3))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
kept = []
try:
    while len(kept) < 64: kept.append(sr.share(np.arange(100)))
except sr.BackendUnavailable as error:
    print(error.errno == errno.EMFILE, "descriptors" in error.message, "RLIMIT_NOFILE" in error.remedy)
region = kept.pop(0).base.region
others = []
try:
    while len(others) < 64: others.append(open("/dev/null"))
except OSError: pass
try: sr.attach(region.name)
except sr.BackendUnavailable as error: print(error.errno == errno.EMFILE, "RLIMIT_NOFILE" in error.remedy)
others.clear()
kept.clear()
print(sr.share(np.arange(3)))
"""
    assert run(code) == "True True True\nTrue True\n[0 1 2]\n"


@pytest.mark.root
def test_another_users_region(unique: str, as_nobody) -> None:
    """Mode 0600 keeps other users out; a region of another user is refused unless it is named as theirs."""
    with sr.create(unique, size="1 MiB") as region:
        region["x"] = {"a": 1}
        said = as_nobody(f"sr.attach({unique!r})", expect=1)
        assert "RegionDenied" in said
        assert "RegionDenied" in as_nobody(f"sr.unlink({unique!r})", expect=1)
        for more in ("", ", replace=True"):
            said = as_nobody(f"sr.create({unique!r}, size=4096{more})", expect=1)
            assert "RegionExists" in said
            assert "another user" in said
            assert "another name" in said
        assert region["x"] == {"a": 1}
    with sr.create(unique, size="1 MiB", mode=0o644) as region:
        region["x"], region["d"] = np.arange(10), {"a": 1}
        assert "belongs to user 0" in as_nobody(f"sr.attach({unique!r})", expect=1)
        assert as_nobody(f"print(sr.attach({unique!r}, owner='root')['x'].sum())").strip() == "45"
        said = as_nobody(f"sr.attach({unique!r}, owner=0)['d']", expect=1)
        assert "RegionDenied" in said
        assert "pickle" in said
        assert (
            as_nobody(f"print(sr.attach({unique!r}, owner=0, allow_pickle=True)['d'])").strip() == "{'a': 1}"
        )
        assert "RegionDenied" in as_nobody(f"sr.attach({unique!r}, owner=0, writable=True)", expect=1)


@pytest.mark.root
@pytest.mark.parametrize("backend", ["auto", "hugetlb"])
def test_root_does_not_take_a_users_region_for_its_own(unique: str, as_nobody, pool, backend: str) -> None:
    """Root, too, has to say whose region it means; then it can use it. Every kind of memory, keepers included."""
    if backend == "hugetlb":
        pool(2 << 20, 8)
    host = as_nobody(
        f"r = sr.create({unique!r}, size='4 MiB', backend={'hugetlb-2m' if backend == 'hugetlb' else 'auto'!r}); "
        "r['x'] = 'five'; print('up', flush=True); sys.stdin.readline()",
        wait=False,
    )
    assert host.stdout.readline() == "up\n"
    try:
        with pytest.raises(sr.RegionDenied, match="65534"):
            sr.attach(unique)
        with sr.attach(unique, owner="nobody") as seen:
            assert seen["x"] == "five"
    finally:
        host.communicate("\n")


def test_keeper_missing_or_denied(unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that is not there, or may not be run, is one clear error, and nothing is left."""
    from sharedregion import opening as module

    def make(keeper: Path) -> None:
        monkeypatch.setattr(module, "_KEEPER", str(keeper))
        sr.Region._create(
            name=unique, size=4096, backend="shm", place="memfd", mode=0o600, persist=False, replace=False,
            commit_all=False, reason=None, keeper=str(keeper),
        )  # fmt: skip

    before = set(os.listdir(SHM))
    denied = tmp_path / "keeper"
    denied.write_bytes(b"\x7fELF nonsense")
    for keeper, number in ((tmp_path / "missing", 2), (denied, 13)):
        with nothing_changes(), pytest.raises(sr.BackendUnavailable, match="keeper") as caught:
            make(keeper)
        assert caught.value.errno == number
    assert not [name for name in set(os.listdir(SHM)) - before if unique in name or name.endswith(".keeper")]


def test_keeper_killed(unique: str, run) -> None:
    """Members go on after their keeper was killed; a new attach is RegionLost and says so; unlink and create work."""
    region = sr.Region._create(
        name=unique, size=1 << 20, backend="shm", place="memfd", mode=0o600, persist=False, replace=False,
        commit_all=False, reason=None, keeper=sr.opening._KEEPER,
    )._settle_in(None)  # fmt: skip
    region["x"] = np.arange(100)
    keeper = subprocess.run(
        ["pgrep", "-f", f"sharedregion-keeper {unique} "], capture_output=True, text=True, check=True
    )
    pid = int(keeper.stdout)
    assert os.getsid(pid) == pid, "a session of its own"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in range(3)} == {"/dev/null"}
    assert len(os.listdir(f"/proc/{pid}/fd")) <= 10
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    os.kill(pid, 9)
    region["y"] = 7
    assert region["x"].sum() == 4950 and region["y"] == 7
    said = run(
        "import sys, sharedregion as sr\ntry: sr.attach(sys.argv[1])\nexcept sr.RegionLost as e: print('lost', e.remedy)",
        unique,
    )
    assert said.startswith("lost create")
    region.close()
    assert unique not in sr.regions()
    for file in SHM.glob("sharedregion.*.keeper"):
        if file.name.split(".")[1] == region_id(region):
            file.unlink()


def region_id(region: sr.Region) -> str:
    return region._id.hex()


def test_host_gets_no_signal_from_its_keeper(run, unique: str) -> None:
    """Starting a keeper raises no SIGCHLD, leaves no child, and runs none of the application's fork hooks."""
    code = """
import os, signal, sys, sharedregion as sr
from sharedregion import opening as m
seen = []
signal.signal(signal.SIGCHLD, lambda *a: seen.append("SIGCHLD"))
os.register_at_fork(before=lambda: seen.append("fork"))
r = sr.Region._create(name=sys.argv[1], size=4096, backend="shm", place="memfd", mode=0o600, persist=False,
                      replace=False, commit_all=False, reason=None, keeper=m._KEEPER)
try: os.waitpid(-1, os.WNOHANG); seen.append("child")
except ChildProcessError: pass
r.close()
print(seen)
"""
    assert run(code, unique) == "[]\n"


def with_shm_of(size: str, code: str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    """The program, where /dev/shm is a file system of that size."""
    program = tmp_path / "program.py"
    program.write_text(code)
    command = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} {program}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.root
def test_small_shm(unique: str, tmp_path: Path) -> None:
    """With a /dev/shm of 64 MB, as containers have it, a larger region works, and says how."""
    code = f"""
import os, numpy as np, sharedregion as sr
region = sr.create({unique!r}, size="200 MiB")
assert "memfd" in region.reason, region.reason
region["x"] = np.ones(100 << 20, "u1")
import subprocess, sys
out = subprocess.run([sys.executable, "-c", "import sharedregion as sr; print(sr.attach({unique!r})['x'].sum())"],
                     capture_output=True, text=True)
assert out.stdout.strip() == str(100 << 20), out
region.close()
small = sr.create({unique!r}, size="60 MiB", backend="shm")
small["a"] = np.ones(30 << 20, "u1")
def fill():
    f = open("/dev/shm/filler", "ab", buffering=0)
    for size in (1 << 20, 4096):
        try:
            while True: f.write(b"x" * size)
        except OSError: pass
fill()
try:
    small["b"] = np.ones(20 << 20, "u1")
    print("no error")
except sr.RegionFull as error:
    print("full", error.errno)
assert small["a"].sum() == 30 << 20
small._check()
small.close()
fill()
try: sr.create({unique!r}, size="1 MiB"); print("no error")
except sr.BackendUnavailable as error: print("unavailable", error.errno)
os.unlink("/dev/shm/filler")
sr.create({unique!r}, size="1 MiB").close()
"""
    done = with_shm_of("64m", code, tmp_path)
    assert done.stdout.split() == ["full", "28", "unavailable", "28"]


@pytest.mark.root
def test_large_memory_that_ends_half_way(unique: str, tmp_path: Path) -> None:
    """Several threads commit a large object: what is missing for one of them is an error, and nothing is lost or wrong."""
    code = f"""
import os, numpy as np, sharedregion as sr
region = sr.create({unique!r}, size="400 MiB", backend="thp", commit="lazy")
region["a"] = np.full(20 << 20, 7, "u1")
with open("/dev/shm/filler", "wb") as filler: os.posix_fallocate(filler.fileno(), 0, 250 << 20)
free = os.statvfs("/dev/shm").f_bfree
for size in (370, 300, 250):
    try:
        with region.allocate("b", size << 20, "u1") as b: b[:] = 1
        print("no error")
    except sr.RegionFull as error: print("full", error.errno)
    assert os.statvfs("/dev/shm").f_bfree == free, "what was committed for nothing is not given back"
    region._check()
    region["c"] = np.arange(15 << 20, dtype="u8")      # 120 MiB, by two threads
    assert int(region["c"].sum()) == sum(range(15 << 20)) and int(region["a"].sum()) == 7 * (20 << 20)
    del region["c"]
    region.trim()
os.unlink("/dev/shm/filler")
region["b"] = np.full(350 << 20, 2, "u1")
assert int(region["b"].sum()) == 2 * (350 << 20)
region.close()
"""
    done = with_shm_of("450m", code, tmp_path)
    assert done.stdout.split() == ["full", "28"] * 3


@pytest.mark.root
def test_memory_limit_is_an_error_not_a_kill(unique: str, memory_group, tmp_path: Path) -> None:
    """Where a memory cgroup would answer with SIGKILL, the object is refused before, for every ancestor's limit."""
    enter = memory_group(256 << 20)
    code = f"""
import numpy as np, sharedregion as sr
region = sr.create({unique!r}, size="4 GiB")
region["small"] = np.ones(20 << 20, "u1")
try:
    with region.allocate("big", 1 << 30, "u1"): pass
    print("no error")
except sr.RegionFull as error: print("full", "limit" in str(error))
try: sr.create("x" + {unique!r}, size="1 GiB", backend="thp", commit="full"); print("no error")
except sr.BackendUnavailable as error: print("unavailable", "limit" in str(error))
assert region["small"].sum() == 20 << 20
"""
    program = tmp_path / "limited.py"
    program.write_text(code)
    done = subprocess.run(
        [*enter, sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["full", "True", "unavailable", "True"]


def test_empty_pool_falls_back(unique: str) -> None:
    """With too few huge pages, auto takes the next kind and says why; by name it is an error. Never a later SIGBUS."""
    sizes = [c for c in sr.backends("6 GiB") if c.backend == "hugetlb"]
    if any(c.usable for c in sizes):
        pytest.skip("this machine has a large pool")
    with sr.create(unique, size="6 GiB") as region:
        assert region.backend == "thp"
        assert all(c.reason for c in sizes)
    with nothing_changes(), pytest.raises(sr.BackendUnavailable) as caught:
        sr.create(unique, size="6 GiB", backend="hugetlb")
    assert "nr_hugepages" in (caught.value.remedy or "")
