"""`sharedregion unlink`: remove the names of regions."""

from __future__ import annotations

import click

import sharedregion as sr
from sharedregion.cli import render
from sharedregion.errors import SharedRegionError

__all__ = ["unlink"]


@click.command()
@click.argument("regions", nargs=-1, required=True, metavar="REGION...")
@click.option(
    "--owner", metavar="USER", help="Regions of this user (name or number), where you may remove them."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def unlink(regions: tuple[str, ...], owner: str | None, as_json: bool) -> int:
    """Remove regions by name, damaged ones too. Processes that have one open keep it until they close it.

    One that cannot be removed does not keep the others; the exit code is then 1.
    """
    whose = int(owner) if owner is not None and owner.isascii() and owner.isdigit() else owner
    outcome = []
    for name in regions:
        try:
            sr.unlink(name, owner=whose)
            outcome.append({"name": name, "unlinked": True, "error": None})
        except (SharedRegionError, ValueError) as error:
            message = error.message if isinstance(error, SharedRegionError) else str(error)
            outcome.append({"name": name, "unlinked": False, "error": message})
            if not as_json:
                click.echo(render.error_line(error), err=True)
    if as_json:
        render.print_json({"schema": 1, "regions": outcome})
    return 0 if all(one["unlinked"] for one in outcome) else 1
