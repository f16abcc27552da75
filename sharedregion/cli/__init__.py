"""The command `sharedregion`: a verb a file, one renderer for all of them.

This file imports nothing: spawned workers of the demo import it, and must not pay for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 misused, 130 interrupted."""
    import sys

    from sharedregion.cli.app import run

    sys.exit(run(arguments))
