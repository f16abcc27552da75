"""The verbs: create, attach, unlink, share, and what they need to know beforehand."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import TYPE_CHECKING, Any

from sharedregion import _native, codecs, references
from sharedregion._sizes import format_size, parse_size
from sharedregion.errors import (
    BackendUnavailable,
    RegionCorrupt,
    RegionExists,
    SharedRegionError,
)
from sharedregion.region import PAGE, Region, peek

if TYPE_CHECKING:
    from sharedregion._kernel.facts import Facts
    from sharedregion._policy import Candidate

__all__ = [
    "attach",
    "backends",
    "create",
    "load_npz",
    "load_safetensors",
    "regions",
    "share",
    "unlink",
]

_KEEPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_bin", "sharedregion-keeper")
_PREFIX, _SUFFIX = "sharedregion.", ".catalog"
_ANONYMOUS = "anonymous-"

_anonymous_swept = False


def create(
    name: str | None = None,
    *,
    size: int | str,
    backend: str = "auto",
    commit: str = "auto",
    persist: bool = False,
    replace: bool = False,
    mode: int = 0o600,
) -> Region:
    """Make a region and be its first member.

    `size` is bytes, or text such as "8 GiB" (2^30 based); it is rounded up to whole pages of 4 KiB.
    `backend` is "auto", "msharefs", "hugetlb", "thp" or "shm"; the environment's SHAREDREGION_BACKEND
    stands in for "auto". `commit` is "full" (memory is taken now), "lazy" (as objects are placed; then
    `size` is a cap and may exceed memory) or "auto" (full for hugetlb, lazy otherwise). The region
    lives while any process has it open; with `persist`, until `unlink`. `replace` moves the name from
    an existing region of this user to this one; members of the old one keep it. The new one is empty
    when its name leads to it: who attaches meanwhile finds no objects yet, and can `wait` for them.
    `mode` is as for open(2).

    Raises RegionExists, BackendUnavailable, ValueError.
    """
    # What only a host needs is loaded by hosts alone.
    import logging

    from sharedregion import _policy
    from sharedregion._machine import machine

    log = logging.getLogger("sharedregion")
    bytes_wanted = -(-parse_size(size) // PAGE) * PAGE
    request = _policy.resolve(bytes_wanted, commit, backend, os.environ)
    if name is None:
        _sweep_anonymous()
        name = f"{_ANONYMOUS}{os.urandom(8).hex()}"
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o777:
        raise ValueError(f"mode {mode!r} is not a set of permission bits between 0 and 0o777")
    _check_name(name)
    if not replace and (head := peek(name)) is not None and (head["live"] or head["flags"] & _native.PERSIST):
        if head["uid"] != os.geteuid():
            raise RegionExists(
                f"a region '{name}' exists and belongs to another user",
                "choose another name, or have its owner unlink() it",
                errno.EACCES,
            )
        raise RegionExists(
            f"a region '{name}' exists", "attach() to it, or create(..., replace=True), or unlink() it first"
        )
    failures: list[str] = []
    remedy: str | None = None
    number: int | None = None
    facts = _with_experience(machine())
    candidates = _policy.choose(facts, request)
    for candidate in candidates:
        if not candidate.usable:
            failures.append(f"{candidate.name}: {candidate.reason}")
            remedy = remedy or candidate.remedy
            continue
        reason = "; ".join((candidate.reason, *candidate.notes))
        try:
            region = Region._create(
                name=name,
                size=bytes_wanted,
                backend=candidate.name,
                place=candidate.place if candidate.place in ("memfd", "hugetlb") else "shm",
                mode=mode,
                persist=persist,
                replace=replace,
                commit_all=candidate.commit == "full",
                reason=reason,
                keeper=_KEEPER,
                msharefs=facts.msharefs.path if candidate.name == "msharefs" else None,
            )
        except SharedRegionError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise _no_descriptors(error) from None
            if not isinstance(error, BackendUnavailable):
                raise
            failures.append(f"{candidate.name}: {error.message}")
            number = error.errno
            if candidate.name == "msharefs":
                _remember_msharefs(facts.msharefs.path, error)
            if number == errno.ENOSPC and _native.SHM_DIR in error.message:
                remedy = f"make room: df {_native.SHM_DIR} says how full it is"
            log.info("backend %s does not serve region %r: %s", candidate.name, name, error)
            continue
        if candidate.name == "msharefs" and facts.msharefs.path is not None:
            _msharefs_said[facts.msharefs.path] = None
        region._settle_in(None)
        level = logging.WARNING if candidate.backend == "shm" and bytes_wanted >= 2 << 20 else logging.INFO
        log.log(
            level,
            "region %r of %s is made of %s: %s",
            name,
            format_size(bytes_wanted),
            candidate.name,
            reason,
        )
        return region
    raise BackendUnavailable(
        f"no memory for a region of {format_size(bytes_wanted)}: " + "; ".join(failures),
        remedy or "sharedregion.backends() says what each kind of memory needs",
        number,
    )


def _no_descriptors(error: SharedRegionError) -> BackendUnavailable:
    """What to do about EMFILE: no other kind of memory would do better."""
    return BackendUnavailable(
        f"no descriptors are left for a region: {error.message}",
        "raise the limit (ulimit -n, resource.RLIMIT_NOFILE), since each region takes three of them; "
        "or place many values in one region",
        error.errno,
    )


# Each msharefs region that is made leaks some kernel memory. So whether a mount keeps its promises is
# tried once in a process, and what a region that was made said of it is an answer too.
_msharefs_said: dict[str, str | None] = {}
_ABOUT_THE_KERNEL = {errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EIO, errno.EFAULT}


def _remember_msharefs(path: str | None, error: BackendUnavailable) -> None:
    if path is not None and error.errno in _ABOUT_THE_KERNEL:
        _msharefs_said[path] = error.message


def _with_experience(facts: Facts) -> Facts:
    from dataclasses import replace

    said = _msharefs_said.get(facts.msharefs.path or "")
    return facts if said is None else replace(facts, msharefs=replace(facts.msharefs, refused=said))


def _try_msharefs(facts: Facts) -> Facts:
    """The same facts, and what a region of one unit said, made and ended here if none was before."""
    there = facts.msharefs
    if (
        there.path is not None
        and there.unit is not None
        and there.usable
        and there.path not in _msharefs_said
    ):
        _msharefs_said[there.path] = None
        try:
            _native.msharefs_try(there.path)
        except BackendUnavailable as error:
            _msharefs_said[there.path] = error.message
    return _with_experience(facts)


def _sweep_anonymous() -> None:
    """Reclaim regions without a name of their own whose processes were killed: no create would ask for theirs."""
    global _anonymous_swept
    if _anonymous_swept:
        return
    _anonymous_swept = True
    start = _PREFIX + _ANONYMOUS
    with contextlib.suppress(OSError):
        for file in os.listdir(_native.SHM_DIR):
            if file.startswith(start) and file.endswith(_SUFFIX):
                with contextlib.suppress(SharedRegionError):
                    _native.reclaim(file[len(_PREFIX) : -len(_SUFFIX)])


def attach(
    name: str, *, writable: bool = False, allow_pickle: bool | None = None, owner: int | str | None = None
) -> Region:
    """Become a member of an existing region.

    With `writable`, objects can be placed and mutable ones written to. `allow_pickle` None allows
    objects that are pickles if the region belongs to this user. A region of another user is refused
    unless `owner` (a user id or name) says whose it is.

    Raises RegionNotFound, RegionDenied, RegionCorrupt, RegionLost; ReadOnlyRegion for `writable` if it is sealed.
    """
    _check_name(name)
    uid = _uid_of(owner)
    try:
        region = Region._attach(name, writable) if uid is None else Region._attach(name, writable, uid)
    except SharedRegionError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise _no_descriptors(error) from None
        raise
    return region._settle_in(allow_pickle)


def _check_name(name: object) -> None:
    """TypeError, ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"a region's name is a str, not {type(name).__name__}")
    try:
        _native.check_name(name)
    except UnicodeEncodeError:
        raise ValueError(f"a region's name is text that UTF-8 can hold, not {name!r}") from None


