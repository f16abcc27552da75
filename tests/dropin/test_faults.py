"""The known faults of multiprocessing.shared_memory: there on the standard library, gone here.

Each test states what should be so. On the standard library it is expected to fail, strictly: the day
that a Python has it mended, the mark goes, and nothing else changes.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STANDARD = "multiprocessing.shared_memory"
OURS = "sharedregion.shared_memory"


def exists(name: str) -> bool:
    """Whether the block has its name."""
    return os.path.exists(f"/dev/shm/{name.lstrip('/')}")


def until(condition: Callable[[], bool], patience: float = 20) -> bool:
    """Whether it became true."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def both(fault: str) -> Any:
    """The test on each module; `fault` says what is wrong with the standard one."""
    return pytest.mark.parametrize(
        "module", [OURS, pytest.param(STANDARD, marks=pytest.mark.xfail(reason=fault, strict=True))]
    )


@both("cpython#82300: the attacher's tracker unlinks the block and warns")
def test_an_attachers_exit_takes_nothing_away(module, program, block_name) -> None:
    """A program that attached and ended leaves the block to its creator, and no warning."""
    creator = program(
        f"from {OURS} import SharedMemory\nimport sys\nb = SharedMemory(sys.argv[1], True, 100)\n"
        "print('made', flush=True)\ninput()\nb.close()\nb.unlink()",
        block_name,
    )
    assert creator.read() == "made"
    attacher = program(
        f"from {module} import SharedMemory\nimport sys\nb = SharedMemory(sys.argv[1])", block_name
    )
    assert attacher.end() == (0, "")
    assert exists(block_name)
    creator.tell()
    assert creator.end() == (0, "")


@both("cpython#153279: an attach that fails unlinks the block")
def test_a_failed_attach_takes_nothing_away(module, program, block_name) -> None:
    """A process with too little address space cannot attach; the block stays for those who can."""
    from sharedregion.shared_memory import SharedMemory

    block = SharedMemory(block_name, create=True, size=64 << 20)
    code = (
        f"from {module} import SharedMemory\nimport resource, sys\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)\n"
        "try:\n    SharedMemory(sys.argv[1])\n"
        "except OSError as error:\n    print(error.errno, flush=True)"
    )
    # With a tracker of its own that has nothing to do with it.
    failed = program(code, block_name)
    assert failed.read() == "12"
    there = exists(block_name)
    failed.end()
    block.close()
    if there:
        block.unlink()
    assert there


@pytest.mark.root
@both("cpython#114390: a full /dev/shm is SIGBUS at the first touch")
def test_memory_is_there_or_refused(module, program, block_name) -> None:
    """A block that /dev/shm has no room for is an OSError when it is made, and leaves nothing."""
    code = (
        f"from {module} import SharedMemory\nimport sys, errno, os\n"
        "try:\n    b = SharedMemory(sys.argv[1], create=True, size=16 << 20)\n"
        "except OSError as error:\n    assert error.errno == errno.ENOSPC, error\n    assert '16 MiB' in str(error), error\n"
        "    assert not os.listdir('/dev/shm')\n"
        "else:\n    b.buf[:] = bytes(16 << 20)"
    )
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=8m none /dev/shm && exec "$@"', "sh"),
            *(sys.executable, "-P", "-c", code, block_name),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@both("the name appears before the size: who attaches in between gets an empty file")
def test_a_block_appears_whole(module, program, block_name) -> None:
    """Whoever sees the name sees all bytes behind it, however often blocks come and go."""
    code = (
        f"from {module} import SharedMemory\nimport sys\nprint('ready', flush=True)\n"
        "while True:\n    b = SharedMemory(sys.argv[1], create=True, size=5000)\n    b.close()\n    b.unlink()"
    )
    maker = program(code, block_name, start_new_session=True)
    maker.read()
    path, sizes = f"/dev/shm/{block_name}", set()
    for _ in range(300_000):
        try:
            sizes.add(os.stat(path).st_size)
        except FileNotFoundError:
            continue
        if len(sizes) > 1:
            break
    maker.kill()
    assert sizes == {5000}


