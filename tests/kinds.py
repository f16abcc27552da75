"""Regions of every kind of memory, for tests and for the programs that tests start."""

import os
from typing import Any

import sharedregion as sr
from sharedregion._kernel.facts import gather

#: kind of memory, and where its descriptor comes from
KINDS = [
    *("shm", "thp", "shm-memfd", "thp-memfd", "hugetlb-2m", "hugetlb-1g"),
    *("msharefs-2m", "msharefs-1g", "msharefs-512g", "msharefs-hugetlb"),
]

#: A machine with msharefs runs the tests on that alone (make msharefs-check).
if os.environ.get("SHAREDREGION_TEST_KINDS"):
    KINDS = os.environ["SHAREDREGION_TEST_KINDS"].split(",")

#: kind -> (page size, pages) that a test of small regions should find in the pool
POOLS = {"hugetlb-2m": (2 << 20, 64), "hugetlb-1g": (1 << 30, 2), "msharefs-hugetlb": (2 << 20, 64)}

#: kind -> unit of address space of the stand-in for msharefs (tests/support) that it is made on. The
#: environment variable SHAREDREGION_MSHAREFS says where it is. "msharefs" is the machine's own.
UNITS = {
    "msharefs-2m": 2 << 20,
    "msharefs-1g": 1 << 30,
    "msharefs-512g": 1 << 39,
    "msharefs-hugetlb": 1 << 39,
}


def make(kind: str, name: str, size: int | str = "4 MiB", **more: Any) -> sr.Region:
    """What `create` makes, of exactly that kind."""
    options = {"commit": "auto", "persist": False, "replace": False, "mode": 0o600} | more
    memory = kind.removesuffix("-memfd")
    if kind.startswith("msharefs"):
        memory = "msharefs"
    elif kind not in ("shm-memfd", "thp-memfd", "hugetlb-1g"):
        return sr.create(name, size=size, backend=memory, **options)
    # What create() does where /dev/shm is too small, or for a size that fills a page of 1 GiB.
    return sr.Region._create(
        name=name,
        size=sr.opening.parse_size(size),
        backend=memory,
        place="hugetlb" if kind == "msharefs-hugetlb" else "memfd",
        mode=options["mode"],
        persist=options["persist"],
        replace=options["replace"],
        commit_all=options["commit"] == "full" or memory.startswith("hugetlb"),
        reason="a test asked for it",
        keeper=sr.opening._KEEPER,
        msharefs=gather().msharefs.path,
    )._settle_in(None)
