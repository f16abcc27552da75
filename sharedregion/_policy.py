"""The choice of a backend: pure, from facts and a request to an ordered list with reasons.

Nothing here looks at the machine. `choose` answers "what could serve this request, in which order,
and why not the others"; whether the kernel then keeps its word is found by trying, by the caller,
who goes on to the next candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sharedregion._kernel.facts import Facts
from sharedregion._kernel.sysfs import HugepagePool
from sharedregion._sizes import format_size

__all__ = ["BACKENDS", "COMMITS", "Candidate", "Request", "choose", "resolve", "survey"]

#: Names that a caller may ask for, best first.
BACKENDS = ("msharefs", "hugetlb", "thp", "shm")
COMMITS = ("auto", "full", "lazy")

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

# Below this size thp costs a worker no more than hugetlb does, and the pool is left to those who
# can use nothing else.
HUGETLB_FROM = 4 * GIB
HUGETLB_KEEP = 10

# The user half of four-level page tables, less the unit that holds the program itself and its neighbours.
ADDRESS_SPACE = (1 << 47) - (2 << 40)


@dataclass(frozen=True)
class Request:
    """What is wanted. `size` is bytes; None asks what a backend could serve in general.

    `backend` is a public name, "auto", or one kind of hugetlb ("hugetlb-1g", "hugetlb-2m").
    `hugetlb_keep` is the percentage of a pool that "auto" leaves free for others.
    """

    size: int | None
    commit: str = "auto"
    backend: str = "auto"
    hugetlb_keep: float = HUGETLB_KEEP


@dataclass(frozen=True)
class Candidate:
    """One backend, and what speaks for or against it.

    `backend` is its public name, `name` the exact kind. `commit` is what "auto" means for it.
    `place` is where the memory comes from: a file in /dev/shm, a memfd that the keeper holds, or
    ("hugetlb", for msharefs) such a memfd of reserved 2 MiB pages.
    `remedy` is a command or an argument that would make it usable, or None.
    """

    name: str
    backend: str
    page_size: int
    usable: bool
    reason: str
    remedy: str | None = None
    commit: str = "full"
    place: str = "memfd"
    notes: tuple[str, ...] = field(default=())


def resolve(size: int | None, commit: str, backend: str, environ: Mapping[str, str]) -> Request:
    """The request that arguments and environment make together.

    SHAREDREGION_BACKEND stands in for `backend="auto"` (an explicit argument wins), and
    SHAREDREGION_HUGETLB_KEEP is a percentage. ValueError for what is not known.
    """
    if commit not in COMMITS:
        raise ValueError(f"commit {commit!r} is not known; it is one of {', '.join(COMMITS)}")
    source = "backend"
    if backend == "auto" and environ.get("SHAREDREGION_BACKEND"):
        source, backend = "SHAREDREGION_BACKEND", environ["SHAREDREGION_BACKEND"]
    if backend != "auto" and backend not in BACKENDS and backend not in _TESTS:
        raise ValueError(f"{source} {backend!r} is not known; it is one of auto, {', '.join(BACKENDS)}")
    keep: float = HUGETLB_KEEP
    if environ.get("SHAREDREGION_HUGETLB_KEEP"):
        text = environ["SHAREDREGION_HUGETLB_KEEP"]
        try:
            keep = float(text)
        except ValueError:
            keep = -1
        if not 0 <= keep <= 100:
            raise ValueError(f"SHAREDREGION_HUGETLB_KEEP {text!r} is not a percentage between 0 and 100")
    return Request(size, commit, backend, keep)


def choose(facts: Facts, request: Request) -> list[Candidate]:
    """Every candidate for the request, in the order of preference; the first usable one is the choice.

    An explicit backend yields only its own candidates. ValueError for a name that is not known.
    """
    if request.commit not in COMMITS:
        raise ValueError(f"commit {request.commit!r} is not known; it is one of {', '.join(COMMITS)}")
    if request.backend == "auto":
        names = list(_TESTS)
    elif request.backend == "hugetlb":
        names = ["hugetlb-1g", "hugetlb-2m"]
    elif request.backend in _TESTS:
        names = [request.backend]
    else:
        raise ValueError(
            f"backend {request.backend!r} is not known; it is one of auto, {', '.join(BACKENDS)}"
        )
    if not facts.supported:
        reason = f"shared regions need Linux on x86_64; this is {facts.system}"
        return [replace(_blank(name), reason=reason) for name in names]
    found: list[Candidate] = []
    for name in names:
        if name == "msharefs" and (huge := _msharefs_of_hugetlb(facts, request)):
            found.append(huge)
        found.append(_TESTS[name](facts, request))
    return found


def survey(facts: Facts) -> list[Candidate]:
    """What each backend could serve in general, with no size in mind."""
    found: list[Candidate] = []
    for backend in BACKENDS:
        found += choose(facts, Request(None, backend=backend))
    return found


_SHAPE = {
    "msharefs": ("msharefs", 2 * MIB),
    "hugetlb-1g": ("hugetlb", GIB),
    "hugetlb-2m": ("hugetlb", 2 * MIB),
    "thp": ("thp", 2 * MIB),
    "shm": ("shm", 4 * KIB),
}


_BY_MSHAREFS = "one set of page tables for all, by msharefs"


def _blank(name: str) -> Candidate:
    backend, page_size = _SHAPE[name]
    return Candidate(name, backend, page_size, usable=False, reason="")


def _msharefs(facts: Facts, request: Request) -> Candidate:
    """On memory of shmem pages, which serves wherever msharefs does."""
    blank = _blank("msharefs")
    against = _against_msharefs(facts, request)
    if against is not None:
        reason, remedy = against
        return replace(blank, reason=reason, remedy=remedy)
    pages = _thp(facts, replace(request, backend="thp", commit="lazy"))
    kind = (
        f"shared memory collapsed into {format_size(pages.page_size)} pages"
        if pages.usable
        else f"4 KiB pages ({pages.reason})"
    )
    served = _shmem(blank, facts, request, _BY_MSHAREFS + facts.msharefs.place)
    if not served.usable:
        return served
    why = "" if request.size is None else ": " + _test_hugetlb("hugetlb-2m", facts, _as_auto(request)).reason
    notes = (f"its memory is {kind}{why}", *(note for note in served.notes if "keeper" not in note))
    return replace(served, place="memfd", notes=notes)


def _msharefs_of_hugetlb(facts: Facts, request: Request) -> Candidate | None:
    """The same on reserved 2 MiB pages, where the pool holds the region whole and others keep their part."""
    if request.size is None or _against_msharefs(facts, request) is not None:
        return None
    pool = _test_hugetlb("hugetlb-2m", facts, _as_auto(request))
    if not pool.usable:
        return None
    return Candidate(
        "msharefs",
        "msharefs",
        pool.page_size,
        usable=True,
        reason=_BY_MSHAREFS + facts.msharefs.place,
        commit=pool.commit,
        place="hugetlb",
        notes=(f"its memory is reserved {format_size(pool.page_size)} pages: {pool.reason}", *pool.notes),
    )


def _as_auto(request: Request) -> Request:
    """Whatever was asked for by name, the pool is others' too."""
    return replace(request, backend="auto")


