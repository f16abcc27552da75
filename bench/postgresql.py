"""A PostgreSQL server of our own: a cluster in a temporary folder, for a case and for tests.

The server runs as an ordinary user, and is reached by a socket in its folder alone.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

from sharedregion.footprint import Alternative, Footprint

CONNECTIONS = 60
BUFFERS = "1GB"
#: One row fills a page, so that a scan touches each page once: just below 1 GiB in all.
ROWS = 126_000


def programs() -> str | None:
    """The folder of the newest PostgreSQL's programs, as Debian installs it; None if there is none."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[4]))
    return os.path.dirname(found[-1]) if found else None


class Cluster:
    """A database cluster of its own in a temporary folder, reached by a socket in that folder alone."""

    def __init__(self, bin_folder: str) -> None:
        self.bin = bin_folder
        self.folder = tempfile.mkdtemp(prefix="sharedregion-pg-", dir="/var/tmp")
        self.data = os.path.join(self.folder, "data")
        self.sessions: list[subprocess.Popen[str]] = []
        self._as: list[str] = []
        # All processes are forked from one, so what chance decides of its layout counts once for each: two
        # servers that differ in nothing else may differ by four tables a process. Seccomp may forbid it.
        fixed = ["setarch", platform.machine(), "--addr-no-randomize"]
        self._fixed: list[str] = []
        if (
            shutil.which(fixed[0])
            and not subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode
        ):
            self._fixed = fixed
        # PostgreSQL refuses to run as root.
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as = [
                "setpriv",
                f"--reuid={nobody.pw_uid}",
                f"--regid={nobody.pw_gid}",
                "--clear-groups",
            ]
        self._do("initdb", "-D", self.data, "-A", "trust", "-U", "tester", "-N", "--no-instructions")

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [*self._fixed, *self._as, os.path.join(self.bin, program), *arguments]

    def _do(self, program: str, *arguments: str, timeout: float = 300) -> str:
        # Into a file, not a pipe: the server would inherit the pipe and hold it open.
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(
                self._command(program, *arguments),
                stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, cwd=self.folder, timeout=timeout, check=False,
            )  # fmt: skip
            said.seek(0)
            text = said.read()
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {text[-2000:]}")
        return text

    def settings(self, huge_pages: str) -> list[str]:
        """Options of the server."""
        made = {
            "shared_buffers": BUFFERS,
            "huge_pages": huge_pages,
            "max_connections": str(CONNECTIONS + 10),
            "listen_addresses": "",
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "autovacuum": "off",
            "jit": "off",
            # Each connection reads everything itself.
            "max_parallel_workers_per_gather": "0",
        }
        return [word for name, value in made.items() for word in ("-c", f"{name}={value}")]

    def large_pages(self) -> int:
        """PostgreSQL's own count of the 2 MiB pages that it needs; the server must not be running."""
        text = self._do(
            "postgres", "-D", self.data, *self.settings("on"), "-C", "shared_memory_size_in_huge_pages"
        )
        return int(text.split()[-1])

    def start(self, huge_pages: str) -> None:
        """Start the server; returns once it takes connections."""
        # The words are our own and hold no blanks.
        options = " ".join(
            word if word.split("=")[-1] else word.replace("=", "=''") for word in self.settings(huge_pages)
        )
        log = os.path.join(self.folder, "log")
        self._do("pg_ctl", "-D", self.data, "-l", log, "-w", "-t", "60", "-o", options, "start")

    def stop(self) -> None:
        """End the connections and the server."""
        for session in self.sessions:
            session.kill()
        for session in self.sessions:
            with session:
                session.wait()
        self.sessions = []
        self._do("pg_ctl", "-D", self.data, "-w", "-m", "fast", "stop")

    def _session(self) -> subprocess.Popen[str]:
        psql = self._command("psql", "-X", "-q", "-A", "-t", "-h", self.folder, "-U", "tester", "postgres")
        return subprocess.Popen(
            psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self.folder
        )

    def ask(self, statement: str, session: subprocess.Popen[str] | None = None) -> str:
        """The last line that the statements print, in a session of their own if none is given."""
        if session is None:
            return self._do(
                "psql", "-X", "-q", "-A", "-t", "-h", self.folder, "-U", "tester", "-c", statement, "postgres"
            ).strip()
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(statement + ";\n")
        session.stdin.flush()
        return session.stdout.readline().strip()

    def fill(self) -> None:
        """Make the table."""
        self.ask("CREATE EXTENSION pg_prewarm")
        self.ask("CREATE UNLOGGED TABLE pages (n int, filler text)")
        self.ask("ALTER TABLE pages ALTER filler SET STORAGE plain")
        self.ask(
            f"INSERT INTO pages SELECT n, repeat('x', 7000) FROM generate_series(1, {ROWS}) n"  # noqa: S608 a constant
        )

    def read_everywhere(self) -> None:
        """Bring the table into the buffers, and let each of the connections read all of it."""
        assert int(self.ask("SELECT pg_prewarm('pages')")) >= ROWS
        self.sessions = [self._session() for _ in range(CONNECTIONS)]
        for session in self.sessions:
            assert int(self.ask("SELECT count(*) FROM pages", session)) == ROWS

    def pids(self) -> list[int]:
        """The server and all its processes."""
        with open(os.path.join(self.data, "postmaster.pid"), encoding="ascii") as file:
            postmaster = int(file.readline())
        with open(f"/proc/{postmaster}/task/{postmaster}/children", encoding="ascii") as file:
            return [postmaster, *map(int, file.read().split())]

    def close(self) -> None:
        """Remove all that it made."""
        with contextlib.suppress(RuntimeError):
            self.stop()
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def cluster(bin_folder: str) -> Iterator[Cluster]:
    """A cluster that is gone afterwards."""
    made = Cluster(bin_folder)
    try:
        yield made
    finally:
        made.close()


def foretold(found: Footprint, name: str = "2 MiB pages") -> Alternative:
    """What the advice says about the buffers."""
    (advice,) = found.advice()
    return next(one for one in advice.alternatives if one.name == name)
