"""`sharedregion ls`: the regions that exist."""

from __future__ import annotations

from typing import Any

import click

import sharedregion as sr
from sharedregion.cli import render
from sharedregion.errors import SharedRegionError

__all__ = ["ls"]


def _described(name: str) -> dict[str, Any]:
    """What an attach tells about the region; one that cannot be attached is listed all the same."""
    row: dict[str, Any] = {
        "name": name,
        "backend": None,
        "page_size": None,
        "size": None,
        "objects": None,
        "error": None,
    }
    try:
        region = sr.attach(name)
    except SharedRegionError as error:
        row["error"] = error.message
        return row
    try:
        row.update(backend=region.backend, page_size=region.page_size, size=region.size, objects=len(region))
    finally:
        region.close()
    return row


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(as_json: bool) -> None:
    """List regions: name, backend, size, objects."""
    rows = [_described(name) for name in sr.regions()]
    if as_json:
        render.print_json({"schema": 1, "regions": rows})
        return
    if not rows:
        render.line("no regions")
        return
    render.table(
        ["name", "backend", "page", "size", "objects", ""],
        [
            [
                row["name"],
                row["backend"] or "-",
                render.amount(row["page_size"]),
                render.amount(row["size"]),
                "-" if row["objects"] is None else str(row["objects"]),
                row["error"] or "",
            ]
            for row in rows
        ],
        right=["page", "size", "objects"],
    )
