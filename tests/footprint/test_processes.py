"""Processes of every shape, and those that are none."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharedregion.footprint import footprint

PAGE = 4096


@pytest.mark.usefixtures("exact")
def test_a_process_whose_leader_thread_has_ended_is_seen_whole(worker: Callable[..., Any]) -> None:
    """After the first thread's exit /proc/PID shows no maps; the memory is found through another thread."""
    code = (
        "import ctypes, mmap, threading, time\n"
        "m = mmap.mmap(-1, 64 << 20, flags=34)\nm.madvise(mmap.MADV_NOHUGEPAGE)\nm.write(bytes(64 << 20))\n"
        "def rest():\n"
        "    while open('/proc/self/status').read().find('State:\\tZ') < 0: time.sleep(0.01)\n"
        "    ready()\n"
        "threading.Thread(target=rest).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)"
    )
    pid = worker(code).pid
    assert Path(f"/proc/{pid}/maps").read_text() == ""
    (process,) = footprint(pid).processes
    assert process.tables.pte >= 32
    assert process.linked_bytes == process.vm_pte_bytes + PAGE * process.tables.pgd


@pytest.mark.usefixtures("exact")
def test_a_child_between_vfork_and_exec_shares_its_parents_memory(
    worker: Callable[..., Any], tmp_path: Path
) -> None:
    """One memory, two processes: both have its figures, each names the other, nothing is counted twice."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # posix_spawn opens files in the child before exec: opening this one takes until a writer comes.
    code = (
        "print('ready', flush=True)\n"
        "os.posix_spawn('/bin/true', ['true'], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)])\n"
        "sys.stdin.read()"
    )
    parent = worker(code, fifo)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while not children.read_text():
        assert parent.poll() is None
        time.sleep(0.01)
    child = int(children.read_text())
    try:
        found = footprint(parent.pid, child)
        by_pid = {process.pid: process for process in found.processes}
        assert by_pid[child].shares_with == (parent.pid,)
        assert by_pid[parent.pid].shares_with == (child,)
        assert by_pid[parent.pid].shares_with_in_all == 1
        assert by_pid[child].linked_bytes == by_pid[parent.pid].linked_bytes == found.distinct_bytes
        assert by_pid[child].private_bytes == 0
        assert by_pid[child].proportional_bytes * 2 == found.distinct_bytes
    finally:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("method", ["walk", "pagemap"])
def test_in_a_pid_namespace_it_says_that_there_are_others(
    ask: Callable[..., Any], helper: str, method: str
) -> None:
    """What a container's root sees is all of the container, not all of the machine, and is not called that."""
    first = os.readlink("/proc/self/ns/pid") == "pid:[4026531836]"
    assert ask("--method", method, os.getpid())["scope"] == ("all" if first else "namespace")
    inside = ("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", 'sleep 100 & "$@"; kill $!', "sh")
    found = ask("--method", method, prefix=inside)
    assert found["scope"] == "namespace"
    # The shell is 1, the sleep 2; the helper tells of everyone but itself.
    assert [process["pid"] for process in found["processes"]] == [1, 2]


@pytest.mark.usefixtures("exact")
def test_a_crowd_with_one_memory_does_not_name_itself_in_full_a_thousand_times(
    worker: Callable[..., Any],
) -> None:
    """300 processes made by clone(CLONE_VM): each names 64 of the others, says how many there are, and all are one memory."""
    code = (
        "import ctypes, mmap\nlibc = ctypes.CDLL(None)\n"
        "stacks = mmap.mmap(-1, 300 * 16384, flags=34)\nbase = ctypes.addressof(ctypes.c_char.from_buffer(stacks))\n"
        # CLONE_VM | SIGCHLD; pause() returns never, and touches nothing of what it shares.
        "pause = ctypes.cast(libc.pause, ctypes.c_void_p)\n"
        "pids = [libc.clone(pause, ctypes.c_void_p(base + 16384 * (i + 1)), 0x100 | 17, None) for i in range(300)]\n"
        "try: ready(*pids)\nfinally:\n    for pid in pids: os.kill(pid, 9)"
    )
    parent = worker(code)
    children = [int(word) for word in parent.said[1:]]
    assert len(children) == 300
    try:
        found = footprint(parent.pid, *children)
    finally:
        parent.stdin.close()
        parent.wait()
    everyone = {parent.pid, *children}
    assert {process.pid for process in found.processes} == everyone
    for process in found.processes:
        assert process.shares_with_in_all == 300
        assert len(set(process.shares_with)) == 64
        assert set(process.shares_with) < everyone - {process.pid}
        assert process.linked_bytes == found.distinct_bytes
        assert (process.private_bytes, process.shared_bytes) == (0, found.distinct_bytes)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"\x1b]0;x\x07\x1b[31m", r"\x1b]0;x\x07\x1b[31m"),
        (b"two\nlines\r\t", r"two\x0alines\x0d\x09"),
        (b"\xff\xfe\xc0\xaf", r"\xff\xfe\xc0\xaf"),
        ("\u202egnp.\u200b\ufeff".encode(), r"\u202egnp.\u200b\ufeff"),
        (b'quote" back\\ \x7f', r'quote" back\\ \x7f'),
        ("höflich \u65e5".encode(), "höflich \u65e5"),
        ("cut \u65e5\u65e5\u65e5\u65e5".encode(), "cut \u65e5\u65e5\u65e5" + r"\xe6\x97"),
        (b"\xed\xa0\x80\x9b", r"\xed\xa0\x80\x9b"),
        (b"", ""),
    ],
)
@pytest.mark.parametrize("method", ["walk", "pagemap", "status"])
def test_any_bytes_in_a_name_give_json_that_is_safe_to_print(
    worker: Callable[..., Any],
    helper: str,
    name: bytes,
    shown: str,
    method: str,
    request: pytest.FixtureRequest,
) -> None:
    """Escape codes, newlines, half characters, text that turns direction: visible, and never themselves."""
    if method == "walk":
        request.getfixturevalue("exact")
    code = "import ctypes\nctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0)\nready()"
    pid = worker(code, name.hex()).pid
    out = subprocess.run([helper, "--method", method, str(pid)], capture_output=True, check=True).stdout
    assert out.count(b"\n") == 1
    assert not any(byte < 32 or byte == 127 for byte in out[:-1])
    (process,) = json.loads(out.decode("utf-8", "strict"))["processes"]
    assert process["command"] == shown
    assert footprint(pid, method=method).processes[0].command == shown


