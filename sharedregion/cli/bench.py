"""`sharedregion bench`: measurements beside every peer, as a table, JSON lines and a report."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import click

from sharedregion._sizes import format_size
from sharedregion.cli import render
from sharedregion.cli.options import size_option

__all__ = ["bench"]

#: What is timed needs less memory than this; more would take longer than it is worth.
WARM = 6 << 30


def _names(kind: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], tuple[str, ...]]:
    def check(_: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
        from sharedregion.bench import against, cases

        known = cases.NAMES if kind == "case" else against.NAMES
        for name in value:
            if name not in known:
                raise click.BadParameter(f"no {kind} {name!r}; there are {', '.join(known)}", param=param)
        return tuple(dict.fromkeys(value))

    return check


@click.command()
@click.argument("names", metavar="[CASE]...", nargs=-1, callback=_names("case"))
@click.option(
    "--against",
    "peers",
    metavar="PEER",
    multiple=True,
    callback=_names("peer"),
    help="Only this peer; may be repeated. Otherwise all.",
)
@click.option(
    "--quick", is_flag=True, help="Small sizes, few rounds, the peers that start at once: under a minute."
)
@click.option("--json", "out", metavar="FILE", help="Write each figure as a line of JSON, as it is measured.")
@click.option(
    "--report",
    "folder",
    metavar="DIR",
    help="Write a report, DIR/index.html, which needs nothing else, and each of its charts as a file, DIR/*.svg.",
)
@click.option(
    "--from",
    "stored",
    metavar="FILE",
    multiple=True,
    help="Measure nothing: take the results that --json wrote. Of several files, a later one replaces cases.",
)
@click.option(
    "--size", callback=size_option, metavar="SIZE", help="No case uses more than so many bytes of data."
)
@click.option("--list", "listing", is_flag=True, help="List cases and peers, and what is installed.")
def bench(
    names: tuple[str, ...],
    peers: tuple[str, ...],
    quick: bool,
    out: str | None,
    folder: str | None,
    stored: tuple[str, ...],
    size: int | None,
    listing: bool,
) -> int:
    """Measure what sharing memory costs, beside every peer. Without CASE: all of them.

    Each subject runs in a fresh process. What is not installed, cannot do a case, fails or is killed
    is a row of the table. Interrupted, it shows and keeps what it has, and undoes what it did.
    """
    from sharedregion.bench import records

    if listing:
        _list()
        return 0
    if folder is not None:
        from sharedregion.bench import report

        # Not after half an hour of measuring.
        report.prepare(folder)
    if stored:
        if out is not None or quick or peers or size is not None:
            raise click.UsageError(
                "--from measures nothing: --json, --quick, --against and --size do not go with it"
            )
        results = records.Results(_stored(stored))
        _show(results, names)
        _report(results, folder, names)
        return 0
    return _measure(names, peers, quick, out, folder, size)


def _stored(paths: Sequence[str]) -> list[Any]:
    from sharedregion.bench import records

    found: list[Any] = []
    for path in paths:
        with open(path, encoding="ascii") as file:
            newer = list(records.read(file))
        again = {record["case"] for record in newer if "case" in record}
        found = [record for record in found if record.get("case") not in again]
        # The first file says what it was measured on.
        found += [record for record in newer if "case" in record or path == paths[0]]
    return found


def _measure(
    names: tuple[str, ...],
    peers: tuple[str, ...],
    quick: bool,
    out: str | None,
    folder: str | None,
    size: int | None,
) -> int:
    from sharedregion.bench import cases, machine, records, run

    setting = run.setting(quick, peers, size)
    chosen = names or cases.NAMES
    jobs = run.plan(chosen, setting)
    kept: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        file: IO[str] | None = None
        if out is not None:
            file = stack.enter_context(open(out, "w", encoding="ascii"))

        def say(record: dict[str, Any]) -> None:
            kept.append(record)
            if file is not None:
                records.write(file, record)

        started, interrupted = time.monotonic(), False
        try:
            with _progress() as progress:
                progress("making the host's memory ready", 0, 1)
                most = max(
                    (job.memory + (job.pool[0] * job.pool[1] if job.pool else 0) for job in jobs), default=0
                )
                room = min(machine.available() * 8 // 10, WARM)
                warmed = machine.warm(min(most, room, (256 << 20) if quick else room))
                say(_head(chosen, quick, setting.peers, warmed))
                run.run(jobs, say, progress)
        except (KeyboardInterrupt, SystemExit):
            interrupted = True
        say(
            {
                "record": "end",
                "complete": not interrupted,
                "seconds": time.monotonic() - started,
                "load": os.getloadavg(),
            }
        )
    results = records.Results(kept)
    _show(results, ())
    _report(results, folder)
    if interrupted:
        render.note("sharedregion: interrupted; the figures above are those that were measured until then")
        return 130
    bad = [row for row in results.rows if row.status in ("failed", "killed")]
    return 1 if bad or not any(row.figures for row in results.rows) else 0


def _head(names: Sequence[str], quick: bool, peers: Sequence[str], warmed: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import version

    from sharedregion.bench import machine, records

    return {
        "record": "run",
        "schema": records.SCHEMA,
        "sharedregion": version("sharedregion"),
        "command": ["sharedregion", "bench", *_arguments()],
        "cases": list(names),
        "peers": list(peers),
        "quick": quick,
        "machine": machine.describe(),
        "warmed": warmed,
    }


def _arguments() -> list[str]:
    arguments = sys.argv[1:]
    return arguments[1:] if arguments[:1] == ["bench"] else arguments


#: Seconds between two lines about one case, on what is no terminal.
_QUIET = 30


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float, float], None]]:
    """A line that moves, with the time left; on what is no terminal, a line for each new case and now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    started = time.monotonic()

    def left(done: float, total: float) -> str:
        nonlocal started
        if not done:
            # What came before, making memory ready, says nothing about what is to come.
            started = time.monotonic()
        # Estimates are for a plain machine; how far off they are shows on the way.
        pace = (time.monotonic() - started + 2) / (done + 2)
        seconds = max(0.0, total - done) * pace
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"

    if not console.is_terminal:
        seen: set[str] = set()
        said = 0.0

        def plain(what: str, done: float, total: float) -> None:
            nonlocal said
            case, now = what.partition(":")[0], time.monotonic()
            if what and (case not in seen or now > said + _QUIET):
                said = now
                render.note(
                    f"... {what if case in seen else case}" + (f", {left(done, total)}" if total > 1 else "")
                )
                seen.add(case)

        yield plain
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1, left="")

        def move(what: str, done: float, total: float) -> None:
            bar.update(
                task,
                description=render.printable(what),
                total=total,
                completed=done,
                left=left(done, total) if total > 1 else "",
            )

        yield move


