"""Questions about the regions that there are."""

from __future__ import annotations

import shlex

from sharedregion import inventory
from sharedregion._kernel import processes
from sharedregion._sizes import format_size
from sharedregion.doctor.finding import LESS, NOTE, OK, Check, Finding, Scene
from sharedregion.errors import SharedRegionError

__all__ = ["Damaged", "Leftovers", "LinkedTables", "SplitPages"]


class LinkedTables(Check):
    """Whether regions keep what they promise."""

    name, question = "linked", "Are the page tables of hugetlb regions linked among their members?"

    def look(self, scene: Scene) -> Finding:
        """Who has tables alone, and why; a single writer beside readers has them by nature."""
        hugetlb = [one for one in scene.regions if one.kind == "hugetlb-2m"]
        if not hugetlb:
            return self.found(OK, "there is no region of 2 MiB hugetlb pages")
        evidence = [f"{one.name}: {one.tables}" for one in hugetlb]
        amiss = [(one, alone) for one in hugetlb for alone in one.alone if not alone.expected]
        evidence += [
            f"{one.name}: process {alone.pid} has {alone.gib} GiB alone: {alone.why}" for one, alone in amiss
        ]
        if amiss:
            count = len({alone.pid for _, alone in amiss})
            return self.found(
                LESS,
                f"{'one process has' if count == 1 else f'{count} processes have'} page tables of hugetlb regions alone",
                evidence,
                ["sharedregion ps"],
                "start those processes anew, and have them attach() without mapping, advising or protecting the memory themselves",
            )
        if any(one.tables == "unknown" for one in hugetlb):
            return self.found(
                NOTE, "whether hugetlb tables are linked cannot be told without privilege", evidence
            )
        return self.found(OK, "the page tables of hugetlb regions are linked", evidence)


class SplitPages(Check):
    """Large pages that were split, by swap or by a process that may have none."""

    name, question = "split", "Are the large pages of thp regions whole?"

    def look(self, scene: Scene) -> Finding:
        """As the kernel maps them in each member."""
        evidence, commands = [], []
        for one in scene.regions:
            if one.kind != "thp" or one.state != "live":
                continue
            try:
                members = inventory.members(one.name)
            except SharedRegionError:
                continue
            split = [
                member for member in members if member.huge_fraction is not None and member.huge_fraction < 1
            ]
            for member in split:
                status = processes.status(member.pid) if member.pid is not None else None
                why = (
                    "" if status is None or status.thp_enabled else ": it may have none (PR_SET_THP_DISABLE)"
                )
                evidence.append(
                    f"{one.name}: process {member.pid} maps {int((member.huge_fraction or 0) * 100)}% by large pages{why}"
                )
            if split:
                code = f"import sharedregion as sr; r = sr.attach({one.name!r}, writable=True); r.repair(); r.close()"
                commands.append(f"python3 -c {shlex.quote(code)}")
        if not evidence:
            some = any(one.kind == "thp" for one in scene.regions)
            return self.found(OK, "the pages of thp regions are whole" if some else "there is no thp region")
        return self.found(
            LESS, "large pages were split: page tables are larger than they need be", evidence, commands
        )


class Damaged(Check):
    """Regions whose bytes are wrong."""

    name, question = "damaged", "Are all regions sound?"

    def look(self, scene: Scene) -> Finding:
        """As far as looking tells."""
        damaged = [one for one in scene.regions if one.state == "corrupt"]
        foreign = [f"{one.name}: {one.error}" for one in scene.regions if one.state == "foreign"]
        if not damaged and foreign:
            answer = f"{len(foreign)} {'region is' if len(foreign) == 1 else 'regions are'} of another build of this library"
            return self.found(
                NOTE, answer, foreign, advice="the version that made them lists and removes them"
            )
        if not damaged:
            return self.found(OK, "no region is damaged")
        commands = []
        for one in damaged:
            if one.name.isprintable():
                commands.append(scene.owned(f"sharedregion unlink {shlex.quote(one.name)}", one.uid))
            else:
                # Not a name of ours; the shell is told the bytes.
                file = f"/dev/shm/sharedregion.{one.name}.catalog".encode("utf-8", "surrogateescape")
                escaped = "".join(
                    chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in file
                )
                commands.append(scene.owned(f"rm $'{escaped}'", one.uid))
        evidence = [*(f"{one.name}: {one.error}" for one in damaged), *foreign]
        advice = "processes that have one open keep what they have mapped"
        return self.found(
            LESS,
            f"{len(damaged)} {'region' if len(damaged) == 1 else 'regions'} cannot be used",
            evidence,
            commands,
            advice,
        )


class Leftovers(Check):
    """What the dead have left."""

    name, question = "leftovers", "Has a killed process left memory behind?"

    def look(self, scene: Scene) -> Finding:
        """What `sharedregion gc` would reclaim."""
        left = inventory.leftovers() if scene.live else []
        if not left:
            return self.found(OK, "the dead have left nothing")
        total = sum(one.bytes for one in left)
        evidence = [f"{one.kind} {one.name}: {format_size(one.bytes)}" for one in left]
        return self.found(
            LESS, f"{format_size(total)} left by the dead can be had back", evidence, ["sharedregion gc"]
        )
