"""Native programs built anew under AddressSanitizer and UBSan, for tests that feed them hostile bytes."""

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[1] / "native"
# Programs of their own, and what only a build with fault injection has.
_LEFT_OUT = {NATIVE / "keeper" / "main.c", NATIVE / "sys" / "faults.c"}


def sanitized(program: Path, rooms: list[str], *sources: str) -> Path:
    """`program`, from all of these rooms and those files of native/; the first thing that is wrong ends it, with 1."""
    compiler = shutil.which("cc")
    if compiler is None or not NATIVE.is_dir():
        pytest.skip("needs a C compiler and the sources")
    files = {file for room in rooms for file in NATIVE.joinpath(room).glob("*.c")} - _LEFT_OUT
    files |= {NATIVE / source for source in sources}
    command = [compiler, "-std=gnu11", "-O1", "-g", "-fno-strict-aliasing", "-fno-omit-frame-pointer"]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread", "-o", str(program)]
    command += [f"-I{NATIVE / room}" for room in rooms]
    subprocess.run([*command, *map(str, sorted(files))], check=True)
    return program
