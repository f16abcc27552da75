"""Views of /proc."""

from __future__ import annotations

from sharedregion._kernel.files import parse_int, read_text

__all__ = ["filesystems", "meminfo", "page_tables", "process_status", "refresh_statistics"]


def _table(text: str | None) -> dict[str, int]:
    """Lines of "Name: number [kB]" as bytes (where kB is said) or plain counts."""
    table: dict[str, int] = {}
    for line in (text or "").splitlines():
        name, colon, rest = line.partition(":")
        words = rest.split()
        if not colon or not words or len(words) > 2:
            continue
        number = parse_int(words[0])
        if number is None or (len(words) == 2 and words[1] != "kB"):
            continue
        table[name.strip()] = number * 1024 if len(words) == 2 else number
    return table


def meminfo(root: str = "/") -> dict[str, int]:
    """/proc/meminfo: sizes in bytes, `HugePages_*` as counts."""
    return _table(read_text(root, "proc/meminfo"))


def process_status(pid: int | str = "self", root: str = "/") -> dict[str, int]:
    """The numbers of /proc/PID/status (`VmPTE`, `VmRSS`, `Threads`, ...), sizes in bytes."""
    return _table(read_text(root, f"proc/{pid}/status"))


def filesystems(root: str = "/") -> frozenset[str]:
    """Names of the filesystems that the running kernel knows now (a module may add more)."""
    text = read_text(root, "proc/filesystems") or ""
    return frozenset(words[-1] for words in map(str.split, text.splitlines()) if words)


def refresh_statistics(root: str = "/") -> bool:
    """Make every CPU fold its counters into the totals; False where that is not permitted.

    /proc/meminfo adds per-CPU differences lazily, so PageTables may lag by some hundred kB. Reading
    vm.stat_refresh has the same effect as writing to it, and writes nothing. It needs root.
    """
    return read_text(root, "proc/sys/vm/stat_refresh") is not None


def page_tables(root: str = "/") -> int | None:
    """Bytes of page-table pages in the whole system; each page counts once, however many link it."""
    refresh_statistics(root)
    return meminfo(root).get("PageTables")
