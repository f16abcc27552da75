"""The facts of this machine, those that only the native core can find among them."""

from __future__ import annotations

from dataclasses import replace

from sharedregion._kernel.facts import Facts, gather

__all__ = ["machine"]


def machine() -> Facts:
    """What was seen in /proc, /sys and the mount table; and an msharefs that needs no mount, found by trying."""
    facts = gather()
    if facts.msharefs.path is not None or not facts.supported:
        return facts
    from sharedregion import _native

    found = _native.msharefs_find("")
    if found is None:
        return facts
    there = replace(facts.msharefs, known=True, path="", unit=found[1], usable=True, sticky=True)
    return replace(facts, msharefs=there)
