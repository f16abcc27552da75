"""Teaches picklers when they and the frameworks are there, in whatever order they are imported.

Importing multiprocessing or a framework in order to teach it would cost every worker more than
attaching does. So what is there is taught at once, and what is imported later is taught right after
its import, by a finder that stands in front of the others and looks at names alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, cast

__all__ = ["teach", "when_imported"]

_PICKLER = "multiprocessing.reduction"
#: A module that stands for a framework, and the codec that knows what its pickler must be taught.
#: torch.multiprocessing registers reducers of its own at its import: ours have to come after them.
_FRAMEWORKS = {"torch.multiprocessing": "tensor", "pyarrow": "arrow", "polars": "arrow"}

_taught: set[tuple[str, bool]] = set()


class _After:
    """A loader that does what another does, and one thing more at the end."""

    def __init__(self, loader: Any, then: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._then = then

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._then(module)

    def __getattr__(self, name: str) -> Any:
        # Programs ask for a spec without importing: what they find must do all that it always does.
        return getattr(self._loader, name)


class _Finder:
    """Finds one module, by the finders behind it; the abstract classes would import what a worker does not need."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._then = then
        self._asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name or self._asking:
            return None
        self._asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = cast(Any, _After(spec.loader, self._done))
        return spec

    def _done(self, module: ModuleType) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self._then(module)


def when_imported(name: str, then: Callable[[ModuleType], None]) -> None:
    """Call `then(module)` right after the module's first import, or now if it is there."""
    module = sys.modules.get(name)
    # While it is being imported it is there, too, and not whole.
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        then(module)
    else:
        sys.meta_path.insert(0, cast(Any, _Finder(name, then)))


def teach(_: ModuleType | None = None) -> None:
    """Whatever is there by now and was not taught yet. Idempotent."""
    pickler = sys.modules.get(_PICKLER)
    whole = pickler is not None and hasattr(pickler, "ForkingPickler")
    for framework, codec in _FRAMEWORKS.items():
        if framework in sys.modules and (framework, whole) not in _taught:
            _taught.add((framework, whole))
            import_module(f"sharedregion.codecs.{codec}").teach(pickler.ForkingPickler if whole else None)  # type: ignore[union-attr]


def await_frameworks() -> None:
    """Teach what is there, and what comes."""
    teach()
    for name in _FRAMEWORKS:
        if name not in sys.modules:
            when_imported(name, teach)
