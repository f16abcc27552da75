"""Shared memory for Python whose page tables do not grow with the workers."""

from __future__ import annotations

import os as _os
import sys as _sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sharedregion import errors
from sharedregion.errors import (
    BackendUnavailable,
    FrameworkMissing,
    NotPlaceable,
    ObjectNotFound,
    ReadOnlyRegion,
    RegionClosed,
    RegionCorrupt,
    RegionDenied,
    RegionExists,
    RegionFull,
    RegionLost,
    RegionNotFound,
    RegionTimeout,
    SharedRegionError,
    ToolError,
)

if TYPE_CHECKING:
    from sharedregion import doctor, inventory
    from sharedregion._install import install
    from sharedregion.footprint import Footprint, footprint
    from sharedregion.opening import (
        attach,
        backends,
        create,
        load_npz,
        load_safetensors,
        regions,
        share,
        unlink,
    )
    from sharedregion.region import Member, Region, Stats

_SUPPORTED = _sys.platform == "linux" and _os.uname().machine == "x86_64"
if _SUPPORTED:
    try:
        # The light one of the two native modules stands for both.
        import_module("sharedregion._blocks")
    except ImportError as _error:
        raise ImportError(
            "the native core of sharedregion is not here: this is the source folder of a checkout, or a "
            "broken installation. Start Python elsewhere or with PYTHONSAFEPATH=1, or install the package",
            name=_error.name,
        ) from _error

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "Footprint",
    "FrameworkMissing",
    "Member",
    "NotPlaceable",
    "ObjectNotFound",
    "ReadOnlyRegion",
    "Region",
    "RegionClosed",
    "RegionCorrupt",
    "RegionDenied",
    "RegionExists",
    "RegionFull",
    "RegionLost",
    "RegionNotFound",
    "RegionTimeout",
    "SharedRegionError",
    "Stats",
    "ToolError",
    "attach",
    "backends",
    "create",
    "doctor",
    "errors",
    "footprint",
    "install",
    "inventory",
    "load_npz",
    "load_safetensors",
    "regions",
    "share",
    "unlink",
]


# What stands in each of these is loaded when it is first asked for: `sharedregion.shared_memory` in a
# program that has no NumPy otherwise must not load it.
_MODULES = (
    "doctor",
    "inventory",
    "arrays",
    "files",
    "managers",
    "opening",
    "records",
    "references",
    "region",
    "shared_memory",
)
_PLACES = {
    **dict.fromkeys(
        ("attach", "backends", "create", "load_npz", "load_safetensors", "regions", "share", "unlink"),
        "opening",
    ),
    **dict.fromkeys(("Member", "Region", "Stats"), "region"),
    "install": "_install",
}


def _look(region: Region, leaves: bool) -> Footprint:
    from sharedregion.footprint import footprint as look

    pids = [member.pid for member in region.members()]
    return look(*pids, regions=[(region.name, region._segments())], leaves=leaves)


def _load(name: str) -> Any:
    place = _PLACES[name]
    if not _SUPPORTED and place != "_install":
        place = "_elsewhere"
    module = import_module(f"sharedregion.{place}")
    if place == "region":
        module.Region._look = _look
    value = globals()[name] = getattr(module, name)
    return value


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return _load(name)
    if name in _MODULES:
        return import_module(f"sharedregion.{name}")
    # `footprint` is the module, which can be called like the function of the same name that it holds.
    if name in ("footprint", "Footprint"):
        module = import_module("sharedregion.footprint")
        return module if name == "footprint" else module.Footprint
    raise AttributeError(f"module 'sharedregion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
