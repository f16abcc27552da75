"""The bench's cases of frameworks: each gives its figures, for the framework's own way and for regions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sharedregion.bench import cases, workers
from sharedregion.bench.records import Results

SUBJECTS = {"processes": 3, "loader": 2, "prefork": 3, "parallel": 2, "columns": 3}


@pytest.mark.parametrize("case", SUBJECTS)
def test_a_case_gives_its_figures(tmp_path: Path, case: str) -> None:
    """Memory of a worker, its page tables, its start and what it does in a second, of each subject; nothing fails."""
    command = [sys.executable, "-P", "-m", "sharedregion", "bench", case, "--quick", "--size", "4 MiB"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "lines")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = Results([json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]).of(case)
    assert len(rows) == SUBJECTS[case]
    for row in rows:
        assert row.status == "ok", (row.subject, row.reason)
        assert row.figures.keys() == workers.METRICS.keys() == cases.load(case).metrics.keys()
        assert all(row.figures[key].median > 0 for key in ("pss", "tables", "start", "rate")), row
