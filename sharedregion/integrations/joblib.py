"""joblib: `Parallel` sends arrays by region instead of by temporary files.

    import sharedregion.integrations.joblib
    with joblib.parallel_config(backend="sharedregion", n_jobs=8):
        cross_val_score(forest, X, y)

joblib's own way, above `max_nbytes`, writes an array to a file, and each worker maps that by 4 KiB
pages. Here the array is placed in a region once for each call of `Parallel`, and workers get a
reference; an array that lies in a region already goes as it is, whatever its size. Arrays are
read-only in workers, as with joblib's own `mmap_mode="r"`. What workers return is sent as data, as
joblib does. Everything else of the backend is loky's: workers are kept for the next call.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from sharedregion import opening, references
from sharedregion._frameworks import load
from sharedregion.errors import SharedRegionError

_joblib = load("joblib")

from joblib._parallel_backends import LokyBackend  # noqa: E402 - after the check that joblib is there

__all__ = ["RegionBackend"]

_log = logging.getLogger("sharedregion")


class _Placed:
    """Arrays that were placed for calls of Parallel that have not ended, by the arrays that they were made of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._by_id: dict[int, tuple[weakref.ref[Any], Any]] = {}

    def enter(self) -> None:
        with self._lock:
            self._calls += 1

    def leave(self) -> None:
        with self._lock:
            self._calls = max(0, self._calls - 1)
            if self._calls == 0:
                # What tasks still hold lives on; a later call sees what the array holds then.
                self._by_id.clear()

    def copy_of(self, array: Any) -> Any:
        """The same array in a region; placed at the first request."""
        with self._lock:
            known = self._by_id.get(id(array))
            if known is not None and known[0]() is array:
                return known[1]
            placed = opening.share(np.asarray(array))
            # With the array its copy goes, and before another can have its id: a long call sends many.
            key = id(array)
            self._by_id[key] = (weakref.ref(array, lambda _: self._by_id.pop(key, None)), placed)
            return placed


_placed = _Placed()


class _Reducer:
    """Sends an array: by reference if it lies in a region or is large, otherwise as joblib does."""

    def __init__(self, joblibs: Any, threshold: int | None) -> None:
        self._joblibs = joblibs
        self._threshold = threshold

    def __call__(self, array: Any) -> Any:
        found = references.reduce(array)
        if found is None and self._is_large(array):
            try:
                found = references.reduce(_placed.copy_of(array))
            except SharedRegionError as error:
                _log.warning("an array of %d bytes goes by joblib's own way: %s", array.nbytes, error)
        return self._joblibs(array) if found is None else found

    def _is_large(self, array: Any) -> bool:
        return (
            self._threshold is not None
            and type(array) is np.ndarray
            and array.nbytes > self._threshold
            and not array.dtype.hasobject
            and not _mapped_from_file(array)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers are told what reducers there are, and send no jobs.
        return _no_reducer, ()


def _no_reducer() -> None:
    return None


def _mapped_from_file(array: Any) -> bool:
    base = array
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False


class _Reducers(dict[type, Callable[[Any], Any]]):
    """The reducers of an executor's jobs: joblib puts its own in here, and they are wrapped.

    It is the only way in: joblib sets the reducer of arrays after those that it was given.
    """

    def __init__(self, threshold: int | None) -> None:
        super().__init__()
        self.threshold = threshold

    def __setitem__(self, kind: type, reduce: Callable[[Any], Any]) -> None:
        super().__setitem__(kind, _Reducer(reduce, self.threshold) if kind is np.ndarray else reduce)

    def __eq__(self, other: object) -> bool:
        # joblib keeps its workers for a call with the same settings.
        return isinstance(other, _Reducers) and other.threshold == self.threshold

    __hash__ = None

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ()


class RegionBackend(LokyBackend):
    """loky's processes, arrays by region. Registered as "sharedregion"."""

    _inside = False

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> Any:
        """As loky's; `max_nbytes` says from which size arrays are placed, None: never."""
        options.setdefault("forward_reducers", _Reducers(options.get("max_nbytes", 1 << 20)))
        jobs = super().configure(n_jobs=n_jobs, parallel=parallel, **options)
        if not self._inside:
            self._inside = True
            _placed.enter()
        return jobs

    def terminate(self) -> None:
        """The end of a call of Parallel, or of its `with`: what was placed for it goes with its last user."""
        super().terminate()
        self._left()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """The same after a failure; workers are killed."""
        super().abort_everything(ensure_ready=ensure_ready)
        if not ensure_ready:
            self._left()

    def _left(self) -> None:
        if self._inside:
            self._inside = False
            _placed.leave()


_joblib.register_parallel_backend("sharedregion", RegionBackend)
