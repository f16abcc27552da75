"""Every reason for skipping a test, in one place."""

import errno
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")

#: marker -> (does the machine lack it, what to say)
REASONS = {
    "root": (os.geteuid() != 0, "needs root"),
    "hugepages": (
        not (POOL.exists() and os.access(POOL, os.W_OK)),
        "needs a pool of 2 MiB pages that it may change",
    ),
}


def pytest_configure() -> None:
    """Signals end what the tests start, also where a shell's background job or nohup has them ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, (lacking, reason) in REASONS.items():
            if lacking and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _pool(page: int) -> Path:
    return Path(f"/sys/kernel/mm/hugepages/hugepages-{page // 1024}kB")


@pytest.fixture
def pool() -> Iterator[Callable[[int, int], None]]:
    """pool(page size, pages): huge pages of that size beyond what others use; given back at the end."""
    before: dict[Path, int] = {}

    def free(folder: Path) -> int:
        return int((folder / "free_hugepages").read_text()) - int((folder / "resv_hugepages").read_text())

    def reserve(page: int, pages: int) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can reserve huge pages")
        folder = _pool(page)
        if not folder.exists():
            pytest.skip(f"this processor or kernel has no pages of {page} bytes")
        control = folder / "nr_hugepages"
        before.setdefault(folder, int(control.read_text()))
        for attempt in range(4):
            if attempt:
                # Free memory may lie in pieces, between what is cached of files: let the kernel move it together.
                Path("/proc/sys/vm/drop_caches").write_text("3")
                Path("/proc/sys/vm/compact_memory").write_text("1")
            control.write_text(str(int(control.read_text()) + max(0, pages - free(folder))))
            if (got := free(folder)) >= pages:
                break
        if got < pages and page == 1 << 30:
            pytest.skip(f"memory is too fragmented for {pages} pages of 1 GiB")
        assert got >= pages, f"only {got} of {pages} huge pages could be reserved"

    yield reserve
    for folder, count in before.items():
        (folder / "nr_hugepages").write_text(str(count))


class Double:
    """The stand-in for msharefs (tests/support), mounted at `path`."""

    def __init__(self, unit: int, folder: Path) -> None:
        program = Path(__file__).parent / "support" / "msharefs_double.py"
        self.path, self.unit = str(folder), unit
        self.process = subprocess.Popen(
            [sys.executable, str(program), self.path, str(unit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the stand-in for msharefs has ended"
        return line

    def tell(self, *words: object) -> list[dict[str, Any]]:
        """`refuse WHAT ERRNO`, `allow`, `unit N`, `show`: see the program. The regions that it has."""
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)
        return cast("list[dict[str, Any]]", json.loads(self._answer()))

    def regions(self) -> list[dict[str, Any]]:
        """Regions that are alive; of the others descriptors may be open for a moment."""
        return [one for one in self.tell("show") if not one["empty"]]

    def files(self) -> list[str]:
        """What is in it beside mshare_info."""
        return [name for name in os.listdir(self.path) if name != "mshare_info"]

    def end(self) -> None:
        """Take the mount away."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)


@pytest.fixture(scope="session")
def _doubles() -> Iterator[Callable[[int], Double]]:
    import tempfile

    started: dict[int, Double] = {}
    folders = []
    # What a stand-in that was killed outright has left: a mount that nobody answers for.
    for left in Path("/var/tmp").glob("sharedregion-msharefs-*"):
        try:
            left.stat()
        except OSError as error:
            if error.errno == errno.ENOTCONN and os.geteuid() == 0:
                subprocess.run(["umount", "--lazy", str(left)], check=True)
                left.rmdir()

    def of(unit: int) -> Double:
        if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
            pytest.skip("the stand-in for msharefs needs root and /dev/fuse")
        if unit not in started:
            # Every user may come in, as into the real one.
            folders.append(tempfile.mkdtemp(prefix="sharedregion-msharefs-", dir="/var/tmp"))
            Path(folders[-1]).chmod(0o755)
            started[unit] = Double(unit, Path(folders[-1]))
        return started[unit]

    yield of
    for double in started.values():
        double.end()
    for folder in folders:
        Path(folder).rmdir()