@both("cpython#115635: BufferError, from close() and again from __del__")
def test_close_with_a_live_view(module, block_name) -> None:
    """close() never complains of views, and they stay readable."""
    block = importlib.import_module(module).SharedMemory(block_name, create=True, size=100)
    view = block.buf[10:20]
    view[:5] = b"hello"
    try:
        block.close()
        assert bytes(view[:5]) == b"hello"
    finally:
        view.release()
        block.close()
        block.unlink()


@both("cpython#115635: the array looks at memory that is not mapped any more")
def test_arrays_outlive_close(module) -> None:
    """An array over a block stays valid after close(), and after the SharedMemory object is gone."""
    code = (
        f"from {module} import SharedMemory\nimport numpy as np\n"
        "b = SharedMemory(create=True, size=4 << 20)\nb.unlink()\n"
        "a = np.ndarray((1 << 20,), 'u4', buffer=b.buf)\na[:] = 7\nb.close()\ndel b\nassert a.sum() == 7 << 20\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=False)
    assert done.returncode == 0


@both("cpython#106939, #96779: NULs at the end are taken for padding")
@pytest.mark.parametrize(
    "text", [b"\0", b"ab\0\0", bytes(50), b"1234567\0", "x\0", "\0" * 8, b"y" * 1_200_000 + b"\0"]
)
def test_lists_keep_trailing_nuls(module, text) -> None:
    """A text that ends in NULs comes back as it is: from the start, and when it is written over another."""
    items = importlib.import_module(module).ShareableList(
        [text, b"z" * len(text.encode() if isinstance(text, str) else text)]
    )
    try:
        first, items[1] = items[0], text
        assert first == text and items[1] == text
    finally:
        items.shm.close()
        items.shm.unlink()


@both("cpython#145261: room is counted in characters, and filled in bytes")
@pytest.mark.parametrize("text", ["0\U00010000\U00010000", "é" * 7, "日本語日本語日本語", "a" * 6 + "€"])
def test_lists_hold_any_character(module, text) -> None:
    """Every text comes back, and does its neighbours no harm."""
    items = importlib.import_module(module).ShareableList([text, "next", text])
    try:
        assert list(items) == [text, "next", text]
    finally:
        items.shm.close()
        items.shm.unlink()


@both("a value that does not fit leaves its format behind, over the old value's bytes")
def test_an_assignment_that_fails_changes_nothing(module) -> None:
    """A number that is too large is refused, and the item is what it was."""
    items = importlib.import_module(module).ShareableList([2.5])
    try:
        with pytest.raises(Exception, match=r"."):
            items[0] = 1 << 70
        assert items[0] == 2.5
    finally:
        items.shm.close()
        items.shm.unlink()


@pytest.mark.parametrize("creator", [STANDARD, OURS])
@pytest.mark.parametrize("attacher", [STANDARD, OURS])
@pytest.mark.parametrize("size", [1, 8, 4095, 4097, (2 << 20) - 1, (2 << 20) + 1, (5 << 20) + 12345])
def test_size_is_what_was_asked_for_on_both_sides(creator, attacher, size, block_name) -> None:
    """cpython#145954, #101623: size, length of buf and the file agree, whoever made the block. (On Linux
    the standard library keeps this too; large pages must not break it.)"""
    made = importlib.import_module(creator).SharedMemory(block_name, create=True, size=size)
    there = importlib.import_module(attacher).SharedMemory(block_name)
    try:
        assert made.size == there.size == len(made.buf) == len(there.buf) == size
        assert os.stat(f"/dev/shm/{block_name}").st_size == size
        there.buf[size - 1] = 42
        assert made.buf[size - 1] == 42
        with pytest.raises(IndexError):
            there.buf[size] = 1
    finally:
        there.close()
        made.close()
        made.unlink()
        if attacher == STANDARD and creator == OURS:
            # The standard attacher registered what the creator's unlink() took out again.
            assert not exists(block_name)


@both("cpython#82300: the block is unlinked although others use it")
def test_a_block_in_use_outlives_its_creators_death(module, program, block_name) -> None:
    """After SIGKILL of the creator a block that a standard-library process maps keeps its name, and loses it after that."""
    code = (
        f"from {module} import SharedMemory\nimport sys\nb = SharedMemory(sys.argv[1], create=True, size=4 << 20)\n"
        "b.buf[:2] = b'hi'\nprint('made', flush=True)\ninput()"
    )
    creator = program(code, block_name)
    creator.read()
    user = program(
        "import mmap, os, sys\nfd = os.open('/dev/shm/' + sys.argv[1], os.O_RDWR)\nm = mmap.mmap(fd, 0)\nos.close(fd)\n"
        "print('mapped', flush=True)\ninput()\nprint(m[:2].decode(), flush=True)",
        block_name,
    )
    user.read()
    creator.kill()
    assert "1 leaked shared_memory" in creator.process.communicate(timeout=60)[1]
    assert exists(block_name)
    from sharedregion.shared_memory import SharedMemory

    another = SharedMemory(block_name)
    assert bytes(another.buf[:2]) == b"hi"
    another.close()
    user.tell()
    assert user.read() == "hi"
    user.end()
    assert until(lambda: not exists(block_name))


@pytest.mark.parametrize("module", [OURS, STANDARD])
def test_a_block_nobody_uses_is_reclaimed(module, program, block_name) -> None:
    """After SIGKILL of the creator a tracked block that nobody maps goes; an untracked one stays."""
    if module == STANDARD and sys.version_info < (3, 13):
        untracked = "SharedMemory(sys.argv[2], True, 10)\nfrom multiprocessing import resource_tracker as t\nt.unregister(c._name, 'shared_memory')"
    else:
        untracked = "SharedMemory(sys.argv[2], True, 10, track=False)"
    kept = block_name + "-kept"
    creator = program(
        f"from {module} import SharedMemory\nimport sys\nb = SharedMemory(sys.argv[1], create=True, size=4 << 20)\n"
        f"c = {untracked}\nprint('made', flush=True)\ninput()",
        block_name,
        kept,
    )
    creator.read()
    creator.kill()
    try:
        assert until(lambda: not exists(block_name))
        assert exists(kept)
    finally:
        Path("/dev/shm", kept).unlink()


def test_a_program_that_starts_again_can_make_its_block(program, block_name) -> None:
    """The name of a killed program's block is free for a new one, though others still use the old block."""
    from sharedregion.shared_memory import SharedMemory

    code = (
        f"from {OURS} import SharedMemory\nimport sys\nb = SharedMemory(sys.argv[1], create=True, size=100)\n"
        "print('made', flush=True)\ninput()"
    )
    first = program(code, block_name)
    first.read()
    old = SharedMemory(block_name)
    old.buf[0] = 5
    first.kill()
    first.process.communicate(timeout=60)
    assert exists(block_name)
    new = SharedMemory(block_name, create=True, size=200)
    assert old.buf[0] == 5 and new.buf[0] == 0 and new.size == 200
    old.close()
    new.close()
    new.unlink()


def test_several_processes_of_one_program_leave_no_warning(program) -> None:
    """Blocks made, attached to, unlinked and passed on by different processes of one program: a silent exit."""
    code = (
        "import multiprocessing as mp\n"
        f"from {OURS} import SharedMemory, ShareableList\n"
        "def child(block, items, queue):\n"
        "    own = SharedMemory(create=True, size=3 << 20)\n    own.buf[0] = block.buf[0] + items[0]\n"
        "    queue.put(own.name)\n    block.close()\n    block.unlink()\n    own.close()\n"
        "if __name__ == '__main__':\n"
        "    for method in ('fork', 'spawn', 'forkserver'):\n"
        "        context = mp.get_context(method)\n"
        "        block, items, queue = SharedMemory(create=True, size=10), ShareableList([4]), context.SimpleQueue()\n"
        "        block.buf[0] = 3\n        process = context.Process(target=child, args=(block, items, queue))\n"
        "        process.start()\n        theirs = SharedMemory(queue.get())\n        process.join()\n"
        "        assert process.exitcode == 0 and theirs.buf[0] == 7\n"
        "        theirs.close()\n        theirs.unlink()\n        items.shm.close()\n        items.shm.unlink()\n        block.close()\n"
    )
    path = Path(f"/tmp/sharedregion-test-{os.getpid()}.py")
    path.write_text(code)
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(path)], capture_output=True, text=True, check=False, timeout=120
        )
    finally:
        path.unlink()
    assert (done.returncode, done.stderr) == (0, "")


