"""This library's kinds of memory, in the same form as the peers, so that one piece of code measures both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from sharedregion._kernel.facts import gather
from sharedregion.bench.against import Bytes, Fill, Peer, Store, Values
from sharedregion.bench.case import GIB, MIB, OURS, Setting

__all__ = ["TITLES", "pages", "subject", "usable"]

TITLES = {
    "msharefs": "region, msharefs",
    "hugetlb-1g": "region, hugetlb of 1 GiB pages",
    "hugetlb-2m": "region, hugetlb of 2 MiB pages",
    "thp": "region, thp",
    "shm": "region, plain 4 KiB pages",
}


def usable() -> tuple[tuple[str, ...], Mapping[str, str]]:
    """(kinds that can serve here, kind -> why not). Root may reserve huge pages, so that an empty pool is none."""
    from sharedregion import _policy

    facts = gather()
    kinds: list[str] = []
    reasons: dict[str, str] = {}
    for kind in OURS:
        page = {"hugetlb-1g": GIB, "hugetlb-2m": 2 * MIB}.get(kind)
        if page is not None and facts.root_user and page in facts.pools:
            kinds.append(kind)
            continue
        found = _policy.choose(facts, _policy.Request(64 * MIB, "auto", kind.split("-")[0]))
        serves = [one for one in found if one.usable and one.name == kind]
        if serves:
            kinds.append(kind)
        else:
            reasons[kind] = next((one.reason for one in found if one.name == kind), found[0].reason)
    return tuple(kinds), reasons


def pages(kind: str, size: int) -> tuple[int, int] | None:
    """The huge pages that a region of that size needs: (page size, count)."""
    page = {"hugetlb-1g": GIB, "hugetlb-2m": 2 * MIB}.get(kind)
    return None if page is None else (page, -(-size // page))


def unusable_reason(kind: str, setting: Setting) -> str | None:
    """Why that kind cannot serve, for the `cannot` of a job."""
    return None if kind in setting.kinds else setting.unusable.get(kind, "not offered here")


def make(kind: str, name: str, size: int) -> Any:
    """A region of exactly that kind, in a file with a name where the kind has such, and else in a memfd."""
    import sharedregion as sr

    if kind != "hugetlb-1g":
        return sr.create(name, size=size, backend=kind)
    # The policy takes pages of 1 GiB for what fills one; here they were asked for. Whole pages of 4 KiB, as by create().
    return sr.Region._create(
        name=name,
        size=-(-size // 4096) * 4096,
        backend=kind,
        place="memfd",
        mode=0o600,
        persist=False,
        replace=False,
        commit_all=True,
        reason="a benchmark asked for it",
        keeper=sr.opening._KEEPER,
    )._settle_in(None)


@contextlib.contextmanager
def _hold(kind: str, size: int, fill: Fill, where: tuple[str, str]) -> Iterator[str]:
    region = make(kind, f"{where[0]}held", size)
    try:
        with region.allocate("data", (size,), "u1") as memory:
            fill(memory)
        yield region.name
    finally:
        try:
            region.unlink()
        finally:
            region.close()


@contextlib.contextmanager
def _view(ticket: str) -> Iterator[Bytes]:
    import sharedregion as sr

    with sr.attach(ticket) as region:
        yield region["data"]


class _Store:
    def __init__(self, region: Any) -> None:
        self._region = region
        self.ticket = region.name

    def put(self, name: str, value: Values) -> None:
        self._region[name] = value

    def look(self, name: str) -> float:
        return float(self._region[name][0])

    def delete(self, name: str) -> None:
        del self._region[name]


@contextlib.contextmanager
def _store(kind: str, room: int, where: tuple[str, str]) -> Iterator[Store]:
    with make(kind, f"{where[0]}store", room) as region:
        yield _Store(region)


@contextlib.contextmanager
def _join(ticket: str) -> Iterator[Store]:
    import sharedregion as sr

    with sr.attach(ticket, writable=True) as region:
        yield _Store(region)


def subject(name: str) -> Peer:
    """A kind of memory of ours, or a peer, by name."""
    from sharedregion.bench import against

    if name in against.NAMES:
        return against.load(name)
    return Peer(
        name=name,
        title=TITLES[name],
        hold=lambda size, fill, where: _hold(name, size, fill, where),
        view=_view,
        store=lambda room, where: _store(name, room, where),
        join=_join,
    )
