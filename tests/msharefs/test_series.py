"""An interface that needs no mount, as one by system calls would be, stands beside v3: nothing but the native core knows of it."""

import errno
from collections.abc import Callable

import pytest

import sharedregion as sr
from sharedregion import _native, doctor, opening

GIB = 1 << 30
SIZE = 64 << 20


@pytest.fixture
def by_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[str, int] | None]:
    """The native core finds it without a path; a trial region of it answers as the test says."""
    monkeypatch.delenv("SHAREDREGION_MSHAREFS", raising=False)
    monkeypatch.setattr(opening, "_msharefs_said", {})
    find = _native.msharefs_find

    def found(path: str) -> tuple[str, int] | None:
        return find(path) if path else ("by calls", 512 * GIB)

    monkeypatch.setattr(_native, "msharefs_find", found)
    return found


@pytest.mark.usefixtures("by_calls")
def test_it_is_first_choice_without_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """backends() and doctor say so, and name no place."""
    asked: list[str] = []
    monkeypatch.setattr(_native, "msharefs_try", asked.append)
    first = sr.backends(SIZE)[0]
    assert (first.name, first.usable) == ("msharefs", True)
    assert first.reason == "one set of page tables for all, by msharefs"
    assert asked == [""]
    one = next(found for found in doctor.examine().findings if found.check == "msharefs")
    assert (one.status, one.answer) == ("ok", "there and usable")
    assert "interface: series by calls of the patches, which needs no mount" in one.evidence


@pytest.mark.usefixtures("by_calls")
def test_where_its_calls_refuse_the_next_kind_serves(unique: str) -> None:
    """No such calls are in this kernel: the reason is told, once by auto and whenever it is asked for."""
    with pytest.raises(sr.BackendUnavailable, match="msharefs") as raised:
        sr.create(unique, size=SIZE, backend="msharefs")
    assert raised.value.errno == errno.ENODEV
    with sr.create(unique, size=SIZE) as region:
        assert region.backend != "msharefs"
    refused = next(one for one in sr.backends(SIZE) if one.name == "msharefs")
    assert not refused.usable
    assert refused.reason


def test_this_build_knows_none() -> None:
    """Without a path there is nothing to be found today."""
    assert _native.msharefs_find("") is None
