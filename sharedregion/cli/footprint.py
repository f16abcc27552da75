"""`sharedregion footprint`: what the page tables of processes cost."""

from __future__ import annotations

from typing import Any

import click

import sharedregion as sr
from sharedregion.cli import render

__all__ = ["footprint"]


def _split(targets: tuple[str, ...]) -> tuple[list[int], list[str]]:
    """Process ids and names of regions: what is all digits is a pid."""
    pids = [int(target) for target in targets if target.isascii() and target.isdigit() and len(target) < 10]
    regions = [
        target for target in targets if not (target.isascii() and target.isdigit() and len(target) < 10)
    ]
    return pids, regions


@click.command()
@click.argument("targets", nargs=-1, metavar="[PID|REGION]...")
@click.option("--leaves", is_flag=True, help="Count the entries too: 4 KiB, 2 MiB and 1 GiB pages.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def footprint(targets: tuple[str, ...], leaves: bool, as_json: bool) -> None:
    """Show page tables: of the processes named, of all users of a region, or of all that can be read.

    linked: all tables that a process reaches. private: those that it alone reaches. proportional:
    each table divided by the processes that reach it.
    """
    pids, regions = _split(targets)
    found = sr.footprint(*pids, regions=regions or None, leaves=leaves)
    if as_json:
        render.print_json(found)
        return
    render_text(found, leaves)


def render_text(found: dict[str, Any], leaves: bool) -> None:
    """The table, the regions below it, and how far the figures can be trusted."""
    columns = ["pid", "command", "linked", "private", "proportional"]
    columns += ["4k", "2m", "1g"] if leaves else []
    rows = []
    for process in found["processes"]:
        row = [str(process["pid"]), process["command"]]
        row += [render.amount(process.get(f"{kind}_bytes")) for kind in ("linked", "private", "proportional")]
        if leaves:
            counts = process.get("leaves") or {}
            row += [str(counts.get(kind, "-")) for kind in ("4k", "2m", "1g")]
        rows.append(row)
    render.table(columns, rows, right=set(columns) - {"command"})
    by_region = [
        [
            str(process["pid"]),
            region["region"],
            render.amount(region["linked_bytes"]),
            render.amount(region["private_bytes"]),
        ]
        for process in found["processes"]
        for region in process.get("regions") or ()
    ]
    if by_region:
        render.line()
        render.table(["pid", "region", "linked", "private"], by_region, right=["pid", "linked", "private"])
    if found.get("distinct_bytes") is not None:
        render.line(f"distinct tables: {render.amount(found['distinct_bytes'])}")
    render.line(trust(found))


def trust(found: dict[str, Any]) -> str:
    """One sentence on where the figures come from."""
    if found["method"] == "walk":
        return f"read from the page tables themselves ({found['reader']})"
    why = found.get("reason") or "the page tables themselves cannot be read without privilege"
    remedy = found.get("remedy")
    return f"estimated ({found['method']}): {why}" + (f"; exact figures: {remedy}" if remedy else "")
