"""The public face where the native core does not exist: everything says so."""

from __future__ import annotations

from typing import Any, NoReturn

from sharedregion import _policy
from sharedregion._kernel.facts import gather
from sharedregion.errors import BackendUnavailable

__all__ = [
    "Member",
    "Region",
    "Stats",
    "attach",
    "backends",
    "create",
    "load_npz",
    "load_safetensors",
    "regions",
    "share",
    "unlink",
]


def _refuse() -> NoReturn:
    raise BackendUnavailable(
        f"shared regions need Linux on x86_64; this is {gather().system}",
        "sharedregion.shared_memory is the standard library's here",
    )


class Region:
    """Cannot be made here."""

    _look: Any = None

    def __init__(self, *args: Any, **keywords: Any) -> None:
        _refuse()


class Stats(Region):
    """Cannot be made here."""


class Member(Region):
    """Cannot be made here."""


def create(name: str | None = None, **keywords: Any) -> NoReturn:
    """Raises BackendUnavailable."""
    _refuse()


def attach(name: str, **keywords: Any) -> NoReturn:
    """Raises BackendUnavailable."""
    _refuse()


def share(value: Any, **keywords: Any) -> NoReturn:
    """Raises BackendUnavailable."""
    _refuse()


def load_npz(path: str, **keywords: Any) -> NoReturn:
    """Raises BackendUnavailable."""
    _refuse()


def load_safetensors(path: str, **keywords: Any) -> NoReturn:
    """Raises BackendUnavailable."""
    _refuse()


def unlink(name: str, **keywords: Any) -> NoReturn:
    """Raises BackendUnavailable."""
    _refuse()


def regions() -> list[str]:
    """None here."""
    return []


def backends(size: int | str | None = None) -> list[_policy.Candidate]:
    """What each kind of memory would need."""
    return _policy.survey(gather())
