"""The report: one HTML file that needs nothing else, with the charts in it, to be looked at rather than read."""

from __future__ import annotations

import errno
import html
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sharedregion import _story
from sharedregion._sizes import format_size
from sharedregion.bench import cases, charts, tables
from sharedregion.bench.budgets import BUDGETS
from sharedregion.bench.case import Case
from sharedregion.bench.records import Results
from sharedregion.errors import ToolError

__all__ = ["prepare", "write"]

_STYLE = """
:root{--ink:#1d2733;--faint:#66727f;--line:#e3e7ec;--blue:#1d7be0;--good:#15803d;--bad:#b42318}
*{box-sizing:border-box}
body{margin:0;background:#f6f7f9;color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main,header>div{max-width:1180px;margin:0 auto;padding:0 28px}
header{background:#0d2137;color:#fff;padding:44px 0 40px}
header h1{font-size:30px;margin:0 0 6px;letter-spacing:-.01em}
header p{margin:0;color:#b8c7d6;max-width:900px}
nav{position:sticky;top:0;background:#fff;border-bottom:1px solid var(--line);z-index:2}
nav div{max-width:1180px;margin:0 auto;padding:9px 28px;display:flex;flex-wrap:wrap;gap:4px 20px;font-size:14.5px}
nav a{color:var(--ink);text-decoration:none}nav a:hover{color:var(--blue)}
.hero{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:18px;margin-top:28px}
.hero>div{background:#16304d;border-radius:10px;padding:18px 22px}
.hero b{display:block;font-size:34px;line-height:1.15;letter-spacing:-.02em}
.hero .bad b{color:#ff9d8a}.hero .good b{color:#7fe0b4}
.hero span{color:#b8c7d6;font-size:14.5px}
section{background:#fff;border:1px solid var(--line);border-radius:12px;padding:26px 30px 22px;margin:26px 0}
h2{margin:0 0 2px;font-size:21px;letter-spacing:-.01em}
h2 code{font:600 14px ui-monospace,monospace;color:var(--faint);margin-left:8px}
h3{font-size:15px;margin:0 0 8px;font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:26px 40px;margin-top:18px}
figure{margin:0;min-width:0}
figure svg{width:100%;height:auto;display:block}
.notes{color:var(--faint);font-size:14px;margin:16px 0 0;max-width:900px}
.notes p{margin:0 0 5px}
details{margin-top:14px}summary{cursor:pointer;color:var(--blue);font-size:14.5px}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;margin-top:10px;width:100%}
th{text-align:left;color:var(--faint);font-weight:600;border-bottom:2px solid var(--line);padding:6px 14px 6px 0;vertical-align:bottom}
td{border-bottom:1px solid var(--line);padding:6px 14px 6px 0;vertical-align:top}
.n{text-align:right;font-variant-numeric:tabular-nums}td.n{white-space:nowrap}th{min-width:74px}
.met,.missed{font-weight:700;white-space:nowrap}.met{color:var(--good)}.missed{color:var(--bad)}
td small{display:block;color:var(--faint)}
.gauge{width:150px;height:8px;background:#edf0f3;border-radius:4px;overflow:hidden;margin-top:7px}
.gauge i{display:block;height:100%;border-radius:4px}
footer{color:var(--faint);font-size:13.5px;padding:4px 0 50px}
@media(max-width:560px){.charts{grid-template-columns:1fr}section{padding:20px 16px}}
"""


