"""The stored run: whole, of one command, and what the docs show is made from it."""

import json
import re
from pathlib import Path

import pytest

from sharedregion.bench import budgets, cases, records

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "bench/results/full.jsonl"
PAGE = ROOT / "docs/report/index.html"


@pytest.fixture(scope="module")
def results() -> records.Results:
    with STORED.open(encoding="ascii") as file:
        return records.Results(records.read(file))


def test_it_is_one_full_run_of_the_command_beside_it(results: records.Results) -> None:
    assert results.end is not None
    assert results.end["complete"] is True
    assert results.run["quick"] is False
    assert results.cases == list(cases.NAMES)
    command = " ".join(results.run["command"])
    assert command in (STORED.parent / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in STORED.parent.glob("*.jsonl")] == [STORED.name]


def test_every_row_has_figures_or_a_reason_and_every_budget_was_measured(results: records.Results) -> None:
    for row in results.rows:
        assert row.figures or row.reason, row
    for budget in budgets.BUDGETS:
        verdict = budget.judge(results)
        assert verdict is not None, budget.key
        # One that is missed is explained.
        assert verdict.met or budget.why, budget.key


def test_the_docs_show_the_report_of_it(results: records.Results) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert results.run["machine"]["time"] in text
    shown = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\]\((report/[a-z0-9-]+\.svg)\)", shown)
    assert pictures
    for name in pictures:
        assert (ROOT / "docs" / name).exists(), name
    assert sum(path.stat().st_size for path in PAGE.parent.iterdir()) < 1 << 20


def test_the_stored_lines_say_nothing_of_whose_machine_it_was() -> None:
    with STORED.open(encoding="ascii") as file:
        head = json.loads(file.readline())
    words = json.dumps(head)
    assert not re.search(r"/(home|root|tmp|work)/", words)
