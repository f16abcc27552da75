"""What the benchmarks are made of: plans, budgets, records, and peers that really hand over the bytes."""

import dataclasses
import string
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedregion.bench import against, budgets, cases, records, run, tables
from sharedregion.bench.case import OURS, Bars, Job, Lines, Setting
from sharedregion.bench.ours import TITLES, subject

GIB = 1 << 30
SETTING = Setting(
    quick=False,
    peers=against.NAMES,
    kinds=OURS,
    unusable={},
    memory=64 * GIB,
    processors=4,
    root=True,
)


def sample(case: str, name: str, metric: str, value: float, **params: Any) -> dict[str, Any]:
    return {
        "record": "sample",
        "case": case,
        "subject": name,
        "params": params,
        "round": 0,
        "metric": metric,
        "unit": "",
        "value": value,
    }


# ---- Cases and peers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.NAMES)
def test_a_case_is_whole(name: str) -> None:
    """Its charts show metrics and params that it has, and its jobs are its own."""
    case = cases.load(name)
    assert case.name == name
    for quick in (False, True):
        jobs = case.plan(dataclasses.replace(SETTING, quick=quick))
        assert jobs
        assert {job.case for job in jobs} == {name}
        # A subject under the same params is measured once; rounds are the runner's.
        keys = [(job.subject, tuple(sorted(job.params.items()))) for job in jobs]
        assert len(keys) == len(set(keys))
    params = {key for job in case.plan(SETTING) for key in job.params}
    for chart in case.charts:
        assert isinstance(chart, Bars | Lines)
        assert chart.metric in case.metrics
        assert set(chart.where) <= params
        named = {field for _, field, _, _ in string.Formatter().parse(chart.title) if field}
        assert named <= set(chart.where)
        if isinstance(chart, Lines):
            assert chart.over in params


def test_every_peer_is_in_every_case_that_compares_peers() -> None:
    """Measured, or with the reason why not: never silently left out."""
    for name in ("footprint", "attach", "objects", "latency", "writers", "gather", "serve"):
        planned = {job.subject for job in run.plan([name], SETTING)}
        assert set(against.NAMES) <= planned, name


INSTALLED = [
    name
    for name in ("thp", "shm", *against.NAMES)
    if name in TITLES or not against.load(name).module or find_spec(against.load(name).module or "")
]
VIEW = """
import sys, json, hashlib
from sharedregion.bench.ours import subject
with subject(sys.argv[1]).view(json.loads(sys.argv[2])) as memory:
    print(len(memory), hashlib.sha256(memory.tobytes()).hexdigest())
    del memory
"""


@pytest.mark.parametrize("name", INSTALLED)
def test_what_a_subject_holds_is_what_another_process_sees(name: str, unique: str, tmp_path: Any) -> None:
    """Otherwise the figures would compare different things."""
    import hashlib
    import json

    bytes_ = np.random.default_rng(1).integers(0, 256, 3 << 20, np.uint8)

    def fill(memory: Any) -> None:
        memory[:] = bytes_

    peer = subject(name)
    assert peer.hold
    with peer.hold(len(bytes_), fill, (f"{unique}-", str(tmp_path))) as ticket:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", VIEW, name, json.dumps(ticket)],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        size, digest = done.stdout.split()[-2:]
    # iceoryx2 leaves a name for the next one who comes; a run sweeps what has its prefix.
    for left in (path for path in Path("/dev/shm").iterdir() if path.name.startswith(f"{unique}-")):
        assert name == "iceoryx2"
        left.unlink()
    assert (int(size), digest) == (len(bytes_), hashlib.sha256(bytes_.tobytes()).hexdigest())


@pytest.mark.parametrize("name", [name for name in INSTALLED if subject(name).store])
def test_a_store_keeps_replaces_and_deletes(name: str, unique: str, tmp_path: Any) -> None:
    peer = subject(name)
    assert peer.store
    with peer.store(64 << 20, (f"{unique}-", str(tmp_path))) as store:
        store.put("x", np.arange(8.0) + 5)
        assert store.look("x") == 5
        store.put("x", np.arange(8.0) + 6)
        assert store.look("x") == 6
        store.delete("x")
        with pytest.raises((KeyError, OSError, TypeError)):
            store.look("x")


