"""The one renderer: findings come in as data, and go out as text or JSON.

Names of regions, processes and files were written by others: control characters in them are shown,
never sent to the terminal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharedregion._sizes import format_size
from sharedregion.errors import (
    BackendUnavailable,
    RegionCorrupt,
    RegionDenied,
    RegionExists,
    RegionFull,
    RegionNotFound,
    SharedRegionError,
)

__all__ = [
    "age",
    "amount",
    "command",
    "duration",
    "error_line",
    "heading",
    "line",
    "note",
    "print_json",
    "printable",
    "shorten",
    "table",
]


def printable(text: str) -> str:
    """`text` with control characters, escape codes and broken surrogates made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


#: What whoever is at a terminal can do, where a remedy names what a program would call.
_BY_COMMAND: dict[type[SharedRegionError], str] = {
    RegionExists: "choose another name, or remove that region: sharedregion unlink REGION",
    RegionNotFound: "sharedregion ls shows the regions that there are",
    RegionCorrupt: "remove it, and have it made anew: sharedregion unlink REGION",
    RegionDenied: "run the command as the region's owner",
    BackendUnavailable: "sharedregion backends says what each kind of memory needs",
    RegionFull: "ask for less",
}


def _remedy(error: SharedRegionError) -> str | None:
    if error.remedy is None or "(" not in error.remedy:
        return error.remedy
    return _BY_COMMAND.get(type(error), error.remedy)


def error_line(error: BaseException) -> str:
    """One line for one error, with its remedy."""
    if isinstance(error, SharedRegionError):
        text = f"{error.message or type(error).__name__}"
        remedy = _remedy(error)
        text += f"\n  try: {remedy}" if remedy else ""
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error) or type(error).__name__
    return "sharedregion: " + "\n".join(printable(part) for part in text.splitlines())


def _console(stderr: bool = False) -> Console:
    # Made for each use: the streams may have been replaced since. rich turns colour off by itself
    # when the stream is no terminal, or NO_COLOR is set.
    return Console(file=sys.stderr if stderr else sys.stdout, highlight=False, soft_wrap=False, markup=False)


def _paragraph(text: str, style: str = "", *, stderr: bool = False) -> None:
    console = _console(stderr)
    if console.is_terminal:
        console.print(Text(printable(text), style=style))
    else:
        # A file or a pipe has no width; whoever searches it wants whole lines.
        (sys.stderr if stderr else sys.stdout).write(printable(text) + "\n")


def heading(text: str) -> None:
    """A line that starts a part of the output."""
    _paragraph(text, "bold")


def line(text: str = "") -> None:
    """A paragraph, wrapped at the width of the terminal."""
    _paragraph(text)


def note(text: str) -> None:
    """Something said on the way, on stderr: stdout holds results alone."""
    _paragraph(text, stderr=True)
    sys.stderr.flush()


def command(text: str) -> None:
    """A command to copy: never broken into lines."""
    sys.stdout.write("  " + printable(text) + "\n")


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Iterable[str] = (),
    *,
    cut: Sequence[str] = (),
    optional: Sequence[str] = (),
    quiet: bool = False,
    styles: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """A table; the columns named in `right` hold numbers.

    Where it is wider than the terminal, cells of the columns in `cut` lose their middle; where that is not
    enough, `optional` columns are left out, the first of them first, and a line says which, unless
    `quiet`. `styles` gives cells of that text a style, on terminals.
    """
    aligned = set(right)
    console = _console()
    # A file or a pipe has no width: whole lines, unless someone says how wide to be.
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 400
    safe = [[printable(cell) for cell in row] for row in rows]
    columns, rows, hidden = _fitting(columns, safe, cut, optional, console.width)
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in columns:
        number = name in aligned
        shown.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    if console.is_terminal:
        console.print(shown)
        if hidden and not quiet:
            note(f"left out for want of room: {', '.join(hidden)} (--json has all)")
        return
    with console.capture() as capture:
        console.print(shown)
    sys.stdout.write("".join(text.rstrip() + "\n" for text in capture.get().splitlines()))


#: As short as a cell of a column in `cut` may get, before other columns go and after.
_LEAST, _SHORTEST = 24, 8


def shorten(text: str, room: int) -> str:
    """`text` in `room` places: the middle of what is too long is left out, since paths differ at their ends."""
    if cell_len(text) <= room:
        return text
    before, after = set_cell_size(text, (room - 3) // 3).rstrip(), room - 3 - (room - 3) // 3
    end = len(text)
    while end > 0 and cell_len(text[end - 1 :]) <= after:
        end -= 1
    return before + "..." + text[end:]


def _fitting(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    cut: Sequence[str],
    optional: Sequence[str],
    width: int,
) -> tuple[list[str], list[list[str]], list[str]]:
    """Columns and rows that fit, and the names of the columns that had to go."""
    wide = {
        # An empty column takes a place, too.
        name: max([1, cell_len(name), *(cell_len(row[i]) for row in rows)])
        for i, name in enumerate(columns)
    }
    hidden: list[str] = []

    def over() -> int:
        return sum(wide.values()) + 2 * (len(wide) - 1) - width

    whole = {name: wide[name] for name in cut}

    def fit(least: int) -> None:
        for name in cut:
            wide[name] = min(whole[name], max(least, wide[name] - over()))

    fit(_LEAST)
    for name in optional:
        if over() <= 0:
            break
        if wide.pop(name, None) is not None:
            hidden.append(name)
    # What a column that went has left over is theirs; or else they have to be shorter still.
    fit(_LEAST if over() <= 0 else _SHORTEST)
    kept = [i for i, name in enumerate(columns) if name in wide]
    fitted = [
        [shorten(row[i], wide[columns[i]]) if columns[i] in cut else row[i] for i in kept] for row in rows
    ]
    return [columns[i] for i in kept], fitted, hidden


def age(seconds: float | None) -> str:
    """How long ago, for a table cell: one unit."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def amount(size: float | None) -> str:
    """Bytes for a table cell."""
    return "-" if size is None else format_size(size)


def duration(seconds: float | None) -> str:
    """Seconds for a table cell."""
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def print_json(document: Any) -> None:
    """The document alone on stdout, in ASCII: escape codes in names cannot reach a terminal."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n")
