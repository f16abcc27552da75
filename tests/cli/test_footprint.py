"""`sharedregion footprint`: who is chosen, what is said of those that cannot be shown, and how it looks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedregion as sr
from sharedregion.cli.render import shorten
from sharedregion.errors import SharedRegionError

COMMAND = [sys.executable, "-P", "-m", "sharedregion", "footprint"]
MIB = 1 << 20


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def answer(*arguments: object, expect: int = 0) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.returncode == expect, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def on_terminal(columns: int, *arguments: object) -> str:
    """What the command shows on a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    environment["TERM"] = "xterm-256color"
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError as error:
                # How a terminal says that the last writer has gone.
                assert error.errno == errno.EIO
                break
            if not piece:
                break
            said += piece
    os.close(ours)
    assert process.returncode == 0, said
    return said.decode("utf-8").replace("\r\n", "\n")


@pytest.fixture
def crowd() -> Iterator[list[int]]:
    """Forty children that map 4 MiB of a file together, and have a name of their own."""
    code = (
        "import ctypes, mmap, os, sys\nctypes.CDLL(None).prctl(15, b'crowd\\x1b[31m\\nx', 0, 0, 0)\n"
        "fd = os.memfd_create('\\x1b[2J' + 'long ' * 40)\nos.ftruncate(fd, 4 << 20)\nm = mmap.mmap(fd, 4 << 20)\n"
        "pids = []\n"
        "for _ in range(40):\n"
        "    read, write = os.pipe()\n    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        for i in range(0, 4 << 20, 4096): m[i] = 1\n"
        "        os.write(write, b'x')\n        sys.stdin.read()\n        os._exit(0)\n"
        "    os.read(read, 1)\n    pids.append(pid)\n"
        "print(*pids, flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        yield [int(word) for word in process.stdout.readline().split()]


# --- who ------------------------------------------------------------------------------------------


def test_a_name_chooses_processes_by_pattern(crowd: list[int]) -> None:
    """--command matches the name that a process goes by, and the name of its program."""
    found = answer("--command", "crowd*")
    assert set(crowd) < {process["pid"] for process in found["processes"]}
    assert {process["command"] for process in found["processes"]} == {r"crowd\x1b[31m\x0ax"}
    program = os.path.basename(os.readlink(f"/proc/{crowd[0]}/exe"))
    assert set(crowd) <= {process["pid"] for process in answer("--command", program)["processes"]}


@pytest.mark.root
def test_a_user_is_chosen_by_name_or_number() -> None:
    """--user: theirs and nobody else's; together with --command, those that are both."""
    with subprocess.Popen(
        ["setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", "echo; read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as theirs:
        assert theirs.stdout is not None
        theirs.stdout.readline()
        for user in ("65534", "nobody"):
            found = answer("--user", user)
            assert theirs.pid in {process["pid"] for process in found["processes"]}
            assert os.getpid() not in {process["pid"] for process in found["processes"]}
        both = answer("--user", "nobody", "--command", "sh")["processes"]
        assert theirs.pid in {process["pid"] for process in both}
        assert run("--user", "nobody", "--command", "no such*").returncode == 1
        theirs.communicate(b"\n")


def test_all_is_what_nothing_chosen_is() -> None:
    """--all tells of everyone that can be seen, this test among them."""
    for arguments in (["--all"], []):
        assert os.getpid() in {process["pid"] for process in answer(*arguments)["processes"]}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["1", "--all"], 2, "not both"),
        (["1", "--user", "root"], 2, "not both"),
        (["--user", "no-such-user-here"], 2, "no user"),
        (["--command", "no such program*"], 1, "no process is chosen"),
        (["--top", "-1", "--all"], 2, "--top"),
        (["no-such-region"], 1, "no-such-region"),
    ],
)
def test_a_choice_that_makes_no_sense_is_said(arguments: list[str], code: int, words: str) -> None:
    """Misuse is exit code 2, a choice of nobody 1, each in one clear sentence; nothing on standard output."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def is_kernel_thread(pid: str) -> bool:
    try:
        return "Kthread:\t1" in Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False


@pytest.mark.root
def test_those_that_cannot_be_shown_are_told_by_reason() -> None:
    """A pid that is gone and a kernel thread: exit code 1, each with its reason; the others are shown."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    # A container has none of its own.
    kernel = [int(name) for name in os.listdir("/proc") if name.isdigit() and is_kernel_thread(name)][:1]
    done = run(ended.pid, *kernel, os.getpid())
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert f"ended: {ended.pid}." in lines
    for pid in kernel:
        assert f"kernel threads, which have no page tables of their own: {pid}." in lines
    assert any(line.split()[:1] == [str(os.getpid())] for line in lines)
    document = answer(ended.pid, *kernel, expect=1)
    assert (document["gone"], document["kernel_threads"]) == ([ended.pid], kernel)