def _list() -> None:
    from sharedregion.bench import against, cases
    from sharedregion.bench.run import missing_peers

    render.heading("Cases")
    render.table(["case", "what"], [[name, cases.load(name).title] for name in cases.NAMES])
    render.line()
    render.heading("Peers")
    missing = missing_peers(against.NAMES)
    render.table(
        ["peer", "what", "here"],
        [
            [
                name,
                against.load(name).title,
                missing.get(name) or against.load(name).version() or "with Python",
            ]
            for name in against.NAMES
        ],
    )


def _show(results: Any, names: Sequence[str]) -> None:
    from sharedregion.bench import cases, tables

    for name in names or results.cases:
        case = cases.load(name)
        render.line()
        render.heading(f"{name}: {case.title}")
        for table in (tables.of(case, results), tables.gaps(case, results)):
            if table.rows:
                render.table(
                    table.columns,
                    table.rows,
                    right=table.right,
                    cut=table.columns[:1],
                    optional=table.optional,
                )
                render.line()
        if not results.of(name):
            render.line("not in these results")
            continue
        for note in tables.notes(case, results):
            render.line(note)
    if results.run:
        render.line()
        render.line(tables.machine_line(results.run))
    verdicts = tables.budgets(results)
    if verdicts:
        render.line()
        render.heading("Budgets")
        render.table(["what", "budget", "measured", ""], verdicts, right=["budget", "measured"])


def _report(results: Any, folder: str | None, names: Sequence[str] = ()) -> None:
    if folder is None:
        return
    from sharedregion.bench import report

    path = report.write(results, folder, names or results.cases)
    render.line()
    render.line(f"report: {path} ({format_size(os.path.getsize(path))})")
