"""The command line's border: exit codes, one line per error, no traceback, nothing loaded in vain."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

import sharedregion as sr
import sharedregion.cli
from sharedregion._kernel.facts import gather
from sharedregion.cli import app, render
from sharedregion.errors import RegionExists, RegionNotFound, SharedRegionError
from sharedregion.footprint.selection import region_files

COMMAND = [sys.executable, "-P", "-m", "sharedregion"]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_every_verb_of_the_table_is_a_file_that_holds_its_command() -> None:
    context = click.Context(app.cli)
    for verb in app.VERBS:
        command = app.cli.get_command(context, verb)
        assert command
        assert command.name == verb
        assert command.help


def test_help_names_every_verb_and_loads_none() -> None:
    code = "import sys\nfrom sharedregion.cli import app\napp.run(['--help'])\nprint([m for m in sys.modules if m in %r])"
    modules = [f"sharedregion.cli.{verb}" for verb in app.VERBS]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code % (modules,)], capture_output=True, text=True, check=True
    )
    assert all(verb in done.stdout for verb in app.VERBS)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_package_of_the_command_line_imports_nothing_heavy() -> None:
    """Spawned workers of the demo import it."""
    code = "import sys, sharedregion.cli; print([m for m in sys.modules if m.split('.')[0] in ('click', 'rich')])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (SharedRegionError("it failed"), ["sharedregion: it failed"]),
        (
            RegionNotFound("no region 'x'", "sharedregion ls"),
            ["sharedregion: no region 'x'", "  try: sharedregion ls"],
        ),
        (
            FileNotFoundError(2, "No such file or directory", "/a"),
            ["sharedregion: /a: No such file or directory"],
        ),
        (ValueError("a name with /"), ["sharedregion: a name with /"]),
        (MemoryError(), ["sharedregion: MemoryError"]),
        (SharedRegionError("red \x1b[31m name\x00"), ["sharedregion: red \\x1b[31m name\\x00"]),
    ],
)
def test_an_error_is_one_line_with_its_remedy_and_exit_code_1(
    error: Exception, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(app.LazyGroup, "get_command", lambda *_: failing)
    assert app.run(["failing"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines
    assert captured.out == ""


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def slow() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app.LazyGroup, "get_command", lambda *_: slow)
    assert app.run(["slow"]) == 130
    # click first ends the line on which the terminal shows ^C.
    assert capsys.readouterr().err == "\nsharedregion: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command"),
        (["demo", "--size", "0"], "not above 0"),
        (["demo", "--size", "-1"], "not above 0"),
        (["demo", "--size", "lots"], "not understood"),
        (["demo", "--size", "200 TiB"], "address space"),
        (["demo", "--backend", "tape"], "msharefs, hugetlb, thp, shm"),
        (["demo", "--workers", "0"], "workers"),
        (["unlink"], "Missing argument"),
        (["backends", "--bad"], "No such option"),
    ],
)
def test_misuse_is_exit_code_2_and_says_what_would_be_right(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--input", "/nonexistent.npy"], "/nonexistent.npy cannot be read"),
        (["demo", "--backend", "msharefs", "--no-story"], "msharefs"),
        (["unlink", "no-such-region"], "no-such-region"),
    ],
)
def test_what_fails_is_exit_code_1_with_one_error(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    first, *others = done.stderr.splitlines()
    assert first.startswith("sharedregion: ")
    assert words in first
    assert all(line.startswith("  try: ") for line in others)


def test_main_exits_with_the_code_of_the_run() -> None:
    with pytest.raises(SystemExit) as caught:
        sharedregion.cli.main(["--help"])
    assert caught.value.code == 0


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [*COMMAND, "backends"], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_that_end_the_command_let_it_clean_up(number: signal.Signals, code: int) -> None:
    script = (
        "import os, signal, click\nfrom sharedregion.cli import app\n"
        "@click.command()\ndef wait():\n"
        "    try:\n        os.kill(os.getpid(), {number})\n        signal.pause()\n"
        "    finally:\n        print('cleaned up')\n"
        "app.LazyGroup.get_command = lambda *_: wait\n"
        "raise SystemExit(app.run(['wait']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script.format(number=int(number))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "cleaned up\n", "")


def test_names_of_others_cannot_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(["name"], [["a\x1b]0;title\x07\nb\u202e\udc80"]])
    render.line("\x1b[2J")
    render.print_json({"name": "\x1b[31m\udc80"})
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "a\\x1b]0;title\\x07\\nb\\u202e\\udc80" in shown


def test_the_width_is_respected_and_colour_is_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    render.table(["name", "size"], [["word " * 30, "600 MiB"]], right=["size"])
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 60
    assert "600 MiB" in shown[1]
    monkeypatch.delenv("COLUMNS")
    render.table(["name", "size"], [["word " * 30, "600 MiB"]], right=["size"])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_backends_says_the_same_in_text_and_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Looked at once: the pools of a machine change while it is used.
    facts = gather()
    monkeypatch.setattr("sharedregion.cli.backends.machine", lambda: facts)
    assert app.run(["backends", "--size", "8 GiB"]) == 0
    text = capsys.readouterr().out
    assert app.run(["backends", "--size", "8 GiB", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["size"] == 8 << 30
    names = [one["name"] for one in document["backends"]]
    assert names == ["msharefs", "hugetlb-1g", "hugetlb-2m", "thp", "shm"]
    for one in document["backends"]:
        assert one["name"] in text
        assert one["reason"] in text
    assert f"would use: {document['chosen']}" in text


def test_the_environment_chooses_for_the_command_too(tmp_path: Path) -> None:
    done = run("demo", "--no-story", env={**os.environ, "SHAREDREGION_BACKEND": "tape"}, cwd=tmp_path)
    assert done.returncode == 1
    assert "SHAREDREGION_BACKEND 'tape' is not known" in done.stderr


def test_a_command_gives_the_caller_its_signals_back() -> None:
    """A program that calls the command line ends by SIGTERM afterwards as it did before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    assert app.run(["ls", "--json"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before


def test_remedies_at_a_terminal_are_commands() -> None:
    """Whoever typed a command is not told to call a function."""
    said = render.error_line(
        RegionExists("a region 'x' exists", "attach() to it, or create(..., replace=True)")
    )
    assert "sharedregion unlink" in said
    assert "(" not in said
    kept = render.error_line(RegionNotFound("there is no region 'x'", "look at /dev/shm"))
    assert kept.endswith("look at /dev/shm")


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_long_names_break_no_row_of_any_verb(unique: str, columns: int) -> None:
    """A region and an object with long names: its row in ls, ps and footprint is one line, as wide as the terminal at most."""
    name = f"{unique}-{'of-the-training-set-' * 3}2026"
    pid = str(os.getpid())
    with sr.create(name, size="64 MiB", backend="shm") as region:
        region["an object / " * 20 + "end"] = bytes(5 << 20)
        for arguments, start, words in (
            (["ls"], "test-", ["2026", "live", "64 MiB", "own"]),
            (["ls", name], "an ", ["end", "bytes", "5 MiB"]),
            (["ps"], "test-", ["2026", pid, "write"]),
            (["footprint", name], "test-", ["2026", pid]),
        ):
            done = run(*arguments, env={**os.environ, "COLUMNS": str(columns)})
            assert done.returncode == 0
            rows = [line for line in done.stdout.splitlines() if line.startswith(start)]
            (row,) = [row for row in rows if all(word in row for word in words)]
            assert len(row) <= columns


@pytest.mark.parametrize(
    ("width", "columns", "room"),
    [
        (120, 4, 60),
        (113, 4, 60),
        (80, 4, 27),
        (77, 4, 24),
        (76, 3, 45),
        (70, 3, 39),
        (54, 2, 45),
        (30, 2, 21),
        (17, 2, 8),
    ],
)
def test_columns_give_way_before_rows_break(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, columns: int, room: int
) -> None:
    """Names lose their middle down to 24 places, then columns go, what is free names get back, then they are shorter still."""
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [["n" * 60, "1" * 20, "2" * 20, "600 MiB"], ["short", "1", "2", "1 B"]]
    names = ["name", "first", "second", "size"]
    render.table(names, rows, ["size"], cut=["name"], optional=["first", "second"], quiet=True)
    head, long, short = capsys.readouterr().out.splitlines()
    assert head.split() == [name for name in names if name not in names[1 : 5 - columns]]
    assert len(long.split()[0]) == room
    assert len(head) == len(long) == len(short) <= width


def test_files_of_regions_are_called_by_the_regions_name(unique: str) -> None:
    """The kernel calls them "/dev/shm/#12345 (deleted)", which tells nobody what they are."""
    with sr.create(unique, size="64 MiB", backend="shm") as region:
        region["x"] = bytes(32 << 20)
        held = region["x"]
        assert held[-1] == 0
        assert sum(held[::4096]) == 0
        shown = run("footprint", unique).stdout
        assert f"region {unique}: data" in shown
        assert sorted(region_files()[file].rpartition(": ")[2] for file in region._segments()) == [
            "data",
            "members",
        ]
