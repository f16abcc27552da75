"""Conformance: written once, run on every kind of memory that the machine offers."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sharedregion as sr

_spec = importlib.util.spec_from_file_location("kinds", Path(__file__).parent.parent / "kinds.py")
assert _spec is not None
assert _spec.loader is not None
kinds = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kinds)


@pytest.fixture(params=kinds.KINDS)
def make(
    request: pytest.FixtureRequest,
    pool: Callable[[int, int], None],
    msharefs: Callable[[int], Any],
    unique: str,
) -> Iterator[Callable[..., sr.Region]]:
    """Makes regions of one kind: make(suffix="", size=..., **what create takes)."""
    if request.param in kinds.POOLS:
        pool(*kinds.POOLS[request.param])
    if request.param in kinds.UNITS:
        msharefs(kinds.UNITS[request.param])
    made: list[sr.Region] = []

    def make_one(suffix: str = "", **more: Any) -> sr.Region:
        region: sr.Region = kinds.make(request.param, unique + suffix, **more)
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