# ---- Running ------------------------------------------------------------------------------------


def test_subjects_take_turns_and_the_order_turns_round() -> None:
    jobs = [Job("c", name, {"size": 1}, rounds=3) for name in "ab"] + [
        Job("c", "x", {"size": 1}, cannot="no")
    ]
    order = [(job.subject, job.round) for job in run._in_turn(jobs)]
    assert order == [("a", 0), ("b", 0), ("x", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]


# ---- Budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", budgets.BUDGETS, ids=lambda budget: budget.key)
def test_a_budget_asks_for_what_a_full_run_measures(budget: budgets.Budget) -> None:
    """A case, a metric, a subject and params that a plan has: a misspelt budget would never be judged."""
    for pick in (budget.pick, budget.over):
        if pick is None:
            continue
        case = cases.load(pick.case)
        assert pick.metric in case.metrics
        fitting = [
            job
            for job in case.plan(SETTING)
            if job.subject in pick.subjects and all(job.params.get(k) == v for k, v in pick.where.items())
        ]
        assert fitting, pick
        assert case.metrics[pick.metric].unit == budget.unit or budget.unit in ("x", "")


def test_the_worst_figure_decides() -> None:
    budget = next(one for one in budgets.BUDGETS if one.key == "worker-linked")
    good = sample("footprint", "hugetlb-2m", "private", 8192, size=GIB, workers=4)
    bad = sample("footprint", "hugetlb-1g", "private", 20000, size=GIB, workers=4)
    assert budget.judge(records.Results([])) is None
    met = budget.judge(records.Results([good]))
    assert met == budgets.Verdict(8192, met=True)
    assert budget.judge(records.Results([good, bad])) == budgets.Verdict(20000, met=False)


def test_a_ratio_is_taken_from_the_same_run() -> None:
    budget = next(one for one in budgets.BUDGETS if one.key == "attach-thp")
    theirs = sample("attach", "shared_memory", "beyond", 0.3, size=2 * GIB)
    ours = sample("attach", "thp", "beyond", 0.01, size=2 * GIB)
    assert budget.judge(records.Results([theirs])) is None
    verdict = budget.judge(records.Results([theirs, ours]))
    assert verdict
    assert verdict.met
    assert round(verdict.value) == 30
    slow = sample("attach", "thp", "beyond", 0.1, size=2 * GIB)
    verdict = budget.judge(records.Results([theirs, slow]))
    assert verdict
    assert not verdict.met


def test_thp_may_take_4_kib_for_each_gib_and_a_little() -> None:
    budget = next(one for one in budgets.BUDGETS if one.key == "worker-thp")

    def judged(private: int) -> bool:
        verdict = budget.judge(
            records.Results([sample("footprint", "thp", "private", private, size=512 * GIB)])
        )
        assert verdict
        return verdict.met

    assert judged(512 * 4096 + 16384)
    assert not judged(512 * 4096 + 16385)


# ---- Words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (198e-9, "s", "198 ns"),
        (1.5e-3, "s", "1.5 ms"),
        (4096.0, "B", "4 KiB"),
        (-4096.0, "B", "-4 KiB"),
        (1 << 30, "B/s", "1.00 GiB/s"),
        (15.2, "x", "15.20 x"),
        (0.0, "s", "0 ns"),
        (1500, "", "1,500"),
    ],
)
def test_figures_are_written_as_a_person_would(value: float, unit: str, text: str) -> None:
    assert tables.amount(value, unit) == text


def test_medians_have_their_spread_and_rounds_are_put_together() -> None:
    rows = records.Results(
        [sample("attach", "thp", "beyond", value, size=1) for value in (3.0, 1.0, 2.0)]
    ).rows
    assert len(rows) == 1
    assert tables.spread(rows[0].figures["beyond"], "s") == "2 s (1 to 3)"
    far = records.Figure((1.0, 0.5, 0.002))
    assert tables.spread(far, "s") == "500 ms (2 ms to 1 s)"
