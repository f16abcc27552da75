"""How the running kernel was built, and what it lets programs do to it."""

from __future__ import annotations

import gzip
import os
import struct
import zlib

from sharedregion._kernel.files import read_text, under

__all__ = ["build_options", "file_capabilities", "lockdown", "release", "soft_limit"]

_CONFIG_LIMIT = 1 << 22


def release(root: str = "/") -> str | None:
    """The kernel's release, as uname gives it."""
    text = (read_text(root, "proc/sys/kernel/osrelease") or "").strip()
    if text:
        return text
    # "Linux version 6.1.0 (...": where sysctls are hidden.
    words = (read_text(root, "proc/version") or "").split()
    return words[2] if len(words) > 2 and words[:2] == ["Linux", "version"] else None


def build_options(root: str = "/") -> dict[str, str] | None:
    """CONFIG_... -> "y", "m", a number or a text; None where neither /proc/config.gz nor /boot tells."""
    text: str | None = None
    try:
        with gzip.open(under(root, "proc/config.gz")) as file:
            text = file.read(_CONFIG_LIMIT).decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error):
        text = read_text(root, f"boot/config-{release(root)}")
    if text is None:
        return None
    options = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.startswith("CONFIG_"):
            options[name] = value.strip('"')
    return options


def lockdown(root: str = "/") -> str | None:
    """ "none", "integrity" or "confidentiality"; None where the kernel has no such thing."""
    text = read_text(root, "sys/kernel/security/lockdown") or ""
    _, bracket, rest = text.partition("[")
    return rest.partition("]")[0] if bracket else None


def soft_limit(name: str, root: str = "/") -> int | str | None:
    """A line of /proc/self/limits: bytes or count, or "unlimited"."""
    for line in (read_text(root, "proc/self/limits") or "").splitlines():
        if line.startswith(name):
            words = line[len(name) :].split()
            if words and words[0].isdigit():
                return int(words[0])
            return words[0] if words else None
    return None


#: linux/capability.h; only what this library has to do with by name.
_NAMES = {19: "cap_sys_ptrace", 38: "cap_perfmon", 39: "cap_bpf"}
_REVISION_MASK, _REVISIONS = 0xFF000000, {0x01000000: 1, 0x02000000: 2, 0x03000000: 2}


def file_capabilities(path: str) -> frozenset[str]:
    """What an executable file grants to whoever starts it; one without a name here is "cap_NUMBER"."""
    try:
        raw = os.getxattr(path, "security.capability")
        (magic,) = struct.unpack_from("<I", raw)
        words = _REVISIONS.get(magic & _REVISION_MASK, 0)
        granted = [struct.unpack_from("<I", raw, 4 + 8 * i)[0] for i in range(words)]
    except (OSError, struct.error, AttributeError):
        return frozenset()
    numbers = [32 * i + bit for i, word in enumerate(granted) for bit in range(32) if word >> bit & 1]
    return frozenset(_NAMES.get(number, f"cap_{number}") for number in numbers)
