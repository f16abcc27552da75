"""CPython's own tests of shared memory, unmodified, against the drop-in.

    python tests/compat/cpython.py [--wheel FILE] [--python PYTHON]... [--method METHOD]...

For each interpreter a throw-away virtual environment, with a .pth file that installs the drop-in in every
process, also under -E and -I. Each start method is a process of its own. Fails if a test fails that is not
listed in known_differences.py, if one that is listed passes, if any process ran the standard module, or
if a test's children made fewer blocks by the drop-in than the test has them make.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from known_differences import KNOWN

METHODS = ("fork", "forkserver", "spawn")
HERE = Path(__file__).parent

#: test -> how many other processes use the module in it
CHILDREN = {
    "test_shared_memory_across_processes": 2,
    "test_shared_memory_cleaned_after_process_termination": 1,
    "test_shared_memory_SharedMemoryManager_reuses_resource_tracker": 2,
    "test_shared_memory_SharedMemoryManager_basics": 2,
    "test_shared_memory_SharedMemoryServer_ignores_sigint": 1,
    "test_shared_memory_untracking": 1,
    "test_shared_memory_tracking": 1,
    "test_resource_tracker": 1,
}

PROGRAM = """\
import json, sys, unittest, watch
from test._test_multiprocessing import install_tests_in_module_dict
install_tests_in_module_dict(globals(), {method!r})
CHOSEN = ("WithProcessesTestSharedMemory", "TestResourceTracker.test_resource_tracker")

def chosen(suite):
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from chosen(one)
        elif one.id().split(".", 1)[1].startswith(CHOSEN) and one.id().count("test_resource_tracker_") == 0:
            yield one

class Result(unittest.TestResult):
    def startTest(self, test):
        watch.record("test", name=test.id().split(".")[-1])
        super().startTest(test)

if __name__ == "__main__":
    loaded = unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])
    tests = unittest.TestSuite(chosen(loaded))
    names = [one.id().split(".")[-1] for one in tests]
    setUpModule()
    result = Result()
    tests.run(result)
    tearDownModule()
    failed = {{case.id().split(".")[-1].split(" ")[0]: text for case, text in result.failures + result.errors}}
    for case, text in result.skipped:
        failed[case.id().split(".")[-1]] = "skipped: " + text
    print("RESULT " + json.dumps({{"names": names, "failed": failed}}))
