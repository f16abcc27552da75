"""The benchmark command: what was asked for is measured or said to be missing, and the machine is given back."""

import contextlib
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from sharedregion._guardian import marked_processes
from sharedregion._kernel.sysfs import hugepage_pools
from sharedregion.bench import against, budgets, cases, records

#: Those that are tested here; a framework's case is tested beside the framework.
CASES = (
    "sga",
    "footprint",
    "attach",
    "objects",
    "latency",
    "writers",
    "large",
    "million",
    "gather",
    "serve",
    "imports",
    "helper",
)
COMMAND = [sys.executable, "-P", "-m", "sharedregion", "bench"]
MARK = "SHAREDREGION_BENCH_RUN="
#: Tables are looked through by line: no width and no colours from whoever runs the tests.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE")
}


def bench(*arguments: str, expect: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, env={**ENVIRONMENT, **environ}
    )
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def statuses(path: Path) -> dict[tuple[str, str], tuple[str, str | None]]:
    return {
        (one["case"], one["subject"]): (one["status"], one["reason"])
        for one in lines(path)
        if one["record"] == "status"
    }


def mark_of(process: "subprocess.Popen[str]") -> str:
    """What names everything that this run makes; the processes of its subjects carry it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            # Others come and go.
            with contextlib.suppress(OSError):
                for entry in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    if entry.startswith(MARK.encode()):
                        return entry.decode().removeprefix(MARK)
    raise AssertionError("the run has started no subject")


def left(mark: str) -> list[str]:
    """What the run with that mark left: files, folders, processes."""
    found = [name for folder in ("/dev/shm", "/tmp") for name in os.listdir(folder) if mark in name]
    return found + [f"process {pid}" for pid in marked_processes(MARK + mark)]


def pools() -> dict[int, int]:
    return {size: pool.persistent for size, pool in hugepage_pools().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, quick and small, beside two peers: DIR/lines and DIR/index.html."""
    folder = tmp_path_factory.mktemp("bench")
    before = pools()
    bench(
        *CASES,
        "--quick",
        "--size",
        "16 MiB",
        "--against",
        "shared_memory",
        "--against",
        "lmdb",
        "--json",
        str(folder / "lines"),
        "--report",
        str(folder),
    )
    assert pools() == before
    return folder


# ---- Results ------------------------------------------------------------------------------------


def test_every_case_gives_figures_and_none_fails(whole: Path) -> None:
    results = records.Results(lines(whole / "lines"))
    assert results.cases == list(CASES)
    bad = [(row.case, row.subject, row.reason) for row in results.rows if row.status in ("failed", "killed")]
    assert bad == []
    for name in CASES:
        rows = results.of(name)
        # A case may lack what it needs (serve: a framework), and then says what.
        assert any(row.figures for row in rows) or all(row.reason for row in rows), name
        for row in rows:
            assert row.figures or row.reason, row
            assert set(row.figures) <= set(cases.load(name).metrics)


def test_lines_are_records_of_the_documented_form(whole: Path) -> None:
    found = lines(whole / "lines")
    head, *middle, end = found
    assert (head["record"], head["schema"], head["cases"]) == ("run", records.SCHEMA, list(CASES))
    assert head["command"][:2] == ["sharedregion", "bench"]
    assert head["warmed"]["second_seconds"] > 0
    assert {"processor", "memory", "kernel", "python", "load", "versions", "pools", "thp"} <= head[
        "machine"
    ].keys()
    assert end["record"] == "end"
    assert end["complete"] is True
    for one in middle:
        common = {"record", "case", "subject", "params", "round"}
        if one["record"] == "sample":
            assert one.keys() == common | {"metric", "unit", "value"}
            assert isinstance(one["value"], int | float)
            assert one["unit"] == cases.load(one["case"]).metrics[one["metric"]].unit
        else:
            assert one.keys() == common | {"status", "reason", "seconds"}
            assert one["status"] in records.STATUSES
            assert (one["reason"] is None) == (one["status"] == "ok")


