"""Finds the helper, runs it, and gives what it prints."""

from __future__ import annotations

import contextlib
import errno
import importlib.resources
import json
import os
import selectors
import signal
import stat
import subprocess
import time
from collections.abc import Sequence

from sharedregion.errors import ToolError
from sharedregion.footprint.answer import SCHEMA

__all__ = ["INSTALLED", "NAME", "VARIABLE", "find_helper", "run"]

NAME = "sharedregion-ptwalk"
#: Where root may put a copy that has capabilities. Never inside a virtual environment: its files may
#: be hard links that other environments share.
INSTALLED = "/usr/local/libexec/sharedregion/ptwalk"
#: Names another helper: for trying out one's own build. Like any other it must belong to root or to
#: the caller, and it gets no more privilege than the caller has.
VARIABLE = "SHAREDREGION_PTWALK"

_OUTPUT_LIMIT = 256 << 20
_ERROR_LIMIT = 16 << 10


def find_helper() -> str:
    """The path of the helper: the one named by the environment, the installed one, the package's own.

    One that somebody else could have replaced is not run. The installed copy is taken only if it is
    root's and speaks this version's schema.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not _trusted(named, (0, os.geteuid())):
            raise ToolError(
                f"{VARIABLE} names no program that belongs to you or root and that nobody else can write",
                f"unset {VARIABLE}, or correct it",
                errno.EACCES,
            )
        return named
    if _trusted(INSTALLED, (0,)) and _speaks_schema(INSTALLED):
        return INSTALLED
    own = _packaged()
    if own is None:
        raise ToolError(
            f"the helper {NAME} is missing from this installation",
            "install sharedregion from a wheel or a build for Linux x86_64",
            errno.ENOENT,
        )
    return own


def _packaged() -> str | None:
    beside = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_bin", NAME)
    if os.access(beside, os.X_OK):
        return beside
    # An editable installation has it in its build folder.
    with contextlib.suppress(OSError, TypeError, ModuleNotFoundError):
        found = importlib.resources.files("sharedregion").joinpath("_bin", NAME)
        if isinstance(found, os.PathLike) and os.access(found, os.X_OK):
            return str(os.fspath(found))
    return None


def _trusted(path: str, owners: Sequence[int]) -> bool:
    """A regular, executable file of one of `owners` in a folder that nobody else can write either."""
    try:
        file, folder = os.stat(path), os.stat(os.path.dirname(os.path.abspath(path)))
    except (OSError, ValueError):
        return False
    both = all(s.st_uid in owners and not s.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for s in (file, folder))
    return both and stat.S_ISREG(file.st_mode) and os.access(path, os.X_OK)


def _speaks_schema(path: str) -> bool:
    try:
        said = json.loads(run(path, ["--version"], 10.0))
    except (ToolError, ValueError):
        return False
    return isinstance(said, dict) and said.get("name") == NAME and said.get("schema") == SCHEMA


def run(path: str, arguments: Sequence[str], timeout: float) -> bytes:
    """What the helper prints. An end by signal, an exit status, too much or too long is `ToolError`."""
    command = [path, *(part for argument in arguments for part in _separate(argument))]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, cwd="/"
        )
    except OSError as error:
        raise ToolError(
            f"the helper {path} cannot be started: {error.strerror}",
            "check that it is there, executable and not on a noexec mount; reinstall sharedregion",
            error.errno,
        ) from error
    with process:
        try:
            out, err = _collect(process, timeout)
        except BaseException:
            process.kill()
            raise
        status = process.wait()
    if status == 0:
        return out
    said = err.decode("utf-8", "replace").strip().splitlines()
    detail = f": {''.join(c if c.isprintable() else '?' for c in said[0])}" if said else ""
    if status < 0:
        with contextlib.suppress(ValueError):
            detail = f" ({signal.Signals(-status).name}){detail}"
        raise ToolError(
            f"the helper was killed by signal {-status}{detail}",
            "run it again; if memory ran out, ask for fewer processes",
            errno.EINTR,
        )
    raise ToolError(
        f"the helper ended with status {status}{detail}", f"run {path} by hand to see what it says", errno.EIO
    )


def _separate(argument: str) -> tuple[str, ...]:
    """ "--region=NAME" as the two words that the helper takes."""
    option, equals, value = argument.partition("=")
    return (option, value) if equals and option.startswith("--") else (argument,)


def _collect(process: subprocess.Popen[bytes], timeout: float) -> tuple[bytes, bytes]:
    deadline = time.monotonic() + timeout
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, (out, _OUTPUT_LIMIT))
        selector.register(process.stderr, selectors.EVENT_READ, (err, _ERROR_LIMIT))
        while selector.get_map():
            left = deadline - time.monotonic()
            events = selector.select(left) if left > 0 else []
            if not events and left <= 0:
                raise ToolError(
                    f"the helper gave no answer within {timeout:g} s",
                    "ask again with a longer timeout",
                    errno.ETIMEDOUT,
                )
            for key, _ in events:
                into, limit = key.data
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(key.fileobj)
                elif len(into) + len(piece) <= limit:
                    into += piece
                elif into is out:
                    raise ToolError(
                        f"the helper's answer is longer than {limit >> 20} MiB",
                        "ask for fewer processes",
                        errno.EMSGSIZE,
                    )
    return bytes(out), bytes(err)
