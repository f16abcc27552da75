"""Why the kernel links none of a process's tables of a hugetlb file with those of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sharedregion._kernel import processes

__all__ = ["Alone", "alone_of", "why_alone"]

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Alone:
    """A process that has `gib` GiB of page tables of a region for itself, though others map it too, and why.

    `expected`: it is the writer beside readers, or a reader beside a writer; nothing is amiss.
    """

    pid: int
    gib: int
    why: str
    expected: bool = False


def alone_of(pid: int, gib: int, areas: Mapping[int, Sequence[processes.Area]]) -> Alone:
    why = why_alone(pid, areas)
    return Alone(pid, gib, why, expected=why in (_FLAGS["wr"], _FLAGS_MISSING["wr"]))


#: Flags of a mapping (VmFlags in smaps) that keep it from being linked with others', and what sets them.
_FLAGS = {
    "wr": "it is mapped for writing, the others' for reading",
    "mw": "its descriptor was opened for writing, the others' for reading",
    "dd": "madvise(MADV_DONTDUMP) was called on it",
    "dc": "madvise(MADV_DONTFORK) was called on it",
    "sd": "soft-dirty tracking differs (something wrote to /proc/PID/clear_refs)",
    "rr": "madvise(MADV_RANDOM) was called on it",
    "sr": "madvise(MADV_SEQUENTIAL) was called on it",
    "ex": "it may be executed",
    "me": "its file may be executed from",
}
# An mlock()ed mapping is linked all the same.
_NO_MATTER = frozenset({"lo"})


def why_alone(pid: int, areas: Mapping[int, Sequence[processes.Area]]) -> str:
    """Why the kernel links none of this process's tables of a file with those of the others.

    See huge_pmd_share() in mm/hugetlb.c: a table is linked if the mapping covers its GiB whole, at an
    address congruent to the file, with flags identical but for mlock, and without userfaultfd.
    """
    own = areas.get(pid, ())
    if not own:
        return "it may not be looked at closely"
    if any((area.start - area.offset) % GIB for area in own):
        return "it is mapped at an address that is not congruent to the file modulo 1 GiB"
    if any({"um", "uw", "ui"} & area.flags for area in own):
        return "userfaultfd is in use on it"
    if any(area.start % GIB or area.end % GIB for area in own):
        return "its mapping is cut within a GiB: madvise() or mprotect() was called on a part of it"
    others = Counter(
        area.flags - _NO_MATTER for other, held in areas.items() if other != pid for area in held
    )
    if not others:
        return "nobody else's mapping may be looked at"
    usual = others.most_common(1)[0][0]
    mine = {area.flags - _NO_MATTER for area in own}
    if usual not in mine:
        (differing, *_) = mine
        more, less = differing - usual, usual - differing
        for flag, why in _FLAGS.items():
            if flag in more:
                return why
            if flag in less:
                return _FLAGS_MISSING.get(flag, f"of the others, {why}")
        return f"its flags differ from the others': {' '.join(sorted(more | less))}"
    return "nobody else has touched those GiBs with a mapping like this one"


_FLAGS_MISSING = {
    "wr": "it is mapped for reading, the others' for writing",
    "mw": "its descriptor was opened for reading, the others' for writing",
    "sd": _FLAGS["sd"],
}
