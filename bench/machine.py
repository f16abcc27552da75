"""What the figures were measured on, and the host's memory made ready."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from typing import Any

from sharedregion._kernel import facts, procfs
from sharedregion._kernel.files import read_text
from sharedregion.bench import against

__all__ = ["available", "describe", "warm"]

_WARM = """
import mmap, sys, time
import numpy as np
size = int(sys.argv[1])
for _ in range(2):
    started = time.perf_counter()
    with mmap.mmap(-1, size) as memory:
        view = np.frombuffer(memory, np.uint8)
        view[::4096] = 1
        print(time.perf_counter() - started, flush=True)
        del view
"""


def available() -> int:
    """Bytes that a process can take now: what the kernel says, and what control groups leave."""
    found = facts.gather()
    return min([found.memory_available or 0, *(limit.headroom for limit in found.memory_limits)])


def warm(size: int) -> dict[str, Any]:
    """Take, touch and free that much memory, twice, in a process of its own.

    In a virtual machine the first touch of a page measures the hypervisor, which has to find memory
    for it; from the second time on it measures Linux. Both times are returned, in seconds.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", _WARM, str(size)], capture_output=True, text=True, check=False
    )
    times = [float(line) for line in done.stdout.split()]
    return {
        "bytes": size,
        "first_seconds": times[0] if times else None,
        "second_seconds": times[1] if len(times) > 1 else None,
    }


def _first(path: str, key: str) -> str | None:
    for line in (read_text("/", path) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def describe() -> dict[str, Any]:
    """Processor, memory, kernel, settings and versions; nothing that names the machine or its user."""
    found = facts.gather()
    cpu = read_text("/", "proc/cpuinfo") or ""
    frequency = _first("proc/cpuinfo", "cpu MHz")
    versions: dict[str, str | None] = {}
    for name in ("numpy", "pyperf", "gunicorn", "safetensors", "tokenizers", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    for name in against.NAMES:
        peer = against.load(name)
        if peer.distribution:
            versions[peer.distribution] = peer.version()
    return {
        "processor": _first("proc/cpuinfo", "model name"),
        "processors": os.cpu_count(),
        "mhz": float(frequency) if frequency else None,
        "virtual": "hypervisor" in (_first("proc/cpuinfo", "flags") or cpu).split(),
        "memory": found.memory_total,
        "available": found.memory_available,
        "system": platform.platform(),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "root": found.root_user,
        "pools": {str(size): pool.total for size, pool in found.pools.items()},
        "thp": {
            name: read_text("/", f"sys/kernel/mm/transparent_hugepage/{name}")
            for name in ("enabled", "shmem_enabled")
        },
        "memory_limits": [limit.limit for limit in found.memory_limits],
        "kernel_page_tables": procfs.page_tables(),
        "load": os.getloadavg(),
        "versions": versions,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