def _against_msharefs(facts: Facts, request: Request) -> tuple[str, str | None] | None:
    """(reason, remedy) why msharefs cannot serve; None if it can."""
    there = facts.msharefs
    sudo = "" if facts.root_user else "sudo "
    if not there.known:
        return "this kernel has no msharefs", None
    if there.path is None:
        return "this kernel has msharefs, but it is not mounted", sudo + there.mount_command.replace(
            "&& ", f"&& {sudo}"
        )
    if there.unit is None:
        return f"{there.path} is not an msharefs mount: there is no mshare_info", None
    if there.unit < 2 * MIB or there.unit > 1 << 45 or there.unit & (there.unit - 1):
        return f"the unit that {there.path}/mshare_info names is absurd: {there.unit}", None
    if not there.usable:
        return f"this user may not make files in {there.path}", f"{sudo}chmod 1777 {there.path}"
    if there.refused is not None and (request.backend == "auto" or request.size is None):
        return there.refused, None
    size = request.size
    if size is None:
        return None
    if -(-size // there.unit) * there.unit > ADDRESS_SPACE:
        return (
            f"{format_size(size)} in units of {format_size(there.unit)} is more than an address space",
            None,
        )
    if request.backend == "auto" and size < 2 * MIB:
        # Each region takes a process, and 6 kB of the kernel's memory for good.
        return (
            f"{format_size(size)} is less than one large page, and every msharefs region takes a process",
            'backend="msharefs" takes it all the same',
        )
    return None


def _hugetlb(name: str) -> Callable[[Facts, Request], Candidate]:
    return lambda facts, request: _test_hugetlb(name, facts, request)


def _test_hugetlb(name: str, facts: Facts, request: Request) -> Candidate:
    commit = "full" if request.commit == "auto" else request.commit
    blank = replace(_blank(name), commit=commit)
    page, text = blank.page_size, format_size(blank.page_size)
    auto = request.backend == "auto"
    size = request.size
    if size is not None and page == GIB and size < GIB:
        return replace(blank, reason=f"a region of {format_size(size)} would waste most of a 1 GiB page")
    if size is not None and auto and size < HUGETLB_FROM:
        there = facts.pools.get(page)
        whole = there is not None and there.available * page >= size
        return replace(
            blank,
            reason=f"below {format_size(HUGETLB_FROM)} thp costs a worker no more, and the pool is left to others",
            remedy='backend="hugetlb" takes it all the same' if whole else None,
        )
    pool = facts.pools.get(page)
    if pool is None:
        return replace(blank, reason=f"this kernel or processor has no {text} pages")

    lazy = commit == "lazy"
    needed = 1 if size is None else -(size // -page)
    reserve = 0
    if auto and size is not None:
        # "auto" takes a pool only if it holds the region whole: the next backend would serve it
        # with no later RegionFull.
        reserve = _kept(pool.total, request.hugetlb_keep)
        supply = pool.available
    elif lazy:
        needed, supply = 1, pool.available + pool.growable
    else:
        supply = pool.available + pool.growable
    if supply < needed + reserve:
        held = f"{pool.available} of {pool.total} pages of {text} are free and not promised to others"
        want = f"{needed} {'is' if needed == 1 else 'are'} needed" + (
            f" and {reserve} stay free" if reserve else ""
        )
        reason = f"no {text} pages are reserved" if pool.total + pool.growable == 0 else f"{held}, {want}"
        # With no size in mind: a pool of which "auto" would take the smallest region that it takes.
        enough = _grown(
            pool, needed if size is not None else HUGETLB_FROM // page, request.hugetlb_keep if auto else 0
        )
        if enough is None or (facts.memory_total is not None and enough * page > facts.memory_total):
            return replace(blank, reason=reason)
        notes = (
            ("memory may be too fragmented for 1 GiB pages by now: boot with hugepagesz=1G",)
            if page == GIB
            else ()
        )
        return replace(blank, reason=reason, remedy=_write(facts, str(enough), pool.control), notes=notes)
    wanted = 0 if lazy or size is None else needed * page
    for limit in facts.hugetlb_limits:
        if limit.page_size == page and limit.headroom < max(wanted, page):
            return replace(
                blank,
                reason=f"the control group {limit.group} has {format_size(limit.headroom)} of {text} pages left",
                remedy=f"raise the hugetlb limit of {limit.group}",
            )
    denied = _group_denies(facts, wanted, hugetlb=True)
    if denied:
        return replace(blank, reason=denied)
    remarks = []
    if size is not None and needed * page - size >= page // 2 and not lazy:
        remarks.append(f"the last page leaves {format_size(needed * page - size)} unused")
    if pool.available < needed:
        remarks.append(
            "part of the pages would be made on demand (nr_overcommit_hugepages), if memory is found"
        )
    reason = f"{pool.available} of {pool.total} pages of {text} are free"
    if reserve:
        reason += f", {needed} are needed and {request.hugetlb_keep:g} % of the pool stays free"
    return replace(blank, usable=True, reason=reason, notes=tuple(remarks))


def _grown(pool: HugepagePool, needed: int, keep: float) -> int | None:
    """The value of nr_hugepages with which the pool holds `needed` more pages and keeps its part free."""
    if keep >= 100:
        return None
    grown = pool.persistent
    # The part that stays free grows with the pool, so one step may not be enough.
    while True:
        more = grown - pool.persistent
        missing = needed + _kept(pool.total + more, keep) - (pool.available + more)
        if missing <= 0:
            return grown
        grown += missing


def _kept(total: int, keep: float) -> int:
    return -int(-total * keep // 100)


def _thp(facts: Facts, request: Request) -> Candidate:
    blank = replace(_blank("thp"), page_size=facts.thp.pmd_size or 2 * MIB)
    if not facts.thp.present:
        return replace(blank, reason="this kernel has no transparent huge pages")
    if request.backend == "auto" and request.size is not None and request.size < blank.page_size:
        return replace(
            blank,
            reason=f"{format_size(request.size)} is less than one page of {format_size(blank.page_size)}",
            remedy='backend="thp" takes a whole page all the same',
        )
    directory = "/sys/kernel/mm/transparent_hugepage"
    if facts.thp.shmem_enabled is None:
        return replace(blank, reason="this kernel has no transparent huge pages in shared memory")
    if facts.thp.shmem_enabled == "deny":
        # "never" is enough: MADV_COLLAPSE is a request of its own and needs no standing permission.
        return replace(
            blank,
            reason="shmem_enabled is deny: no huge pages in shared memory at all",
            remedy=_write(facts, "never", f"{directory}/shmem_enabled"),
        )
    if facts.thp.per_size.get(blank.page_size) == "never":
        own = f"{directory}/hugepages-{blank.page_size // 1024}kB/shmem_enabled"
        return replace(
            blank,
            reason=f"the setting for {format_size(blank.page_size)} pages in shared memory is never",
            remedy=_write(facts, "inherit", own),
        )
    return _shmem(
        blank,
        facts,
        request,
        f"shared memory collapsed into {format_size(blank.page_size)} pages, with no privilege",
    )


def _shm(facts: Facts, request: Request) -> Candidate:
    return _shmem(
        _blank("shm"), facts, request, "plain 4 KiB pages: every worker pays 2 MiB of page tables per GiB"
    )


def _shmem(blank: Candidate, facts: Facts, request: Request, reason: str) -> Candidate:
    """What thp and shm have in common: their memory is tmpfs pages."""
    commit = "lazy" if request.commit == "auto" else request.commit
    blank = replace(blank, commit=commit)
    size = request.size
    if size is not None and commit == "full":
        if facts.memory_available is not None and size > facts.memory_available:
            return replace(
                blank,
                reason=f"{format_size(size)} is more than the {format_size(facts.memory_available)} of memory available",
                remedy='a smaller size, or commit="lazy", which takes memory as objects are placed',
            )
        denied = _group_denies(facts, size, hugetlb=False)
        if denied:
            return replace(
                blank,
                reason=denied,
                remedy='a smaller size, a higher limit, or commit="lazy", which takes memory as objects are placed',
            )
    notes = []
    place, why = _place(facts, size)
    if why:
        notes.append(f"{why}: the memory is a memfd that the keeper holds")
    if size is not None and facts.memory_available is not None and size > facts.memory_available:
        notes.append(
            f"{format_size(size)} is a cap: {format_size(facts.memory_available)} of memory are available now"
        )
    return replace(blank, usable=True, reason=reason, place=place, notes=tuple(notes))


def _place(facts: Facts, size: int | None) -> tuple[str, str | None]:
    """Where shared memory gets its name, and if not in /dev/shm, why not."""
    shm = facts.shm
    if shm is None:
        return "memfd", "there is no /dev/shm"
    if shm.fstype not in (None, "tmpfs"):
        return "memfd", f"/dev/shm is {shm.fstype}, not memory"
    if not shm.writable:
        return "memfd", "/dev/shm cannot be written to"
    if size is not None and shm.free is not None and size > shm.free:
        return "memfd", f"/dev/shm has {format_size(shm.free)} free, {format_size(size)} are wanted"
    return "/dev/shm", None


def _group_denies(facts: Facts, size: int, *, hugetlb: bool) -> str | None:
    """Why a control group would not let `size` bytes be taken.

    Taking memory beyond such a limit is answered with SIGKILL, not with an error, so it is checked
    beforehand, for every ancestor.
    """
    for limit in facts.memory_limits:
        if hugetlb and not limit.counts_hugetlb:
            continue
        if size > limit.headroom:
            left = format_size(limit.headroom)
            return (
                f"{format_size(size)} is more than the {left} that the memory limit of {limit.group} leaves"
            )
    return None


def _write(facts: Facts, value: str, path: str) -> str:
    return f"echo {value} > {path}" if facts.root_user else f"echo {value} | sudo tee {path}"


#: In the order of preference.
_TESTS: dict[str, Callable[[Facts, Request], Candidate]] = {
    "msharefs": _msharefs,
    "hugetlb-1g": _hugetlb("hugetlb-1g"),
    "hugetlb-2m": _hugetlb("hugetlb-2m"),
    "thp": _thp,
    "shm": _shm,
}
