"""`sharedregion doctor`: is this machine ready, and what would make it so."""

from __future__ import annotations

import click

from sharedregion.cli import render

__all__ = ["doctor"]

STYLES = {"ok": "green", "note": "cyan", "less": "yellow", "broken": "bold red"}


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Show the evidence for what is as it should be, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(verbose: bool, as_json: bool) -> int:
    """Say whether this machine is ready for shared regions, and what is in the way.

    ok: as it should be. note: worth knowing. less: something works less well than it could. broken:
    nothing works. It changes nothing; the commands that it names are yours to run. The exit code is 0
    ready, 1 works with less, 2 broken.
    """
    from sharedregion.doctor import examine

    report = examine()
    if as_json:
        render.print_json({"schema": 1, **report.to_dict()})
        return report.exit_code
    render.table(
        ["", "about", "question", "answer"],
        [[one.status, one.check, one.question, one.answer] for one in report.findings],
        optional=["question"],
        quiet=True,
        styles=STYLES,
    )
    for one in report.findings:
        amiss = one.status in ("less", "broken")
        if not (amiss or verbose) or not (one.evidence or one.commands or one.advice):
            continue
        render.line()
        render.heading(f"{one.check}: {one.answer}")
        for evidence in one.evidence:
            render.line(f"- {evidence}")
        if one.commands:
            render.line("To mend it:" if amiss else "Commands:")
            for command in one.commands:
                render.command(command)
        if one.advice:
            render.line(f"{one.advice[:1].upper()}{one.advice[1:]}.")
    render.line()
    render.heading(f"{report.verdict[:1].upper()}{report.verdict[1:]}.")
    return report.exit_code