def test_the_tables_of_a_worker_are_what_the_kinds_promise(whole: Path) -> None:
    """16 MiB in 4 KiB pages are 32 KiB of entries for each worker; in 2 MiB pages none of its own."""
    results = records.Results(lines(whole / "lines"))
    small = results.figure("footprint", "shared_memory", "private")
    large = results.figure("footprint", "thp", "private")
    assert small
    assert large
    assert 28 << 10 <= small.median <= 64 << 10
    assert large.median <= 12 << 10


@pytest.mark.root
@pytest.mark.hugepages
def test_in_the_story_4_kib_clients_are_killed_and_linked_ones_are_not(whole: Path) -> None:
    results = records.Results(lines(whole / "lines"))

    def told(subject: str, metric: str) -> float:
        found = results.figure("sga", subject, metric, {"data": "sparse"})
        assert found, (subject, metric)
        return found.median

    assert told("shm", "killed") == 1
    assert 2 <= told("shm", "lived") < 40
    # 16 GiB in 4 KiB pages, by the helper: 32 MiB of entries.
    assert 32 << 20 <= told("shm", "private") <= 34 << 20
    for kind in ("hugetlb-2m", "thp"):
        assert (told(kind, "lived"), told(kind, "killed")) == (40, 0)
    assert told("hugetlb-2m", "private") <= 16 << 10


def test_the_sums_of_the_story_are_exact() -> None:
    """300 GiB, 1500 clients; and one page of 2000 processes, which is often told wrongly."""
    from sharedregion.bench.cases.sga import arithmetic

    row = records.Row("sga", "shm", {"size": 300 << 30, "clients": 1500, "data": "sparse"})
    text = " ".join(arithmetic([row]))
    for part in (
        "78,643,200 entries x 8 B = 629,145,600 B (600 MiB)",
        "630,378,496 B in each client",
        "= 945,567,744,000 B",
        "300 x 4096 B = 1,228,800 B in all",
        "2,000 x 8 B = 16,000 B",
        "16 kB",
    ):
        assert part in text, part


# ---- The report ---------------------------------------------------------------------------------


