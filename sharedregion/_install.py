"""`install()`: multiprocessing.shared_memory is the drop-in, in this process and in its children.

Nothing is loaded before it is used: modules that are not there yet are met when they are imported.

How the children get it. A forked child has it. A spawned one reads, before anything of the program
runs, a dictionary that its parent pickled; an entry of our own is unpickled with the others, and
installs. The forkserver, which may preload modules of the program, is started with a line in front of
its own. Children of other kinds (subprocess, os.exec) are new programs: `sharedregion run` is for those.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

from sharedregion.awaiting import when_imported

__all__ = ["install"]

_STANDARD = "multiprocessing.shared_memory"
_OURS = "sharedregion.shared_memory"
_FORKSERVER = "from multiprocessing.forkserver import main;"

#: In a child whose path does not lead to this package, it is loaded from where it lies here.
_IN_CHILD = """\
import importlib.util, os, sys
try:
    import sharedregion
except ImportError:
    _folder = {folder!r}
    _spec = importlib.util.spec_from_file_location(
        "sharedregion", os.path.join(_folder, "__init__.py"), submodule_search_locations=[_folder])
    sys.modules["sharedregion"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["sharedregion"])
import sharedregion._install
sharedregion._install.install()
"""


def _in_child() -> str:
    return _IN_CHILD.format(folder=os.path.dirname(os.path.abspath(__file__)))


class _Carry:
    """Installs where it is unpickled; what is left is None."""

    def __reduce__(self) -> tuple[Any, ...]:
        # With a namespace of its own: otherwise it would be that of whoever unpickles.
        return exec, (_in_child(), {})


# --- what is changed in which module -------------------------------------------------------------


def _change_spawn(spawn: Any) -> None:
    standard = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        # First in the dictionary, hence unpickled before the rest.
        return {"sharedregion": _Carry(), **standard(name)}

    spawn.get_preparation_data = get_preparation_data


def _change_util(util: Any) -> None:
    standard = util.spawnv_passfds

    def spawnv_passfds(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> Any:
        args = list(args)
        if args and isinstance(args[-1], str) and args[-1].startswith(_FORKSERVER):
            args[-1] = _in_child() + args[-1]
        return standard(path, args, passfds)

    util.spawnv_passfds = spawnv_passfds
    from sharedregion import _tracking

    _tracking.arm(util)


def _change_managers(managers: Any) -> None:
    managers.shared_memory = import_module(_OURS)


# --- modules that are imported later -------------------------------------------------------------


class _Replaced:
    """Gives the drop-in under the standard name."""

    def __init__(self) -> None:
        self.spec: Any = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(_OURS)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has written the standard name's spec over the module's own.
        module.__spec__ = self.spec


class _Finder:
    """Finds the standard name; the abstract classes would import what a worker does not need."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, cast(Any, _Replaced())) if name == _STANDARD else None


_finder: _Finder | None = None


def install() -> None:
    """Make `multiprocessing.shared_memory` the drop-in, for this process and its multiprocessing children.

    Call it before the program's other imports: what was imported by name from the standard module
    stays what it was. On other systems than Linux on x86_64 it does nothing. It can be called again.
    """
    global _finder
    if _finder is not None or sys.platform != "linux" or os.uname().machine != "x86_64":
        return
    _finder = _Finder()
    sys.meta_path.insert(0, cast(Any, _finder))
    when_imported("multiprocessing.spawn", _change_spawn)
    when_imported("multiprocessing.util", _change_util)
    if _STANDARD in sys.modules:
        ours = import_module(_OURS)
        sys.modules[_STANDARD] = ours
        sys.modules["multiprocessing"].shared_memory = ours  # type: ignore[attr-defined]
    if "multiprocessing.managers" in sys.modules:
        _change_managers(sys.modules["multiprocessing.managers"])
