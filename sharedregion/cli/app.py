"""The command table, and the border where errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from sharedregion.cli.render import error_line
from sharedregion.errors import SharedRegionError

__all__ = ["cli", "run"]

#: Verb -> one line of help; the module of that name in this folder holds the function of that name.
VERBS = {
    "backends": "what kinds of memory this machine offers, and what would enable the others",
    "bench": "measure what sharing costs, beside every peer",
    "collapse": "make large pages of shared memory that a running program uses",
    "demo": "share arrays with worker processes and show what each one costs",
    "doctor": "is this machine ready, and what would make it so",
    "footprint": "page tables of processes or of a region's users",
    "gc": "reclaim what no living process holds",
    "ls": "regions that exist, or the objects of one",
    "ps": "processes that have a region open",
    "run": "run a program with the drop-in for multiprocessing.shared_memory",
    "unlink": "remove regions by name",
}


class LazyGroup(click.Group):
    """Loads a verb when it is used, so that `sharedregion ls` does not pay for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's function from its own file."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"sharedregion.cli.{cmd_name}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, from the table alone: it loads no verb."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"sharedregion {version('sharedregion')}")
        ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
def cli() -> None:
    """Shared memory whose page tables do not grow with the workers."""


def _leave(number: int, _: FrameType | None) -> NoReturn:
    # The default action would end the process with its cleanup undone.
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _ended_with_cleanup() -> Iterator[None]:
    """For as long as a command runs: the signals are the caller's, who may be a program with a life after it."""
    taken: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        taken = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. Errors that were foreseen never show a traceback."""
    with _ended_with_cleanup():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result: Any = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="sharedregion",
            standalone_mode=False,
        )
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("sharedregion: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader has gone, as in `sharedregion ls | head -1`; the last flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SharedRegionError, OSError, ValueError, MemoryError) as error:
        click.echo(error_line(error), err=True)
        return 1
    return result if isinstance(result, int) else 0
