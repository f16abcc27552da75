"""`sharedregion gc`: reclaim what the dead have left."""

from __future__ import annotations

import click

from sharedregion import inventory
from sharedregion._sizes import format_size
from sharedregion.cli import render

__all__ = ["gc"]


@click.command()
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be reclaimed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(dry_run: bool, as_json: bool) -> int:
    """Reclaim regions and parts of regions that no living process holds.

    Damaged regions stay: `sharedregion unlink REGION` removes them. The exit code is 1 if something
    could not be reclaimed.
    """
    found = inventory.collect(dry_run=dry_run)
    failed = [one for one in found if not one.reclaimed and not dry_run]
    if as_json:
        listed = [one.to_dict() for one in found]
        render.print_json({"schema": 1, "dry_run": dry_run, "leftovers": listed})
        return 1 if failed else 0
    if not found:
        render.line("nothing to reclaim")
        return 0
    render.table(
        ["what", "name", "memory", "files", "owner", ""],
        [
            [
                one.kind,
                one.name,
                format_size(one.bytes),
                str(len(one.files)),
                one.owner or "-",
                "" if dry_run else "reclaimed" if one.reclaimed else "in use by now",
            ]
            for one in found
        ],
        right=["memory", "files"],
        cut=["name"],
        optional=["owner", "files"],
    )
    total = sum(one.bytes for one in found if dry_run or one.reclaimed)
    render.line(f"{format_size(total)} {'would be' if dry_run else 'are'} free again.")
    return 1 if failed else 0
