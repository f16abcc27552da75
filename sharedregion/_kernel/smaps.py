"""How this process maps a range of addresses, as the kernel's smaps tells it."""

from __future__ import annotations

from sharedregion._kernel.files import read_text

__all__ = ["huge_fraction"]

# Kinds of memory that smaps counts where one PMD entry maps it; in kB.
_HUGE = ("ShmemPmdMapped:", "FilePmdMapped:", "AnonHugePages:")


def huge_fraction(address: int, length: int, root: str = "/") -> float | None:
    """The part of what this process has touched in [address, address + length) that large pages map.

    None where it has touched nothing there, or the kernel does not say.
    """
    text = read_text(root, "proc/self/smaps")
    inside = False
    present = huge = 0
    for line in (text or "").splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head and not head.endswith(":"):
            start, _, end = head.partition("-")
            inside = int(start, 16) < address + length and int(end, 16) > address
        elif inside and head == "Rss:":
            present += int(rest.split()[0])
        elif inside and head in _HUGE:
            huge += int(rest.split()[0])
    return min(1.0, huge / present) if present else None
