"""The family of errors.

Every error is a `SharedRegionError` and also the builtin exception that it refines, so that a
program which already handles `FileExistsError` or `KeyError` needs no change. Each carries `errno`
(an int, or None), `remedy` (what to do next, or None) and its own text, and survives pickling: an
exception that does not unpickle would hang `Pool.get` for ever.
"""

from __future__ import annotations

import errno as _errno
from typing import Any

__all__ = [
    "BackendUnavailable",
    "FrameworkMissing",
    "NotPlaceable",
    "ObjectNotFound",
    "ReadOnlyRegion",
    "RegionClosed",
    "RegionCorrupt",
    "RegionDenied",
    "RegionExists",
    "RegionFull",
    "RegionLost",
    "RegionNotFound",
    "RegionTimeout",
    "SharedRegionError",
    "ToolError",
]


class SharedRegionError(Exception):
    """Base of all errors of this library.

    `message` is one sentence that says what happened; `remedy` says what to do next; `errno` is the
    system's number where a system call was behind it, otherwise a number fixed by the class.
    """

    #: The number used where no system call gave one.
    default_errno: int | None = None

    message: str
    remedy: str | None
    errno: int | None

    def __init__(
        self, message: str = "", remedy: str | None = None, errno: int | None = None, **extra: Any
    ) -> None:
        # One positional argument for every builtin in the family: OSError would turn two into
        # (errno, strerror) and choose a subclass of its own.
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.errno = self.default_errno if errno is None else errno
        self.__dict__.update(extra)

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        extra = {k: v for k, v in self.__dict__.items() if k not in ("message", "remedy", "errno")}
        return _rebuild, (type(self), self.message, self.remedy, self.errno, extra)


def _rebuild(
    cls: type[SharedRegionError], message: str, remedy: str | None, errno: int | None, extra: dict[str, Any]
) -> SharedRegionError:
    return cls(message, remedy, errno, **extra)


class RegionExists(SharedRegionError, FileExistsError):
    """`create` found a region of that name."""

    default_errno = _errno.EEXIST


class RegionNotFound(SharedRegionError, FileNotFoundError):
    """`attach` or `unlink` found no region of that name."""

    default_errno = _errno.ENOENT


class RegionFull(SharedRegionError, MemoryError):
    """No room for the object. `wanted`, `free` and `largest` are bytes, where they are known."""

    default_errno = _errno.ENOSPC
    wanted: int | None = None
    free: int | None = None
    largest: int | None = None


class RegionCorrupt(SharedRegionError, OSError):
    """The bytes of a segment contradict themselves, or belong to another build or program."""

    default_errno = _errno.EUCLEAN


class RegionLost(SharedRegionError, OSError):
    """What held the region's memory is gone; arrays that are already mapped stay readable."""

    default_errno = _errno.EOWNERDEAD


class RegionDenied(SharedRegionError, PermissionError):
    """The region belongs to another user, or its mode keeps this user out."""

    default_errno = _errno.EACCES


class BackendUnavailable(SharedRegionError, OSError):
    """The backend that was asked for cannot serve here or has no memory left."""

    default_errno = _errno.EOPNOTSUPP


class ReadOnlyRegion(SharedRegionError, PermissionError):
    """A change through a region that was attached for reading, or is sealed."""

    default_errno = _errno.EROFS


class ObjectNotFound(SharedRegionError, KeyError):
    """No object of that name, or the version that was referred to is gone."""

    default_errno = _errno.ENOENT


class NotPlaceable(SharedRegionError, TypeError):
    """The value cannot be placed as it is; the text says why and what can be done."""

    default_errno = _errno.EINVAL


class RegionClosed(SharedRegionError, ValueError):
    """The region was used after `close()`."""

    default_errno = _errno.EBADF


class RegionTimeout(SharedRegionError, TimeoutError):
    """What was waited for did not happen in time."""

    default_errno = _errno.ETIMEDOUT


class ToolError(SharedRegionError, RuntimeError):
    """A helper process of this library is missing, was killed, or answered nonsense."""


class FrameworkMissing(SharedRegionError, ImportError):
    """A framework that was asked for is not installed, or too old; the text says which version is needed."""

    default_errno = _errno.ENOPKG