def prepare(folder: str) -> None:
    """Make the folder. Raises ToolError where matplotlib is not installed, OSError where the folder cannot be."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ToolError(
            "the report needs matplotlib, which is not installed", "pip install 'sharedregion[bench]'"
        )
    os.makedirs(folder, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)


def write(results: Results, folder: str, names: Sequence[str]) -> str:
    """Write DIR/index.html with these cases, and its charts as DIR/CASE-NUMBER.svg; the page's path."""
    known = [name for name in names if name in cases.NAMES]
    drawn = {name: charts.draw_all(cases.load(name), results) for name in known}
    for several in drawn.values():
        for chart in several:
            with open(os.path.join(folder, f"{chart.key}.svg"), "w", encoding="utf-8") as file:
                file.write(charts.alone(chart))
    path = os.path.join(folder, "index.html")
    with open(path, "w", encoding="utf-8") as file:
        file.write(_page(results, drawn))
    return path


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def _page(results: Results, drawn: Mapping[str, Sequence[charts.Drawn]]) -> str:
    parts = [_section(cases.load(name), results, several) for name, several in drawn.items()]
    verdicts = _budgets(results)
    links = [*drawn, *(["budgets"] if verdicts else []), "machine"]
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            "<title>sharedregion: measurements</title><style>",
            _STYLE,
            "</style></head><body><header><div><h1>What sharing memory costs</h1><p>",
            _e(_subtitle(results)),
            "</p>",
            _hero(results),
            "</div></header><nav><div>",
            *(f'<a href="#{_e(name)}">{_e(name)}</a>' for name in links),
            "</div></nav><main>",
            *parts,
            verdicts,
            _machine(results),
            "<footer>Made by <code>",
            _e(" ".join(results.run.get("command", ["sharedregion", "bench"]))),
            "</code>; <code>sharedregion bench --from FILE --report DIR</code> makes this page again from the stored lines.",
            "</footer></main></body></html>\n",
        ]
    )


def _subtitle(results: Results) -> str:
    words = (
        "sharedregion beside other ways to give the same bytes to many processes. Every subject ran in fresh processes, in "
        "turn with the others; bars are medians, thin lines reach from the least to the most."
    )
    if results.run.get("quick"):
        words += " This was a quick run: small sizes, few rounds."
    if results.end is None or not results.end.get("complete"):
        words += " The run was cut short: what is here is what was measured until then."
    return words


def _hero(results: Results) -> str:
    """The story in three numbers, as far as it was measured."""
    rows = [row for row in results.of("sga") if row.params.get("data") == "sparse"]
    if not rows:
        return ""
    made = _story.Plan(rows[0].params["size"], rows[0].params["clients"])
    boxes = [
        (
            "bad",
            format_size(made.all_tables_bytes),
            f"page tables that {made.clients:,} clients of {format_size(made.size)} would need with 4 KiB pages",
        )
    ]
    small = next((row for row in rows if row.subject == "shm" and "lived" in row.figures), None)
    if small is not None:
        lived = small.figures["lived"].median
        end = "then the kernel killed one" if small.figures["killed"].median else "no more were tried"
        boxes.append(
            (
                "bad",
                f"{lived:.0f} clients",
                f"lived with 4 KiB pages under {format_size(small.params['limit'])}; {end}",
            )
        )
    linked = next(
        (row for row in rows if row.subject in ("msharefs", "hugetlb-2m") and "all" in row.figures), None
    )
    if linked is not None:
        beyond = max(0.0, linked.figures["all"].median - linked.figures["idle"].median)
        boxes.append(
            (
                "good",
                f"{linked.figures['lived'].median:,.0f} clients",
                (
                    f"lived with linked tables ({tables.title(linked.subject)}), which took "
                    f"{tables.amount(beyond, 'B')} more than as many idle processes"
                ),
            )
        )
    return (
        '<div class="hero">'
        + "".join(
            f'<div class="{kind}"><b>{_e(big)}</b><span>{_e(small)}</span></div>'
            for kind, big, small in boxes
        )
        + "</div>"
    )


