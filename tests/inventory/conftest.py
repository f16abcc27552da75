import os
import time
from collections.abc import Iterator

import pytest

from sharedregion import SharedRegionError, _native


@pytest.fixture(autouse=True)
def _swept(request: pytest.FixtureRequest) -> Iterator[None]:
    """Workers are killed at the end of a test, as its region's last members: what they leave is taken away."""
    name = request.getfixturevalue("unique") if "unique" in request.fixturenames else None
    yield
    for file in os.listdir("/dev/shm") if name else ():
        if name in file and file.endswith(".catalog"):
            region = file[len("sharedregion.") : -len(".catalog")]
            # A killed worker's child may take a moment more to end.
            for _ in range(100):
                try:
                    if _native.reclaim(region):
                        break
                except SharedRegionError:
                    break
                time.sleep(0.02)