def test_an_ordinary_user_is_told_what_is_not_theirs(as_nobody: Callable[..., str]) -> None:
    """Their own as an estimate that says so, others only in sum: no error, and what would give more."""
    code = (
        "import json, subprocess\n"
        "command = [sys.executable, '-P', '-m', 'sharedregion', 'footprint']\n"
        "done = subprocess.run([*command, '--all', '--advice'], capture_output=True, text=True)\n"
        "print(done.returncode, done.stderr)\nprint(done.stdout)\n"
        f"one = subprocess.run([*command, '{os.getpid()}'], capture_output=True, text=True)\n"
        "print(one.returncode, one.stdout)"
    )
    said = as_nobody(code)
    assert said.startswith("0 \n")
    assert "Estimated (pagemap)" in said
    assert re.search(
        r"\d+ process(es)? not yours to see, [0-9.]+ [KMG]iB by the kernel's count: root sees them", said
    )
    assert f"not yours to see: {os.getpid()}." in said


# --- what it says ---------------------------------------------------------------------------------


@pytest.mark.root
def test_json_holds_all_that_the_text_shows() -> None:
    """Processes, mappings and the machine's PageTables; advice where it is asked for."""
    found = answer("--all", "--advice")
    assert found["schema"] == 3
    machine = found["machine"]
    assert machine["page_tables_bytes"] == machine["seen_bytes"] + machine["kernel_bytes"]
    assert sum(mapping["distinct_bytes"] for mapping in found["mappings"]) == found["distinct_bytes"]
    assert isinstance(found["advice"], list)
    assert "advice" not in answer(os.getpid())