def _section(case: Case, results: Results, drawn: Sequence[charts.Drawn]) -> str:
    figures = []
    for chart in drawn:
        note = f'<div class="notes"><p>{_e(chart.note)}</p></div>' if chart.note else ""
        figures.append(f"<figure><h3>{_e(chart.title)}</h3>{chart.svg}{note}</figure>")
    shown = "".join(
        _table(table.columns, table.rows, set(table.right))
        for table in (tables.of(case, results), tables.gaps(case, results))
        if table.rows
    )
    notes = "".join(f"<p>{_e(note)}</p>" for note in tables.notes(case, results))
    return (
        f'<section id="{_e(case.name)}"><h2>{_e(case.title[0].upper() + case.title[1:])}<code>{_e(case.name)}</code></h2>'
        + (f'<div class="charts">{"".join(figures)}</div>' if figures else "")
        + (f'<div class="notes">{notes}</div>' if notes else "")
        + (f"<details><summary>All figures</summary>{shown}</details>" if figures else shown)
        + "</section>"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: set[str]) -> str:
    def cell(tag: str, name: str, text: str) -> str:
        kind = ' class="n"' if name in right else ""
        return f"<{tag}{kind}>{_e(text)}</{tag}>"

    head = "".join(cell("th", name, name) for name in columns)
    body = "".join(
        "<tr>" + "".join(cell("td", name, text) for name, text in zip(columns, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _budgets(results: Results) -> str:
    lines, judged = [], 0
    for budget in BUDGETS:
        if budget.pick.case not in results.cases:
            continue
        why = f"<small>{_e(budget.why)}</small>" if budget.why else ""
        verdict = budget.judge(results)
        if verdict is None:
            lines.append(
                f"<tr><td>{_e(budget.what)}{why}</td><td class=n>{_e(budget.limit_text)}</td><td class=n>-</td><td></td>"
                "<td>not measured</td></tr>"
            )
            continue
        judged += 1
        word = "met" if verdict.met else "missed"
        # How much of the budget is used up; of one that asks for more, how much of what was reached it asks for.
        ratio = verdict.value / budget.limit if not budget.more else budget.limit / max(verdict.value, 1e-12)
        colour = "var(--good)" if verdict.met else "var(--bad)"
        gauge = f'<div class="gauge"><i style="width:{max(1.5, min(100.0, 100 * ratio)):.1f}%;background:{colour}"></i></div>'
        lines.append(
            f"<tr><td>{_e(budget.what)}{why}</td><td class=n>{_e(budget.limit_text)}</td>"
            f"<td class=n>{_e(tables.amount(verdict.value, budget.unit))}</td><td>{gauge}</td>"
            f'<td class="{word}">{word}</td></tr>'
        )
    if not judged:
        return ""
    return (
        '<section id="budgets"><h2>Budgets</h2><div class="notes"><p>What the library is to cost, beside what it cost in this '
        "run; of several figures the worst. The bar is the part of the budget that was used.</p></div>"
        '<div class="wide"><table><thead><tr><th>what</th><th class=n>budget</th><th class=n>measured</th><th></th><th></th>'
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _machine(results: Results) -> str:
    run: Mapping[str, Any] = results.run
    if not run:
        return ""
    machine, warmed = run["machine"], run["warmed"]
    end = results.end or {}
    rows = [
        ("processor", f"{machine['processors']} x {machine['processor']}"),
        ("virtual machine", "yes" if machine["virtual"] else "no"),
        (
            "memory",
            f"{format_size(machine['memory'])}, {format_size(machine['available'])} available at the start",
        ),
        ("kernel", machine["system"]),
        ("Python", machine["python"]),
        ("as root", "yes" if machine["root"] else "no"),
        ("shared memory in huge pages", (machine["thp"].get("shmem_enabled") or "").strip()),
        ("host memory made ready", _warmed(warmed)),
        ("load", ", ".join(f"{one:.1f}" for one in machine["load"]) + " at the start"),
        ("started", machine["time"]),
        ("took", f"{end['seconds'] / 60:.1f} min" if end else "cut off"),
        *((name, version or "not installed") for name, version in machine["versions"].items()),
    ]
    return '<section id="machine"><h2>Measured on</h2>' + _table(("", " "), rows, set()) + "</section>"


def _warmed(warmed: Mapping[str, Any]) -> str:
    if not warmed.get("second_seconds"):
        return "no"
    return (
        f"{format_size(warmed['bytes'])} touched and freed twice: {warmed['first_seconds']:.2f} s, then "
        f"{warmed['second_seconds']:.2f} s (the first touch of a page measures the hypervisor)"
    )
