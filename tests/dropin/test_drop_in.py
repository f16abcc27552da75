"""The drop-in beside the standard library: names, errors, pickles, descriptors, page tables, children."""

import errno
import importlib
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sharedregion
from sharedregion import _blocks, _tracking, shared_memory
from sharedregion.managers import SharedMemoryManager

STANDARD = "multiprocessing.shared_memory"
OURS = "sharedregion.shared_memory"
standard = importlib.import_module(STANDARD)


def test_every_public_name_and_parameter_is_there() -> None:
    """What a program can say to the standard module it can say to this one, on every Python with track=."""
    assert set(standard.__all__) == set(shared_memory.__all__)
    for name in standard.__all__:
        theirs, ours = getattr(standard, name), getattr(shared_memory, name)
        assert {n for n in dir(theirs) if not n.startswith("_")} <= {
            n for n in dir(ours) if not n.startswith("_")
        }
        expected = inspect.signature(theirs).parameters
        found = inspect.signature(ours).parameters
        for parameter in expected.values():
            assert found[parameter.name].default == parameter.default
            assert found[parameter.name].kind == parameter.kind
    assert inspect.signature(shared_memory.SharedMemory).parameters["track"].default is True


MISUSE = {
    "a negative size": lambda m, n: m.SharedMemory(create=True, size=-2),
    "no size": lambda m, n: m.SharedMemory(create=True),
    "a size of 0": lambda m, n: m.SharedMemory(create=True, size=0),
    "no name": lambda m, n: m.SharedMemory(),
    "a missing name": lambda m, n: m.SharedMemory(n + "-missing"),
    "an existing name": lambda m, n: m.SharedMemory(n, create=True, size=1),
    "an existing name, and a huge size": lambda m, n: m.SharedMemory(n, create=True, size=1 << 62),
    "a name with a slash": lambda m, n: m.SharedMemory("a/b", create=True, size=1),
    "an empty name": lambda m, n: m.SharedMemory("", create=True, size=1),
    "the folder itself": lambda m, n: m.SharedMemory("..", create=True, size=1),
    "the folder itself to attach to": lambda m, n: m.SharedMemory("."),
    "a name that is one byte too long": lambda m, n: m.SharedMemory("x" * 256, create=True, size=1),
    "a long name": lambda m, n: m.SharedMemory("x" * 300, create=True, size=1),
    "a long name to attach to": lambda m, n: m.SharedMemory("x" * 300),
    "a size beyond all": lambda m, n: m.SharedMemory(n + "-odd", create=True, size=1 << 80),
    "a huge size": lambda m, n: m.SharedMemory(n + "-odd", create=True, size=1 << 62),
    "a size that is text": lambda m, n: m.SharedMemory(n + "-odd", create=True, size="1"),
    "a size with a fraction": lambda m, n: m.SharedMemory(n + "-odd", create=True, size=1.5),
    "a second unlink": lambda m, n: [m.SharedMemory(n).unlink() for _ in range(2)],
    "a list of lists": lambda m, n: m.ShareableList([[1]]),
    "an item out of range": lambda m, n: _with_list(m, lambda items: items[5]),
    "an assignment out of range": lambda m, n: _with_list(m, lambda items: items.__setitem__(5, 1)),
    "a text that is too long": lambda m, n: _with_list(m, lambda items: items.__setitem__(1, "x" * 99)),
    "an item of another type": lambda m, n: _with_list(m, lambda items: items.__setitem__(1, {})),
    "what is not in the list": lambda m, n: _with_list(m, lambda items: items.index("nothing")),
}


def _with_list(module: Any, use: Any) -> Any:
    items = module.ShareableList([1, "two"])
    try:
        return use(items)
    finally:
        items.shm.close()
        items.shm.unlink()