def test_the_habit_of_unregistering_does_no_harm(program, block_name) -> None:
    """Programs that work around cpython#82300 by unregistering what they attached to go on silently."""
    creator = program(
        f"from {OURS} import SharedMemory\nimport sys\nb = SharedMemory(sys.argv[1], True, 100)\n"
        "print('made', flush=True)\ninput()\nb.close()\nb.unlink()",
        block_name,
    )
    creator.read()
    attacher = program(
        "from sharedregion import shared_memory\nimport sys\n"
        "b = shared_memory.SharedMemory(sys.argv[1])\nshared_memory.resource_tracker.unregister(b._name, 'shared_memory')\nb.close()",
        block_name,
    )
    assert attacher.end() == (0, "")
    creator.tell()
    assert creator.end() == (0, "")


def test_memory_is_given_back_with_the_last_view() -> None:
    """A closed block is unmapped when the last view or array of it goes, not before and not never."""
    from sharedregion.shared_memory import SharedMemory

    def mapped() -> bool:
        return name in Path("/proc/self/maps").read_text()

    block = SharedMemory(create=True, size=8 << 20)
    name = block.name
    array = np.frombuffer(block.buf, "u1")
    part = block.buf[5:6]
    block.close()
    block.unlink()
    del block
    assert mapped()
    del array
    assert mapped()
    del part
    assert not mapped()


