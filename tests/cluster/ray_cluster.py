"""A real Ray cluster of two nodes on hosts made of namespaces."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from cluster_hosts import Wire, converse, environment, python, wait_for

DRIVER = Path(__file__).with_name("ray_driver.py")
SETTINGS = {
    **environment(),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_register_timeout_seconds": "180",
    # How soon a host that was cut off is given up, and gives up itself.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    # What is under way over a wire that is cut fails by this; otherwise Ray waits for five minutes.
    "RAY_grpc_client_keepalive_time_ms": "3000",
    "RAY_grpc_client_keepalive_timeout_ms": "3000",
}


class RayCluster:
    """A head and another node; drivers run on the head's host."""

    def __init__(self, store: int = 200 << 20) -> None:
        # A socket's path has at most 107 bytes, and Ray's are long.
        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        self.wire = Wire(2, str(2 * store + (1 << 30)))
        self._head = f"{self.wire.hosts[0].address}:6379"
        try:
            for number in range(2):
                self._start(number, store)
        except BaseException:
            self.close()
            raise

    def _start(self, number: int, store: int) -> None:
        host = self.wire.hosts[number]
        place = (
            ["--head", "--port", "6379", "--include-dashboard", "false"]
            if number == 0
            else ["--address", self._head]
        )
        with open(f"{self._folder}/{number}.log", "w") as log:
            host.start(
                python(), "-m", "ray.scripts.scripts", "start", *place, "--num-cpus", "2", "--block",
                "--object-store-memory", str(store), "--disable-usage-stats", "--node-ip-address", host.address,
                "--temp-dir", f"{self._folder}/{number}",
                env=SETTINGS, cwd=self._folder, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        count = (
            f"import ray; ray.init('{self._head}', log_to_driver=False); "
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )

        def joined() -> bool:
            done = subprocess.run(
                self.wire.hosts[0].command([python(), "-c", count]), check=False, env=SETTINGS,
                cwd=self._folder, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            return done.stdout.strip().endswith(str(number + 1))

        wait_for("the node to join", joined, 180)

    def run(self, scenario: str, meanwhile: Callable[[], object] = lambda: None, **settings: str) -> Any:
        """A scenario of ray_driver.py, and what it answered; `meanwhile` is done when it says that it is time."""
        log = Path(self._folder, f"{scenario}.log")
        with log.open("w") as file:
            driver = self.wire.hosts[0].start(
                python(), str(DRIVER), scenario, self._head, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=file, env={**SETTINGS, **settings}, cwd=self._folder,
            )  # fmt: skip
        return converse(driver, meanwhile, log.read_text)

    def close(self) -> None:
        """End it."""
        self.wire.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
