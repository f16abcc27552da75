"""Processes and arguments that were made to hurt, under sanitizers: a whole answer or a refusal, and no byte out of place."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

#: 30,000 mappings of two thousand files with hostile names, small and large, whole and in pieces, some
#: touched; huge pages; children with the same memory; a leader that has ended.
HOSTILE = """
import ctypes, mmap, random, resource, threading, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
libc.prctl(15, b"\\x1b[2J\\n) R 1\\xff", 0, 0, 0)
chance = random.Random(4)
for n in range(2000):
    fd = os.memfd_create("\\x1b]0;" + chr(chance.randrange(1, 255)) * chance.randrange(1, 100) + f"\\n{n}")
    size = 4096 << chance.randrange(12)
    os.ftruncate(fd, size)
    for _ in range(15):
        shared, at = chance.choice((1, 2)), chance.randrange(size // 4096) * 4096
        address = libc.mmap(None, chance.randrange(1, size - at + 1), chance.choice((0, 1, 3)), shared, fd, at)
        if chance.random() < 0.1: libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(4096), 22)
    os.close(fd)
huge = mmap.mmap(-1, 64 << 20, flags=34)
huge.madvise(mmap.MADV_HUGEPAGE)
huge.write(bytes(64 << 20))
wide = mmap.mmap(-1, 64 << 40, flags=34 | 0x4000)
for i in range(0, 64 << 40, 1 << 38): wide[i] = 1
stacks = mmap.mmap(-1, 100 * 16384, flags=34)
base = ctypes.addressof(ctypes.c_char.from_buffer(stacks))
pause = ctypes.cast(libc.pause, ctypes.c_void_p)
pids = [libc.clone(pause, ctypes.c_void_p(base + 16384 * (i + 1)), 0x100 | 17, None) for i in range(100)]
def rest():
    while open("/proc/self/status", "rb").read().find(b"State:\\tZ") < 0: time.sleep(0.01)
    try: ready(*pids)
    finally:
        for pid in pids: os.kill(pid, 9)
        os._exit(0)
threading.Thread(target=rest).start()
libc.syscall(60, 0)
"""


def clean(done: subprocess.CompletedProcess[bytes], *codes: int) -> None:
    """It ended by itself, and no sanitizer had anything to say."""
    assert done.returncode in codes, done.stderr
    assert b"Sanitizer" not in done.stderr
    assert b"runtime error" not in done.stderr


@pytest.mark.parametrize("method", ["walk", "pagemap", "status"])
def test_a_hostile_process_is_told_of_in_full(
    worker: Callable[..., Any], sanitized_helper: str, method: str, request: pytest.FixtureRequest
) -> None:
    """Its tables, to the byte, and its names, made safe; whatever it does to be hard to look at."""
    if method == "walk":
        request.getfixturevalue("exact")
    parent = worker(HOSTILE)
    pids = [parent.pid, *map(int, parent.said[1:])]
    try:
        command = [sanitized_helper, "--mappings", "--leaves", "--method", method]
        for n in range(300):
            command += ["--region", f"\x1b{n}=0:{n % 7}:{n}"]
        done = subprocess.run([*command, *map(str, pids)], capture_output=True, check=False)
    finally:
        parent.stdin.close()
        parent.wait()
    clean(done, 0)
    assert not any(byte < 32 or byte == 127 for byte in done.stdout[:-1])
    found = json.loads(done.stdout)
    assert [process["pid"] for process in found["processes"]] == sorted(pids)
    (first,) = [process for process in found["processes"] if process["pid"] == parent.pid]
    assert first["linked_bytes"] == first["vm_pte_bytes"] + 4096 * first["tables"]["pgd"]
    assert first["linked_bytes"] >= 256 * 2 * 4096
    assert first["command"].startswith(r"\x1b[2J\x0a) R 1")
    assert sum(one["distinct_bytes"] for one in found["mappings"]) == found["distinct_bytes"]


@pytest.mark.usefixtures("exact")
def test_everyone_is_looked_at_under_sanitizers(sanitized_helper: str) -> None:
    """All that runs here, whatever it is, with all that can be asked for."""
    done = subprocess.run([sanitized_helper, "--mappings", "--leaves"], capture_output=True, check=False)
    clean(done, 0)
    assert os.getpid() in {process["pid"] for process in json.loads(done.stdout)["processes"]}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--region"], ["--region", ""], ["--region", "="], ["--region", "x="], ["--region", "x=1:2"], ["--region", "x=1:2:3:4"],
        ["--region", "x=1:2:99999999999999999999999"], ["--region", "x=1:2:-3"], ["--region", "x=+1:2:3"], ["--region", "x=1:0x2:3"],
        ["--region", "x" * 300 + "=1:2:3"], ["--method", "guess"], ["--method"], ["--pid", "1"], ["-"], [""], ["0"], ["-1"], ["1.5"],
        ["2147483648"], ["99999999999999999999999999"], ["1", "x\x1b[31m"], ["--recorded", "1:00"], ["--recorded", "x:" + "0" * 64],
        ["--record", "-1"], ["--kcore"], ["--btf", "/dev/null", "--method", "walk", "1"], ["--btf", "/", "--method", "walk", "1"],
        ["--kcore", "/dev/zero", "--method", "walk", "1"], ["--kcore", "/bin/true", "--method", "walk", "1"],
        *(["--region", f"x{n}=1:2:{n}"] * 4097 for n in range(1)),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(sanitized_helper: str, arguments: list[str]) -> None:
    """One line that is safe to print, and a status that tells misuse (2) from what cannot be had (1); nothing else."""
    done = subprocess.run([sanitized_helper, *arguments], capture_output=True, check=False)
    clean(done, 1, 2)
    assert done.returncode == (1 if "walk" in arguments else 2)
    assert done.stdout == b""
    assert done.stderr.startswith(b"sharedregion-ptwalk: ")
    assert not any((byte < 32 and byte != 10) or byte > 126 for byte in done.stderr)