def _uid_of(owner: int | str | None) -> int | None:
    if owner is None or (isinstance(owner, int) and not isinstance(owner, bool)):
        if owner is not None and not 0 <= owner < 2**32 - 1:
            raise ValueError(f"{owner} is not a user id")
        return owner
    if not isinstance(owner, str):
        raise TypeError(f"owner is a user id or name, not {type(owner).__name__}")
    import pwd

    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {owner!r}") from None


def unlink(name: str, *, owner: int | str | None = None) -> None:
    """Remove a region's name. Members keep it until they close it. RegionNotFound."""
    _check_name(name)
    uid = _uid_of(owner)
    if uid is None:
        _native.unlink(name)
    else:
        _native.unlink(name, uid)
    # Of a damaged region the generation is not known: whatever of its segments nobody holds goes too.
    pattern = re.compile(re.escape(f"{_PREFIX}{name}.") + r"(?:members|data)(?:\.([0-9]{1,10}))?")
    for file in os.listdir(_native.SHM_DIR):
        if match := pattern.fullmatch(file):
            _native.remove_half_made(name, int(match[1] or 1))


def regions() -> list[str]:
    """Names of the regions that can be attached to, by whoever owns them, and of damaged ones."""
    found = []
    try:
        names = os.listdir(_native.SHM_DIR)
    except OSError:
        return []
    for file in sorted(names):
        if not (file.startswith(_PREFIX) and file.endswith(_SUFFIX)):
            continue
        name = file[len(_PREFIX) : -len(_SUFFIX)]
        try:
            head = _native.peek(name)
        except RegionCorrupt:
            found.append(name)
        except (SharedRegionError, ValueError):
            continue
        else:
            if head["live"] or head["flags"] & _native.PERSIST:
                found.append(name)
    return found