@pytest.mark.root
def test_a_dear_mapping_is_advised_on(crowd: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 64 MiB of tables: what it is, what it would cost otherwise, and the commands."""
    code = (
        "import mmap, os, sys\nm = mmap.mmap(-1, 2 << 30)\npids = []\n"
        "for _ in range(20):\n"
        "    read, write = os.pipe()\n    pid = os.fork()\n"
        "    if pid == 0:\n"
        # A page for each table is enough.
        "        for i in range(0, 2 << 30, 2 << 20): m[i]\n"
        "        os.write(write, b'x')\n        sys.stdin.read()\n        os._exit(0)\n"
        "    os.read(read, 1)\n    pids.append(pid)\n"
        "print(*pids, flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        pids = process.stdout.readline().split()
        text = run(*map(int, pids), "--advice").stdout
        shown = on_terminal(80, *map(int, pids), "--advice")
        process.communicate()
    assert re.search(r"shared anonymous memory in 20 processes\. Its page tables take 8[01]\.?\d* MiB", text)
    assert "sysctl -w vm.nr_hugepages=" in text
    assert re.search(r"^2 MiB pages +~ ", text, re.MULTILINE)
    assert "~ estimated" in text
    assert_no_mess(shown, 80)


# --- how it looks ---------------------------------------------------------------------------------


def assert_no_mess(shown: str, columns: int) -> None:
    """No line is wider than the terminal, no row of a table is broken, and no escape code is anyone else's."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\x1b" not in plain
    lines = plain.splitlines()
    assert max(map(len, lines)) <= columns
    heads = [
        i for i, line in enumerate(lines) if line.startswith(("  pid ", " pid ", "tables of ", "page tables"))
    ]
    assert len(heads) == 3
    for head in heads[1:]:
        for row in lines[head + 1 :]:
            if not row.strip():
                break
            # Each row ends with its size.
            assert re.search(r"\d (B|[KMGT]iB)$", row.rstrip()), row


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_of_any_width_shows_rows_as_lines(crowd: list[int], columns: int) -> None:
    """Long names lose their middle, not their line; the codes in them are shown, not obeyed."""
    shown = on_terminal(columns, "--command", "crowd*")
    assert_no_mess(shown, columns)
    assert r"crowd\x1b[31m\x0ax" in shown
    assert "/memfd:" in shown
    # Headings are bold on a terminal.
    assert "\x1b[1m" in shown
    # Twenty of the forty-one, and what the others are.
    assert "and 21 others: " in shown


def test_what_is_no_terminal_gets_no_escape_codes_and_whole_names(crowd: list[int]) -> None:
    """Piped output is plain text, in which names are whole unless someone says how wide to be."""
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    text = run("--command", "crowd*", env=environment).stdout
    assert "\x1b" not in text
    assert r"/memfd:\x1b[2J" + "long " * 40 + " (deleted)" in text


@pytest.mark.parametrize(
    ("text", "room", "short"),
    [
        ("/a/b", 4, "/a/b"),
        ("/usr/lib/x86_64-linux-gnu/libcrypto.so.3", 24, "/usr/li...libcrypto.so.3"),
        ("日本語日本語日本語", 12, "日...日本語"),
    ],
)
def test_what_is_too_long_loses_its_middle(text: str, room: int, short: str) -> None:
    """The end of a path says most; characters that are two places wide count as two."""
    from rich.cells import cell_len

    cut = shorten(text, room)
    assert cell_len(cut) <= room
    assert cut == short


def test_a_region_that_is_replaced_meanwhile_does_no_harm(unique: str) -> None:
    """create(replace=True) over and over beside the look: an answer of one generation, or a clean error."""
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            with sr.create(unique, size="4 MiB", backend="shm", replace=True) as region:
                region["x"] = np.zeros(1 << 18, "u1")

    region = sr.create(unique, size="4 MiB", backend="shm")
    region["x"] = np.zeros(1 << 18, "u1")
    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(4):
            done = run(unique, "--json")
            assert "Traceback" not in done.stderr
            if done.returncode == 0:
                json.loads(done.stdout)
            else:
                assert (done.returncode, done.stdout) == (1, "")
                assert done.stderr.startswith("sharedregion: ")
    finally:
        stop.set()
        thread.join()
        region.close()
        with contextlib.suppress(SharedRegionError):
            sr.unlink(unique)


def test_processes_of_a_region_are_found(unique: str) -> None:
    """REGION: those that have it mapped, with the tables that it alone costs them."""
    with sr.create(unique, size="8 MiB", backend="shm") as region:
        region["x"] = np.ones(mmap.PAGESIZE * 1024, "u1")
        found = answer(unique)
        assert os.getpid() in {process["pid"] for process in found["processes"]}
        (mine,) = [process for process in found["processes"] if process["pid"] == os.getpid()]
        assert [one["region"] for one in mine["regions"]] == [unique]


def test_a_region_that_nobody_has_mapped_is_said_to_be_so(unique: str) -> None:
    """One that persists without a member: no figures of everybody else in its place, and it stays as it is."""
    sr.create(unique, size="4 MiB", backend="shm", persist=True).close()
    try:
        done = run(unique)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"no process that can be seen has {unique} mapped" in done.stderr
        catalog = Path(f"/dev/shm/sharedregion.{unique}.catalog")
        with catalog.open("r+b") as file:
            file.seek(40)
            file.write(b"\xff" * 8)
        done = run(unique)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"region '{unique}' fails its checksum" in done.stderr
    finally:
        sr.unlink(unique)


@pytest.mark.root
def test_a_region_is_looked_at_without_joining_it_whoever_it_belongs_to(
    unique: str, as_nobody: Callable[..., Any]
) -> None:
    """Another user's, by root: its users alone, their tables each once, and no member more."""
    host = as_nobody(
        f"r = sr.create('{unique}', size='8 MiB', backend='shm')\nr['x'] = bytes(4 << 20)\nprint('ready', flush=True)\n"
        "sys.stdin.readline()\nprint(len(r.members()))",
        wait=False,
    )
    assert host.stdout.readline() == "ready\n"
    found = answer(unique)
    (process,) = found["processes"]
    assert (process["pid"], process["linked_bytes"]) == (host.pid, found["distinct_bytes"])
    assert [one["region"] for one in process["regions"]] == [unique]
    assert process["regions"][0]["linked_bytes"] > 0
    assert host.communicate("\n")[0] == "1\n"
