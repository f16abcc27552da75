"""Put figures of the stored measurements into the pages that cite them.

    python scripts/figures.py            # print the tables; exit 1 if a page says otherwise
    python scripts/figures.py --write    # make the pages say it

It takes the package that is installed, and bench/results/full.jsonl.
"""

import re
import sys
from pathlib import Path

from sharedregion.bench.records import Results, read
from sharedregion.bench.tables import amount

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "bench/results/full.jsonl"
README, MEMORY = "README.md", "docs/how-to/where-did-the-memory-go.md"


def figure(results: Results, case: str, subject: str, metric: str, **where: object) -> float:
    """The median of what was measured; nothing is cited that was not."""
    found = results.figure(case, subject, metric, where)
    if found is None:
        raise SystemExit(f"figures.py: no {metric} of {subject} in case {case}")
    return found.median


def cell(text: str, first: str, column: int, value: str) -> str:
    """The text with that cell in the row of a table that begins with `first`."""
    lines = text.split("\n")
    (row,) = (number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    cells = lines[row].split("|")
    cells[column + 1] = f" {value} " if value else " "
    lines[row] = "|".join(cells)
    return "\n".join(lines)


def words(text: str, pattern: str, value: str) -> str:
    """The text with those words in the one place that fits."""
    changed, count = re.subn(pattern, value, text)
    if count != 1:
        raise SystemExit(f"figures.py: {count} places have {pattern!r}")
    return changed


def why(text: str, results: Results) -> str:
    """README's section of that name: the story's client, and one worker of each kind of memory."""
    clients, size = 1500, 300 << 30
    one = figure(results, "sga", "shm", "private", size=size, clients=clients, data="sparse")
    text = words(
        text,
        r"take [\d.,]+ \w+ in each of them, [\d.,]+ \w+ in all",
        f"take {amount(one, 'B')} in each of them, {amount(one * clients, 'B')} in all",
    )
    machine = results.run["machine"]
    kernel = ".".join(machine["kernel"].split(".")[:2])
    text = words(text, r"on \d+ CPUs, Linux [\d.]+\d", f"on {machine['processors']} CPUs, Linux {kernel}")

    def worker(subject: str, metric: str = "private") -> float:
        return figure(results, "footprint", subject, metric, size=4 << 30, workers=4)

    own = worker("hugetlb-2m")
    shared = worker("hugetlb-2m", "linked") - own
    linked = f"{amount(own, 'B')} of its own; {amount(shared, 'B')} that all workers share"
    text = cell(text, "`hugetlb`, 2 MiB pages", 2, linked)
    for first, subject in (
        ("`thp`", "thp"),
        ("`shm`, plain", "shm"),
        ("`multiprocessing.shared_memory`", "shared_memory"),
    ):
        text = cell(text, first, 2, amount(worker(subject), "B"))
    return text


def postgresql(text: str, results: Results) -> str:
    """What the advice foretold of a real server, and what came."""
    (row,) = results.of("postgresql")

    def told(metric: str, unit: str = "B") -> str:
        return amount(figure(results, "postgresql", row.subject, metric), unit)

    text = cell(text, "`huge_pages = off`, measured", 1, told("small"))
    text = cell(text, "`huge_pages = on`, foretold", 1, told("foretold"))
    text = cell(text, "`huge_pages = on`, foretold", 2, told("pages foretold", ""))
    text = cell(text, "`huge_pages = on`, measured", 1, told("measured"))
    count = f"{told('pages needed', '')}, by PostgreSQL's own count"
    return cell(text, "`huge_pages = on`, measured", 2, count)


#: Page -> what makes it say what was measured.
PAGES = {README: why, MEMORY: postgresql}


def main(arguments: list[str]) -> int:
    """Print, compare, write."""
    with STORED.open(encoding="ascii") as file:
        results = Results(read(file))
    stale = False
    for name, told in PAGES.items():
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = told(before, results)
        for old, new in zip(before.split("\n"), after.split("\n"), strict=True):
            if old != new or re.match(r"\| `.*[KM]iB", new):
                print(f"{name}: {new}")
        stale |= before != after
        if "--write" in arguments:
            path.write_text(after, encoding="utf-8")
    return int(stale and "--write" not in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