@pytest.mark.parametrize("misuse", MISUSE)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_errors_are_the_standard_ones_and_say_more(misuse, block_name) -> None:
    """The same class and errno, the same filename, and at least as many words; and nothing is left."""
    before = set(os.listdir("/dev/shm"))
    block = shared_memory.SharedMemory(block_name, create=True, size=10)
    raised = []
    for module in (standard, shared_memory):
        with pytest.raises(Exception) as caught:
            MISUSE[misuse](module, block_name)
        raised.append(caught.value)
        if module is standard:
            # A wrong size leaves a file of no bytes behind there.
            Path(f"/dev/shm/{block_name}-odd").unlink(missing_ok=True)
        if not Path("/dev/shm", block_name).exists():
            block.close()
            block = shared_memory.SharedMemory(block_name, create=True, size=10)
    block.close()
    block.unlink()
    theirs, ours = raised
    if misuse != "a huge size":
        # The standard library makes such a file, and fails to map it.
        assert isinstance(ours, type(theirs)), (theirs, ours)
        assert getattr(ours, "errno", None) == getattr(theirs, "errno", None)
    assert isinstance(ours, OSError) or misuse != "a huge size"
    assert getattr(ours, "filename", None) == getattr(theirs, "filename", None) or misuse == "a huge size"
    assert len(str(ours)) >= len(str(theirs)) or misuse in (
        "a size beyond all",
        "a size that is text",
        "a huge size",
    )
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith(block_name)}


def test_use_after_close() -> None:
    """buf is None, close() and unlink() still work, the list says that it is closed."""
    block = shared_memory.SharedMemory(create=True, size=10)
    buf = block.buf
    block.close()
    block.close()
    assert block.buf is None and block.size == 10
    with pytest.raises(ValueError, match="released"):
        buf[0]
    block.unlink()
    with pytest.raises(FileNotFoundError, match="unlinked already"):
        block.unlink()
    items = shared_memory.ShareableList([1])
    items.shm.close()
    with pytest.raises(ValueError, match="closed"):
        items[0]
    items.shm.unlink()


@pytest.mark.root
def test_permission_denied_says_whose_it_is(as_nobody, block_name) -> None:
    """Another user gets PermissionError with the owner and the mode in it, and takes nothing away."""
    block = shared_memory.SharedMemory(block_name, create=True, size=10)
    said = as_nobody(
        "from sharedregion.shared_memory import SharedMemory\n"
        f"try:\n    SharedMemory({block_name!r})\nexcept PermissionError as error:\n    print(error)\n"
        "own = SharedMemory(create=True, size=5 << 20)\nown.buf[-1] = 1\nown.close()\nown.unlink()"
    )
    assert "belongs to user 0 and has mode 600; this is user 65534" in said
    assert Path("/dev/shm", block_name).exists()
    block.close()
    block.unlink()


