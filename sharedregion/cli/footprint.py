"""`sharedregion footprint`: what the page tables of processes cost, what for, and what would be cheaper."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import click

from sharedregion._sizes import format_size
from sharedregion.cli import render

# The public name is that of the function; the module's own attributes are reached by its full name.
from sharedregion.footprint import Advice, Alternative, Footprint, MappingFootprint, ProcessFootprint
from sharedregion.footprint import footprint as look
from sharedregion.footprint.selection import of_region, processes, region_files, user_id

__all__ = ["footprint"]


def split(targets: Sequence[str]) -> tuple[list[int], list[str]]:
    """Process ids and names of regions: what is all digits is a pid."""
    pids = [target for target in targets if target.isascii() and target.isdigit()]
    return [int(pid[:20]) for pid in pids], [target for target in targets if target not in pids]


@click.command()
@click.argument("targets", nargs=-1, metavar="[PID|REGION]...")
@click.option(
    "--all", "everyone", is_flag=True, help="All processes that can be seen; so it is without any choice."
)
@click.option("--user", metavar="USER", help="Those of this user, by name or number.")
@click.option("--command", metavar="GLOB", help="Those of this name, such as 'postgres*'.")
@click.option(
    "--advice", "advised", is_flag=True, help="What would make the costliest shared mappings cheaper."
)
@click.option("--leaves", is_flag=True, help="Count the entries too: 4 KiB, 2 MiB and 1 GiB pages.")
@click.option(
    "--top",
    type=click.IntRange(0),
    metavar="N",
    help="Show the N costliest only; 20 unless named one by one, 0 for all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def footprint(
    targets: tuple[str, ...],
    everyone: bool,
    user: str | None,
    command: str | None,
    advised: bool,
    leaves: bool,
    top: int | None,
    as_json: bool,
) -> int:
    """Show page tables: of processes, of all that have a region mapped, or of all that can be seen.

    linked: all tables that a process reaches. private: those that it alone reaches. shared: those that
    others reach too. proportional: each table divided by the processes that reach it. Then: which files and shared memory objects
    they serve (once: a table that several reach counted once), and how much of the machine's
    PageTables they are. The exit code is 1 if a process that was named is gone or not yours to see.
    """
    if targets and (everyone or user is not None or command is not None):
        raise click.UsageError("name processes, or choose them by --all, --user and --command, but not both")
    pids, names = split(targets)
    chosen = pids
    if user is not None or command is not None:
        chosen = _choose(user, command)
    regions = []
    for name in names:
        files, mapped = of_region(name)
        regions.append((name, files))
        chosen = chosen + mapped
    if names and not chosen:
        raise ValueError(f"no process that can be seen has {' or '.join(names)} mapped")
    found = look(*chosen, regions=regions, leaves=leaves, mappings=True)
    missing = _missing(found, pids if targets else chosen)
    advice = found.advice() if advised else ()
    if as_json:
        document = found.to_dict()
        if advised:
            document["advice"] = [one.to_dict() for one in advice]
        render.print_json(document)
    else:
        # Who names processes wants all of them, in their order; who looks around wants the costliest.
        ours = region_files()
        _show(found, leaves, top if top is not None else 0 if targets else 20, not chosen, ours)
        for why, which in missing.items():
            render.line(f"{why}: {_some(which)}.")
        if advised:
            _show_advice(advice, ours)
    # Who is chosen by a rule may end at any time; who is named is missed.
    return 1 if missing and targets else 0


def _missing(found: Footprint, wanted: Sequence[int]) -> dict[str, list[int]]:
    """Those of `wanted` that cannot be shown, by the reason."""
    left = set(wanted) - {one.pid for one in found.processes}
    reasons = {
        "not yours to see": set(found.denied),
        "kernel threads, which have no page tables of their own": set(found.kernel_threads),
    }
    sorted_out = {why: sorted(left & pids) for why, pids in reasons.items()}
    sorted_out["ended"] = sorted(left.difference(*reasons.values()))
    return {why: pids for why, pids in sorted_out.items() if pids}


def _choose(user: str | None, command: str | None) -> list[int]:
    try:
        uid = None if user is None else user_id(user)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--user") from None
    chosen = processes(uid=uid, command=command)
    if not chosen:
        who = " ".join(
            f"--{name} {value}" for name, value in (("user", user), ("command", command)) if value is not None
        )
        raise ValueError(f"no process is chosen by {who}")
    return chosen


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 'es' if word.endswith('s') else 's'}"


# --- processes ------------------------------------------------------------------------------------


def _show(
    found: Footprint, leaves: bool, top: int, everyone: bool, ours: Mapping[tuple[int, int], str]
) -> None:
    shown = found.processes
    ordered = sorted(shown, key=lambda one: -one.proportional_bytes) if top else list(shown)
    first = ordered[:top] if top else ordered
    columns = ["pid", "command", "linked", "private", "shared", "proportional"]
    columns += ["4k", "2m", "1g"] if leaves else []
    rows = []
    for one in first:
        row = [str(one.pid), one.command]
        row += map(
            render.amount, (one.linked_bytes, one.private_bytes, one.shared_bytes, one.proportional_bytes)
        )
        if leaves:
            counts = [] if one.leaves is None else [one.leaves.small, one.leaves.large, one.leaves.huge]
            row += [str(count) for count in counts] or ["-"] * 3
        rows.append(row)
    render.table(columns, rows, right=set(columns) - {"command"})
    rest = ordered[len(first) :]
    if rest:
        kept = format_size(sum(one.proportional_bytes for one in rest))
        render.line(f"and {_plural(len(rest), 'other')}: {kept} (--top 0 shows all)")
    _show_regions(shown)
    if found.mappings:
        _show_mappings(found, ours)
    render.line()
    _show_total(found, everyone)


def _show_regions(shown: Sequence[ProcessFootprint]) -> None:
    of_regions = [
        [region.region, str(one.pid), render.amount(region.linked_bytes), render.amount(region.private_bytes)]
        for one in shown
        for region in one.regions
    ]
    if of_regions:
        render.line()
        columns = ["region", "pid", "linked", "private"]
        render.table(columns, of_regions, right=columns[1:], cut=["region"])


# --- what the tables are for ----------------------------------------------------------------------

#: Mappings that are told one by one; the rest is a line.
_MAPPINGS = 12


def _label(mapping: MappingFootprint, ours: Mapping[tuple[int, int], str]) -> str:
    """Regions by their names: the kernel knows their files as "/dev/shm/#739530 (deleted)"."""
    major, _, minor = mapping.device.partition(":")
    return ours.get((os.makedev(int(major), int(minor)), mapping.inode), mapping.label)


def _mapping_row(mapping: MappingFootprint, ours: Mapping[tuple[int, int], str]) -> list[str]:
    return [
        _label(mapping, ours),
        mapping.memory if mapping.kind == "file" else "",
        str(mapping.processes) if mapping.processes else "",
        render.amount(mapping.linked_bytes),
        render.amount(mapping.distinct_bytes),
    ]


def _show_mappings(found: Footprint, ours: Mapping[tuple[int, int], str]) -> None:
    first, rest = found.mappings[:_MAPPINGS], found.mappings[_MAPPINGS:]
    rows = [_mapping_row(mapping, ours) for mapping in first]
    if rest:
        sums = [sum(getattr(one, key) for one in rest) for key in ("linked_bytes", "distinct_bytes")]
        rows.append(
            [
                f"(others: {max(found.mappings_in_all - len(first), len(rest))})",
                "",
                "",
                *map(render.amount, sums),
            ]
        )
    render.line()
    columns = ["tables of", "memory", "processes", "linked", "once"]
    render.table(columns, rows, right=columns[2:], cut=["tables of"])


def _show_total(found: Footprint, everyone: bool) -> None:
    looked = found.looked_at
    others = max(0, looked["distinct_bytes"] - found.distinct_bytes)
    rows = [
        [f"{_plural(len(found.processes), 'process')}, each table once", render.amount(found.distinct_bytes)]
    ]
    if others:
        rows.append(
            [
                f"the other {looked['processes'] - len(found.processes)} that were looked at",
                render.amount(others),
            ]
        )
    if found.machine is not None:
        unseen = " and what could not be seen" if looked["denied"] or found.scope != "all" else ""
        rows.append([f"the kernel's own{unseen}", render.amount(found.machine.kernel_bytes)])
        rows.append(["PageTables of this machine", render.amount(found.machine.page_tables_bytes)])
    render.table(["page tables", ""], rows, right=[""])
    render.line()
    if looked["denied"]:
        told = looked["denied_bytes"]
        count = f", {format_size(told)} by the kernel's count" if told else ""
        who = _plural(looked["denied"], "process")
        if os.geteuid() == 0:
            render.line(f"{who} could not be looked at{count}.")
        else:
            render.line(
                f"{who} not yours to see{count}: root sees them, or the helper with capabilities of its own."
            )
    if everyone and found.gone:
        render.line(
            f"{_plural(len(found.gone), 'process')} ended before being looked at: {_some(found.gone)}."
        )
    moving = [one.pid for one in found.processes if one.moving]
    if moving:
        render.line(f"changed while being read, so not exact: {_some(moving)}.")
    render.line(trust(found))


def _some(pids: Sequence[int]) -> str:
    shown = ", ".join(map(str, pids[:10]))
    return shown + (f" and {len(pids) - 10} others" if len(pids) > 10 else "")


def trust(found: Footprint) -> str:
    """One sentence on where the figures come from."""
    if not found.estimate:
        return f"Read from the page tables themselves ({found.reader})."
    why = f": {found.why}" if found.why else ""
    return f"Estimated ({found.method}){why}." + (f" Exact figures: {found.remedy}" if found.remedy else "")


# --- what would be cheaper ------------------------------------------------------------------------


def _show_advice(advice: Sequence[Advice], ours: Mapping[tuple[int, int], str]) -> None:
    render.line()
    render.heading("Advice")
    if not advice:
        render.line("No shared mapping costs more than 64 MiB or 5 % of memory in page tables.")
    for one in advice:
        _show_one(one, ours)


def _show_one(one: Advice, ours: Mapping[tuple[int, int], str]) -> None:
    mapping = one.mapping
    part = "" if one.share_of_memory is None else f", {one.share_of_memory:.1%} of memory"
    what = f" ({one.program})" if one.program else ""
    render.line(
        f"{_label(mapping, ours)}: {format_size(mapping.bytes)} of {mapping.memory} memory{what} in "
        f"{_plural(mapping.processes, 'process')}. Its page tables take {format_size(one.cost_bytes)}{part}."
    )
    render.line()
    rows = [["as it is", render.amount(one.cost_bytes), render.amount(one.total_bytes), "", ""]]
    rows += [
        [
            other.name,
            f"~ {render.amount(other.table_bytes)}",
            f"~ {render.amount(other.total_bytes)}",
            f"~ {render.amount(other.saved_bytes)}",
            _needs(other),
        ]
        for other in one.alternatives
    ]
    render.table(
        ["with", "its tables", "with all others", "saved", "needs"],
        rows,
        right=["its tables", "with all others", "saved"],
    )
    render.line("~ estimated. with all others: all page tables of these processes.")
    for other in one.alternatives:
        if other.steps:
            render.line()
            render.line(f"{other.name}:" + (f" {other.why}" if other.why else ""))
        for step in other.steps:
            render.line(f"- {step.text}" + (":" if step.command else ""))
            if step.command:
                render.command(f"  {step.command}")
    for other in one.alternatives:
        if not other.possible:
            render.line()
            render.line(f"Not here: {other.name}: {other.why}.")


def _needs(other: Alternative) -> str:
    if not other.possible:
        return "not possible here"
    return f"{other.pages} pages of {format_size(other.page_size)}" if other.pages else "nothing"
