"""Types of arguments that several verbs share."""

from __future__ import annotations

from typing import Any

import click

from sharedregion._sizes import parse_size

__all__ = ["BackendName", "Size"]


class Size(click.ParamType):
    """A size such as "8 GiB"; misuse is exit code 2, as for every argument."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        try:
            return parse_size(value)
        except (TypeError, ValueError) as error:
            self.fail(str(error), param, ctx)


class BackendName(click.ParamType):
    """A backend's name, checked by the policy that knows them."""

    name = "BACKEND"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as it is."""
        from sharedregion._policy import resolve

        try:
            resolve(None, "auto", value, {})
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)
