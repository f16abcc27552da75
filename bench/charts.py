"""Charts as SVG text, drawn by matplotlib, ready to stand inside a page with others."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sharedregion._sizes import format_size
from sharedregion.bench import tables
from sharedregion.bench.case import MOST, OURS, Bars, Case, Lines
from sharedregion.bench.records import Figure, Results, Row

__all__ = ["Drawn", "alone", "draw_all"]

INK, FAINT, GRID = "#1d2733", "#66727f", "#e3e7ec"
#: Ours stand out; the peers have colours of their own so that lines can be told apart.
COLOURS = {
    "msharefs": "#6d28d9",
    "hugetlb-1g": "#0b4fa8",
    "hugetlb-2m": "#1d7be0",
    "thp": "#11a3a3",
    "shm": "#7fa8d6",
}
_OTHERS = (
    "#d9730d",
    "#c2410c",
    "#b58900",
    "#a16207",
    "#be185d",
    "#9f1239",
    "#78716c",
    "#57534e",
    "#84725c",
    "#94a3b8",
)


def _colour(subject: str) -> str:
    from sharedregion.bench import against

    if subject in COLOURS:
        return COLOURS[subject]
    if subject in against.NAMES:
        return _OTHERS[against.NAMES.index(subject) % len(_OTHERS)]
    return COLOURS["thp"] if "region" in subject else "#94a3b8"


def _bar_colour(subject: str) -> str:
    # Bars have their names beside them: colour is for ours, and for the one that everybody has.
    return _colour(subject) if _ours(subject) or subject == "shared_memory" else "#b3bdc9"


def _ours(subject: str) -> bool:
    return subject in OURS or "region" in subject


@dataclass(frozen=True)
class Drawn:
    """A chart: `svg` is an element to stand inside HTML, `key` begins its ids and names its file."""

    key: str
    title: str
    svg: str
    note: str


def draw_all(case: Case, results: Results) -> list[Drawn]:
    """The charts of a case, those left out for which nothing was measured."""
    found = []
    for number, chart in enumerate(case.charts, 1):
        key = f"{case.name}-{number}"
        drawn = _draw(case, chart, results, key)
        if drawn is not None:
            found.append(Drawn(key, *drawn, chart.note))
    return found


def alone(chart: Drawn) -> str:
    """The chart as a file of its own: with its title, and a ground to be read on whatever is behind it."""
    found = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', chart.svg)
    assert found
    width, height = (float(number) for number in found.groups())
    # The title is larger than the chart's own text, and may be wider than the chart.
    size, top = 10, 24
    wide = max(width, len(chart.title) * size * 0.56)
    inner = chart.svg.replace("<svg ", f'<svg x="10" y="{top}" width="{width}" height="{height}" ', 1)
    inner = re.sub(r' style="max-width:[0-9]+px"', "", inner, count=1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{(wide + 20) * 4 / 3:.0f}" height="{(height + top + 8) * 4 / 3:.0f}" '
        f'viewBox="0 0 {wide + 20:.1f} {height + top + 8:.1f}"><rect width="100%" height="100%" rx="6" fill="#fff"/>'
        f'<text x="10" y="16" style="font:600 {size}px system-ui,sans-serif;fill:{INK}">{_escaped(chart.title)}</text>'
        f"{inner}</svg>\n"
    )


def _draw(case: Case, chart: Bars | Lines, results: Results, key: str) -> tuple[str, str] | None:
    """(title, <svg> element) of the chart, or None if nothing was measured that it could show."""
    rows = [row for row in results.of(case.name) if chart.metric in row.figures]
    where = dict(chart.where)
    for param in [name for name, value in where.items() if value == MOST]:
        where[param] = max((row.params[param] for row in rows if param in row.params), default=0)
    rows = [row for row in rows if all(row.params.get(k) == v for k, v in where.items())]
    words = {
        name: format_size(v) if name in tables.BYTES and isinstance(v, int) else v
        for name, v in where.items()
    }
    title = chart.title.format(**words) + (" (logarithmic)" if isinstance(chart, Bars) and chart.log else "")
    if isinstance(chart, Bars):
        return (title, _bars(case, chart, rows, key, title)) if rows else None
    # A line needs two points.
    if len({row.params.get(chart.over) for row in rows}) < 2:
        return None
    return title, _lines(case, chart, rows, key, title)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, colors=FAINT, labelsize=9)
    return figure, axes


def _svg(figure: Any, key: str, words: str) -> str:
    import matplotlib as mpl

    out = io.StringIO()
    # Text stays text: sharp, selectable, and in the page's own font.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.06)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Inside HTML an <svg> needs no namespaces; without them nothing in the page looks like an address.
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    # Ids are the page's, not the chart's.
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'href="#', f'href="#{key}-', text)
    text = re.sub(r"url\(#", f"url(#{key}-", text)
    text = re.sub(r"font: [^;\"]*?'sans-serif'[^;\"]*", lambda m: _font(m.group()), text)
    # As large as the page's own text is, and no larger.
    text = re.sub(
        r'width="([0-9.]+)pt" height="[0-9.]+pt"',
        lambda m: f'style="max-width:{float(m[1]) * 4 / 3:.0f}px"',
        text,
        count=1,
    )
    return text.replace("<svg ", f'<svg role="img" aria-label="{_escaped(words)}" ', 1)


def _font(style: str) -> str:
    size = re.search(r"([0-9.]+)px", style)
    weight = "bold " if "bold" in style or "700" in style else ""
    return f"font: {weight}{size.group(1) if size else 10}px system-ui, sans-serif"


def _escaped(text: str) -> str:
    import html

    return html.escape(text, quote=True)


def _best(rows: Sequence[Row], metric: str, more: bool) -> list[tuple[str, Figure]]:
    """One figure a subject: where params differ still, the one that is best."""
    found: dict[str, Figure] = {}
    for row in rows:
        figure = row.figures[metric]
        old = found.get(row.subject)
        if old is None or (figure.median > old.median) == more:
            found[row.subject] = figure
    return sorted(found.items(), key=lambda pair: pair[1].median, reverse=more)


def _bars(case: Case, chart: Bars, rows: Sequence[Row], key: str, title: str) -> str:
    about = case.metrics[chart.metric]
    bars = _best(rows, chart.metric, about.more)
    figure, axes = _figure(3.5, 0.27 * len(bars) + 0.08)
    positive = [figure.median for _, figure in bars if figure.median > 0]
    most = max(positive, default=1.0)
    least = min(positive, default=1.0)
    wide = chart.log and most / least > 30
    floor = 10 ** (math.floor(math.log10(least)) - 0.3) if wide else 0.0

    def at(value: float) -> float:
        if wide:
            return 0.0 if value <= floor else math.log(value / floor) / math.log(most / floor)
        return max(0.0, value) / most

    for number, (subject, found) in enumerate(bars):
        length = max(at(found.median), 0.003)
        axes.barh(number, length, height=0.62, color=_bar_colour(subject), zorder=2)
        if len(found.values) > 1 and found.high > found.low:
            axes.plot(
                [at(found.low), min(at(found.high), 1.06)],
                [number] * 2,
                color=INK,
                lw=0.9,
                alpha=0.55,
                zorder=3,
            )
        axes.text(
            max(length, min(at(found.high), 1.06)) + 0.012,
            number,
            tables.amount(found.median, about.unit),
            va="center",
            fontsize=9,
            color=INK,
            weight="bold" if _ours(subject) else "normal",
        )
    axes.set_yticks(range(len(bars)), [tables.title(subject) for subject, _ in bars])
    for label, (subject, _) in zip(axes.get_yticklabels(), bars, strict=True):
        label.set_color(INK)
        label.set_fontsize(9)
        label.set_fontweight("bold" if _ours(subject) else "normal")
    axes.set_xlim(0, 1.22)
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_xticks([])
    return _svg(figure, key, f"{title}: {tables.title(bars[0][0])} first")


def _points(rows: Sequence[Row], chart: Lines) -> Mapping[str, list[tuple[float, Figure]]]:
    found: dict[str, list[tuple[float, Figure]]] = {}
    for row in rows:
        found.setdefault(row.subject, []).append((float(row.params[chart.over]), row.figures[chart.metric]))
    return {subject: sorted(points, key=lambda point: point[0]) for subject, points in found.items()}


def _lines(case: Case, chart: Lines, rows: Sequence[Row], key: str, title: str) -> str:
    about = case.metrics[chart.metric]
    lines = _points(rows, chart)
    figure, axes = _figure(3.9, 3.0)
    axes.grid(visible=True, color=GRID, lw=0.8, zorder=0)
    # Peers that cost the same would hide each other: ours are drawn last, and thicker.
    for subject, points in sorted(lines.items(), key=lambda pair: _ours(pair[0])):
        axes.plot(
            [x for x, _ in points],
            [max(0.0, figure.median) for _, figure in points],
            color=_colour(subject),
            lw=2.6 if _ours(subject) else 1.3,
            marker="o",
            ms=5 if _ours(subject) else 3,
            zorder=3 if _ours(subject) else 2,
            alpha=1 if _ours(subject) else 0.85,
        )
    xs = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(xs, [format_size(int(x)) if chart.over == "size" else f"{x:.0f}" for x in xs])
    axes.minorticks_off()
    values = [max(0.0, figure.median) for points in lines.values() for _, figure in points]
    _scale(axes, values, about.unit, chart.log)
    axes.set_xlabel("" if chart.over == "size" else chart.over, color=FAINT)
    _names(axes, lines, math.log2(xs[-1] / xs[0]))
    return _svg(figure, key, title)


def _scale(axes: Any, values: Sequence[float], unit: str, log: bool) -> None:
    """A scale with ticks that a person would choose."""
    most = max(values, default=1.0) or 1.0
    least = min((value for value in values if value > 0), default=most)
    if unit == "B":
        axes.set_yscale("symlog", base=2, linthresh=4096, linscale=1)
        ticks = [
            0.0,
            *(
                float(1 << bits)
                for bits in range(12, 60, 4 if most > 1 << 28 else 2)
                if 1 << bits <= most * 1.5
            ),
        ]
    elif log and most / least > 8:
        axes.set_yscale("log")
        low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
        ticks = [10.0**power for power in range(low, high + 1)]
    else:
        axes.set_ylim(0, most * 1.1)
        return
    axes.set_yticks(ticks, [tables.amount(tick, unit) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(min(ticks[0], least * 0.8) if unit != "B" else -600, max(ticks[-1], most * 1.3))


def _names(axes: Any, lines: Mapping[str, list[tuple[float, Figure]]], _: float) -> None:
    """Names at the right, in the order of the last points, moved apart until each can be read."""
    ends = sorted(
        (
            (axes.transData.transform((1.0, max(0.0, points[-1][1].median)))[1], subject)
            for subject, points in lines.items()
        ),
    )
    low, high = axes.transAxes.transform((0, 0))[1], axes.transAxes.transform((0, 1))[1]
    step = (high - low) / 19
    places: list[float] = []
    for y, _subject in ends:
        places.append(max(y, places[-1] + step) if places else y)
    over = places[-1] - high
    if over > 0:
        # Push the upper ones down as far as the ones below them allow.
        limit = high
        for number in range(len(places) - 1, -1, -1):
            places[number] = min(places[number], limit)
            limit = places[number] - step
    for place, (_y, subject) in zip(places, ends, strict=True):
        axes.annotate(
            tables.title(subject),
            xy=(1.0, (place - low) / (high - low)),
            xycoords="axes fraction",
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=_colour(subject),
            weight="bold" if _ours(subject) else "normal",
        )
