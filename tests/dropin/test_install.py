"""install(), `sharedregion run` and `sharedregion collapse`."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from sharedregion import _collapse, shared_memory

COMMAND = str(Path(sys.executable).with_name("sharedregion"))

PROGRAM = """\
import multiprocessing as mp, sys
{before}

def child(queue):
    from multiprocessing import shared_memory
    from multiprocessing.shared_memory import SharedMemory
    import multiprocessing.managers
    queue.put([SharedMemory.__module__, shared_memory.__name__, multiprocessing.managers.shared_memory.__name__])

def grandchild(queue):
    process = mp.get_context("spawn").Process(target=child, args=(queue,))
    process.start()
    process.join()

if __name__ == "__main__":
    {inside}
    import sharedregion.shared_memory, multiprocessing.shared_memory
    assert multiprocessing.shared_memory is sharedregion.shared_memory
    assert sharedregion.shared_memory.__spec__.name == "sharedregion.shared_memory"
    for method in ("fork", "forkserver", "spawn"):
        for target in (child, grandchild):
            queue = mp.get_context("spawn").SimpleQueue()
            process = mp.get_context(method).Process(target=target, args=(queue,))
            process.start()
            print(*queue.get())
            process.join()
            assert process.exitcode == 0
"""


@pytest.mark.parametrize(
    ("before", "inside"),
    [
        ("", "import sharedregion; sharedregion.install()"),
        ("import sharedregion; sharedregion.install()", ""),
        (
            "from multiprocessing import shared_memory, managers",
            "import sharedregion; sharedregion.install(); sharedregion.install()",
        ),
    ],
    ids=["at the start", "in every import", "after the standard one"],
)
def test_install_reaches_every_child(before, inside, tmp_path) -> None:
    """Children and grandchildren by fork, forkserver and spawn have the drop-in, under the standard name too."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(before=before, inside=inside))
    done = subprocess.run([sys.executable, "-P", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["sharedregion.shared_memory"] * 18


def test_a_forkserver_that_was_running_before(tmp_path) -> None:
    """Its children have the drop-in all the same: what their parent sends them brings it."""
    path = tmp_path / "program.py"
    path.write_text(
        "import multiprocessing as mp\n"
        "def child(queue):\n    from multiprocessing.shared_memory import SharedMemory\n    queue.put(SharedMemory.__module__)\n"
        "if __name__ == '__main__':\n    context = mp.get_context('forkserver')\n    queue = context.SimpleQueue()\n"
        "    for _ in range(2):\n        process = context.Process(target=child, args=(queue,))\n        process.start()\n"
        "        print(queue.get())\n        process.join()\n        import sharedregion\n        sharedregion.install()\n"
    )
    done = subprocess.run([sys.executable, "-P", str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["multiprocessing.shared_memory", "sharedregion.shared_memory"]


def test_a_worker_loads_no_numpy() -> None:
    """A program that only shares memory does not pay for NumPy, nor for the command line."""
    code = (
        "import sys, sharedregion\nsharedregion.install()\nfrom multiprocessing import shared_memory\n"
        "b = shared_memory.SharedMemory(create=True, size=3 << 20)\nb.close()\nb.unlink()\n"
        "print(*{'numpy', 'click', 'rich', 'psutil', 'sharedregion.region'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def _run(*arguments: str, **options) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [COMMAND, "run", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_run_takes_files_modules_code_and_commands(tmp_path) -> None:
    """Each form of PROGRAM has the drop-in, its own arguments, its own exit code, and stdin."""
    code = "import sys\nfrom multiprocessing.shared_memory import SharedMemory\nprint(SharedMemory.__module__, sys.argv[1:], input())\nsys.exit(7)"
    file = tmp_path / "program.py"
    file.write_text(code)
    script = tmp_path / "script"
    script.write_text(f"#!{sys.executable}\n{code}")
    script.chmod(0o755)
    for form in ([str(file)], ["-c", code], ["-m", "program"], [str(script)], [sys.executable, str(file)]):
        done = _run(
            *form, "--flag", "-x", input="typed\n", cwd=tmp_path, env={**os.environ, "PYTHONSAFEPATH": ""}
        )
        assert (done.returncode, done.stderr) == (7, ""), form
        assert done.stdout == "sharedregion.shared_memory ['--flag', '-x'] typed\n"
    assert _run("no-such-program-at-all").returncode == 1


def test_run_reaches_subprocesses_and_lets_sitecustomize_run(tmp_path) -> None:
    """Programs that the program starts have it too, and a sitecustomize of the user's own still runs, once."""
    (tmp_path / "sitecustomize.py").write_text("print('mine')\n")
    inner = "from multiprocessing.shared_memory import SharedMemory; import sitecustomize; print(SharedMemory.__module__, sitecustomize.__file__)"
    code = f"import subprocess, sys\nprint('outer', flush=True)\nsubprocess.run([sys.executable, '-c', {inner!r}])"
    done = _run("-c", code, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.stderr == ""
    assert done.stdout.split() == [
        "mine",  # of the command itself
        "mine",
        "outer",
        "mine",
        "sharedregion.shared_memory",
        f"{tmp_path}/sitecustomize.py",
    ]


def test_a_python_that_does_not_say_which_module_is_missing() -> None:
    """Python 2 reads our sitecustomize too, and its ImportError has no name: it goes on silently."""
    code = (
        "import builtins, importlib.util, sys\n"
        "class Nameless(ImportError):\n    name = property()\n"
        "standard = builtins.__import__\n"
        "def old(name, *rest):\n    if name == 'sitecustomize':\n        raise Nameless\n    return standard(name, *rest)\n"
        "builtins.__import__ = old\n"
        "path = importlib.util.find_spec('sharedregion').submodule_search_locations[0] + '/_startup/sitecustomize.py'\n"
        "exec(compile(open(path).read(), path, 'exec'), {'__file__': path})"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_run_with_an_interpreter_that_has_nothing_installed(tmp_path) -> None:
    """A virtual environment without this package and without NumPy gets the drop-in all the same."""
    venv.create(tmp_path / "empty", symlinks=True)
    done = _run(
        str(tmp_path / "empty/bin/python"),
        "-c",
        "from multiprocessing.shared_memory import SharedMemory as S\nb = S(create=True, size=5 << 20)\n"
        "print(type(b).__module__)\nb.close()\nb.unlink()",
    )
    assert (done.stdout, done.stderr) == ("sharedregion.shared_memory\n", "")


def test_run_passes_the_kind_of_memory_on() -> None:
    """--backend is SHAREDREGION_SHM_BACKEND of the program."""
    done = _run("--backend", "shm", "-c", "import os; print(os.environ['SHAREDREGION_SHM_BACKEND'])")
    assert done.stdout == "shm\n"
    assert _run("--backend", "cheese", "-c", "pass").returncode == 2


# A stock program: its block lies where the kernel puts it; fillers move that by whole pages until the
# address is congruent, or until it is not.
STOCK = """
import mmap, sys
from multiprocessing.shared_memory import SharedMemory
def place():
    name = f"/dev/shm/{sys.argv[1]}"
    return next(int(l.split("-")[0], 16) for l in open("/proc/self/maps") if name in l)
fillers = []
if sys.argv[2] == "create":
    block = SharedMemory(sys.argv[1], create=True, size=(64 << 20) + 5000)
    block.buf[:] = b"x" * len(block.buf)
else:
    block = SharedMemory(sys.argv[1])
wanted = int(sys.argv[3])
while place() % (2 << 20) != wanted:
    over = (place() - wanted) % (2 << 20)
    block.close()
    fillers.append(mmap.mmap(-1, over, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    block = SharedMemory(sys.argv[1])
def touch():
    for at in range(0, block.size, 4096):
        block.buf[at]
touch()
print("ready", flush=True)
for line in sys.stdin:
    touch()
    print(block.buf[0], next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmPTE:")), flush=True)
"""


def test_collapse_of_a_running_stock_program(program: Callable, block_name) -> None:
    """By name and by pid: who is congruent gains its tables, who is not is told so, and nothing is lost."""
    aligned = program(STOCK, block_name, "create", "0")
    assert aligned.read() == "ready"
    crooked = program(STOCK, block_name, "attach", "8192")
    assert crooked.read() == "ready"
    report = _collapse.collapse([block_name])
    (file,) = report.files
    assert (file.large, file.empty, file.refused, file.tail) == (32, 0, 0, 5000)
    gains = {one.pid: one for one in report.processes}
    good, bad = gains[aligned.process.pid], gains[crooked.process.pid]
    assert good.gained >= 120 << 10 and good.misplaced == 0
    assert bad.gained <= 4096 and bad.congruent == 0 and bad.misplaced >= 64 << 20
    for one, limit in ((aligned, good.tables_before - (100 << 10)), (crooked, None)):
        one.tell()
        first, tables = map(int, one.read().split())
        assert first == ord("x")
        assert limit is None or tables * 1024 <= limit

    done = subprocess.run(
        [COMMAND, "collapse", "--json", str(aligned.process.pid)], capture_output=True, text=True, check=True
    )
    again = json.loads(done.stdout)
    assert [one["path"] for one in again["files"]] == [f"/dev/shm/{block_name}"]
    assert {one["pid"] for one in again["processes"]} == {aligned.process.pid, crooked.process.pid}
    done = subprocess.run(
        [COMMAND, "collapse", f"/dev/shm/{block_name}"], capture_output=True, text=True, check=True
    )
    assert "cannot gain: the address is not congruent modulo 2 MiB" in " ".join(done.stdout.split())


def test_collapse_of_what_is_no_shared_memory(tmp_path) -> None:
    """A missing name, an ordinary file and a process without shared memory are said, with exit code 1."""
    file = Path(f"/var/tmp/sharedregion-test-{os.getpid()}")
    file.write_bytes(b"x" * 4096)
    try:
        for target, words in (
            ("no-such-block", "of this name"),
            (str(file), "no shared memory"),
            ("999999999", "No such"),
        ):
            done = subprocess.run([COMMAND, "collapse", target], capture_output=True, text=True, check=False)
            assert done.returncode == 1 and words in done.stderr, done.stderr
    finally:
        file.unlink()
    nothing = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    done = subprocess.run(
        [COMMAND, "collapse", str(nothing.pid)], capture_output=True, text=True, check=False
    )
    nothing.communicate(b"\n")
    assert done.returncode == 1 and "no shared memory" in done.stderr


def test_collapse_leaves_holes_alone() -> None:
    """A range with no memory in it takes none."""
    block = shared_memory.SharedMemory(create=True, size=4096)
    os.truncate(f"/dev/shm/{block.name}", 6 << 20)
    (file,) = _collapse.collapse([block.name]).files
    assert (file.large, file.empty) == (1, 2) and file.memory_after == 2 << 20
    block.close()
    block.unlink()


def test_collapse_looks_for_a_block_first(tmp_path, monkeypatch) -> None:
    """A file of the current folder does not hide a block of its name; with a slash it is meant itself."""
    block = shared_memory.SharedMemory(create=True, size=4096)
    monkeypatch.chdir(tmp_path)
    Path(block.name).mkdir()
    (file,) = _collapse.collapse([block.name]).files
    assert file.path == f"/dev/shm/{block.name}"
    with pytest.raises(ValueError, match="no file"):
        _collapse.collapse([f"./{block.name}"])
    with pytest.raises(ValueError, match="no file"):
        _collapse.collapse(["/dev/shm"])
    block.close()
    block.unlink()


def test_collapse_of_a_program_whose_first_thread_has_ended(program: Callable, block_name) -> None:
    """Its memory is found, and its tables, through the threads that are left."""
    one = program(
        "import ctypes, sys, threading, time\nfrom multiprocessing.shared_memory import SharedMemory\n"
        "block = SharedMemory(sys.argv[1], create=True, size=8 << 20)\nblock.buf[:] = b'x' * len(block.buf)\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\nprint('ready', flush=True)\n"
        "ctypes.CDLL(None).syscall(60, 0)",  # exit(2): of this thread alone
        block_name,
    )
    one.read()
    status = Path(f"/proc/{one.process.pid}/status")
    while "VmPTE" in status.read_text():
        pass
    report = _collapse.collapse([str(one.process.pid)])
    assert [file.path for file in report.files] == [f"/dev/shm/{block_name}"]
    assert [gain.pid for gain in report.processes] == [one.process.pid]
    assert report.processes[0].tables_after > 0