@pytest.fixture
def msharefs(
    _doubles: Callable[[int], Double], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], Double]]:
    """msharefs(unit): a mount that behaves as msharefs does; this process and its children find it."""
    used: list[Double] = []

    def use(unit: int) -> Double:
        double = _doubles(unit)
        used.append(double)
        monkeypatch.setenv("SHAREDREGION_MSHAREFS", double.path)
        return double

    yield use
    for double in used:
        double.tell("allow")
        double.tell("unit", double.unit)
        assert not double.files(), "left in msharefs"


@pytest.fixture
def unique() -> str:
    """A region name of this test's own."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """run(code, *arguments): a program in a process of its own; what it printed. It must end well."""

    def run_one(code: str, *arguments: str, expect: int = 0, timeout: float = 120) -> str:
        path = tmp_path / f"program{secrets.token_hex(4)}.py"
        path.write_text(code)
        done = subprocess.run(
            [sys.executable, str(path), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if expect == 0 else done.stdout + done.stderr

    yield run_one


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """start(code, *arguments): a program that has printed its first line, which is `.first`; killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start_one(code: str, *arguments: str) -> "subprocess.Popen[str]":
        path = tmp_path / f"program{secrets.token_hex(4)}.py"
        path.write_text(code)
        process = subprocess.Popen(
            [sys.executable, str(path), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        process.first = process.stdout.readline().strip()  # type: ignore[attr-defined]
        return process

    yield start_one
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no name of its own in /dev/shm."""
    name = request.getfixturevalue("unique") if "unique" in request.fixturenames else None
    yield
    left = [file for file in os.listdir("/dev/shm") if name is not None and name in file]
    assert not left, f"left in /dev/shm: {left}"


@pytest.fixture(scope="session")
def nobodys_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An interpreter with this package that any user may run.

    Home directories are often closed to others, so the one that runs the tests may not do: a virtual
    environment of the system's Python gets a copy of what is installed here, outside of any home.
    """
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="sharedregion-nobody-", dir="/var/tmp")
    try:
        Path(folder).chmod(0o755)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        system = shutil.which(version, path="/usr/bin:/usr/local/bin")
        if system is None:
            pytest.skip(f"there is no {version} outside a home directory")
        subprocess.run([system, "-m", "venv", "--without-pip", folder], check=True)
        packages = Path(folder, "lib", version, "site-packages")
        here = Path(__import__("sharedregion").__file__).parent.parent
        for name in os.listdir(here):
            if (
                name.split("-")[0]
                .lower()
                .startswith(
                    (
                        "numpy",
                        "sharedregion",
                        "click",
                        "rich",
                        "psutil",
                        "posix_ipc",
                        "pygments",
                        "markdown_it",
                        "mdurl",
                    )
                )
            ):
                source = here / name
                copy = shutil.copytree if source.is_dir() else shutil.copy2
                copy(source, packages / name)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        yield str(Path(folder, "bin", "python"))
    finally:
        shutil.rmtree(folder)


NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"]


@pytest.fixture
def as_nobody(nobodys_python: str) -> Iterator[Callable[..., str]]:
    """as_nobody(code): runs it as an ordinary user, with sharedregion as sr; what it printed."""
    started: list[subprocess.Popen[str]] = []

    def run_one(code: str, *, expect: int = 0, wait: bool = True) -> "str | subprocess.Popen[str]":
        command = [*NOBODY, nobodys_python, "-c", f"import sys, sharedregion as sr\n{code}"]
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
        if not wait:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env=environment
            )
            started.append(process)
            return process
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, cwd="/", env=environment, check=False
        )
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if expect == 0 else done.stdout + done.stderr

    yield run_one
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def memory_group() -> Iterator[Callable[[int], list[str]]]:
    """memory_group(bytes): a memory cgroup with that limit; returns the command prefix that enters it."""
    made: list[Path] = []

    def make(limit: int) -> list[str]:
        for base, file in (
            (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
            (Path("/sys/fs/cgroup"), "memory.max"),
        ):
            group = base / f"sharedregion-test-{secrets.token_hex(4)}"
            if not (base / "cgroup.procs").exists():
                continue
            try:
                group.mkdir()
            except OSError:
                continue
            made.append(group)
            if (group / file).exists():
                (group / file).write_text(str(limit))
                return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
        pytest.skip("no memory cgroup can be made here")

    yield make
    for group in made:
        group.rmdir()