@pytest.mark.root
def test_a_memory_group_that_is_too_small(memory_group) -> None:
    """Where taking the memory would be SIGKILL, it is OSError, and the message names the group."""
    code = (
        f"from {OURS} import SharedMemory\nimport errno\n"
        "try:\n    SharedMemory(create=True, size=256 << 20)\nexcept OSError as error:\n"
        "    assert error.errno == errno.ENOMEM\n    print(error)"
    )
    done = subprocess.run(
        [*memory_group(128 << 20), sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "memory limit of" in done.stdout and "sharedregion-test" in done.stdout


RACE = """
import multiprocessing as mp, os, stat, sys
from sharedregion.shared_memory import SharedMemory
def racer(number, barrier, rounds, wins):
    for n in range(rounds):
        name = f"{sys.argv[1]}-{n}"
        path = f"/dev/shm/{name}"
        if number == 0:
            with open(path, "wb") as file:
                file.write(bytes(10))
            os.chmod(path, 0o600 | stat.S_ISVTX)
        barrier.wait()
        try:
            SharedMemory(name, create=True, size=20, track=False)
            with wins.get_lock():
                wins[n] += 1
        except FileExistsError:
            pass
        barrier.wait()
        if number == 0:
            os.unlink(path)
context = mp.get_context("fork")
rounds, racers = 1500, 4
wins, barrier = context.Array("i", rounds), context.Barrier(racers)
processes = [context.Process(target=racer, args=(n, barrier, rounds, wins)) for n in range(racers)]
for process in processes:
    process.start()
for process in processes:
    process.join()
print(sum(won != 1 for won in wins))
"""


def test_one_of_many_makes_an_orphans_block_anew(block_name) -> None:
    """Workers of a program that starts again all try to make its block: one does, the others find it."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", RACE, block_name], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_tracker_that_cannot_be_started(block_name) -> None:
    """With no descriptor left for its pipe: OSError, and no block that nobody would clean up after."""
    code = (
        f"from {OURS} import SharedMemory\nimport errno, os, resource, sys\nfrom multiprocessing import resource_tracker\n"
        "os.closerange(3, 1000)\nrefused = 0\n"
        "for more in range(6):\n    resource.setrlimit(resource.RLIMIT_NOFILE, (3 + more, 1000))\n"
        "    try:\n        SharedMemory(sys.argv[1], create=True, size=10).unlink()\n"
        "    except OSError as error:\n        refused += 1\n        assert error.errno == errno.EMFILE\n"
        "    assert not os.path.exists('/dev/shm/' + sys.argv[1])\n"
        "assert refused >= 4"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, block_name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_there_is_not_enough_of_is_named(block_name) -> None:
    """Address space and files of /dev/shm are not taken for memory."""
    code = (
        f"from {OURS} import SharedMemory\nimport resource, sys\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20),) * 2)\n"
        "try:\n    SharedMemory(sys.argv[1], create=True, size=8 << 20)\nexcept OSError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, block_name], capture_output=True, text=True, check=True
    )
    assert "Cannot allocate memory: 8388608 bytes of address space could not be mapped" in done.stdout


@pytest.mark.root
def test_no_more_files(block_name) -> None:
    """A /dev/shm with room for bytes and none for another file says so."""
    code = (
        f"from {OURS} import SharedMemory\nblocks = []\n"
        "try:\n    while True:\n        blocks.append(SharedMemory(create=True, size=10))\n"
        "except OSError as error:\n    print(error)\nfor block in blocks:\n    block.unlink()"
    )
    mount = 'mount -t tmpfs -o size=8m,nr_inodes=9 none /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "No space left on device: the block needs 10 B, and /dev/shm has no more files" in done.stdout


@pytest.mark.parametrize(("creator", "attacher"), [(STANDARD, OURS), (OURS, STANDARD), (OURS, OURS)])
def test_lists_are_one_layout(creator, attacher) -> None:
    """Each side reads and replaces what the other wrote; also after the other replaced it."""
    made = importlib.import_module(creator).ShareableList(
        ["howdy", b"HoWdY", -273.154, 100, None, True, 42, "x" * 40]
    )
    there = importlib.import_module(attacher).ShareableList(name=made.shm.name)
    try:
        assert list(made) == list(there) and made.format == there.format and len(there) == 8
        for writer, reader in ((made, there), (there, made)):
            for position, value in ((0, "été"), (1, b"1234567"), (2, 7), (3, "no room"), (4, 2.5), (7, "")):
                writer[position] = value
                assert reader[position] == value and type(reader[position]) is type(value)
            writer[4] = None
            assert reader[4] is None
    finally:
        there.shm.close()
        made.shm.close()
        made.shm.unlink()


def test_a_text_with_nuls_is_read_by_the_standard_library() -> None:
    """It reads what it always reads, without the NULs, and can write over it."""
    made = shared_memory.ShareableList([b"ab\0\0", b"1234567\0", b"z" * 20])
    made[2] = b"end\0"
    there = standard.ShareableList(name=made.shm.name)
    try:
        assert list(there) == [b"ab", b"1234567", b"end"]
        there[0] = b"12345678"
        there[2] = b"y" * 24
        assert made[0] == b"12345678" and made[2] == b"y" * 24
    finally:
        there.shm.close()
        made.shm.close()
        made.shm.unlink()


def test_lengths_that_later_versions_write_are_read() -> None:
    """A format shorter than its room is a length: NULs within it belong to the text."""
    made = standard.ShareableList([b"abcdefgh", "abc"])
    made._set_packing_format_and_transform(0, "5s", b"")
    made.shm.buf[made._offset_data_start : made._offset_data_start + 5] = b"ab\0\0\0"
    there = shared_memory.ShareableList(name=made.shm.name)
    assert there[0] == b"ab\0\0\0" and there[1] == "abc"
    there.shm.close()
    made.shm.close()
    made.shm.unlink()


@pytest.mark.parametrize("damage", ["count", "offsets", "short"])
def test_what_is_no_list_is_refused(damage) -> None:
    """A block with other bytes gives ValueError and nothing else."""
    block = shared_memory.SharedMemory(create=True, size=8 if damage == "short" else 64)
    if damage == "count":
        block.buf[:8] = b"\xff" * 7 + b"\x7f"
    elif damage == "offsets":
        block.buf[:8] = (2).to_bytes(8, "little")
        block.buf[8:32] = b"\x11" * 24
    with pytest.raises(ValueError, match="holds no ShareableList"):
        shared_memory.ShareableList(name=block.name)
    block.close()
    block.unlink()


def test_pickles_attach() -> None:
    """Blocks and lists travel by name, in every protocol."""
    block, items = shared_memory.SharedMemory(create=True, size=10), shared_memory.ShareableList([1, "two"])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        other, others = pickle.loads(pickle.dumps((block, items), protocol))
        other.buf[0] = 9 + protocol
        assert block.buf[0] == 9 + protocol and list(others) == [1, "two"]
        other.close()
        others.shm.close()
    for one in (block, items.shm):
        one.close()
        one.unlink()


def test_the_manager_makes_blocks_that_end_with_it() -> None:
    """SharedMemoryManager gives this module's classes; at its end the names are gone, also unlinked ones' neighbours."""
    with SharedMemoryManager() as manager:
        block, items = manager.SharedMemory(3 << 20), manager.ShareableList(["a\0", 2])
        gone = manager.SharedMemory(10)
        assert type(block) is shared_memory.SharedMemory and type(items) is shared_memory.ShareableList
        assert list(items) == ["a\0", 2]
        gone.unlink()
        names = [block.name, items.shm.name, gone.name]
    for name in names:
        with pytest.raises(FileNotFoundError):
            shared_memory.SharedMemory(name)
    for one in (block, items.shm, gone):
        one.close()


COUNT = """
import importlib, os, resource, sys
module, count = importlib.import_module(sys.argv[1]), int(sys.argv[2])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
most = 2 * count + 100
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, max(hard, most)))
except ValueError:
    # A limit that not even root may raise here.
    most = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
