"""Checks of arguments that several verbs share. Misuse is exit code 2, as for every argument."""

from __future__ import annotations

import click

from sharedregion._policy import resolve
from sharedregion._sizes import parse_size

__all__ = ["backend_option", "size_option"]


def size_option(_: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes of a size such as "8 GiB"."""
    if value is None:
        return None
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error), param=param) from None


def backend_option(_: click.Context, param: click.Parameter, value: str) -> str:
    """The name of a backend, checked by the policy that knows them."""
    try:
        resolve(None, "auto", value, {})
    except ValueError as error:
        raise click.BadParameter(str(error), param=param) from None
    return value
