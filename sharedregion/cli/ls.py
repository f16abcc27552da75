"""`sharedregion ls`: the regions that exist, or the objects of one."""

from __future__ import annotations

import click

from sharedregion import inventory
from sharedregion._sizes import format_size
from sharedregion.cli import render
from sharedregion.errors import RegionCorrupt

__all__ = ["ls"]

STYLES = {"live": "green", "orphaned": "yellow", "corrupt": "red", "alone": "yellow", "partly": "yellow"}


@click.command()
@click.argument("region", required=False, metavar="[REGION]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(region: str | None, as_json: bool) -> int:
    """List regions, or the objects of REGION. Looking does not join: nothing is changed.

    state: live (a member lives), idle (it persists, without a member), orphaned (no living process holds
    it: `sharedregion gc` reclaims it), corrupt, foreign (of another build of this library), denied (another
    user's). tables: whether the page tables of
    a hugetlb region's GiBs are linked among those who map it.
    """
    return _regions(as_json) if region is None else _objects(region, as_json)


def _regions(as_json: bool) -> int:
    found = inventory.regions()
    if as_json:
        render.print_json({"schema": 1, "regions": [one.to_dict() for one in found]})
        return 0
    if not found:
        render.line("no regions")
        return 0
    render.table(
        [
            *("name", "state", "memory", "size", "used", "free", "largest"),
            *("objects", "members", "huge", "tables", "backed", "age", "owner"),
        ],
        [
            [
                one.name,
                one.state,
                memory(one),
                *map(render.amount, (one.size, one.used, one.free, one.largest)),
                *("-" if n is None else str(n) for n in (one.objects, one.members)),
                percent(one.huge_fraction),
                one.tables or "-",
                render.amount(one.backed),
                render.age(one.age),
                one.owner or "-",
            ]
            for one in found
        ],
        right=["size", "used", "free", "largest", "objects", "members", "huge", "backed", "age"],
        cut=["name"],
        optional=["backed", "largest", "free", "owner", "age", "members"],
        styles=STYLES,
    )
    for one in found:
        remarks(one)
    return 0


def memory(one: inventory.RegionInfo) -> str:
    """ "thp", or "hugetlb 2 MiB"."""
    if one.backend is None:
        return "-"
    return (
        f"hugetlb {format_size(one.page_size)}" if one.backend == "hugetlb" and one.page_size else one.backend
    )


def percent(fraction: float | None) -> str:
    """A fraction for a table cell."""
    # Never 100 % of what is not whole.
    return "-" if fraction is None else f"{int(fraction * 100)}%"


def remarks(one: inventory.RegionInfo) -> None:
    """What does not fit into a table."""
    for alone in one.alone:
        if alone.expected:
            continue
        render.line(f"{one.name}: process {alone.pid} has tables of {alone.gib} GiB for itself: {alone.why}")
    if one.error:
        render.line(one.error if one.name in one.error else f"{one.name}: {one.error}")


def _objects(name: str, as_json: bool) -> int:
    one = inventory.region(name)
    broken = one.state in ("corrupt", "foreign", "denied")
    error = one.error
    objects: list[inventory.ObjectInfo] = []
    if not broken:
        try:
            objects = inventory.objects(name)
        except RegionCorrupt as damaged:
            broken, error = True, damaged.message
    if as_json:
        document = (
            one.to_dict() | {"error": error} | ({"state": "corrupt"} if broken and not one.error else {})
        )
        listed = [found.to_dict() for found in objects]
        render.print_json({"schema": 1, "region": document, "objects": listed})
        return 1 if broken else 0
    if broken:
        render.line(f"{name}: {one.state if one.error else 'corrupt'}: {error}")
        return 1
    assert one.size is not None
    render.heading(
        f"{one.name}: {one.state}, {memory(one)}, {format_size(one.size)}, {render.amount(one.used)} used, "
        f"{one.members} {'member' if one.members == 1 else 'members'}"
    )
    if one.reason:
        render.line(f"Why this memory: {one.reason}.")
    remarks(one)
    if not objects:
        render.line("no objects")
        return 0
    render.line()
    render.table(
        ["name", "type", "dtype", "shape", "bytes", "version", "pins", ""],
        [
            [
                found.name,
                found.type,
                found.dtype or "-",
                "-" if found.shape is None else " x ".join(map(str, found.shape)) or "()",
                format_size(found.bytes),
                str(found.version),
                str(found.pins),
                "mutable" if found.mutable else "",
            ]
            for found in objects
        ],
        right=["bytes", "version", "pins"],
        cut=["name"],
        optional=["dtype", "version"],
    )
    return 0
