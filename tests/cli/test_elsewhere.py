"""The same program where a newcomer meets it: as an ordinary user, and from a wheel in an empty environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.root
def test_demo_as_an_ordinary_user(as_nobody) -> None:
    """With no privilege and nothing reserved the demo works on thp, and says that its figures are estimates."""
    said = as_nobody(
        "from sharedregion.cli import main\nmain(['demo', '--size', '64 MiB', '--workers', '2'])"
    )
    assert "thp" in said and "estimate" in said.lower()
    assert "equal" in said and "differ" not in said
    assert "Traceback" not in said
    answer = json.loads(
        as_nobody(
            "from sharedregion.cli import main\nmain(['demo', '--size', '64 MiB', '--workers', '2', '--json'])"
        )
    )
    assert answer["estimate"] and answer["why"]
    assert {row["name"]: row["checksums_equal"] for row in answer["rows"]}["thp"]


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    """Built, installed elsewhere with nothing but what it asks for, it passes the same demo."""
    build = tmp_path / "build"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps",
            f"--config-settings=build-dir={build}", "-w", str(tmp_path), str(ROOT),
        ],
        check=True,
        env=dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"),
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert "abi3" in wheel.name
    place = tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([place / "bin" / "python", "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    done = subprocess.run(
        [place / "bin" / "sharedregion", "demo", "--no-story", "--size", "64 MiB", "--workers", "2", "--json"],
        capture_output=True, text=True, cwd="/", check=False, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {"thp", "shm", "multiprocessing"} <= {row["name"] for row in answer["rows"]}
    assert all(row["checksums_equal"] for row in answer["rows"])
