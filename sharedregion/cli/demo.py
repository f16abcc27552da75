"""`sharedregion demo`: the library's promise, measured on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import click

from sharedregion import _demo, _policy, _story
from sharedregion._kernel.facts import Facts
from sharedregion._machine import machine
from sharedregion._sizes import format_size
from sharedregion.cli import render
from sharedregion.cli.options import backend_option, size_option
from sharedregion.errors import BackendUnavailable, SharedRegionError
from sharedregion.files import read_input

__all__ = ["demo"]

#: Large enough for page tables to stand out from what a process costs anyway, small enough to be
#: done in seconds anywhere; the full size is the story's.
DEFAULT_SIZE = 256 << 20


@click.command()
@click.option(
    "--input", "path", metavar="FILE", help="Share the arrays of a .npy, .npz or .safetensors file."
)
@click.option(
    "--workers", type=click.IntRange(1, 1000), default=4, show_default=True, help="Worker processes."
)
@click.option(
    "--size",
    callback=size_option,
    metavar="SIZE",
    help="Size of the region; 256 MiB, or what the input needs.",
)
@click.option(
    "--backend",
    callback=backend_option,
    metavar="NAME",
    default="auto",
    help="Only this kind of memory, beside the standard library's.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--no-story", is_flag=True, help="Leave out the story at full size (300 GiB, 1500 clients; root)."
)
def demo(
    path: str | None, workers: int, size: int | None, backend: str, as_json: bool, no_story: bool
) -> None:
    """Place arrays once, read them in worker processes, and show what each worker costs.

    Every kind of memory that this machine offers is measured beside multiprocessing.shared_memory,
    in one run. As root it ends with the story at full size, on sparse data with real page tables.
    """
    say: Callable[[str], None] = (lambda _: None) if as_json else (lambda text: render.note(f"... {text}"))
    # The library warns of 4 KiB pages; here they are measured on purpose, and the table says it.
    logging.getLogger("sharedregion").setLevel(logging.ERROR)
    facts = machine()
    source, size, notes = _source(path, size)
    request = _policy.resolve(size, "auto", backend, os.environ)
    candidates = _policy.choose(facts, request)
    chosen = next((candidate for candidate in candidates if candidate.usable), None)
    if chosen is None:
        refused = candidates[-1]
        raise BackendUnavailable(
            f"{refused.backend} cannot serve {format_size(size)}: {refused.reason}", refused.remedy
        )
    measured = _measured(facts, request, candidates)
    rows, figures, left_out = _demo.compare(
        source, [(c.name, c.place) for c in measured], size, workers, _demo.look, facts.shm, say
    )
    story = None if no_story else _tell(facts, say)
    report = {
        "schema": 1,
        "size": size,
        "workers": workers,
        "arrays": len(source.names),
        "bytes": source.nbytes,
        "input": path,
        "notes": notes,
        "chosen": asdict(chosen),
        "candidates": [asdict(candidate) for candidate in candidates],
        "method": figures.method,
        "estimate": figures.estimate,
        "why": figures.why,
        "remedy": figures.remedy,
        "left_out": left_out,
        "rows": [asdict(row) for row in rows],
        "story": _story_document(story),
    }
    if as_json:
        render.print_json(report)
    else:
        _show(report, rows, candidates, chosen, figures, story)
    wrong = [row for row in rows if not row.checksums_equal]
    if wrong:
        raise SharedRegionError(
            f"workers read other bytes than the host placed: {', '.join(row.name for row in wrong)}",
            "this is a fault of the library: please report it with the output above",
        )


def _source(path: str | None, size: int | None) -> tuple[_demo.Source, int, tuple[str, ...]]:
    if path is None:
        size = size or DEFAULT_SIZE
        return _demo.made_up_source(size), max(size, 2 << 20), ()
    read = read_input(path)
    source = _demo.arrays_source(read.arrays)
    return source, size or _demo.room_for(source), read.notes


def _measured(
    facts: Facts, request: _policy.Request, candidates: Sequence[_policy.Candidate]
) -> list[_policy.Candidate]:
    """All that can serve when asked for by name; with an explicit backend that one alone."""
    if request.backend != "auto":
        return [candidate for candidate in candidates if candidate.usable]
    asked = [
        one
        for name in _policy.BACKENDS
        for one in _policy.choose(facts, _policy.Request(request.size, request.commit, name))
    ]
    return [candidate for candidate in asked if candidate.usable]


def _tell(facts: Facts, say: Callable[[str], None]) -> _story.Outcome | _story.Refused:
    made = _story.plan(facts)
    if isinstance(made, _story.Refused):
        return made
    try:
        return _story.run(made, say)
    except SharedRegionError as error:
        # The measurement above stands without it.
        return _story.Refused(error.message, error.remedy)


def _story_document(story: _story.Outcome | _story.Refused | None) -> dict[str, Any] | None:
    if story is None:
        return None
    return asdict(story) if isinstance(story, _story.Refused) else story.as_dict()


def _show(
    report: dict[str, Any],
    rows: Sequence[_demo.Row],
    candidates: Sequence[_policy.Candidate],
    chosen: _policy.Candidate,
    figures: _demo.Figures,
    story: _story.Outcome | _story.Refused | None,
) -> None:
    what = "array" if report["arrays"] == 1 else "arrays"
    render.heading(
        f"{report['arrays']} {what}, {format_size(report['bytes'])}, read in full by {report['workers']} worker processes"
    )
    for remark in report["notes"]:
        render.line(f"note: {remark}")
    render.line()
    render.table(
        ["memory", "page", "linked", "private", "prop.", "growth", "attach", "touch", "data"],
        [
            [
                "shared_memory" if row.backend == _demo.STDLIB else row.name,
                format_size(row.page_size),
                render.amount(row.tables.linked),
                render.amount(row.tables.private),
                render.amount(row.tables.proportional),
                render.amount(None if row.growth is None else round(row.growth)),
                render.duration(row.attach_seconds),
                render.duration(row.touch_seconds),
                "equal" if row.checksums_equal else "WRONG",
            ]
            for row in rows
        ],
        right=["page", "linked", "private", "prop.", "growth", "attach", "touch"],
    )
    render.line()
    render.line(
        "Page tables of a worker beyond an idle worker of the same program. linked: all that it reaches; private: "
        "that it alone reaches; prop.: each table divided by those who reach it; growth: of the whole system's "
        "PageTables, for each worker (other programs move it too). shared_memory is the standard library's (multiprocessing.shared_memory)."
    )
    if figures.estimate:
        why = f": {figures.why}" if figures.why else ""
        render.line(f"These figures are estimates ({figures.method}){why}.")
        if figures.remedy:
            render.line("What would make them exact:")
            render.command(figures.remedy)
    for remark in report["left_out"]:
        render.line(f"left out: {remark}")
    render.line()
    render.line(f"Chosen: {chosen.name}: {chosen.reason}.")
    for remark in chosen.notes:
        render.line(f"note: {remark}")
    for better in candidates[: list(candidates).index(chosen)]:
        render.line(
            f"Not {better.name}: {better.reason}." + (f" To get it: {better.remedy}" if better.remedy else "")
        )
    if story is not None:
        render.line()
        render.heading("The story at full size")
        if isinstance(story, _story.Refused):
            render.line(f"Not told: {story.reason}." + (" Try:" if story.remedy else ""))
            if story.remedy:
                render.command(story.remedy)
        else:
            for sentence in _story.sentences(story):
                render.line(sentence)