"""


def describe(python: str) -> tuple[tuple[int, int], str] | None:
    """Version and path of an interpreter that can be used: 3.11 or newer, with CPython's tests."""
    code = "import sys, json, test._test_multiprocessing; print(json.dumps([sys.version_info[:2], sys.executable]))"
    done = subprocess.run(
        [python, "-I", "-c", code], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        return None
    version, path = json.loads(done.stdout.splitlines()[-1])
    return ((version[0], version[1]), path) if tuple(version) >= (3, 11) else None


def interpreters() -> dict[tuple[int, int], str]:
    """One for each version that is found: on the path, and among pyenv's."""
    roots = [os.environ.get("PYENV_ROOT"), os.path.expanduser("~/.pyenv")]
    names = [f"python3.{minor}" for minor in range(11, 16)]
    candidates = [os.path.join(folder, name) for folder in os.get_exec_path() for name in names]
    for root in filter(None, roots):
        candidates += sorted(glob.glob(os.path.join(root, "versions", "3.1[1-9]*", "bin", "python")))
    found: dict[tuple[int, int], str] = {}
    for candidate in filter(os.path.exists, candidates):
        described = describe(candidate)
        if described is not None:
            found.setdefault(*described)
    return dict(sorted(found.items()))


def environment(python: str, folder: Path, wheel: str | None) -> tuple[Path, Path]:
    """A virtual environment with the package and the watcher; its Python, and the log."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
    inside = folder / "bin" / "python"
    site = Path(
        subprocess.run(
            [str(inside), "-I", "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
    )  # fmt: skip
    if wheel is None:
        import sharedregion

        shutil.copytree(Path(sharedregion.__file__).parent, site / "sharedregion")
    else:
        zipfile.ZipFile(wheel).extractall(site)
    log = folder / "log"
    (site / "watch.py").write_text((HERE / "watch.py").read_text().replace("@LOG@", str(log)))
    (site / "compat.pth").write_text("import watch\n")
    return inside, log


def judge(result: dict[str, object], lines: list[dict[str, object]], own: int, method: str) -> list[str]:
    """What is wrong with one run."""
    wrong: list[str] = []
    names = result["names"]
    failed = result["failed"]
    assert isinstance(names, list) and isinstance(failed, dict)
    if len(names) < 12:
        wrong.append(f"only {len(names)} tests were found")
    for name, text in failed.items():
        if name not in KNOWN:
            wrong.append(f"{name} failed:\n{text}")
    wrong += [
        f"{name} passes, and is listed as different" for name in names if name in KNOWN and name not in failed
    ]
    users: dict[str, set[object]] = {}
    test = ""
    for line in lines:
        if line["kind"] == "test":
            test = str(line["name"])
        elif line["kind"] == "standard":
            wrong.append(f"{test}: the standard module ran in process {line['pid']}: {line['argv']}")
        elif line["pid"] != own:
            users.setdefault(test, set()).add(line["pid"])
    for name in names:
        expected, found = CHILDREN.get(name, 0), len(users.get(name, set()))
        if method == "fork" and name == "test_shared_memory_across_processes":
            expected = 1  # The other child inherits the object.
        if found < expected:
            wrong.append(f"{name}: {found} children used the drop-in, {expected} should have")
    return wrong


def run(python: Path, log: Path, method: str, folder: Path) -> tuple[list[str], str]:
    """One start method; what is wrong, and a line that says what was done."""
    program = folder / f"compat_{method}.py"
    program.write_text(PROGRAM.format(method=method))
    log.unlink(missing_ok=True)
    process = subprocess.Popen(
        [str(python), str(program)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean(),
    )
    out, err = process.communicate(timeout=600)
    answers = [line for line in out.splitlines() if line.startswith("RESULT ")]
    if not answers:
        return [f"no result, exit {process.returncode}:\n{out}\n{err}"], ""
    result = json.loads(answers[-1].removeprefix("RESULT "))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    made = [line for line in lines if line["kind"] == "construction"]
    children = {line["pid"] for line in made} - {process.pid}
    passed = len(result["names"]) - len(result["failed"])
    said = (
        f"{passed} of {len(result['names'])} tests passed"
        + (f" ({', '.join(result['failed'])}: known)" if result["failed"] else "")
        + f"; {len(made)} constructions by the drop-in, {sum(line['pid'] != process.pid for line in made)} of them in "
        f"{len(children)} children; {sum(line['kind'] == 'standard' for line in lines)} by the standard module"
    )
    return judge(result, lines, process.pid, method), said


def clean() -> dict[str, str]:
    """The environment without what would change the interpreters."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def main() -> int:
    """0 if everything is as it should be."""
    parser = argparse.ArgumentParser(description="CPython's own tests of shared memory, against the drop-in.")
    parser.add_argument("--wheel", help="install this; otherwise what is installed here")
    parser.add_argument("--python", action="append", help="an interpreter; otherwise all that are found")
    parser.add_argument("--method", action="append", choices=METHODS)
    options = parser.parse_args()
    chosen = dict(filter(None, map(describe, options.python))) if options.python else interpreters()
    if not chosen:
        print(
            "no interpreter from 3.11 on that has CPython's tests (Debian: libpython3-testsuite)",
            file=sys.stderr,
        )
        return 2
    failed = 0
    for version, python in chosen.items():
        with tempfile.TemporaryDirectory(prefix="sharedregion-compat-") as name:
            folder = Path(name)
            inside, log = environment(python, folder / "venv", options.wheel)
            for method in options.method or METHODS:
                wrong, said = run(inside, log, method, folder)
                print(f"Python {version[0]}.{version[1]}, {method}: {said or 'failed'}", flush=True)
                for one in wrong:
                    failed = 1
                    print("  " + one.replace("\n", "\n  "), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
