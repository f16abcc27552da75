"""Shared memory for Python whose page tables do not grow with the workers."""

from __future__ import annotations

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

try:
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
except ImportError as _error:
    if _sys.platform == "linux" and (getattr(_error, "name", "") or "").endswith("_native"):
        raise ImportError(
            "the native core of sharedregion is not here: this is the source folder of a checkout, or a "
            "broken installation. Start Python elsewhere or with PYTHONSAFEPATH=1, or install the package",
            name=_error.name,
        ) from _error
    if _sys.platform == "linux":
        raise
    from sharedregion._elsewhere import (  # type: ignore[assignment]
        Member,
        Region,
        Stats,
        attach,
        backends,
        create,
        load_npz,
        load_safetensors,
        regions,
        share,
        unlink,
    )

if TYPE_CHECKING:
    from sharedregion.footprint import Footprint, footprint

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
    "errors",
    "footprint",
    "load_npz",
    "load_safetensors",
    "regions",
    "share",
    "unlink",
]


def _look(region: Region, leaves: bool) -> Footprint:
    from sharedregion.footprint import footprint as look

    pids = [member.pid for member in region.members()]
    return look(*pids, regions=[(region.name, region._segments())], leaves=leaves)


Region._look = _look


def __getattr__(name: str) -> Any:
    # Loaded when asked for: a worker that reads arrays needs none of it. `footprint` is the module,
    # which can be called like the function of the same name that it holds.
    if name in ("footprint", "Footprint"):
        module = import_module("sharedregion.footprint")
        return module if name == "footprint" else module.Footprint
    raise AttributeError(f"module 'sharedregion' has no attribute {name!r}")
