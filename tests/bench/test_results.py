"""The stored run: whole, by one command, and what README and docs cite is what it measured."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from sharedregion.bench import against, budgets, cases, records, report

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "bench/results/full.jsonl"
#: Cases that ask the same of every peer.
COMPARED = ("footprint", "attach", "objects", "latency", "writers", "gather", "serve")
#: What failed in the stored run and no longer does: the case asked for a region of odd bytes.
MENDED = {("serve", "hugetlb-1g")}


def _results() -> records.Results:
    with STORED.open(encoding="ascii") as file:
        return records.Results(records.read(file))


@pytest.fixture(scope="module")
def results() -> records.Results:
    return _results()


def test_it_is_one_whole_run_by_the_command_beside_it(results: records.Results) -> None:
    heads = [line for line in STORED.read_text(encoding="ascii").splitlines() if '"record": "run"' in line]
    assert len(heads) == 1
    assert results.end is not None
    assert results.end["complete"] is True
    assert (results.run["quick"], results.run["peers"]) == (False, list(against.NAMES))
    assert results.run["cases"] == results.cases == list(cases.NAMES)
    command = " ".join(results.run["command"])
    assert f"\n{command}\n" in (STORED.parent / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in STORED.parent.glob("*.jsonl")] == [STORED.name]


@pytest.mark.parametrize("case", cases.NAMES)
def test_every_row_has_its_figures_or_says_why_not(results: records.Results, case: str) -> None:
    rows = results.of(case)
    assert any(row.figures for row in rows)
    for row in rows:
        # A peer may fail, and is a row all the same; a region may not.
        may_fail = row.subject in against.NAMES or (case, row.subject) in MENDED
        may = ("ok", "cannot", "refused", "missing", *(["failed"] if may_fail else []))
        assert row.status in may, (row.subject, row.params, row.reason)
        assert (row.status == "ok") == bool(row.figures), row
        assert (row.status == "ok") == (row.reason is None), row
        assert set(row.figures) <= set(cases.load(case).metrics)


@pytest.mark.parametrize("case", COMPARED)
def test_no_peer_is_left_out(results: records.Results, case: str) -> None:
    told = {row.subject for row in results.of(case)}
    assert set(against.NAMES) <= told
    # Each of them can be installed; one that was not would be no comparison.
    assert [row.subject for row in results.of(case) if row.status == "missing"] == []


@pytest.mark.parametrize("budget", budgets.BUDGETS, ids=lambda budget: budget.key)
def test_every_budget_is_judged_and_one_that_is_missed_is_explained(
    results: records.Results, budget: budgets.Budget
) -> None:
    verdict = budget.judge(results)
    assert verdict is not None
    assert verdict.met or budget.why, verdict.value


def test_the_report_of_it_is_one_page_that_needs_nothing_else(
    results: records.Results, tmp_path: Path
) -> None:
    report.prepare(str(tmp_path))
    path = Path(report.write(results, str(tmp_path), results.cases))
    text = path.read_text(encoding="utf-8")
    assert len(text) < 1 << 20
    assert not re.search(r"""<script|<link|\bsrc=|href=["'](?!#)|@import|url\((?!#)|https?:""", text)
    assert all(f'id="{name}"' in text for name in cases.NAMES)
    assert results.run["machine"]["time"] in text
    # The charts that the docs show are made with it.
    shown = re.findall(r"\]\(report/([a-z0-9-]+\.svg)\)", (ROOT / "docs/benchmarks.md").read_text("utf-8"))
    assert shown
    assert set(shown) <= {path.name for path in tmp_path.iterdir()}


def test_it_names_no_folder_of_the_machine_and_no_user() -> None:
    head = json.loads(STORED.read_text(encoding="ascii").splitlines()[0])
    assert not re.search(r"/(home|root|tmp|work|usr|opt)\b", json.dumps(head))


# ---- What is cited ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    """The script that puts figures into the pages."""
    spec = importlib.util.spec_from_file_location("figures", ROOT / "scripts/figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_say_what_was_measured(figures: ModuleType, results: records.Results) -> None:
    assert set(figures.PAGES) == {"README.md", "docs/how-to/where-did-the-memory-go.md"}
    for name, told in figures.PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert told(text, results) == text, f"{name}: python scripts/figures.py --write"


@pytest.mark.parametrize(
    ("page", "row"),
    [
        ("README.md", "| `hugetlb`, 2 MiB pages |"),
        ("README.md", "| `thp` |"),
        ("README.md", "| `shm`, plain |"),
        ("README.md", "| `multiprocessing.shared_memory` |"),
        ("README.md", "worker, which `RSS` does not show"),
        ("docs/how-to/where-did-the-memory-go.md", "| `huge_pages = off`, measured |"),
        ("docs/how-to/where-did-the-memory-go.md", "| `huge_pages = on`, foretold |"),
        ("docs/how-to/where-did-the-memory-go.md", "| `huge_pages = on`, measured |"),
    ],
)
def test_another_figure_in_a_page_is_found_and_mended(
    figures: ModuleType, results: records.Results, page: str, row: str
) -> None:
    told = figures.PAGES[page]
    text = told((ROOT / page).read_text(encoding="utf-8"), results)
    (line,) = (line for line in text.split("\n") if line.startswith(row))
    head, amount, rest = re.split(r"([\d.,]+ [KMG]iB(?= of its own| in each| \|))", line, maxsplit=1)
    assert amount != "99 MiB"
    wrong = text.replace(line, f"{head}99 MiB{rest}")
    assert told(wrong, results) == text
