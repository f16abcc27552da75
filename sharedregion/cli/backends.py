"""`sharedregion backends`: what could serve, and what would enable the rest."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from sharedregion import _policy
from sharedregion._machine import machine
from sharedregion._sizes import format_size
from sharedregion.cli import render
from sharedregion.cli.options import size_option

__all__ = ["backends"]


@click.command()
@click.option(
    "--size", callback=size_option, metavar="SIZE", help="Judge for a region of this size, as create() would."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def backends(size: int | None, as_json: bool) -> None:
    """Show the kinds of memory behind a region, best first."""
    facts = machine()
    if size is None:
        candidates = _policy.survey(facts)
        chosen = None
    else:
        candidates = _policy.choose(facts, _policy.resolve(size, "auto", "auto", os.environ))
        chosen = next((c for c in candidates if c.usable), None)
    if as_json:
        listed = [asdict(candidate) for candidate in candidates]
        render.print_json({"schema": 1, "size": size, "chosen": chosen and chosen.name, "backends": listed})
        return
    render.table(
        ["backend", "page", "usable", "why"],
        [
            [c.name, format_size(c.page_size), "yes" if c.usable else "no", "; ".join((c.reason, *c.notes))]
            for c in candidates
        ],
        right=["page"],
    )
    for candidate in candidates:
        if candidate.remedy and not candidate.usable:
            render.line(f"To enable {candidate.name}:")
            render.command(candidate.remedy)
    if size is not None:
        render.line(
            f"A region of {format_size(size)} would use: {chosen.name if chosen else 'nothing here can serve it'}"
        )
