"""Ray on two hosts made of namespaces: references on a node, Ray's own store between nodes."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_hosts import Wire, environment, python, wait_for

DRIVER = Path(__file__).with_name("ray_driver.py")
TOTAL = float(sum(range((16 << 20) // 8)))
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_register_timeout_seconds": "180",
}

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def drive() -> Iterator[Callable[[str], Any]]:
    # A socket's path has at most 107 bytes, and Ray's are long.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    settings = {**environment(), **SETTINGS}
    with Wire(2) as wire:
        head = f"{wire.hosts[0].address}:6379"
        common = [
            "--num-cpus",
            "2",
            "--object-store-memory",
            str(200 << 20),
            "--block",
            "--disable-usage-stats",
        ]
        for number, host in enumerate(wire.hosts):
            place = (
                ["--head", "--port", "6379", "--include-dashboard", "false"]
                if number == 0
                else ["--address", head]
            )
            with open(f"{folder}/{number}.log", "w") as log:
                host.start(
                    python(), "-m", "ray.scripts.scripts", "start", *place, *common,
                    "--node-ip-address", host.address, "--temp-dir", f"{folder}/{number}",
                    env=settings, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
                )  # fmt: skip
            count = (
                f"import ray; ray.init('{head}', log_to_driver=False); "
                "print(sum(node['Alive'] for node in ray.nodes()))"
            )

            def joined(wanted: int = number + 1, count: str = count) -> bool:
                done = subprocess.run(
                    wire.hosts[0].command([python(), "-c", count]), check=False,
                    env=settings, cwd=folder, capture_output=True, text=True,
                )  # fmt: skip
                return done.stdout.strip().endswith(str(wanted))

            wait_for("the node to join", joined, 180)

        def run(scenario: str) -> Any:
            done = subprocess.run(
                wire.hosts[0].command([python(), str(DRIVER), scenario, head]), check=False,
                env=settings, cwd=folder, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout.strip().splitlines()[-1])

        yield run
    shutil.rmtree(folder, ignore_errors=True)


def test_tasks_of_a_node_map_the_array(drive: Callable[[str], Any]) -> None:
    """Two tasks map the driver's very memory; what was put is held though its maker dropped it; then it goes."""
    answer = drive("near")
    assert answer["seen"] == [[TOTAL, "Pin", answer["home"]]] * 2
    assert answer["plain"][:2] == [TOTAL, "ndarray"]
    assert answer["later"][:2] == [TOTAL, "Pin"]
    assert answer["gone"]


def test_a_result_in_a_region(drive: Callable[[str], Any]) -> None:
    """The worker that made it has dropped it, and the reference holds it."""
    answer = drive("result")
    assert answer["seen"][:2] == [float((16 << 20) // 8), "Pin"]
    assert answer["gone"]


def test_another_node_gets_the_bytes(drive: Callable[[str], Any]) -> None:
    """Right ones, by one copy in Ray's store for both tasks, not by a reference to memory that they cannot see."""
    answer = drive("far")
    assert [total for total, *_ in answer["seen"]] == [TOTAL, TOTAL]
    assert all(base != "Pin" for _, base, _ in answer["seen"])
    [home] = {home for *_, home in answer["seen"]}
    assert home not in ("private", answer["home"])


def test_the_process_that_sent_it_is_killed(drive: Callable[[str], Any]) -> None:
    """The value is lost, as Ray says it; who has it mapped keeps it; nothing is left of it."""
    answer = drive("owner_killed")
    assert answer["error"] != "none"
    assert answer["still"] == float((16 << 20) // 8)
    assert answer["gone"]


def test_another_version(drive: Callable[[str], Any]) -> None:
    """A clear error."""
    assert "another version of sharedregion" in drive("other_version")["error"]
