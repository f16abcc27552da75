"""`sharedregion collapse`: large pages for shared memory that is in use."""

from __future__ import annotations

import click

from sharedregion._collapse import CollapsedFile, Gain
from sharedregion._collapse import collapse as work
from sharedregion.cli import render

__all__ = ["collapse"]


def _pages(one: CollapsedFile) -> str:
    parts = [f"{one.large} large"]
    if one.empty:
        parts.append(f"{one.empty} empty")
    if one.refused:
        parts.append(f"{one.refused} refused ({one.why})")
    return ", ".join(parts)


def _verdict(one: Gain) -> str:
    if not one.congruent and not one.misplaced:
        return "less than 2 MiB: nothing to gain"
    if not one.misplaced:
        return "gains"
    amount = render.amount(one.misplaced)
    return f"{amount} cannot gain: the address is not congruent modulo 2 MiB"


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="PID|NAME|FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def collapse(targets: tuple[str, ...], as_json: bool) -> int:
    """Make 2 MiB pages of shared memory while programs use it.

    Of all shared memory of a process, of a block or region by its name, or of a file on a tmpfs: what is a
    number is a process, what has a slash is a file. The programs go on; those that map it at a congruent
    address drop their tables of 4 KiB entries. Ranges that are filled in part take their whole 2 MiB. The
    exit code is 1 if there was nothing to collapse.
    """
    report = work(targets)
    if as_json:
        render.print_json(report.to_dict())
        return 0 if report.files else 1
    if not report.files:
        render.note("no shared memory in small pages there")
        return 1
    render.table(
        ["file", "size", "2 MiB ranges", "memory before", "after"],
        [
            (
                one.path,
                render.amount(one.size),
                _pages(one),
                render.amount(one.memory_before),
                render.amount(one.memory_after),
            )
            for one in report.files
        ],
        right=["size", "memory before", "after"],
    )
    render.line()
    render.table(
        ["pid", "program", "page tables before", "after", "gained", ""],
        [
            (
                str(one.pid),
                one.command,
                render.amount(one.tables_before),
                render.amount(one.tables_after),
                render.amount(max(0, one.gained)),
                _verdict(one),
            )
            for one in report.processes
        ],
        right=["pid", "page tables before", "after", "gained"],
    )
    return 0
