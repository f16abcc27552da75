"""gunicorn: weights that each worker loads, maps from a file, or has from its master by region."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from sharedregion.bench import workers
from sharedregion.bench.case import MIB, Case, Job, Sample, Setting

_LOADED, _MAPPED, _REGION = "loaded by each worker", "mmap of a file", "region"

_CONFIG = """
import os, numpy as np
bind, workers, timeout, control_socket_disable = "127.0.0.1:0", int(os.environ["WORKERS"]), 120, True
if os.environ["SUBJECT"] == "region":
    from sharedregion.integrations.gunicorn import Shared
    shared = Shared(os.environ["REGION"], lambda: {"w": np.load("weights.npy", mmap_mode="r")})
    on_starting, on_reload, post_fork, on_exit = shared.hooks
"""

_APPLICATION = """
import json, os, numpy as np
if os.environ["SUBJECT"] == "region":
    from sharedregion.integrations.gunicorn import region
    get = lambda: region(os.environ["REGION"])["w"]
else:
    weights = np.load("weights.npy", mmap_mode="r" if os.environ["SUBJECT"] == "mmap of a file" else None)
    get = lambda: weights

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), float(get()[::512].sum())]).encode()]
"""


def plan(setting: Setting) -> list[Job]:
    """256 MiB of weights, four workers."""
    return workers.jobs(
        CASE.name, (_LOADED, _MAPPED, _REGION), setting, ("gunicorn",), size=256 * MIB, workers=4, seconds=8
    )


def _ask(port: int) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/")
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def _port(log: str, process: subprocess.Popen[bytes]) -> int:
    while process.poll() is None:
        with open(log) as file:
            if match := re.search(r"127\.0\.0\.1:(\d{2,})", file.read()):
                return int(match[1])
        time.sleep(0.01)
    raise RuntimeError(f"gunicorn ended with {process.returncode}")


def measure(job: Job) -> Iterator[Sample]:
    """A real server; one client that asks as fast as it is answered."""
    folder, count = job.folder, int(job.params["workers"])
    array = np.ones(int(job.params["size"]) // 8)
    total = float(array[::512].sum())
    np.save(f"{folder}/weights.npy", array)
    del array
    for name, text in (("gunicorn.conf.py", _CONFIG), ("prefork_application.py", _APPLICATION)):
        with open(f"{folder}/{name}", "w") as file:
            file.write(text)
    environment = os.environ | {
        "SUBJECT": job.subject, "WORKERS": str(count), "REGION": f"{job.prefix}weights", "PYTHONPATH": folder,
    }  # fmt: skip
    started = time.perf_counter()
    with open(f"{folder}/log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gunicorn", "prefork_application:app"],
            cwd=folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        port = _port(f"{folder}/log", process)
        pids: set[int] = set()
        deadline = time.perf_counter() + 120
        while len(pids) < count and time.perf_counter() < deadline:
            pid, found = _ask(port)
            assert found == total
            if not pids:
                yield "start", time.perf_counter() - started
            pids.add(pid)
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < workers.busy(job, 2):
            assert _ask(port)[1] == total
            done += 1
        yield "rate", done / (time.perf_counter() - started)
        yield from workers.costs(sorted(pids))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for name in ("weights.npy", "gunicorn.conf.py", "prefork_application.py", "log"):
            os.unlink(f"{folder}/{name}")


CASE = Case(
    name="prefork",
    title="gunicorn: weights for all workers",
    plan=plan,
    measure=measure,
    metrics=workers.METRICS,
    charts=workers.bars("gunicorn"),
    notes=("A request reads one number of every 4 KiB of the weights.",),
)
