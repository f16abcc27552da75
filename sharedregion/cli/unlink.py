"""`sharedregion unlink`: remove the names of regions."""

from __future__ import annotations

import click

import sharedregion as sr

__all__ = ["unlink"]


@click.command()
@click.argument("regions", nargs=-1, required=True, metavar="REGION...")
def unlink(regions: tuple[str, ...]) -> None:
    """Remove regions by name. Processes that have one open keep it until they close it."""
    for name in regions:
        sr.unlink(name)
