"""What the helper tells whom."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = 4096
# cap_sys_ptrace, cap_perfmon, cap_bpf
CAPABILITIES = [19, 38, 39]


def grant(path: Path) -> None:
    """cap_bpf,cap_perfmon,cap_sys_ptrace=ep, in the form of include/uapi/linux/capability.h (revision 2)."""
    low = sum(1 << cap for cap in CAPABILITIES if cap < 32)
    high = sum(1 << (cap - 32) for cap in CAPABILITIES if cap >= 32)
    try:
        os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, low, 0, high, 0))
    except OSError as error:
        pytest.skip(f"no file capabilities on this file system: {error}")


def full_pipe() -> tuple[int, int]:
    """A pipe that is full before it begins: who writes to it stops at its first line of output."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    return read, write


def wait_for_write(process: subprocess.Popen[bytes]) -> None:
    """When it sleeps in the write, all else is behind it."""
    while "pipe_write" not in Path(f"/proc/{process.pid}/wchan").read_text():
        assert process.poll() is None
        time.sleep(0.005)


def test_without_privilege_the_answer_is_an_estimate_and_says_so(
    worker: Callable[..., Any],
    ask: Callable[..., Any],
    nobody: tuple[str, ...],
    public_copy: Callable[[], Path],
) -> None:
    """Of its own processes an ordinary user gets the kernel's count, marked as an estimate, with why and remedy."""
    mine = worker(
        "import mmap\nm = mmap.mmap(-1, 64 << 20)\nm.write(bytes(64 << 20))\nready()", prefix=nobody
    ).pid
    found = ask(mine, os.getpid(), prefix=nobody, path=str(public_copy()))
    assert found["method"] == "pagemap"
    assert found["reader"] is None
    assert "could not be read" in found["why"]
    assert "cap_bpf,cap_perfmon,cap_sys_ptrace" in found["remedy"]
    assert found["denied"] == [os.getpid()]
    (process,) = found["processes"]
    assert process["pid"] == mine
    assert process["estimate"] is True
    assert process["linked_bytes"] == process["vm_pte_bytes"] + PAGE
    assert process["tables"]["pte"] >= 32


def test_the_estimate_of_status_alone_is_the_kernels_count(
    worker: Callable[..., Any], ask: Callable[..., Any]
) -> None:
    """Where not even pagemap serves: VmPTE and the PGD."""
    pid = worker("ready()").pid
    found = ask("--method", "status", pid)
    (process,) = found["processes"]
    assert (found["method"], process["estimate"]) == ("status", True)
    assert process["linked_bytes"] == process["vm_pte_bytes"] + PAGE


def test_a_walk_that_must_be_is_refused_without_privilege(
    nobody: tuple[str, ...], public_copy: Callable[[], Path]
) -> None:
    """`--method walk` never answers with an estimate."""
    done = subprocess.run([*nobody, public_copy(), "--method", "walk"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"not permitted" in done.stderr


@pytest.mark.usefixtures("exact")
def test_with_capabilities_of_its_own_it_shows_a_caller_their_own_processes_alone(
    worker: Callable[..., Any],
    ask: Callable[..., Any],
    nobody: tuple[str, ...],
    public_copy: Callable[[], Path],
) -> None:
    """Read from the tables themselves, for the caller's uid; everyone else is denied, whoever asks."""
    copy = public_copy()
    grant(copy)
    mine = worker("ready()", prefix=nobody).pid
    other = worker("ready()").pid
    found = ask(mine, other, 1, prefix=nobody, path=str(copy))
    assert (found["method"], found["scope"]) == ("walk", "own")
    assert [process["pid"] for process in found["processes"]] == [mine]
    assert set(found["denied"]) == {other, 1}
    (process,) = found["processes"]
    assert process["linked_bytes"] == process["vm_pte_bytes"] + PAGE * process["tables"]["pgd"]
    everyone = ask(prefix=nobody, path=str(copy))
    owners = {
        os.stat(f"/proc/{p['pid']}").st_uid
        for p in everyone["processes"]
        if Path(f"/proc/{p['pid']}").exists()
    }
    assert owners <= {65534}
    assert other not in {p["pid"] for p in everyone["processes"]}


@pytest.mark.parametrize("method", ["pagemap", "status"])
def test_an_estimate_with_capabilities_of_its_own_is_one_without(
    worker: Callable[..., Any],
    ask: Callable[..., Any],
    nobody: tuple[str, ...],
    public_copy: Callable[[], Path],
    method: str,
) -> None:
    """Asked for an estimate, it looks with its caller's rights alone: other users' processes, names and addresses stay closed."""
    copy, plain = public_copy(), public_copy()
    grant(copy)
    mine, other = worker("ready()", prefix=nobody).pid, worker("ready()").pid
    closed = worker("import ctypes\nctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\nready()", prefix=nobody).pid
    asked = ("--mappings", "--method", method, mine, other, closed, 1)
    found = ask(*asked, prefix=nobody, path=str(copy))
    assert (found["method"], found["denied"]) == (method, [1, *sorted([other, closed])])
    assert [process["pid"] for process in found["processes"]] == [mine]
    without = ask(*asked, prefix=nobody, path=str(plain))
    assert (found["processes"], found["mappings"]) == (without["processes"], without["mappings"])


@pytest.mark.usefixtures("exact")
def test_nobody_looks_into_it_though_it_has_put_its_privilege_aside(
    nobody: tuple[str, ...], public_copy: Callable[[], Path]
) -> None:
    """Held up while it estimates, with no capability left, it is still closed to its caller: it may have read the kernel before."""
    copy = public_copy()
    grant(copy)
    read, write = full_pipe()
    process = subprocess.Popen([*nobody, copy, "--method", "pagemap"], stdout=write)
    try:
        wait_for_write(process)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"(?m)^CapEff:\t0+\nCapBnd", status)
        assert re.search(r"(?m)^CapPrm:\t0+$", status)
        look = f"open('/proc/{process.pid}/mem', 'rb')"
        done = subprocess.run([*nobody, "/usr/bin/python3", "-Ic", look], capture_output=True, check=False)
        assert b"PermissionError" in done.stderr
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)