@both("the mapping goes at close(), and what looks at it by its address looks at something else")
def test_memory_stays_for_who_holds_the_view(module, block_name) -> None:
    """torch.frombuffer keeps `buf` and looks at its memory: that stays until `buf` itself is let go, though released."""
    block = importlib.import_module(module).SharedMemory(block_name, create=True, size=8 << 20)
    held = block.buf
    block.close()
    block.unlink()
    with pytest.raises(ValueError, match="released"):
        held[0]

    def mapped() -> bool:
        return block_name in Path("/proc/self/maps").read_text()

    assert mapped()
    del held
    assert not mapped()


HANDING_OVER = """
import sys, time
from {module} import SharedMemory
block = SharedMemory(sys.argv[1], create=True, size=100)
print("made", flush=True)
input()
block.close()
"""


@both("the creator's tracker warns of a block that another program has unlinked")
def test_a_block_may_be_unlinked_by_another_program(module, program, block_name) -> None:
    """One program makes a block, an unrelated one takes it over and unlinks it: both end silently."""
    creator = program(HANDING_OVER.format(module=module), block_name)
    creator.read()
    taker = program(
        f"from {OURS} import SharedMemory\nimport sys\nb = SharedMemory(sys.argv[1])\nb.close()\nb.unlink()",
        block_name,
    )
    assert taker.end() == (0, "")
    creator.tell()
    assert creator.end() == (0, "")


@both("the creator's tracker unlinks whatever has the name by then")
def test_a_name_that_others_have_taken_over_is_theirs(module, program, block_name) -> None:
    """Unlinked and made anew by another program, which wants it to stay: the end of the first one leaves it."""
    creator = program(HANDING_OVER.format(module=module), block_name)
    creator.read()
    other = program(
        f"from {OURS} import SharedMemory\nimport sys\nSharedMemory(sys.argv[1]).unlink()\n"
        "SharedMemory(sys.argv[1], create=True, size=200, track=False)",
        block_name,
    )
    assert other.end() == (0, "")
    creator.tell()
    creator.end()
    assert exists(block_name) and os.stat(f"/dev/shm/{block_name}").st_size == 200


