"""Every kernel call made to fail once: a clear error, nothing leaked, and it works the next time."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sharedregion import _native

PROGRAM = Path(__file__).with_name("every_call.py")
POOL_OF = {"hugetlb-2m": (2 << 20, 64)}
UNIT_OF = {"msharefs-512g": 1 << 39}

OPERATIONS = [
    "create",
    "create whole",
    "replace",
    "attach",
    "attach to write",
    "put small",
    "put large",
    "put replacing",
    "put pickle",
    "grow",
    "allocate",
    "allocate aborted",
    "delete",
    "many pins",
    "fork",
    "close",
    "close one of two",
    "unlink",
    "claim",
    "numbers",
    "trim",
    "repair",
    "wait",
    "seal",
]
#: Those that touch the data segment's own calls are done on each kind; the rest are the same on all.
EVERYWHERE = ["create", "attach to write", "put large", "close", "unlink"]

pytestmark = pytest.mark.skipif(
    not hasattr(_native, "fail_call"), reason="needs a build with -Dfault_injection=true"
)


@pytest.mark.parametrize(
    ("kind", "operation"),
    [("shm", operation) for operation in OPERATIONS]
    + [(kind, operation) for kind in ("thp", "shm-memfd", "hugetlb-2m") for operation in EVERYWHERE]
    + [
        ("msharefs-512g", operation)
        for operation in ("create", "attach", "attach to write", "put large", "trim", "fork")
    ],
)
def test_every_call_fails_once(
    pool: Callable[[int, int], None], msharefs: Callable[[int], object], kind: str, operation: str
) -> None:
    """An error of the family or the right result; no descriptor, map, name or keeper left; usable after."""
    if kind in POOL_OF:
        pool(*POOL_OF[kind])
    if kind in UNIT_OF:
        msharefs(UNIT_OF[kind])
    name = f"test-{secrets.token_hex(6)}"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(PROGRAM.parent.parent), kind, operation, name],
        capture_output=True,
        text=True,
        check=False,
    )
    for file in os.listdir("/dev/shm"):
        if name in file:
            # Of cases that died, or whose process stayed a member to its end.
            Path("/dev/shm", file).unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    print(f"{result['cases']} cases, {result['calls']} calls")
    assert not result["failures"], "\n".join(map(str, result["failures"])) + done.stderr
    assert result["cases"] > 0 or result["calls"] == 0