@pytest.mark.parametrize("method", ["walk", "pagemap"])
def test_a_maps_file_of_many_lines_is_read_to_its_end(
    worker: Callable[..., Any], method: str, request: pytest.FixtureRequest
) -> None:
    """60,000 mappings, with names made to look like mappings, before and after the region: still found."""
    if method == "walk":
        request.getfixturevalue("exact")
    fd = os.memfd_create("x\n7f0000000000-7fff00000000 rw-s 00000000 00:01 1 ")
    try:
        os.ftruncate(fd, 4 << 20)
        info = os.fstat(fd)
        code = (
            "import ctypes, mmap\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
            "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\n"
            "M = 1 << 20\nspace = libc.mmap(None, 1 << 30, 0, 0x4022, -1, 0)\nat = (space + 2 * M - 1) // (2 * M) * (2 * M)\n"
            "region = at + 512 * M\n"
            "for i in range(30000): assert libc.mmap(at + 4096 * i, 4096, i % 2, 0x32, -1, 0) != 2**64 - 1\n"
            "for i in range(30000): assert libc.mmap(region + 8 * M + 4096 * i, 4096, i % 2, 0x32, -1, 0) != 2**64 - 1\n"
            "assert libc.mmap(region, 4 * M, 3, 0x11, int(sys.argv[1]), 0) == region\nctypes.memset(region, 1, 4 * M)\nready()"
        )
        pid = worker(code, fd, pass_fds=[fd]).pid
        # The name of this memfd holds a newline, which the kernel shows as \012.
        assert len(Path(f"/proc/{pid}/maps").read_bytes().splitlines()) > 50_000
        found = footprint(pid, regions=[("r", [(info.st_dev, info.st_ino)])], method=method)
    finally:
        os.close(fd)
    (process,) = found.processes
    (region,) = process.regions
    assert region.linked_bytes == 2 * PAGE


@pytest.mark.parametrize("method", ["walk", "pagemap", "status"])
def test_what_is_no_process_with_a_memory_is_sorted_out(
    worker: Callable[..., Any], method: str, request: pytest.FixtureRequest
) -> None:
    """A pid that was never there, one that is a zombie, a kernel thread, a thread: each in its list, no error."""
    if method == "walk":
        request.getfixturevalue("exact")
    ended = worker("ready()")
    ended.kill()
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie until its end is read
    kernel = next(
        (int(n) for n in os.listdir("/proc") if n.isdigit() and "Kthread:\t1" in Path(f"/proc/{n}/status").read_text(errors="replace")),
        None,
    )  # fmt: skip
    missing = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    asked = [ended.pid, missing, *([kernel] if kernel else [])]
    found = footprint(*asked, os.getpid(), method=method)
    assert set(found.gone) == {ended.pid, missing}
    assert found.kernel_threads == ((kernel,) if kernel else ())
    assert found.denied == ()
    assert [process.pid for process in found.processes] == [os.getpid()]


@pytest.mark.parametrize("pid", [0, -1, 1 << 31, True, "1", 1.0])
def test_what_cannot_be_a_process_number_is_refused(pid: Any) -> None:
    """`ValueError`, before anything is run."""
    with pytest.raises(ValueError, match="no process number"):
        footprint(pid)


@pytest.mark.usefixtures("exact")
def test_nothing_asked_is_everyone_but_the_helper() -> None:
    """Without pids all processes are told about; the helper does not measure itself."""
    found = footprint()
    pids = {process.pid for process in found.processes}
    assert os.getpid() in pids
    assert "sharedregion-pt" not in {process.command for process in found.processes}
    assert found.looked_at["processes"] == len(pids)
