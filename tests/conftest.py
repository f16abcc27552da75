"""Every reason for skipping a test, in one place."""

import os
from pathlib import Path

import pytest

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")

#: marker -> (does the machine lack it, what to say)
REASONS = {
    "root": (os.geteuid() != 0, "needs root"),
    "hugepages": (
        not (POOL.exists() and os.access(POOL, os.W_OK)),
        "needs a pool of 2 MiB pages that it may change",
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, (lacking, reason) in REASONS.items():
            if lacking and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
