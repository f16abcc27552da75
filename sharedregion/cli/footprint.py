"""`sharedregion footprint`: what the page tables of processes cost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import click

import sharedregion as sr
from sharedregion.cli import render

# The public name is that of the function; the module's own attributes are reached by its full name.
from sharedregion.footprint import Footprint, ProcessFootprint
from sharedregion.footprint import footprint as look

__all__ = ["footprint"]


def split(targets: Sequence[str]) -> tuple[list[int], list[str]]:
    """Process ids and names of regions: what is all digits is a pid."""
    pids = [target for target in targets if target.isascii() and target.isdigit()]
    return [int(pid[:20]) for pid in pids], [target for target in targets if target not in pids]


@click.command()
@click.argument("targets", nargs=-1, metavar="[PID|REGION]...")
@click.option("--leaves", is_flag=True, help="Count the entries too: 4 KiB, 2 MiB and 1 GiB pages.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def footprint(targets: tuple[str, ...], leaves: bool, as_json: bool) -> int:
    """Show page tables: of processes, of all that have a region mapped, or of all that can be seen.

    linked: all tables that a process reaches. private: those that it alone reaches. proportional:
    each table divided by the processes that reach it. The exit code is 1 if a process that was named
    is gone or not yours to see.
    """
    pids, names = split(targets)
    with contextlib.ExitStack() as stack:
        regions = []
        for name in names:
            region = stack.enter_context(contextlib.closing(sr.attach(name)))
            regions.append((name, region._segments()))
        # Who has a region mapped is found by looking at everyone.
        found = look(*([] if names else pids), regions=regions, leaves=leaves)
    shown = [one for one in found.processes if not names or one.pid in pids or _uses(one)]
    missing = sorted({*found.gone, *found.denied} | (set(pids) - {one.pid for one in found.processes}))
    missing = [pid for pid in missing if pid in pids]
    if as_json:
        document = found.to_dict()
        keep = {one.pid for one in shown}
        document["processes"] = [one for one in document["processes"] if one["pid"] in keep]
        render.print_json(document)
    else:
        _show(found, shown, leaves)
        if missing:
            render.line(f"gone, or not yours to see: {', '.join(map(str, missing))}")
    return 1 if missing else 0


def _uses(process: ProcessFootprint) -> bool:
    # This process has them mapped too, to learn what they are made of.
    return bool(process.regions) and process.pid != os.getpid()


def _show(found: Footprint, shown: Sequence[ProcessFootprint], leaves: bool) -> None:
    columns = ["pid", "command", "linked", "private", "proportional"]
    columns += ["4k", "2m", "1g"] if leaves else []
    rows = []
    for one in shown:
        row = [str(one.pid), one.command]
        row += [render.amount(size) for size in (one.linked_bytes, one.private_bytes, one.proportional_bytes)]
        if leaves:
            row += (
                ["-"] * 3 if one.leaves is None else [str(count) for count in one.leaves.to_dict().values()]
            )
        rows.append(row)
    render.table(columns, rows, right=set(columns) - {"command"})
    of_regions = [
        [region.region, str(one.pid), render.amount(region.linked_bytes), render.amount(region.private_bytes)]
        for one in shown
        for region in one.regions
    ]
    if of_regions:
        render.line()
        render.table(["region", "pid", "linked", "private"], of_regions, right=["pid", "linked", "private"])
    render.line()
    render.line(f"Distinct tables of all that was looked at: {render.amount(found.distinct_bytes)}.")
    render.line(trust(found))


def trust(found: Footprint) -> str:
    """One sentence on where the figures come from."""
    if not found.estimate:
        return f"Read from the page tables themselves ({found.reader})."
    why = f": {found.why}" if found.why else ""
    return f"Estimated ({found.method}){why}." + (f" Exact figures: {found.remedy}" if found.remedy else "")
