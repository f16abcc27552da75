"""Hosts made of namespaces: each has a network, a /dev/shm and processes of its own, and they share a wire.

Needs root. The first process of a host holds its namespaces, which have no other name: with it everything
that was started there ends, and the mounts go.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

#: After so many seconds a scenario hangs, and fails with what all processes said.
LIMIT = 300


class Host:
    """One machine: a process that holds its namespaces, and what was started in them."""

    def __init__(self, address: str, shm: str) -> None:
        self.address = address
        self.processes: list[subprocess.Popen[str]] = []
        script = f"mount -t tmpfs -o size={shm} none /dev/shm && ip link set lo up && echo ready && exec sleep 100000"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script],
            stdout=subprocess.PIPE, text=True, preexec_fn=_die_with_parent,  # noqa: PLW1509
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        #: The process that holds the namespaces.
        self.pid = inner(self._holder)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """What runs `arguments` on this host."""
        return ["nsenter", "-t", str(self.pid), "--net", "--mount", "--pid", *arguments]

    def run(self, *arguments: str) -> str:
        """Run to the end; what it printed."""
        return subprocess.run(self.command(arguments), check=True, capture_output=True, text=True).stdout

    def network(self, *arguments: str) -> None:
        """Run `ip` in this host's network; pids in its arguments are those of the caller."""
        subprocess.run(
            ["nsenter", "-t", str(self.pid), "--net", "ip", *arguments], check=True, capture_output=True
        )

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """A process that ends with the host."""
        process: subprocess.Popen[str] = subprocess.Popen(
            self.command(arguments), text=True, preexec_fn=_die_with_parent, **options  # noqa: PLW1509
        )  # fmt: skip
        self.processes.append(process)
        return process

    def shm(self) -> list[str]:
        """Names in this host's /dev/shm."""
        return self.run("ls", "/dev/shm").split()

    def shm_bytes(self) -> int:
        """Bytes of memory in this host's /dev/shm."""
        line = self.run("df", "--block-size=1", "--output=used", "/dev/shm").split()
        return int(line[1])

    def close(self) -> None:
        """End what was started here, then the host."""
        for process in self.processes:
            _end(process)
        _end(self._holder)


class Wire:
    """Hosts on one bridge, which lies in a network namespace of its own."""

    def __init__(self, hosts: int, shm: str = "3g") -> None:
        self.hub = Host("10.77.0.254", shm)
        self.hosts = []
        try:
            self.hub.network("link", "add", "wire", "type", "bridge")
            self.hub.network("addr", "add", f"{self.hub.address}/24", "dev", "wire")
            self.hub.network("link", "set", "wire", "up")
            for number in range(1, hosts + 1):
                host = Host(f"10.77.0.{number}", shm)
                self.hosts.append(host)
                self.hub.network(
                    "link", "add", f"h{number}", "type", "veth",
                    "peer", "name", "eth0", "netns", str(host.pid),
                )  # fmt: skip
                self.hub.network("link", "set", f"h{number}", "master", "wire", "up")
                host.network("addr", "add", f"{host.address}/24", "dev", "eth0")
                host.network("link", "set", "eth0", "up")
        except BaseException:
            self.close()
            raise

    def cut(self, number: int) -> None:
        """Pull the plug of host `number`, counted from 0."""
        self.hub.network("link", "set", f"h{number + 1}", "down")

    def close(self) -> None:
        """End everything."""
        for host in (*self.hosts, self.hub):
            host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def inner(process: "subprocess.Popen[str]") -> int:
    """What runs in the host: a process enters a pid namespace by a child."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
        return int(children.read().split()[0])


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _die_with_parent() -> None:
    """A test that is killed leaves no host: PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def converse(
    program: "subprocess.Popen[str]", meanwhile: Callable[[], object], say: Callable[[], str]
) -> Any:
    """The answer of a program, a line of JSON; `meanwhile` is done when it says "now". It goes on when it reads a line.

    Other lines are a framework's own, and come at any time: Ray prints warnings to the standard output.
    """
    assert program.stdin is not None
    assert program.stdout is not None
    answer = None
    alarm = threading.Timer(LIMIT, program.kill)
    alarm.start()
    for line in program.stdout:
        if line.startswith("{"):
            answer = json.loads(line)
        elif line == "now\n":
            meanwhile()
        else:
            continue
        program.stdin.write("\n")
        program.stdin.flush()
        if answer is not None:
            break
    alarm.cancel()
    program.communicate(timeout=60)
    assert answer is not None, say()
    return answer


def wait_for(what: str, condition: object, seconds: float = 60) -> None:
    """Until `condition()` is true."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def python() -> str:
    """The interpreter, and nothing of the checkout on its path."""
    return sys.executable


def environment() -> dict[str, str]:
    """For what runs on a host."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}
