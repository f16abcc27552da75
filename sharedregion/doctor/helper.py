"""The question about the page-table helper: which one is run, with what privilege, from how safe a place."""

from __future__ import annotations

import json
import os
import shlex
import stat

from sharedregion._kernel import config
from sharedregion._kernel.files import read_text, under
from sharedregion.doctor.finding import LESS, OK, Check, Finding, Scene
from sharedregion.errors import ToolError
from sharedregion.footprint import find_helper, footprint
from sharedregion.footprint.answer import SCHEMA
from sharedregion.footprint.helper import INSTALLED, _packaged, run

__all__ = ["CAPABILITIES", "Helper"]

CAPABILITIES = ("cap_bpf", "cap_perfmon", "cap_sys_ptrace")


class Helper(Check):
    """The helper that reads page tables."""

    name, question = "helper", "Can page tables be read exactly, and is the helper safe?"

    def look(self, scene: Scene) -> Finding:
        """The installed copy, the package's own, the handshake, and a look at this process."""
        copy = under(scene.root, INSTALLED)
        evidence, problem = _installed(scene, copy)
        own = _packaged() if scene.live else None
        if own is not None and config.file_capabilities(own):
            # Files of virtual environments can be hard links that others share, and are writable by their owner.
            quoted = shlex.quote(own)
            return self.found(
                LESS,
                "the package's own helper has capabilities, which others can come by",
                [*evidence, f"{own} grants {', '.join(sorted(config.file_capabilities(own)))}"],
                [scene.as_root(f"setcap -r {quoted}"), *_install(scene, own)],
            )
        install = _install(scene, own)
        if problem:
            return self.found(LESS, problem, evidence, install)
        if not scene.live:
            return self.found(
                OK if evidence else LESS,
                "the installed helper is in order" if evidence else _ABSENT,
                evidence,
                () if evidence else install,
            )
        try:
            path = find_helper()
            found = footprint(os.getpid())
        except ToolError as error:
            return self.found(LESS, error.message, evidence, [error.remedy] if error.remedy else ())
        evidence.append(f"used: {path}, version {found.version}")
        if found.method == "walk":
            scope = _SCOPES.get(found.scope, "this user's processes")
            return self.found(OK, f"page tables of {scope} are read exactly ({found.reader})", evidence)
        evidence.append(f"estimated ({found.method})" + (f": {found.why}" if found.why else ""))
        if "NoNewPrivs:\t1" in (read_text(scene.root, "proc/self/status") or ""):
            evidence.append(
                "this process may gain no privilege (no_new_privs), so capabilities of files do not count"
            )
        if scene.facts.root_user:
            return self.found(
                LESS, "page tables are only estimated, even for root", evidence, advice=found.remedy
            )
        return self.found(LESS, _ABSENT, evidence, install)


_SCOPES = {"all": "every process", "namespace": "every process of this container"}
_ABSENT = "page tables are only estimated: exact figures take root, or a helper with capabilities"


def _installed(scene: Scene, copy: str) -> tuple[list[str], str | None]:
    """Evidence on the copy that root may have installed, and what is wrong with it."""
    try:
        file, folder = os.stat(copy), os.stat(os.path.dirname(copy))
    except OSError:
        return [], None
    capabilities = config.file_capabilities(copy)
    granted = ", ".join(sorted(capabilities)) or "no capabilities"
    place = INSTALLED
    evidence = [f"{place}: owner {file.st_uid}, mode {stat.S_IMODE(file.st_mode):04o}, {granted}"]
    for info, what in ((file, place), (folder, os.path.dirname(place))):
        if info.st_uid != 0 or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return evidence, f"{what} is not root's alone to write: the helper there is not used"
    if extra := capabilities - {*CAPABILITIES}:
        return (
            evidence,
            f"the installed helper has more capabilities than it needs: {', '.join(sorted(extra))}",
        )
    if capabilities and (lacking := {*CAPABILITIES} - capabilities):
        return evidence, f"the installed helper lacks capabilities: {', '.join(sorted(lacking))}"
    if capabilities and _nosuid(scene):
        return (
            evidence,
            f"{place} lies on a file system mounted nosuid, where capabilities of files do not count",
        )
    if scene.live:
        problem = _handshake(copy)
        if problem:
            return evidence, problem
    return evidence, None


def _nosuid(scene: Scene) -> bool:
    best, options = "", frozenset[str]()
    for mount in scene.mounts:
        inside = INSTALLED.startswith(mount.point.rstrip("/") + "/")
        if inside and len(mount.point) >= len(best):
            best, options = mount.point, mount.options
    return "nosuid" in options


def _handshake(path: str) -> str | None:
    """What library and helper say of themselves must agree: figures of another schema would be misread."""
    try:
        said = json.loads(run(path, ["--version"], 10.0))
        version, schema = said["version"], said["schema"]
    except (ToolError, ValueError, KeyError, TypeError):
        return "the installed helper does not say what version it is"
    if schema != SCHEMA:
        return f"the installed helper speaks schema {schema}, this library {SCHEMA}: it is not used"
    from sharedregion import __version__

    return (
        None
        if version == __version__
        else f"the installed helper is of version {version}, the library of {__version__}"
    )


def _install(scene: Scene, own: str | None) -> list[str]:
    """A root-owned copy outside of any virtual environment, with the capabilities."""
    source = shlex.quote(own) if own else "PATH-OF-sharedregion-ptwalk"
    return [
        scene.as_root(f"install -D -o root -g root -m 0755 {source} {INSTALLED}"),
        scene.as_root(f"setcap {','.join(CAPABILITIES)}=ep {INSTALLED}"),
    ]
