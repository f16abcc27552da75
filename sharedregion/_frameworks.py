"""Frameworks that this library works with but does not need: found when asked for, or a clear error."""

from __future__ import annotations

import re
from importlib import import_module
from types import ModuleType

from sharedregion.errors import FrameworkMissing

__all__ = ["LEAST", "load"]

#: The oldest version that is supported, and the extra that brings the framework.
LEAST = {
    "torch": ("2.4", "torch"),
    "pyarrow": ("17", "arrow"),
    "pandas": ("2.2", "pandas"),
    "polars": ("1.8", "polars"),
    "joblib": ("1.4", "joblib"),
    "gunicorn": ("23", "gunicorn"),
    "uvicorn": ("0.30", "uvicorn"),
    "distributed": ("2024.1", "dask"),
    "ray": ("2.30", "ray"),
    "duckdb": ("1.0", "duckdb"),
}


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def load(name: str) -> ModuleType:
    """The framework. FrameworkMissing (an ImportError) if it is not installed or too old."""
    least, extra = LEAST[name]
    remedy = f'pip install "sharedregion[{extra}]", which brings {name} >= {least}'
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name:
            raise
        raise FrameworkMissing(
            f"{name} is not installed, version {least} or later is needed", remedy
        ) from error
    version = str(getattr(module, "__version__", ""))
    if _numbers(version) < _numbers(least):
        raise FrameworkMissing(f"{name} {version} is too old, version {least} or later is needed", remedy)
    return module