def backends(size: int | str | None = None) -> list[Candidate]:
    """What each kind of memory could do here, best first: whether it can serve, why, and what would enable it.

    With `size`, for a region of that size.
    """
    from sharedregion import _policy
    from sharedregion._machine import machine

    facts = _try_msharefs(machine())
    if size is None:
        return _policy.survey(facts)
    return _policy.choose(facts, _policy.Request(parse_size(size)))


def load_npz(path: str | os.PathLike[str], *, into: Region | None = None, **options: Any) -> Region:
    """Place every array of an `.npz` archive, with no second copy in memory; returns the region.

    Into the region `into`, or into one that is made for it (`options` are those of `create`).
    """
    from sharedregion.files import place_npz

    return place_npz(os.fspath(path), into, options)


def load_safetensors(path: str | os.PathLike[str], *, into: Region | None = None, **options: Any) -> Region:
    """Place every tensor of a `.safetensors` file, with no second copy in memory; returns the region.

    Into the region `into`, or into one that is made for it (`options` are those of `create`). Types that
    numpy has not (bfloat16, 8-bit floats) are placed as unsigned integers of their bits.
    """
    from sharedregion.files import place_safetensors

    return place_safetensors(os.fspath(path), into, options)


def share(value: Any, *, backend: str = "auto") -> Any:
    """Place `value` in a region of its own and return it from there.

    An array comes back as a read-only array; containers and other objects come back as themselves,
    their arrays read-only views of the region. Sent to other processes by multiprocessing, its
    arrays travel as references of less than 300 bytes. The memory is gone with the last holder.
    """
    return share_with_reference(value, backend)[0]


def share_with_reference(value: Any, backend: str = "auto") -> tuple[Any, references.Reference]:
    """As `share`, with a reference to the placed value; the reference alone does not hold its memory."""
    codec = codecs.codec_for(value)
    prepare = getattr(codec, "prepare", None)
    if prepare is not None:
        value = prepare(value)
    with create(size=max(codec.size_of(value), 1) + PAGE, backend=backend) as region:
        codec.place(region, "value", value, 0)
        return region["value"], region.ref("value")
