"""Whether this machine is ready for shared regions, and what would make it so.

`examine` asks every question once and gives a report of findings: data, with the evidence and the exact
commands that would mend what is amiss. It changes nothing and runs none of those commands.

To add a question: a class with `name`, `question` and `look`, beside its like, listed in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sharedregion._kernel.mounts import ShmSpace
from sharedregion.doctor.finding import BROKEN, LESS, NOTE, OK, Check, Finding, Scene
from sharedregion.doctor.helper import Helper
from sharedregion.doctor.kernel import Btf, Kcore, Kernel, Lockdown, Msharefs, SoftDirty
from sharedregion.doctor.memory import (
    HugepagePools,
    HugetlbGroups,
    Memlock,
    MemoryGroups,
    SharedMemoryRoom,
    TransparentHugePages,
)
from sharedregion.doctor.regions import Damaged, Leftovers, LinkedTables, SplitPages
from sharedregion.errors import SharedRegionError

__all__ = ["BROKEN", "CHECKS", "LESS", "NOTE", "OK", "Check", "Finding", "Report", "Scene", "examine"]

#: In the order in which they are shown.
CHECKS: tuple[type[Check], ...] = (
    Kernel,
    Msharefs,
    HugepagePools,
    TransparentHugePages,
    SharedMemoryRoom,
    Memlock,
    MemoryGroups,
    HugetlbGroups,
    Helper,
    Btf,
    Kcore,
    Lockdown,
    SoftDirty,
    LinkedTables,
    SplitPages,
    Damaged,
    Leftovers,
)

_EXIT = {OK: 0, NOTE: 0, LESS: 1, BROKEN: 2}


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order of the questions."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 ready, 1 works with less, 2 broken."""
        return max((_EXIT[finding.status] for finding in self.findings), default=0)

    @property
    def verdict(self) -> str:
        """The same in words."""
        return ("ready", "works with less", "broken")[self.exit_code]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        listed = [finding.to_dict() for finding in self.findings]
        return {"verdict": self.verdict, "exit_code": self.exit_code, "findings": listed}


def examine(
    root: str = "/", *, shm: ShmSpace | None = None, checks: Sequence[type[Check]] = CHECKS
) -> Report:
    """Look at the machine, or at the tree of /proc, /sys and so on at `root`.

    Of such a tree `shm` says how large its /dev/shm is, which no file tells; what takes running
    something (the helper, a trial of large pages, the regions) is asked of the machine alone.
    """
    scene = Scene(root, shm)
    return Report(tuple(_ask(check(), scene) for check in checks))


def _ask(check: Check, scene: Scene) -> Finding:
    try:
        return check.look(scene)
    except (OSError, ValueError, SharedRegionError) as error:
        # One question that cannot be answered does not keep the others from being asked.
        return check.found(LESS, f"could not be told: {error}")
