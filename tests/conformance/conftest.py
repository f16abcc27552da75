"""Conformance: written once, run on every kind of memory that the machine offers."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sharedregion as sr

#: kind of memory, and where its descriptor comes from
KINDS = ["shm", "thp", "shm-memfd", "thp-memfd", "hugetlb-2m", "hugetlb-1g"]


@pytest.fixture(params=KINDS)
def make(
    request: pytest.FixtureRequest, pool: Callable[[int, int], None], unique: str
) -> Iterator[Callable[..., sr.Region]]:
    """Makes regions of one kind: make(suffix="", size=..., **what create takes)."""
    kind = request.param.removesuffix("-memfd")
    made: list[sr.Region] = []
    if kind == "hugetlb-2m":
        pool(2 << 20, 64)
    elif kind == "hugetlb-1g":
        pool(1 << 30, 2)

    def make_one(suffix: str = "", *, size: int | str = "4 MiB", **more: Any) -> sr.Region:
        options = {"commit": "auto", "persist": False, "replace": False, "mode": 0o600} | more
        if request.param in ("shm-memfd", "thp-memfd", "hugetlb-1g"):
            # What create() does where /dev/shm is too small, or for a size that fills a page of 1 GiB.
            region = sr.Region._create(
                name=unique + suffix,
                size=sr.region.parse_size(size),
                backend=kind,
                place="memfd",
                mode=options["mode"],
                persist=options["persist"],
                replace=options["replace"],
                commit_all=options["commit"] == "full" or kind.startswith("hugetlb"),
                reason="a test asked for it",
                keeper=sr.region._KEEPER,
            )._settle_in(None)
        else:
            region = sr.create(unique + suffix, size=size, backend=kind, **options)
        made.append(region)
        return region

    yield make_one
    for region in made:
        region.close()


@pytest.fixture
def region(make: Callable[..., sr.Region]) -> sr.Region:
    """A region of 4 MiB."""
    return make()


@pytest.fixture
def reader(region: sr.Region) -> Iterator[sr.Region]:
    """Another member of `region`, read-only."""
    with sr.attach(region.name) as member:
        yield member
