"""A helper that is missing, replaced, killed or talks nonsense."""

from __future__ import annotations

import importlib
import json
import os
import pickle
from pathlib import Path

import pytest

from sharedregion.errors import SharedRegionError, ToolError
from sharedregion.footprint import footprint

module = importlib.import_module("sharedregion.footprint.helper")

GOOD = {
    "schema": 3, "version": "0.1.0", "method": "status", "reader": None, "why": "w", "remedy": "r", "scope": "all",
    "distinct_bytes": 8192, "looked_at": {"processes": 1},
    "processes": [{
        "pid": 7, "command": "x", "tables": {"pgd": 1, "p4d": 0, "pud": 0, "pmd": 0, "pte": 1}, "held_tables": 0,
        "linked_bytes": 8192, "private_bytes": 8192, "shared_bytes": 0, "proportional_bytes": 8192, "vm_pte_bytes": 4096,
        "moving": 0, "estimate": True, "shares_with": [], "shares_with_in_all": 0, "regions": [],
    }],
    "gone": [], "denied": [], "kernel_threads": [],
}  # fmt: skip


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A shell script in the helper's place."""

    def make(script: str, mode: int = 0o755) -> Path:
        tmp_path.chmod(0o755)
        path = tmp_path / "helper"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(mode)
        monkeypatch.setenv(module.VARIABLE, str(path))
        return path

    return make


def test_a_good_answer_comes_back_as_it_was(pretend) -> None:
    """`to_dict` gives the JSON that the helper gave, with the keys of the schema."""
    pretend(f"cat <<'E'\n{json.dumps(GOOD)}\nE\n")
    found = footprint(7)
    said = found.to_dict()
    assert {key: said[key] for key in GOOD} == GOOD
    assert found.estimate
    assert pickle.loads(pickle.dumps(found)) == found
    json.dumps(said)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 1}, {"schema": None}, {"method": "guess"}, {"method": 1}, {"distinct_bytes": -1}, {"distinct_bytes": True},
        {"distinct_bytes": 1.5}, {"processes": {}}, {"processes": [1]}, {"processes": [{}]}, {"gone": 1}, {"gone": ["x"]},
        {"looked_at": None}, {"why": 3}, {"shared": []},
        {"processes": [{**GOOD["processes"][0], "tables": {"pgd": 1}}]},
        {"processes": [{**GOOD["processes"][0], "regions": [{"region": "5"}]}]},
        {"processes": [{**GOOD["processes"][0], "leaves": {"4k": 1}}]},
    ],
)  # fmt: skip
def test_an_answer_that_is_not_of_the_schema_is_one_clear_error(pretend, change: dict[str, object]) -> None:
    """A wrong type, a negative size, another schema: `ToolError` with a remedy, never a KeyError."""
    pretend(f"cat <<'E'\n{json.dumps({**GOOD, **change})}\nE\n")
    with pytest.raises(ToolError, match="makes no sense") as caught:
        footprint(7)
    assert caught.value.remedy


@pytest.mark.parametrize("answer", ["", "{", "null", "[]", "\\377\\376", "{" * 50, "1e999", '{"schema": 1}'])
def test_an_answer_that_is_no_answer_is_one_clear_error(pretend, answer: str) -> None:
    """Empty, cut, not JSON, not text."""
    pretend(f"printf '{answer}'\n")
    with pytest.raises(ToolError, match="makes no sense"):
        footprint(7)


def test_json_nested_without_end_is_one_clear_error(pretend) -> None:
    """A hundred thousand brackets exhaust no stack."""
    pretend("head -c 100000 /dev/zero | tr '\\0' '['\n")
    with pytest.raises(ToolError, match="makes no sense"):
        footprint(7)


def test_a_killed_helper_is_named_as_such(pretend) -> None:
    """With the signal, and errno for those who compare numbers."""
    pretend("kill -9 $$\n")
    with pytest.raises(ToolError, match=r"killed by signal 9 \(SIGKILL\)") as caught:
        footprint(7)
    assert isinstance(caught.value, SharedRegionError)
    assert caught.value.errno
    assert caught.value.remedy


def test_a_failing_helper_is_quoted_without_its_escape_codes(pretend) -> None:
    """What it says to standard error is in the text, made printable."""
    pretend("printf 'no \\033[31mtables\\n' >&2; exit 1\n")
    with pytest.raises(ToolError, match=r"status 1: no \?\[31mtables"):
        footprint(7)


def test_a_helper_that_does_not_end_is_ended(pretend) -> None:
    """After `timeout` seconds; nothing of it stays."""
    path = pretend("exec sleep 1000\n")
    with pytest.raises(ToolError, match=r"no answer within 0\.2 s"):
        footprint(7, timeout=0.2)
    left = [pid for pid in os.listdir("/proc") if pid.isdigit() and _runs(pid, path)]
    assert left == []


def _runs(pid: str, path: Path) -> bool:
    try:
        return os.fsencode(path) in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_an_endless_answer_is_cut(pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output beyond the limit ends the helper, and does not fill memory."""
    monkeypatch.setattr(module, "_OUTPUT_LIMIT", 1 << 20)
    pretend("exec cat /dev/zero\n")
    with pytest.raises(ToolError, match="longer than 1 MiB"):
        footprint(7)


def test_endless_complaints_do_not_block(pretend) -> None:
    """Standard error is read and dropped beyond a few lines."""
    pretend(f"head -c 1000000 /dev/zero >&2; cat <<'E'\n{json.dumps(GOOD)}\nE\n")
    assert footprint(7).processes[0].pid == 7


def test_a_missing_helper_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the program says what to install."""
    monkeypatch.delenv(module.VARIABLE, raising=False)
    monkeypatch.setattr(module, "INSTALLED", "/nonexistent/ptwalk")
    monkeypatch.setattr(module, "_packaged", lambda: None)
    with pytest.raises(ToolError, match="missing") as caught:
        footprint(7)
    assert "install" in (caught.value.remedy or "")


def test_a_helper_that_others_could_replace_is_not_run(pretend) -> None:
    """Writable by others: refused before it is started."""
    pretend("exit 0\n", mode=0o757)
    with pytest.raises(ToolError, match="nobody else can write"):
        footprint(7)


def test_a_helper_that_is_no_program_is_one_clear_error(pretend) -> None:
    """The system's own reason is kept: text, errno."""
    path = pretend("")
    path.write_bytes(b"\x7fELF nonsense")
    with pytest.raises(ToolError, match="cannot be started") as caught:
        footprint(7)
    assert caught.value.errno


def test_an_installed_copy_is_preferred_only_if_it_speaks_the_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy with capabilities from an older version is passed over."""
    monkeypatch.delenv(module.VARIABLE, raising=False)
    if os.geteuid() != 0:
        pytest.skip("a copy must belong to root")
    tmp_path.chmod(0o755)
    copy = tmp_path / "ptwalk"
    monkeypatch.setattr(module, "INSTALLED", str(copy))
    monkeypatch.setattr(module, "_packaged", lambda: "/packaged")
    for schema, expected in ((3, str(copy)), (1, "/packaged")):
        copy.write_text(f'#!/bin/sh\necho \'{{"name": "sharedregion-ptwalk", "schema": {schema}}}\'\n')
        copy.chmod(0o755)
        assert module.find_helper() == expected
    copy.chmod(0o777)
    assert module.find_helper() == "/packaged"
