"""Questions about the kernel: what it is, has and allows."""

from __future__ import annotations

import os
import shlex
import stat

from sharedregion._kernel import config
from sharedregion._kernel.files import read_int, read_text, under
from sharedregion._kernel.procfs import filesystems
from sharedregion._sizes import format_size
from sharedregion.doctor.finding import BROKEN, LESS, NOTE, OK, Check, Finding, Scene

__all__ = ["Btf", "Kcore", "Kernel", "Lockdown", "Msharefs", "SoftDirty"]

# The kernel makes this directory for it, mounted or not.
_MSHARE = "/sys/fs/mshare"


class Kernel(Check):
    """The machine as such."""

    name, question = "kernel", "Is this Linux on x86_64, with memory to share?"

    def look(self, scene: Scene) -> Finding:
        """Which kinds of memory can serve at all."""
        from sharedregion import _policy

        facts = scene.facts
        release = config.release(scene.root) or "unknown release"
        if not facts.supported:
            return self.found(
                BROKEN,
                f"shared regions need Linux on x86_64; this is {facts.system}",
                advice="`import sharedregion` works here; its regions do not",
            )
        usable = [one.name for one in _policy.survey(facts) if one.usable]
        evidence = [f"{facts.system}, {release}"]
        if facts.memory_total is not None and facts.memory_available is not None:
            evidence.append(
                f"{format_size(facts.memory_available)} of {format_size(facts.memory_total)} of memory are available"
            )
        if not usable:
            return self.found(BROKEN, "no kind of memory can serve", evidence, ["sharedregion backends"])
        return self.found(OK, f"{release}; regions can be made of {', '.join(usable)}", evidence)


class Msharefs(Check):
    """The patches that share page tables of any memory."""

    name, question = "msharefs", "Does the kernel have msharefs, mounted and usable?"

    def look(self, scene: Scene) -> Finding:
        """Known, mounted where, by whom usable."""
        seen = scene.facts.msharefs
        known = "msharefs" in filesystems(scene.root) or os.path.isdir(under(scene.root, _MSHARE))
        if not known and not seen.known:
            return self.found(
                NOTE,
                "this kernel has none: the patches are not merged",
                advice="nothing to do: hugetlb links its tables on every kernel",
            )
        make = [
            scene.as_root(f"mount -t msharefs msharefs {_MSHARE}"),
            scene.as_root(f"chmod 1777 {_MSHARE}"),
        ]
        if seen.path is None:
            return self.found(LESS, "the kernel has msharefs, but it is not mounted", commands=make)
        if seen.path == "":
            evidence = [f"interface: {self._interface('')}, which needs no mount"]
            return self._serves(scene, "there", evidence)
        evidence = [f"mounted at {seen.path}"]
        unit = read_int(scene.root, f"{seen.path}/mshare_info")
        if unit is not None:
            evidence.append(f"regions are multiples of {format_size(unit)} (mshare_info)")
        evidence.append(f"interface: {self._interface(under(scene.root, seen.path))}")
        info = os.stat(under(scene.root, seen.path))
        evidence.append(f"its root belongs to user {info.st_uid}, mode {stat.S_IMODE(info.st_mode):04o}")
        if not os.access(under(scene.root, seen.path), os.W_OK | os.X_OK):
            return self.found(LESS, "msharefs is mounted, but not for this user", evidence, make[1:])
        if info.st_mode & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX:
            return self.found(
                LESS,
                "msharefs is mounted without the sticky bit: any user can remove another's regions",
                evidence,
                [scene.as_root(f"chmod 1777 {shlex.quote(seen.path)}")],
            )
        return self._serves(scene, "mounted", evidence)

    def _serves(self, scene: Scene, how: str, evidence: list[str]) -> Finding:
        candidate = scene.candidate("msharefs")
        if candidate.usable:
            return self.found(OK, f"{how}{scene.facts.msharefs.place} and usable", evidence)
        commands = [candidate.remedy] if candidate.remedy else []
        return self.found(NOTE, f"{how}; not used: {candidate.reason}", evidence, commands)

    @staticmethod
    def _interface(path: str) -> str:
        from sharedregion import _native

        found = _native.msharefs_find(path)
        return "none that this version knows" if found is None else f"series {found[0]} of the patches"


class Btf(Check):
    """The kernel's own description of its structures, by which the helper finds its way."""

    name, question = "btf", "Can the helper find its way in the kernel (BTF)?"

    def look(self, scene: Scene) -> Finding:
        """A file."""
        path = "/sys/kernel/btf/vmlinux"
        if os.path.exists(under(scene.root, path)):
            return self.found(OK, "the kernel describes its structures: the helper finds its way")
        return self.found(
            LESS,
            f"there is no {path}: page tables can only be estimated",
            advice="a kernel built with CONFIG_DEBUG_INFO_BTF",
        )


class Kcore(Check):
    """The older way to read kernel memory."""

    name, question = "kcore", "Is there /proc/kcore, should BPF not be allowed?"

    def look(self, scene: Scene) -> Finding:
        """A file; nothing is missing without it where BPF serves."""
        options = config.build_options(scene.root) or {}
        if os.path.exists(under(scene.root, "/proc/kcore")):
            return self.found(OK, "/proc/kcore is there")
        if options.get("CONFIG_BPF_SYSCALL", "y") != "y":
            return self.found(
                LESS,
                "neither /proc/kcore nor BPF: page tables can only be estimated",
                ["CONFIG_BPF_SYSCALL is not set"],
                advice="a kernel built with CONFIG_BPF_SYSCALL or CONFIG_PROC_KCORE",
            )
        return self.found(NOTE, "there is no /proc/kcore; the helper reads by BPF")


class Lockdown(Check):
    """The mode in which even root may not read the kernel."""

    name, question = "lockdown", "May root read kernel memory?"

    def look(self, scene: Scene) -> Finding:
        """Only "confidentiality" forbids it."""
        mode = config.lockdown(scene.root)
        if mode == "confidentiality":
            return self.found(
                LESS,
                "the kernel is locked down (confidentiality): page tables can only be estimated",
                [f"/sys/kernel/security/lockdown: {mode}"],
                advice="boot with lockdown=integrity, if the machine's owner agrees",
            )
        return self.found(
            OK,
            "the kernel is not locked down"
            if mode in (None, "none")
            else f"root may read the kernel ({mode})",
        )


class SoftDirty(Check):
    """Tracking of written pages, which ends the sharing of hugetlb tables for good."""

    name, question = "soft-dirty", "Can a checkpoint tool unlink hugetlb page tables for good?"

    def look(self, scene: Scene) -> Finding:
        """Every mapping of a kernel with CONFIG_MEM_SOFT_DIRTY has the flag sd from its start."""
        options = config.build_options(scene.root)
        smaps = read_text(scene.root, "proc/self/smaps")
        flagged = any(line.startswith("VmFlags:") and " sd" in line for line in (smaps or "").splitlines())
        built = (options or {}).get("CONFIG_MEM_SOFT_DIRTY") == "y"
        if flagged or built:
            return self.found(
                NOTE,
                "this kernel tracks written pages (soft-dirty)",
                ["CONFIG_MEM_SOFT_DIRTY" if built else "mappings have the flag sd"],
                advice="after something wrote 4 to a process's clear_refs (CRIU does), that process links no "
                "hugetlb tables any more, until it is started anew",
            )
        if options is None and smaps is None:
            return self.found(NOTE, "the kernel does not say")
        return self.found(OK, "this kernel does not track written pages: nothing unlinks tables for good")