@pytest.mark.usefixtures("exact")
def test_a_process_with_two_uids_is_nobodys_own(
    worker: Callable[..., Any],
    ask: Callable[..., Any],
    nobody: tuple[str, ...],
    public_copy: Callable[[], Path],
) -> None:
    """One that still has another user's saved uid (as a set-uid program does) is not shown."""
    copy = public_copy()
    grant(copy)
    code = "os.setresuid(65534, 65534, 0)\nready()"
    mixed = worker(code).pid
    found = ask(mixed, prefix=nobody, path=str(copy))
    assert (found["processes"], found["denied"]) == ([], [mixed])


@pytest.mark.parametrize("option", ["--kcore", "--btf", "--record", "--recorded", "--isolation"])
def test_options_that_name_files_are_refused_with_borrowed_privilege(
    nobody: tuple[str, ...], public_copy: Callable[[], Path], option: str
) -> None:
    """With capabilities that the caller lacks, no file or descriptor of the caller's choice is used."""
    copy = public_copy()
    grant(copy)
    done = subprocess.run([*nobody, copy, option, "/etc/shadow"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"refused" in done.stderr


@pytest.mark.usefixtures("exact")
def test_it_keeps_two_capabilities_and_gains_none(helper: str, tmp_path: Path) -> None:
    """Held up while it writes, even root's helper has CAP_BPF and CAP_SYS_PTRACE left, no new privileges, no core."""
    read, write = full_pipe()
    process = subprocess.Popen([helper], stdout=write)
    try:
        wait_for_write(process)
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        kept = 1 << 39 | 1 << 19
        assert int(status["CapEff"], 16) & ~kept == 0
        assert int(status["CapPrm"], 16) & ~kept == 0
        assert int(status["CapInh"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert [line.split()[4] for line in limits.splitlines() if line.startswith("Max core")] == ["0"]
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)


def test_the_environment_is_not_read(helper: str, ask: Callable[..., Any]) -> None:
    """Nothing in the environment changes the answer; not even the place of /proc or of BTF."""
    plain = ask("--version", env={})
    odd = ask(
        "--version", env={"SHAREDREGION_PTWALK": "/nonexistent", "LANG": "tr_TR.UTF-8", "MALLOC_CHECK_": "3"}
    )
    assert plain == odd
    source = subprocess.run(["grep", "-c", "getenv", helper], capture_output=True, check=False)
    assert source.stdout.strip() == b"0"


@pytest.mark.usefixtures("exact")
def test_it_writes_nothing(helper: str, tmp_path: Path) -> None:
    """Run in a folder of its own it leaves no file, and opens none for writing."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    command = [
        "strace",
        "-f",
        "-e",
        "trace=openat,open,creat,unlinkat,renameat,linkat,mkdirat",
        "-o",
        str(trace),
        helper,
    ]
    answer = subprocess.run(command, capture_output=True, cwd=tmp_path, check=True).stdout
    assert json.loads(answer)["schema"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace"]
    lines = [line for line in trace.read_text().splitlines() if "open" in line]
    assert lines
    assert not [line for line in lines if "O_WRONLY" in line or "O_RDWR" in line or "O_CREAT" in line]
