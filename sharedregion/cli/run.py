"""`sharedregion run`: a program that cannot be edited, with the drop-in."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import click

from sharedregion._block_policy import KINDS, VARIABLE

__all__ = ["run"]

_STARTUP = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_startup")


def command_of(program: str, arguments: Sequence[str]) -> list[str]:
    """What to start: a Python file, `-m MODULE` and `-c CODE` by this Python, anything else as it is."""
    if program.startswith("-"):
        return [sys.executable, program, *arguments]
    if os.path.isfile(program) and (program.endswith((".py", ".pyz")) or not os.access(program, os.X_OK)):
        return [sys.executable, program, *arguments]
    found = shutil.which(program)
    if found is None:
        if os.path.isdir(program):
            return [sys.executable, program, *arguments]
        raise FileNotFoundError(2, "there is no such program", program)
    return [found, *arguments]


def environment_of(environ: Mapping[str, str], backend: str | None) -> dict[str, str]:
    """The environment in which every Python finds the drop-in first."""
    changed = dict(environ)
    rest = changed.get("PYTHONPATH")
    changed["PYTHONPATH"] = f"{_STARTUP}{os.pathsep}{rest}" if rest else _STARTUP
    if backend is not None:
        changed[VARIABLE] = backend
    return changed


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--backend", type=click.Choice(["auto", *KINDS]), help="What blocks of 2 MiB and more are made of."
)
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(backend: str | None, program: str, arguments: tuple[str, ...]) -> NoReturn:
    """Run a program whose multiprocessing.shared_memory is the drop-in.

    PROGRAM is a Python file, -m MODULE, -c CODE, or a command such as pytest. All Python processes that
    it starts have it too, except those told to ignore the environment (-E, -I) or sites (-S). A
    sitecustomize module of your own still runs.
    """
    command = command_of(program, arguments)
    sys.stdout.flush()
    # The program takes this process over: its exit, its signals and its terminal are its own.
    os.execvpe(command[0], command, environment_of(os.environ, backend))
