"""A real scheduler and real workers of Dask on hosts made of namespaces."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster_hosts import Host, Wire, converse, environment, inner, python, wait_for

SIZE = 32 << 20
DRIVER = Path(__file__).with_name("driver.py")
SETTINGS = {
    # Replicas would be dropped as soon as nobody needs them, which is not what is counted here.
    "DASK_DISTRIBUTED__SCHEDULER__ACTIVE_MEMORY_MANAGER__START": "false",
    "DASK_TEMPORARY_DIRECTORY": "dask",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    # A busy machine is no dead worker; that a wire was cut, TCP says.
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "300s",
}


class Cluster:
    """A scheduler in the hub, workers on two hosts."""

    def __init__(self, folder: Path, each: int, preload: str | None = None, shm: str = "3g") -> None:
        self.wire = Wire(2, shm)
        self.each = each
        self.folder = folder
        self.url = f"tcp://{self.wire.hub.address}:8786"
        self._start(
            self.wire.hub, "distributed.cli.dask_scheduler", "--host", self.wire.hub.address, "--port", "8786"
        )
        self.workers: list[list[subprocess.Popen[str]]] = [[], []]
        for number, host in enumerate(self.wire.hosts):
            for _ in range(each):
                more = ["--preload", preload] if preload and number == 1 else []
                self.workers[number].append(
                    self._start(
                        host, "distributed.cli.dask_worker", self.url, "--no-nanny", "--nthreads", "1",
                        "--host", host.address, "--death-timeout", "10", *more,
                    )
                )  # fmt: skip

    def _start(self, host: Host, module: str, *arguments: str) -> "subprocess.Popen[str]":
        with open(self.folder / f"{len(host.processes)}.{host.address}.log", "w") as log:
            return host.start(
                python(), "-m", module, *arguments, "--no-dashboard",
                stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, env={**environment(), **SETTINGS},
            )  # fmt: skip

    def drive(
        self, scenario: str, *options: str, meanwhile: Callable[[], object] = lambda: None, size: int = SIZE
    ) -> Any:
        """Run a scenario of driver.py in the hub; `meanwhile` is done when it says that it is time."""
        driver = self.wire.hub.start(
            python(), str(DRIVER), self.url, scenario, str(2 * self.each), str(size), *options,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**environment(), **SETTINGS}, cwd=self.folder,
        )  # fmt: skip
        return converse(driver, meanwhile, self.logs)

    def logs(self) -> str:
        """What all processes said."""
        return "\n".join(f"{log.name}\n{log.read_text()}" for log in self.folder.glob("*.log"))

    def nothing_left(self, hosts: list[int] | None = None) -> None:
        """No name and no memory on the hosts, as soon as workers that lost their values have noticed."""
        for number in (0, 1) if hosts is None else hosts:
            host = self.wire.hosts[number]
            wait_for(
                f"{host.address} to be empty: {host.shm()}",
                lambda host=host: not host.shm() and host.shm_bytes() == 0,
            )

    def stop_workers(self) -> None:
        """As an operator would; those that hang are killed when the host ends."""
        for worker in self.workers[0] + self.workers[1]:
            if worker.poll() is None:
                os.kill(inner(worker), signal.SIGTERM)
        for worker in self.workers[0] + self.workers[1]:
            worker.wait(60)