@both("a forked child starts a tracker of its own, which takes the child's end for the program's")
@pytest.mark.parametrize("before", [True, False], ids=["while it runs", "after its end"])
def test_a_forked_child_may_leave_its_block_to_its_parent(module, before) -> None:
    """A child by fork makes a block, the parent attaches, before or after the child's end, and unlinks it: silently."""
    code = (
        f"import multiprocessing as mp, sys\nfrom {module} import SharedMemory\n"
        "def child(pipe):\n    b = SharedMemory(create=True, size=100)\n    b.buf[0] = 7\n    pipe.send(b.name)\n    b.close()\n"
        "context = mp.get_context('fork')\nmine, theirs = context.Pipe()\n"
        "process = context.Process(target=child, args=(theirs,))\nprocess.start()\nname = mine.recv()\n"
        f"if {before}:\n    b = SharedMemory(name)\n"
        "process.join()\n"
        # What the child's own tracker would do, it does when its pipe is closed: by now, or in a moment.
        "import time\ntime.sleep(0.5)\n"
        f"if not {before}:\n    b = SharedMemory(name)\n"
        "assert b.buf[0] == 7\nb.close()\nb.unlink()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# A program that kills itself at a moment of its own making of a block.
DYING = """
import importlib, os, signal, sys
module = importlib.import_module(sys.argv[1])
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def then_kill(call):
    def both(*arguments):
        call(*arguments)
        kill()
    return both
owner, step, after = {
    "before it has its name": ("_blocks", "publish", False),
    "when it has its name": ("_tracking", "watch", False),
    "when it is registered": ("_tracking", "watch", True),
    "when it is unlinked": ("_tracking", "forget", False),
}[sys.argv[3]] if hasattr(module, "_tracking") else ("resource_tracker", "register", False)
owner = getattr(module, owner)
setattr(owner, step, then_kill(getattr(owner, step)) if after else kill)
module.SharedMemory(sys.argv[2], create=True, size=3 << 20).unlink()
"""


def _dies(module: str, name: str, moment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", DYING, module, name, moment], capture_output=True, check=False
    )
    # The tracker holds the pipe of stderr: it has ended, too.
    assert done.returncode == -signal.SIGKILL


@both("a block has its name before its tracker knows of it")
def test_a_creator_killed_before_it_registers_its_block(module, block_name) -> None:
    """SIGKILL right after the block has appeared leaves none."""
    _dies(module, block_name, "when it has its name")
    assert not exists(block_name)


@pytest.mark.parametrize("moment", ["before it has its name", "when it is registered", "when it is unlinked"])
def test_a_creator_killed_between_other_steps(moment, block_name) -> None:
    """SIGKILL between any two steps of making a block leaves none."""
    _dies(OURS, block_name, moment)
    assert not exists(block_name)


CREATING = f"""
import sys
from {OURS} import SharedMemory
print("ready", flush=True)
n = 0
while True:
    block = SharedMemory(f"{{sys.argv[1]}}-{{n}}", create=True, size=100)
    block.close()
    block.unlink()
    n += 1
"""


def test_a_creator_killed_at_any_time(program, block_name) -> None:
    """Programs that make blocks all the time, killed at odd moments, leave none."""
    for n in range(30):
        one = program(CREATING, f"{block_name}-{n}")
        one.read()
        time.sleep(0.05 + 0.0007 * n)
        one.kill()
        one.process.communicate(timeout=60)
    left = list(Path("/dev/shm").glob(f"{block_name}-*"))
    for path in left:
        path.unlink()
    assert not left


@both("the tracker is killed with the rest of its process group")
def test_a_process_group_that_is_killed(module, program, block_name) -> None:
    """SIGKILL to all of a job at once, as `timeout -s KILL` or a supervisor sends it: the tracker cleans up."""
    creator = program(HANDING_OVER.format(module=module), block_name, start_new_session=True)
    creator.read()
    os.killpg(creator.process.pid, signal.SIGKILL)
    creator.process.communicate(timeout=60)
    assert until(lambda: not exists(block_name), 3)


def test_who_replaces_register_keeps_blocks_from_being_registered(program, block_name) -> None:
    """Programs that work around cpython#82300 by replacing register() leave their blocks to others, killed or not."""
    creator = program(
        "from multiprocessing import resource_tracker\nresource_tracker.register = lambda *_: None\n"
        + HANDING_OVER.format(module=OURS),
        block_name,
    )
    creator.read()
    creator.kill()
    assert creator.process.communicate(timeout=60)[1] == ""
    assert exists(block_name)