def descriptors():
    return len(os.listdir("/proc/self/fd"))
before = descriptors()
blocks = [module.SharedMemory(create=True, size=64)]
while len(blocks) < count and blocks[-1]._fd < most - 10:
    blocks.append(module.SharedMemory(create=True, size=64))
print(len(blocks), descriptors() - before - 1)
for block in blocks:
    block.close()
    block.unlink()
assert descriptors() == before + 1, "the tracker's pipe is all that stays"
"""


@pytest.mark.root
def test_ten_thousand_blocks_take_one_descriptor_each() -> None:
    """10,000 blocks take one descriptor each, and no more than the standard library's, as many as fit below 20,000; all given back."""
    made, taken = {}, {}
    for module in (OURS, STANDARD):
        done = subprocess.run(
            [sys.executable, "-P", "-c", COUNT, module, "10000"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        made[module], taken[module] = map(int, done.stdout.split())
    assert made[OURS] == taken[OURS] == 10_000
    assert made[STANDARD] >= 9_800
    assert taken[OURS] <= taken[STANDARD]


TABLES = """
import importlib, sys
module = importlib.import_module(sys.argv[1])
def tables():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmPTE:"))
before = tables()
block = module.SharedMemory(sys.argv[2])
view = block.buf
for at in range(0, len(view), 4096):
    view[at]
print(tables() - before)
view = None
block.close()
"""


def test_a_worker_that_touches_a_block_pays_kilobytes() -> None:
    """256 MiB touched in a fresh process: 20 KiB of page tables or less, and an odd end costs one table more."""
    for size in (256 << 20, (256 << 20) + 123_457):
        block = shared_memory.SharedMemory(create=True, size=size)
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", TABLES, OURS, block.name],
                capture_output=True,
                text=True,
                check=True,
            )
        finally:
            block.close()
            block.unlink()
        assert int(done.stdout) <= 20 + 4 * (size % (2 << 20) > 0)


def test_small_blocks_take_what_they_need() -> None:
    """A block of less than 2 MiB, and the odd end of a larger one, take whole 4 KiB pages and no more."""
    for size in (1, 5000, (2 << 20) - 1, (4 << 20) + 1):
        block = shared_memory.SharedMemory(create=True, size=size)
        assert os.stat(f"/dev/shm/{block.name}").st_blocks * 512 == -(-size // 4096) * 4096
        block.close()
        block.unlink()


def test_the_kernel_shows_the_name() -> None:
    """/proc/PID/maps shows the creator's mapping by the block's name."""
    block = shared_memory.SharedMemory(create=True, size=100)
    assert f"/dev/shm/{block.name}\n" in Path("/proc/self/maps").read_text()
    block.close()
    block.unlink()


def test_umask_and_mode_count() -> None:
    """A subclass's mode is taken as open(2) takes it, less the umask."""

    class Open(shared_memory.SharedMemory):
        _mode = 0o666

    old = os.umask(0o027)
    try:
        block = Open(create=True, size=10)
    finally:
        os.umask(old)
    assert os.stat(f"/dev/shm/{block.name}").st_mode & 0o777 == 0o640
    block.close()
    block.unlink()


def test_names_that_the_tracker_cannot_carry() -> None:
    """Other alphabets and colons are names; only their tracking is left out."""
    for name in (f"blöck-{os.getpid()}", f"a:b-{os.getpid()}"):
        block = shared_memory.SharedMemory(name, create=True, size=10)
        assert shared_memory.SharedMemory(name).size == 10
        block.close()
        block.unlink()
        assert not _tracking._can_carry(name)


@pytest.mark.parametrize("creator", [STANDARD, OURS])
@pytest.mark.parametrize("attacher", [STANDARD, OURS])
def test_the_longest_name(creator, attacher) -> None:
    """A name of 255 bytes is one on both sides, and is tracked."""
    name = f"{os.getpid()}".ljust(255, "n")
    block = importlib.import_module(creator).SharedMemory(name, create=True, size=10)
    there = importlib.import_module(attacher).SharedMemory(name)
    assert there.name == name and _tracking._can_carry(name)
    there.close()
    block.close()
    block.unlink()


@pytest.fixture(params=["hugetlb", "msharefs"])
def kind(request) -> str:
    """A kind of memory without a file in /dev/shm, which is there."""
    if request.param == "hugetlb":
        request.getfixturevalue("pool")(2 << 20, 24)
    else:
        request.getfixturevalue("msharefs")(2 << 20)
    return str(request.param)


@pytest.mark.root
@pytest.mark.parametrize("size", [1, 4096, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, (4 << 20) - 4096, 5 << 20])
def test_blocks_without_a_file(kind, size, block_name, program) -> None:
    """backend=: no file in /dev/shm, its size to the byte, found by its name all the same, gone with its last user."""
    block = shared_memory.SharedMemory(block_name, create=True, size=size, backend=kind)
    assert block.size == size == len(block.buf) and bytes(block.buf) == bytes(size)
    assert not Path("/dev/shm", block_name).exists()
    block.buf[size - 1] = 7
    user = program(
        f"from {OURS} import SharedMemory\nimport sys\nb = SharedMemory(sys.argv[1])\nb.buf[-1] += 1\n"
        "print(b.size, len(b.buf), flush=True)\nb.close()",
        block_name,
    )
    assert user.read() == f"{size} {size}"
    assert user.end() == (0, "")
    assert block.buf[size - 1] == 8
    view = block.buf[size - 1 :]
    block.close()
    assert bytes(view) == b"\x08"
    del view
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(block_name)


@pytest.mark.root
def test_one_name_for_all_kinds(kind, block_name) -> None:
    """A name is one block's, with a file or without: whoever comes second gets FileExistsError."""
    for first, second in ((kind, kind), (kind, None), (None, kind)):
        block = shared_memory.SharedMemory(block_name, create=True, size=3 << 20, backend=first)
        with pytest.raises(FileExistsError) as caught:
            shared_memory.SharedMemory(block_name, create=True, size=1 << 20, backend=second)
        assert (caught.value.errno, caught.value.filename) == (errno.EEXIST, f"/{block_name}")
        block.close()
        if first is None:
            block.unlink()


@pytest.mark.root
def test_what_a_block_without_a_file_cannot_be(kind) -> None:
    """A name that has no room beside a region's own, and a size beyond all, are OSErrors as for other blocks."""
    for name, size, number in (("n" * 240, 3 << 20, errno.EINVAL), ("n", 1 << 62, None)):
        with pytest.raises(OSError) as caught:
            shared_memory.SharedMemory(name, create=True, size=size, backend=kind)
        assert number in (None, caught.value.errno)


@pytest.mark.root
def test_a_block_without_a_file_appears_whole(kind, block_name) -> None:
    """Between the making of its region and of the block in it, there is no block."""
    region = sharedregion.create(f"shm.{block_name}", size=4 << 20, backend=kind)
    with region, pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(block_name)


@pytest.mark.root
def test_a_block_without_a_file_that_stays(kind, block_name, program) -> None:
    """track=False: it outlives its creator, until someone unlinks it, once."""
    creator = program(
        f"from {OURS} import SharedMemory\nimport sys\n"
        "b = SharedMemory(sys.argv[1], create=True, size=3 << 20, track=False, backend=sys.argv[2])\nb.buf[0] = 9",
        block_name,
        kind,
    )
    assert creator.end() == (0, "")
    block = shared_memory.SharedMemory(block_name)
    assert block.buf[0] == 9
    block.unlink()
    with pytest.raises(FileNotFoundError, match="unlinked already"):
        block.unlink()
    block.close()
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(block_name)


def test_the_variable_chooses(monkeypatch) -> None:
    """SHAREDREGION_SHM_BACKEND stands in for backend=; SHAREDREGION_BACKEND does not touch the drop-in."""
    monkeypatch.setenv("SHAREDREGION_BACKEND", "nonsense")
    monkeypatch.setenv("SHAREDREGION_SHM_BACKEND", "shm")
    plain = shared_memory.SharedMemory(create=True, size=8 << 20)
    done = subprocess.run(
        [sys.executable, "-P", "-c", TABLES, OURS, plain.name], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) >= 12
    plain.close()
    plain.unlink()
    monkeypatch.setenv("SHAREDREGION_SHM_BACKEND", "cheese")
    with pytest.raises(ValueError, match="SHAREDREGION_SHM_BACKEND 'cheese'"):
        shared_memory.SharedMemory(create=True, size=8 << 20)


@pytest.mark.skipif(not hasattr(_blocks, "fail_call"), reason="needs a build with -Dfault_injection=true")
def test_every_kernel_call_of_a_creation_fails_once() -> None:
    """Each call made to fail: OSError or success; no descriptor, mapping or name left behind."""
    answers = {
        "fallocate": errno.ENOSPC,
        "mmap": errno.ENOMEM,
        "madvise": errno.EINVAL,
        "linkat": errno.EPERM,
    }

    def state() -> tuple[int, int, set[str]]:
        names = {name for name in os.listdir("/dev/shm") if name.startswith("sr-fail-")}
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("sr-fail-") + maps.count("/dev/shm/#"), names

    def create() -> None:
        name, size = f"sr-fail-{os.getpid()}", (5 << 20) + 5000
        fd, _mapping = _blocks.create(size, 0o600, True)
        try:
            named, again = _blocks.publish(fd, name, size)
            assert len(again) == (size if named != fd else 0)
            if named != fd:
                os.close(named)
            os.unlink(f"/dev/shm/{name}")
        finally:
            os.close(fd)

    before = state()
    _blocks.count_calls()
    create()
    made = _blocks.calls()
    assert {"openat", "ftruncate", "mmap", "fallocate", "madvise", "linkat"} <= set(made)
    failures = 0
    try:
        del made["munmap"]  # What cannot be unmapped stays mapped.
        for call, count in made.items():
            for nth in range(1, count + 1):
                _blocks.fail_call(call, nth, answers.get(call, errno.EIO))
                try:
                    create()
                except OSError:
                    failures += 1
                assert state() == before, (call, nth)
    finally:
        _blocks.fail_none()
    assert failures >= 8