class _Page(HTMLParser):
    VOID = frozenset({"meta", "br", "img", "path", "use", "rect", "line", "circle", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.outside: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and (value or "").startswith("#"):
                self.targets.append((value or "")[1:])
            elif name in ("href", "src", "srcset", "action", "data"):
                self.outside.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag


def test_the_report_is_one_file_that_needs_nothing_else(whole: Path) -> None:
    text = (whole / "index.html").read_text(encoding="utf-8")
    assert len(text) < 1 << 20
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.outside == []
    assert "//" not in re.sub(r"</?\w", "", text.replace("//-->", ""))
    assert not re.search(r"@import|url\((?!#)", text)
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert set(page.targets) <= set(page.ids)
    assert set(CASES) <= set(page.ids)
    assert page.tags.count("svg") >= 5


def test_every_budget_is_in_the_report_measured_or_not(whole: Path) -> None:
    text = html.unescape((whole / "index.html").read_text(encoding="utf-8"))
    results = records.Results(lines(whole / "lines"))
    verdicts = [budget.judge(results) for budget in budgets.BUDGETS]
    assert None in verdicts, "a quick run does not reach the size of the story"
    assert any(verdicts)
    table = text[text.index('id="budgets"') : text.index('id="machine"')]
    for budget, verdict in zip(budgets.BUDGETS, verdicts, strict=True):
        row = next(row for row in table.split("<tr>") if f"<td>{budget.what}<" in row)
        assert budget.limit_text in row
        assert ("met" if verdict and verdict.met else "missed" if verdict else "not measured") in row


def test_each_chart_is_a_picture_of_its_own_too(whole: Path) -> None:
    """Whole XML, with a ground of its own, that refers to nothing outside of itself."""
    text = (whole / "index.html").read_text(encoding="utf-8")
    pictures = sorted(whole.glob("*.svg"))
    assert len(pictures) == text.count("<svg ")
    for path in pictures:
        words = path.read_text(encoding="utf-8")
        root = ET.fromstring(words)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root[0].get("fill") == "#fff"
        ids = {one.get("id") for one in root.iter() if one.get("id")}
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', words))
        assert {name for pair in used for name in pair if name} <= ids
        assert words.count("//") == 1


def test_progress_says_which_case_and_how_long_it_will_take(tmp_path: Path) -> None:
    said = bench("--quick", "helper", "imports", "--json", str(tmp_path / "lines")).stderr
    for name in ("helper", "imports"):
        assert re.search(rf"^\.\.\. {name}, about \d+ (s|min) left$", said, re.MULTILINE), said


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "lines"
    (tmp_path / "file").write_text("")
    said = bench("--quick", "helper", "--json", str(out), "--report", str(tmp_path / "file"), expect=1).stderr
    assert "file" in said
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.replace("SharedArray", "matplotlib"))
    said = bench(
        "--quick",
        "helper",
        "--json",
        str(out),
        "--report",
        str(tmp_path / "new"),
        expect=1,
        PYTHONPATH=str(tmp_path),
    ).stderr
    assert "pip install 'sharedregion[bench]'" in said
    assert not out.exists()


def test_stored_lines_give_the_report_and_the_tables_again(whole: Path, tmp_path: Path) -> None:
    done = bench("--from", str(whole / "lines"), "--report", str(tmp_path / "again"))
    assert (tmp_path / "again/index.html").read_text() == (whole / "index.html").read_text()
    for name in CASES:
        assert f"{name}: {cases.load(name).title}" in done.stdout
    # Measured again, a case takes the place of what it was.
    (tmp_path / "newer").write_text(
        "".join(
            line.replace('"value": ', '"value": 12345')
            for line in (whole / "lines").read_text().splitlines(keepends=True)
            if '"case": "helper"' in line
        )
    )
    both = bench("--from", str(whole / "lines"), "--from", str(tmp_path / "newer")).stdout
    assert "12345" in both.replace(",", "")
    assert "footprint: " in both
    one = bench("helper", "--from", str(whole / "lines"))
    assert "helper: " in one.stdout
    assert "footprint: " not in one.stdout
    assert "not in these results" in bench("postgresql", "--from", str(whole / "lines")).stdout
    said = bench("--from", str(whole / "lines"), "--quick", expect=2).stderr
    assert "--from measures nothing" in said


# ---- Bad input ----------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    said = bench("no-such-case", expect=2).stderr
    assert "no case 'no-such-case'" in said
    assert all(name in said for name in cases.NAMES)
    said = bench("helper", "--against", "no-such-peer", expect=2).stderr
    assert "no peer 'no-such-peer'" in said
    assert all(name in said for name in against.NAMES)


def test_the_list_names_every_case_and_every_peer() -> None:
    said = bench("--list").stdout.split()
    assert set(cases.NAMES) | set(against.NAMES) <= set(said)


#: What a machine without SharedArray, and with a broken lmdb, looks like to Python.
WITHOUT = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "SharedArray" else PathFinder.find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def test_peers_that_are_not_there_are_named_with_what_would_bring_them(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    (tmp_path / "lmdb.py").write_text("raise ImportError('liblmdb.so is broken')")
    out = tmp_path / "lines"
    peers = [word for name in ("sharedarray", "lmdb", "shared_memory") for word in ("--against", name)]
    done = bench("--quick", "attach", "--size", "8 MiB", *peers, "--json", str(out), PYTHONPATH=str(tmp_path))
    found = statuses(out)
    assert found["attach", "sharedarray"] == ("missing", "not installed: pip install SharedArray")
    word, reason = found["attach", "lmdb"]
    assert word == "missing"
    assert reason
    assert "liblmdb.so is broken" in reason
    assert found["attach", "shared_memory"] == ("ok", None)
    assert "missing: not installed: pip install SharedArray" in done.stdout


def test_a_peer_that_cannot_do_a_case_says_why(tmp_path: Path) -> None:
    out = tmp_path / "lines"
    done = bench("--quick", "writers", "--against", "queue", "--json", str(out))
    assert statuses(out)["writers", "queue"] == ("cannot", "a queue keeps no objects by name")
    assert "cannot: a queue keeps no objects by name" in done.stdout


@pytest.mark.root
def test_too_little_memory_is_refused_before_it_is_taken(
    tmp_path: Path, memory_group: Callable[[int], list[str]]
) -> None:
    out = tmp_path / "lines"
    done = subprocess.run(
        [*memory_group(200 << 20), *COMMAND, "--quick", "large", "--json", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    # Nothing could be measured.
    assert done.returncode == 1
    found = statuses(out)
    assert found
    for word, reason in found.values():
        assert word == "refused"
        assert reason
        assert "it needs 448 MiB of memory" in reason
    assert all(one["record"] != "sample" for one in lines(out))


#: Control groups as a container may have them: there, and not to be written to.
READ_ONLY_GROUPS = """
for place in $(awk '$3 ~ /^cgroup/ { print $2 }' /proc/self/mounts); do mount -o remount,bind,ro "$place"; done
exec "$@"
"""


@pytest.mark.root
@pytest.mark.hugepages
def test_root_without_control_groups_runs_without_a_limit_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "lines"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", READ_ONLY_GROUPS, "sh", *COMMAND, "--quick", "sga", "--json", str(out)],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No control group with a memory limit could be made here" in done.stdout
    results = records.Results(lines(out))
    sparse = {row.subject: row for row in results.rows if row.params["data"] == "sparse"}
    for kind in ("hugetlb-2m", "thp", "shm"):
        assert sparse[kind].figures["unlimited"].median == 1
    assert sparse["hugetlb-2m"].figures["lived"].median == 40
    # What a client costs is told; who would have lived is not known.
    assert 32 << 20 <= sparse["shm"].figures["private"].median <= 34 << 20
    assert not {"lived", "killed"} & sparse["shm"].figures.keys()


@pytest.mark.root
def test_an_ordinary_user_gets_what_needs_no_privilege_and_the_reasons_for_the_rest(
    as_nobody: Callable[..., str],
) -> None:
    said = as_nobody(
        "from sharedregion.cli.app import run\n"
        "sys.exit(run(['bench', '--quick', 'sga', 'helper', '--size', '64 MiB']))"
    )
    assert "No control group with a memory limit could be made here" in said
    for title in ("region, thp", "region, plain 4 KiB pages"):
        rows = [line for line in said.splitlines() if line.startswith(title)]
        assert len(rows) == 2, said
        assert not any("failed" in line or "cannot" in line for line in rows), said


def test_on_a_narrow_terminal_no_row_and_no_reason_is_lost(tmp_path: Path) -> None:
    """Figures that find no room are named; subjects and reasons are all there."""
    path = tmp_path / "lines"
    status = {"record": "status", "round": 0, "seconds": 1.0}
    records_ = [
        status | {"case": "footprint", "subject": name, "params": {"size": size << 20, "workers": 4}}
        | ({"status": "ok", "reason": None} if size < 64 else {"status": "killed", "reason": "by SIGKILL"})
        for name in against.NAMES
        for size in (16, 64)
    ]  # fmt: skip
    records_ += [
        {"record": "sample", "case": "footprint", "subject": name, "params": {"size": 16 << 20, "workers": 4},
         "round": 0, "metric": metric, "unit": "B", "value": 123456.0}
        for name in against.NAMES
        for metric in ("private", "proportional", "linked", "growth", "large")
    ]  # fmt: skip
    path.write_text("".join(json.dumps(one) + "\n" for one in records_))
    said = bench("--from", str(path), COLUMNS="80").stdout
    table = said.splitlines()[: 2 * len(against.NAMES) + 6]
    assert max(map(len, table)) <= 80
    assert said.count("killed: by SIGKILL") == len(against.NAMES)
    for name in against.NAMES:
        title = against.load(name).title
        assert sum(line.startswith((title, "multipr....shared_memory")) for line in table) >= 2, title
    assert "121 KiB" in said
    wide = bench("--from", str(path), COLUMNS="200").stdout
    assert all(
        metric.title in wide for metric in cases.load("footprint").metrics.values() if metric.unit == "B"
    )


@pytest.mark.parametrize("text", ["nonsense\n", '{"record": "run", "schema": 99}\n', "[]\n"])
def test_a_file_that_holds_no_results_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lines"
    path.write_text(text)
    said = bench("--from", str(path), expect=1).stderr
    assert said.startswith("sharedregion: ")
    assert "Traceback" not in said


def test_a_run_that_was_cut_off_can_be_shown(whole: Path, tmp_path: Path) -> None:
    text = (whole / "lines").read_text()
    path = tmp_path / "lines"
    path.write_text(text[: len(text) * 2 // 3])
    bench("--from", str(path), "--report", str(tmp_path / "report"))
    assert "cut short" in (tmp_path / "report/index.html").read_text()


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# ---- Interruptions ------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """running(case...): the command, in the middle of measuring."""
    started: list[subprocess.Popen[str]] = []

    def start(*names: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*COMMAND, *names, "--against", "mmap", "--json", str(tmp_path / "lines")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT,
            # A shell's background jobs ignore SIGINT, and so would what they start.
            preexec_fn=_heed_interrupts,  # noqa: PLW1509
        )
        started.append(process)
        deadline = time.monotonic() + 60
        path = tmp_path / "lines"
        while not path.exists() or '"sample"' not in path.read_text():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def _gone(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while what() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not what()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_has_and_undoes_what_it_did(
    running: Callable[..., "subprocess.Popen[str]"], tmp_path: Path, number: signal.Signals
) -> None:
    before = pools()
    process = running("footprint", "--size", "128 MiB")
    mark = mark_of(process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    found = lines(tmp_path / "lines")
    assert found[-1]["record"] == "end"
    assert found[-1]["complete"] is False
    assert any(one["record"] == "sample" for one in found)
    assert "Traceback" not in said
    assert "interrupted" in said
    # What was measured is in the table.
    assert "footprint: " in said
    assert left(mark) == []
    assert pools() == before


def test_a_killed_run_is_undone_too(running: Callable[..., "subprocess.Popen[str]"]) -> None:
    before = pools()
    process = running("footprint", "--size", "128 MiB")
    mark = mark_of(process)
    process.kill()
    process.wait()
    _gone(lambda: left(mark))
    _gone(lambda: pools() != before)


def test_what_a_subject_starts_can_be_told_to_end(tmp_path: Path) -> None:
    """No signal is blocked in it, nor in what it starts: servers end by SIGTERM."""
    process = subprocess.Popen(
        [*COMMAND, "--quick", "imports", "--json", str(tmp_path / "lines")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    )
    mark = (MARK + mark_of(process)).encode()
    blocked = {}
    while process.poll() is None:
        for path in Path("/proc").glob("[0-9]*"):
            # Others come and go.
            with contextlib.suppress(OSError):
                if mark in (path / "environ").read_bytes():
                    words = (path / "status").read_text().split("SigBlk:")[1].split()[0]
                    program = (path / "cmdline").read_bytes()
                    # A timed interpreter: what the subject starts.
                    if b"set(sys.modules)" in program:
                        blocked[path.name] = int(words, 16)
    assert process.returncode == 0
    assert blocked
    assert set(blocked.values()) == {0}


def test_a_subject_that_is_killed_is_a_row_and_the_others_go_on(
    running: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    process = running("--quick", "helper", "imports", "writers")
    mark = mark_of(process)
    victims: list[int] = []
    deadline = time.monotonic() + 60
    while not victims and time.monotonic() < deadline:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            # Others come and go.
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{child}/cmdline").read_bytes()
                if b"sharedregion.bench.subject" in text and b'"writers"' in text:
                    victims.append(int(child))
    os.kill(victims[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    found = [
        one for one in lines(tmp_path / "lines") if one["record"] == "status" and one["case"] == "writers"
    ]
    assert [one["status"] for one in found].count("killed") == 1
    assert {one["status"] for one in found} == {"killed", "ok"}
    assert [one["reason"] for one in found if one["status"] == "killed"] == ["by SIGKILL"]
    assert "killed: by SIGKILL" in said
    assert left(mark) == []
