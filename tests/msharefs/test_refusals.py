"""Whatever refuses: auto goes on to the next kind of memory, and the reason is told; nothing is left behind."""

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sharedregion as sr
from sharedregion import _native, opening

GIB = 1 << 30
SIZE = 64 << 20

pytestmark = [pytest.mark.root]


@pytest.fixture(autouse=True)
def _nothing_tried_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a mount keeps its promises is tried once in a process; here once in a test."""
    monkeypatch.setattr(opening, "_msharefs_said", {})


def keepers(name: str) -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sharedregion-keeper", name.encode()]:
            found.append(int(pid))
    return found


def nothing_left(name: str) -> None:
    """No process, name or socket of the region, a moment later at most."""
    deadline = time.monotonic() + 10
    while keepers(name) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not keepers(name)
    assert not [file for file in os.listdir("/dev/shm") if name in file]


def in_backends(size: int | None = SIZE) -> str:
    """The reason that backends() gives for msharefs."""
    found = next(one for one in sr.backends(size) if one.name == "msharefs")
    assert not found.usable
    return found.reason


def falls_back(name: str, text: str) -> None:
    """By name: BackendUnavailable with the reason. Auto: another kind of memory. backends(): the reason."""
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(sr.BackendUnavailable, match=text):
        sr.create(name, size=SIZE, backend="msharefs")
    nothing_left(name)
    with sr.create(name, size=SIZE) as region:
        assert region.backend == "thp"
        region["x"] = "it works"
    assert text in in_backends()
    assert text in in_backends(None)
    nothing_left(name)
    assert set(os.listdir("/proc/self/fd")) == before, "descriptors are left open"


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("create", errno.EACCES, "a region could not be made in"),
        ("create", errno.ENOSPC, "a region could not be made in"),
        ("size", errno.EINVAL, "refused the region's size"),
        ("brick", errno.EINVAL, "refused the region's size"),
        ("ioctl", errno.ENOTTY, "may have another interface"),
        ("ioctl", errno.EINVAL, "may have another interface"),
        ("place", errno.EPERM, "may have another interface"),
        ("map", errno.ENOMEM, "no address space"),
        ("map", errno.EINVAL, "could not be attached"),
    ],
)
def test_each_step_refused(
    msharefs: Callable[[int], Any], unique: str, what: str, error: int, text: str
) -> None:
    """At each step of making a region: a reason that names the step, and the system's number."""
    double = msharefs(512 * GIB)
    double.tell("refuse", what, error)
    with pytest.raises(sr.BackendUnavailable) as raised:
        sr.create(unique, size=SIZE, backend="msharefs")
    assert raised.value.errno == error
    assert os.strerror(error) in str(raised.value)
    falls_back(unique, text)
    assert not double.regions()


@pytest.mark.parametrize("unit", [0, 4096, 3 * GIB, 1 << 60, "many"])
def test_unit_absurd(msharefs: Callable[[int], Any], unique: str, unit: int | str, tmp_path: Path) -> None:
    """A unit that is no power of two, or that no address space holds, is not believed."""
    double = msharefs(512 * GIB)
    if unit == "many":
        # Neither is one that is no number; a folder that looks like the mount shows that.
        (tmp_path / "mshare_info").write_text("many\n")
        os.environ["SHAREDREGION_MSHAREFS"] = str(tmp_path)
        falls_back(unique, "there is no mshare_info")
        return
    double.tell("unit", unit)
    falls_back(unique, f"absurd: {unit}")
    with pytest.raises(sr.BackendUnavailable, match="absurd"):
        _native.msharefs_try(double.path)


def test_no_such_mount(monkeypatch: pytest.MonkeyPatch, unique: str, tmp_path: Path) -> None:
    """A path that is not there, and one that only looks like the mount, are no msharefs."""
    monkeypatch.setenv("SHAREDREGION_MSHAREFS", str(tmp_path / "nowhere"))
    falls_back(unique, "is not an msharefs mount")
    (tmp_path / "mshare_info").write_text("549755813888\n")
    monkeypatch.setenv("SHAREDREGION_MSHAREFS", str(tmp_path))
    falls_back(unique, "is not an msharefs mount")


def test_kernel_without_it(monkeypatch: pytest.MonkeyPatch, unique: str) -> None:
    """Where neither the kernel nor the environment names msharefs, that is the reason."""
    monkeypatch.delenv("SHAREDREGION_MSHAREFS", raising=False)
    if "msharefs" in Path("/proc/filesystems").read_text():
        assert in_backends()
    else:
        falls_back(unique, "this kernel has no msharefs")


def test_mount_gone(
    msharefs: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch, unique: str, tmp_path: Path
) -> None:
    """A mount that is taken away: no new regions on it; those that exist go on, grow, and take new members."""
    double = msharefs(2 << 20)
    place = tmp_path / "mount"
    place.mkdir()
    subprocess.run(["mount", "--bind", double.path, place], check=True)
    try:
        monkeypatch.setenv("SHAREDREGION_MSHAREFS", str(place))
        region = sr.create(unique, size=SIZE, backend="msharefs")
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
    with region:
        region["x"] = "still here"
        with sr.attach(unique) as member:
            region["y"] = bytes(20 << 20)
            assert member["x"] == "still here"
            assert len(member["y"]) == 20 << 20
        falls_back(unique + "-other", "is not an msharefs mount")


