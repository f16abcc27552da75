"""`sharedregion ps`: who has a region open."""

from __future__ import annotations

import time

import click

from sharedregion import inventory
from sharedregion.cli import render
from sharedregion.cli.ls import percent
from sharedregion.errors import SharedRegionError

__all__ = ["ps"]


@click.command()
@click.argument("region", required=False, metavar="[REGION]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(region: str | None, as_json: bool) -> int:
    """List the processes that have REGION open (or any region), and the keepers of nameless memory.

    pid: as seen from here; "?" for a process of another container, or of another user. tables: page
    tables that serve the region alone; private: those of them that nobody else reaches. pins: objects
    that the process looks at now.
    """
    if region is not None:
        groups = [(region, inventory.members(region))]
    else:
        groups = []
        for one in inventory.regions():
            if one.state in ("live", "idle"):
                # It may have ended since.
                try:
                    groups.append((one.name, inventory.members(one.name)))
                except SharedRegionError:
                    continue
    if as_json:
        listed = [{"region": name, "members": [one.to_dict() for one in found]} for name, found in groups]
        render.print_json({"schema": 1, "regions": listed})
        return 0
    rows = [_row(name, one) for name, found in groups for one in found]
    if not rows:
        render.line("nobody")
        return 0
    columns = ["pid", "command", "access", "pins", "tables", "private", "alone", "huge", "since", "owner"]
    if region is None:
        columns.insert(0, "region")
    else:
        rows = [row[1:] for row in rows]
    render.table(
        columns,
        rows,
        right=["pid", "pins", "tables", "private", "alone", "huge", "since"],
        cut=["region"] if region is None else [],
        optional=["owner", "since", "huge", "alone"],
    )
    if any(one.estimate for _, found in groups for one in found):
        render.line("Page tables are estimated; exact figures take root, or the helper's capabilities.")
    return 0


def _row(name: str, one: inventory.MemberInfo) -> list[str]:
    keeper = one.role == "keeper"
    since = None if one.since is None else max(0.0, time.time() - one.since)
    return [
        name,
        "?" if one.pid is None else str(one.pid),
        one.command or "?",
        "keeps" if keeper else one.access or "-",
        "-" if keeper else str(one.pins),
        render.amount(one.tables),
        render.amount(one.private_tables),
        f"{one.alone_gib} GiB" if one.alone_gib else "-",
        percent(one.huge_fraction),
        render.age(since),
        one.owner or "-",
    ]
