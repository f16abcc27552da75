"""Programs that use one module or the other, and blocks of a test's own."""

import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class Program:
    """A Python program that answers a line with a line."""

    def __init__(self, code: str, *arguments: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def read(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the program ended: {self.process.communicate()[1]}")
        return line.strip()

    def tell(self, line: str = "go") -> None:
        """A line for its input()."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """Let it end by itself: exit code, and what it and its tracker wrote to stderr."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    """program(code, *arguments): started; killed at the end of the test."""
    started: list[Program] = []

    def start(code: str, *arguments: str, **options: Any) -> Program:
        started.append(Program(code, *arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        for stream in (one.process.stdin, one.process.stdout, one.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def block_name() -> Iterator[str]:
    """A name for a block; what is left of it is removed."""
    name = f"test-{secrets.token_hex(6)}"
    yield name
    Path("/dev/shm", name).unlink(missing_ok=True)