def test_not_permitted(msharefs: Callable[[int], Any], as_nobody: Callable[..., str]) -> None:
    """A user who may not make files there gets the command that would change it; root is not meant."""
    double = msharefs(512 * GIB)
    program = f"""
import os
os.environ["SHAREDREGION_MSHAREFS"] = {double.path!r}
found = sr.backends("64 MiB")[0]
print(found.usable, found.reason, found.remedy, sep="|")
with sr.create(size="64 MiB") as region:
    print(region.backend)
    region["x"] = 1
"""
    Path(double.path).chmod(0o755)
    try:
        denied, other = as_nobody(program).splitlines()
    finally:
        Path(double.path).chmod(0o1777)
    assert denied == f"False|this user may not make files in {double.path}|sudo chmod 1777 {double.path}"
    assert other == "thp"
    allowed, mine = as_nobody(program).splitlines()
    assert allowed.startswith("True|one set of page tables for all")
    assert mine == "msharefs"


def test_no_address_space(msharefs: Callable[[int], Any], run: Callable[..., str], unique: str) -> None:
    """A process whose address space is limited goes on to the next kind; as a worker it is told."""
    msharefs(512 * GIB)
    program = """
import resource, sys, sharedregion as sr
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
if sys.argv[2] == "host":
    with sr.create(sys.argv[1], size="64 MiB") as region:
        print(region.backend)
    try:
        sr.create(sys.argv[1], size="64 MiB", backend="msharefs")
    except sr.BackendUnavailable as error:
        print(error.message)
else:
    try:
        sr.attach(sys.argv[1])
    except sr.BackendUnavailable as error:
        print(error.message)
"""
    backend, message = run(program, unique, "host").splitlines()
    assert backend == "thp"
    assert "no address space" in message
    with sr.create(unique, size=SIZE, backend="msharefs") as region:
        assert "no address space" in run(program, unique, "worker")
        assert len(region.members()) == 1
    nothing_left(unique)


def test_hugetlb_pool_empty(
    msharefs: Callable[[int], Any], pool: Callable[[int, int], None], unique: str
) -> None:
    """Reserved pages are used where there are any to spare; with none, or too few, shared memory, and it is said."""
    msharefs(512 * GIB)
    with sr.create(unique, size=SIZE, backend="msharefs") as region:
        assert "its memory is shared memory collapsed into 2 MiB pages" in region.reason
    with pytest.raises(sr.BackendUnavailable, match="not to be had|could not be"):
        sr.Region._create(
            name=unique, size=1 << 44, backend="msharefs", place="hugetlb", mode=0o600, persist=False,
            replace=False, commit_all=True, reason="more than the machine has", keeper=opening._KEEPER,
            msharefs=os.environ["SHAREDREGION_MSHAREFS"],
        )  # fmt: skip
    nothing_left(unique)


def test_nothing_to_repair(
    msharefs: Callable[[int], Any], pool: Callable[[int, int], None], unique: str
) -> None:
    """Reserved pages are never split: repair() has nothing to do, for a writer and for a reader."""
    pool(2 << 20, 16)
    double = msharefs(512 * GIB)
    region = sr.Region._create(
        name=unique, size=8 << 20, backend="msharefs", place="hugetlb", mode=0o600, persist=False,
        replace=False, commit_all=False, reason="", keeper=opening._KEEPER, msharefs=double.path,
    )._settle_in(None)  # fmt: skip
    with region:
        region["x"] = bytes(3 << 20)
        region.repair()
        with sr.attach(unique) as reader:
            reader.repair()
            assert reader["x"] == bytes(3 << 20)


def test_keeper_that_cannot_start(msharefs: Callable[[int], Any], unique: str) -> None:
    """Without its executable nothing is made, and nothing is left."""
    double = msharefs(2 << 20)
    with pytest.raises(sr.BackendUnavailable, match="keeper"):
        sr.Region._create(
            name=unique, size=SIZE, backend="msharefs", place="memfd", mode=0o600, persist=False,
            replace=False, commit_all=False, reason="", keeper="/nonexistent", msharefs=double.path,
        )  # fmt: skip
    nothing_left(unique)
    assert not double.regions()


def test_refused_once_is_not_tried_again_by_auto(msharefs: Callable[[int], Any], unique: str) -> None:
    """Each region that is made leaks kernel memory: what the kernel refused, auto does not ask for again."""
    double = msharefs(512 * GIB)
    double.tell("refuse", "ioctl", errno.ENOTTY)
    with sr.create(unique, size=SIZE) as region:
        assert region.backend == "thp"
    double.tell("allow")
    with sr.create(unique, size=SIZE) as region:
        assert region.backend == "thp"
    with sr.create(unique, size=SIZE, backend="msharefs") as region:
        assert region.backend == "msharefs"
    with sr.create(unique, size=SIZE) as region:
        assert region.backend == "msharefs", "it was seen to work"


def test_found_in_the_mount_table_or_by_name(msharefs: Callable[[int], Any], unique: str) -> None:
    """SHAREDREGION_MSHAREFS says where it is, and the reason of a region says so."""
    double = msharefs(512 * GIB)
    assert _native.msharefs_try(double.path) == ("v3", 512 * GIB)
    with sr.create(unique, size=SIZE) as region:
        assert region.backend == "msharefs"
        assert double.path in region.reason
