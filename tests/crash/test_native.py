"""What a kill leaves, at every instruction and at random times: the native tests, a slice of each.

`make kill` runs the whole: 10,000 histories, 500 kills and a minute's soak, each also with members in
pid namespaces of their own, and part of it on the stand-in for msharefs.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build-native"
SKIPPED = 77

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs() -> Path:
    """The native tests, built as the package is, in a folder of their own."""
    tools = Path(sys.executable).parent
    meson = shutil.which("meson", path=f"{tools}:{os.environ['PATH']}")
    if meson is None:
        pytest.skip("needs meson")
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    # The stand-in for msharefs is known to test builds alone. A folder that is set up already is set up anew.
    setup = [meson, "setup", str(BUILD), "-Dnative_tests=true", "-Dwerror=true", "-Db_lundef=false"]
    setup += ["-Dfault_injection=true", "-Dbuildtype=release"]
    done = subprocess.run(setup, check=False, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        [meson, "compile", "-C", str(BUILD), "native-tests"],
        check=False,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / "native" / "tests"


def _run(programs: Path, name: str, *options: str) -> str:
    done = subprocess.run(
        [programs / f"test-{name}", *options], check=False, capture_output=True, text=True, timeout=900
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip() or f"{name}: not on this machine")
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return done.stdout


def test_a_kill_at_any_instruction_loses_and_leaks_nothing(programs: Path) -> None:
    """After each instruction of an operation that changed shared bytes, recovery finds every object."""
    out = _run(programs, "steps", "histories=640", "seconds=100", "name_kills=40")
    assert "crash points checked" in out


UNITS = [2 << 20, 1 << 30, 512 << 30]
NAMES = ["2 MiB", "1 GiB", "512 GiB"]


@pytest.mark.root
@pytest.mark.parametrize("unit", UNITS, ids=NAMES)
def test_a_kill_after_any_change_on_msharefs(
    programs: Path, msharefs: Callable[[int], Any], unit: int
) -> None:
    """Nor is readers' memory hidden that is marked, or anything shown or kept that is not, while it comes and goes."""
    double = msharefs(unit)
    seed = {2 << 20: 2000, 1 << 30: 3008, 512 << 30: 1000}[unit]
    # `make kill` also checks what is different in nothing but where the instruction is.
    options = ["msharefs=1", "changes=1", f"seed={seed}", "histories=20", "name_kills=8"]
    out = _run(programs, "steps", *options)
    assert "histories on msharefs 20, " in out
    assert not double.regions()


@pytest.mark.root
@pytest.mark.parametrize("unit", UNITS, ids=NAMES)
@pytest.mark.parametrize("namespaces", [0, 1], ids=["one namespace", "pid namespaces"])
def test_killed_writers_and_readers_on_msharefs(
    programs: Path, msharefs: Callable[[int], Any], unit: int, namespaces: int
) -> None:
    """The same of writers and readers on msharefs; at the end what is shown, marked and has memory is one."""
    double = msharefs(unit)
    _run(programs, "kill", "msharefs=1", "kills=50", f"namespaces={namespaces}")
    assert not double.regions()


@pytest.mark.parametrize("namespaces", [0, 1], ids=["one namespace", "pid namespaces"])
def test_killed_writers_block_no_one_and_lose_nothing(programs: Path, namespaces: int) -> None:
    """Fifty writers killed beside seven others: each object is what it was or what it was to be."""
    _run(programs, "kill", "kills=50", f"namespaces={namespaces}")


@pytest.mark.parametrize("namespaces", [0, 1], ids=["one namespace", "pid namespaces"])
def test_soak_with_a_kill_every_50_ms(programs: Path, namespaces: int) -> None:
    """Eight processes, one killed every 50 ms: at the end nothing is lost and nothing leaked."""
    _run(
        programs,
        "kill",
        "seconds=60" if not namespaces else "seconds=15",
        "every_ms=50",
        f"namespaces={namespaces}",
    )


def test_a_published_object_is_whole_on_another_processor(programs: Path) -> None:
    """Streaming stores are seen before the publication that follows them, and a pin before its check."""
    _run(programs, "litmus")


def test_the_litmus_test_can_fail(programs: Path) -> None:
    """Without fences the same program finds torn reads, or a pin and a withdrawal that miss each other."""
    done = subprocess.run(
        [programs / "test-litmus", "mutate=1", "rounds=1000000"],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode == SKIPPED:
        pytest.skip("needs two processors")
    assert done.returncode == 1, done.stdout + done.stderr


@pytest.mark.root
def test_a_second_series_of_msharefs_stands_beside_the_first(
    programs: Path, msharefs: Callable[[int], Any]
) -> None:
    """It is listed, and nothing else changes: found by trying, and each region is its own series' matter."""
    double = msharefs(512 << 30)
    assert "not looked for" not in _run(programs, "series")
    assert not double.regions()


@pytest.mark.parametrize("name", ["alloc", "catalog", "members", "threads", "parts", "damage"])
def test_native_rooms_against_their_models(programs: Path, name: str) -> None:
    """Allocator, catalog, members and threads do what a simple model says."""
    _run(programs, name)
