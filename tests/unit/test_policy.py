"""The choice of a backend: every rule, as a pure function of facts."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedregion._kernel.cgroup import HugetlbLimit, MemoryLimit
from sharedregion._kernel.facts import Facts, Msharefs, gather
from sharedregion._kernel.mounts import ShmSpace
from sharedregion._kernel.sysfs import HugepagePool, TransparentHugepages
from sharedregion._policy import Candidate, Request, choose, resolve, survey

MIB = 1 << 20
GIB = 1 << 30
HUGE = 2 * MIB


def pool(page_size: int = HUGE, total: int = 0, free: int | None = None, **others: int) -> HugepagePool:
    fields = {"reserved": 0, "surplus": 0, "overcommit": 0, **others}
    return HugepagePool(page_size, total, total if free is None else free, **fields)


def machine(pools: tuple[HugepagePool, ...] = (pool(), pool(GIB)), **others: Any) -> Facts:
    """64 GiB, an empty pool of each size, everything else as a stock kernel has it."""
    plain: dict[str, Any] = {
        "memory_total": 64 * GIB,
        "memory_available": 60 * GIB,
        "pools": {one.page_size: one for one in pools},
        "thp": TransparentHugepages(True, "madvise", "never", HUGE, {HUGE: "inherit"}),
        "shm": ShmSpace("/dev/shm", "tmpfs", 32 * GIB, 32 * GIB, writable=True),
    }
    return Facts(**{**plain, **others})


def of(candidates: list[Candidate], name: str) -> Candidate:
    return next(candidate for candidate in candidates if candidate.name == name)


def first(facts: Facts, size: int, **request: Any) -> str | None:
    return next((c.name for c in choose(facts, Request(size, **request)) if c.usable), None)


def test_the_order_is_fixed() -> None:
    names = [candidate.name for candidate in choose(machine(), Request(8 * GIB))]
    assert names == ["msharefs", "hugetlb-1g", "hugetlb-2m", "thp", "shm"]


def test_with_nothing_reserved_it_is_thp_and_the_rest_say_why() -> None:
    found = choose(machine(), Request(8 * GIB))
    assert first(machine(), 8 * GIB) == "thp"
    assert of(found, "msharefs").reason == "this kernel has no msharefs"
    assert of(found, "hugetlb-2m").reason == "no 2 MiB pages are reserved"


MOUNTED = Msharefs(known=True, path="/sys/fs/mshare", unit=512 * GIB, usable=True)


@pytest.mark.parametrize(
    ("there", "size", "reason", "remedy"),
    [
        (Msharefs(), 8 * GIB, "this kernel has no msharefs", None),
        (Msharefs(known=True), 8 * GIB, "not mounted", "sudo mount -t msharefs msharefs /sys/fs/mshare"),
        (replace(MOUNTED, unit=None), 8 * GIB, "no mshare_info", None),
        (replace(MOUNTED, unit=0), 8 * GIB, "absurd: 0", None),
        (replace(MOUNTED, unit=3 << 30), 8 * GIB, "absurd: 3221225472", None),
        (replace(MOUNTED, unit=1 << 60), 8 * GIB, "absurd", None),
        (replace(MOUNTED, usable=False), 8 * GIB, "may not make files", "sudo chmod 1777 /sys/fs/mshare"),
        (replace(MOUNTED, refused="another interface"), 8 * GIB, "another interface", None),
        (MOUNTED, 127 << 40, "more than an address space", None),
        (MOUNTED, 1 << 20, "less than one large page", 'backend="msharefs" takes it all the same'),
    ],
)
def test_what_speaks_against_msharefs_is_said(
    there: Msharefs, size: int, reason: str, remedy: str | None
) -> None:
    """Each with its reason, and with what would change it; auto goes on to the next."""
    found = of(choose(machine(msharefs=there), Request(size, commit="lazy")), "msharefs")
    assert not found.usable
    assert reason in found.reason
    assert (found.remedy or "").startswith(remedy or "")
    assert bool(found.remedy) == bool(remedy)
    assert first(machine(msharefs=there), size, commit="lazy") in ("thp", "shm")


def test_msharefs_is_first_where_it_serves() -> None:
    """Its memory is reserved large pages only where hugetlb itself would take them; else shared memory. It says which."""
    plain = choose(machine(msharefs=MOUNTED), Request(8 * GIB))[0]
    assert (plain.name, plain.usable, plain.place, plain.commit) == ("msharefs", True, "memfd", "lazy")
    assert "no 2 MiB pages are reserved" in plain.notes[0]
    huge, other, *_ = choose(machine((pool(total=8192),), msharefs=MOUNTED), Request(8 * GIB))
    assert (huge.name, huge.usable, huge.place, huge.commit) == ("msharefs", True, "hugetlb", "full")
    assert "reserved 2 MiB pages" in huge.notes[0]
    assert (other.name, other.place) == ("msharefs", "memfd")
    little = choose(machine((pool(total=8192),), msharefs=MOUNTED), Request(1 * GIB))[0]
    assert (little.name, little.place) == ("msharefs", "memfd")
    assert "left to others" in little.notes[0]


def test_msharefs_asked_for_by_name_is_tried_again() -> None:
    """What refused once is passed over by auto alone; and a region of any size is made if it is asked for."""
    facts = machine(msharefs=replace(MOUNTED, refused="another interface"))
    assert choose(facts, Request(4096, backend="msharefs"))[0].usable


def test_auto_takes_hugetlb_from_4_gib() -> None:
    facts = machine((pool(total=8192),))
    assert first(facts, 4 * GIB) == "hugetlb-2m"
    assert first(facts, 4 * GIB - 1) == "thp"
    refused = of(choose(facts, Request(4 * GIB - 1)), "hugetlb-2m")
    assert refused.remedy == 'backend="hugetlb" takes it all the same'


def test_an_explicit_hugetlb_has_no_least_size_and_may_take_the_whole_pool() -> None:
    facts = machine((pool(total=512),))
    assert first(facts, GIB, backend="hugetlb") == "hugetlb-2m"
    assert first(facts, GIB + 1, backend="hugetlb") is None
    assert first(facts, 1, backend="hugetlb") == "hugetlb-2m"


def test_one_gib_pages_come_before_2_mib_pages_and_only_from_1_gib_up() -> None:
    facts = machine((pool(total=8192), pool(GIB, total=16)))
    assert first(facts, 8 * GIB) == "hugetlb-1g"
    assert first(facts, 8 * GIB, backend="hugetlb") == "hugetlb-1g"
    assert first(facts, GIB - 1, backend="hugetlb") == "hugetlb-2m"
    assert not of(choose(facts, Request(GIB - 1, backend="hugetlb-1g")), "hugetlb-1g").usable


def test_auto_leaves_a_tenth_of_the_pool_free() -> None:
    # 2048 pages are 4 GiB; a tenth of 2276 is 228 (227.6 counts whole), and 2276 - 228 = 2048.
    assert first(machine((pool(total=2276),)), 4 * GIB) == "hugetlb-2m"
    assert first(machine((pool(total=2275),)), 4 * GIB) == "thp"
    assert first(machine((pool(total=2275),)), 4 * GIB, hugetlb_keep=0) == "hugetlb-2m"
    assert first(machine((pool(total=100_000),)), 4 * GIB, hugetlb_keep=100) == "thp"


def test_pages_that_are_promised_to_others_do_not_count() -> None:
    assert first(machine((pool(total=4096, reserved=2048),)), 4 * GIB, backend="hugetlb") == "hugetlb-2m"
    assert first(machine((pool(total=4096, reserved=2049),)), 4 * GIB, backend="hugetlb") is None


def test_the_remedy_is_a_command_after_which_auto_takes_the_pool() -> None:
    facts = machine((pool(total=100, free=10, reserved=5),), root_user=True)
    remedy = of(choose(facts, Request(8 * GIB)), "hugetlb-2m").remedy
    assert remedy
    word, number, arrow, path = remedy.split()
    assert (word, arrow, path) == ("echo", ">", "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    total = int(number)
    assert first(machine((pool(total=total, free=total - 90, reserved=5),)), 8 * GIB) == "hugetlb-2m"
    assert first(machine((pool(total=total - 1, free=total - 91, reserved=5),)), 8 * GIB) == "thp"


def test_the_remedy_of_an_ordinary_user_goes_through_sudo() -> None:
    remedy = of(choose(machine(), Request(8 * GIB)), "hugetlb-2m").remedy
    assert remedy == "echo 4552 | sudo tee /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"


def test_no_remedy_asks_for_more_than_the_machine_has() -> None:
    assert of(choose(machine(), Request(100 * GIB)), "hugetlb-2m").remedy is None


def test_on_demand_pages_serve_an_explicit_request_and_are_said() -> None:
    facts = machine((pool(total=0, overcommit=512),))
    found = of(choose(facts, Request(GIB, backend="hugetlb")), "hugetlb-2m")
    assert found.usable
    assert "on demand" in found.notes[0]
    assert first(facts, 8 * GIB) == "thp"


def test_a_hugetlb_limit_of_a_group_counts_for_its_page_size() -> None:
    limit = HugetlbLimit("/sys/fs/cgroup/app", HUGE, 100 * MIB, 90 * MIB)
    facts = machine((pool(total=8192), pool(GIB, total=8)), hugetlb_limits=(limit,))
    assert first(facts, 10 * MIB, backend="hugetlb-2m") == "hugetlb-2m"
    assert first(facts, 12 * MIB, backend="hugetlb-2m") is None
    assert "/sys/fs/cgroup/app" in choose(facts, Request(12 * MIB, backend="hugetlb-2m"))[0].reason
    assert first(facts, 2 * GIB, backend="hugetlb") == "hugetlb-1g"


@pytest.mark.parametrize(
    ("thp", "remedy"),
    [
        (TransparentHugepages(present=False), None),
        (TransparentHugepages(True, "madvise", None, HUGE), None),
        (
            TransparentHugepages(True, "madvise", "deny", HUGE, {HUGE: "inherit"}),
            "echo never | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ),
        (
            TransparentHugepages(True, "madvise", "never", HUGE, {HUGE: "never"}),
            "echo inherit | sudo tee /sys/kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled",
        ),
    ],
)
def test_thp_that_the_kernel_refuses_leaves_shm(thp: TransparentHugepages, remedy: str | None) -> None:
    facts = machine(thp=thp)
    found = of(choose(facts, Request(GIB)), "thp")
    assert not found.usable
    assert found.remedy == remedy
    assert first(facts, GIB) == "shm"


@pytest.mark.parametrize("setting", ["never", "advise", "always", "within_size", "force"])
def test_thp_needs_no_standing_permission(setting: str) -> None:
    """MADV_COLLAPSE works with shmem_enabled=never, and on kernels without settings per size."""
    assert first(machine(thp=TransparentHugepages(True, "never", setting, HUGE, {})), GIB) == "thp"


@pytest.mark.parametrize("backend", ["thp", "shm"])
def test_full_commit_beyond_memory_is_refused_and_lazy_is_a_cap(backend: str) -> None:
    facts = machine(memory_available=GIB)
    full = choose(facts, Request(GIB + 1, "full", backend))[0]
    assert not full.usable
    assert full.remedy
    assert 'commit="lazy"' in full.remedy
    lazy = choose(facts, Request(100 * GIB, "lazy", backend))[0]
    assert lazy.usable
    assert any("cap" in note for note in lazy.notes)
    assert choose(facts, Request(GIB, "full", backend))[0].usable


def test_every_ancestor_s_limit_is_checked_before_memory_is_taken() -> None:
    """Beyond it the kernel's answer is SIGKILL."""
    limits = (MemoryLimit("/g/inner", 8 * GIB, 0), MemoryLimit("/g", 2 * GIB, GIB))
    facts = machine(memory_limits=limits)
    assert first(facts, GIB, commit="full") == "thp"
    refused = choose(facts, Request(GIB + 1, "full", "shm"))[0]
    assert not refused.usable
    assert "/g " in refused.reason
    assert first(facts, 64 * GIB, commit="lazy") == "thp"


@pytest.mark.parametrize("counts", [False, True])
def test_huge_pages_count_as_memory_where_the_group_says_so(counts: bool) -> None:
    limit = MemoryLimit("/g", 2 * GIB, 0, counts_hugetlb=counts)
    facts = machine((pool(total=8192),), memory_limits=(limit,))
    assert first(facts, 4 * GIB) == ("thp" if counts else "hugetlb-2m")


@pytest.mark.parametrize(
    ("shm", "word"),
    [
        (None, "no /dev/shm"),
        (ShmSpace("/dev/shm", "tmpfs", 64 * MIB, 60 * MIB, writable=True), "60 MiB free"),
        (ShmSpace("/dev/shm", "tmpfs", GIB, GIB, writable=False), "cannot be written"),
        (ShmSpace("/dev/shm", "ext4", 90 * GIB, 90 * GIB, writable=True), "ext4"),
    ],
)
def test_where_dev_shm_does_not_do_a_memfd_serves_and_it_is_said(shm: ShmSpace | None, word: str) -> None:
    for backend in ("thp", "shm"):
        found = choose(machine(shm=shm), Request(100 * MIB, backend=backend))[0]
        assert (found.usable, found.place) == (True, "memfd")
        assert word in found.notes[0]
        assert "keeper" in found.notes[0]


def test_dev_shm_serves_when_it_is_large_enough_or_has_no_limit() -> None:
    for shm in (
        ShmSpace("/dev/shm", "tmpfs", GIB, GIB, True),
        ShmSpace("/dev/shm", "tmpfs", None, None, True),
    ):
        found = choose(machine(shm=shm), Request(GIB, backend="shm"))[0]
        assert (found.place, found.notes) == ("/dev/shm", ())


def test_what_auto_commit_means_is_said_for_each() -> None:
    commits = {c.name: c.commit for c in choose(machine((pool(total=8192),)), Request(4 * GIB))}
    assert (commits["hugetlb-2m"], commits["thp"], commits["shm"]) == ("full", "lazy", "lazy")


def test_lazy_hugetlb_needs_a_page_when_asked_for_and_the_whole_when_chosen() -> None:
    facts = machine((pool(total=1),))
    assert first(facts, 100 * GIB, commit="lazy", backend="hugetlb") == "hugetlb-2m"
    assert first(facts, 100 * GIB, commit="lazy") == "thp"


@pytest.mark.parametrize("backend", ["hugetlb-3m", "", "HUGETLB", "memfd", "auto "])
def test_an_unknown_backend_names_the_known_ones(backend: str) -> None:
    with pytest.raises(ValueError, match="auto, msharefs, hugetlb, thp, shm"):
        choose(machine(), Request(GIB, backend=backend))
    if backend:
        with pytest.raises(ValueError, match="SHAREDREGION_BACKEND"):
            resolve(GIB, "auto", "auto", {"SHAREDREGION_BACKEND": backend})


def test_an_unknown_commit_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="auto, full, lazy"):
        resolve(GIB, "eager", "auto", {})
    with pytest.raises(ValueError, match="auto, full, lazy"):
        choose(machine(), Request(GIB, "eager"))


def test_the_environment_stands_in_for_auto_alone() -> None:
    environ = {"SHAREDREGION_BACKEND": "shm", "SHAREDREGION_HUGETLB_KEEP": "25"}
    assert resolve(GIB, "full", "auto", environ) == Request(GIB, "full", "shm", 25)
    assert resolve(GIB, "auto", "thp", environ).backend == "thp"
    assert resolve(GIB, "auto", "auto", {"SHAREDREGION_BACKEND": ""}) == Request(GIB)


@pytest.mark.parametrize("keep", ["-1", "101", "ten", "nan", "10 %"])
def test_a_part_of_the_pool_is_a_percentage(keep: str) -> None:
    with pytest.raises(ValueError, match="SHAREDREGION_HUGETLB_KEEP"):
        resolve(GIB, "auto", "auto", {"SHAREDREGION_HUGETLB_KEEP": keep})


def test_elsewhere_than_linux_nothing_is_usable_and_it_is_said() -> None:
    found = choose(machine(supported=False, system="darwin arm64"), Request(GIB))
    assert not any(candidate.usable for candidate in found)
    assert all("darwin arm64" in candidate.reason for candidate in found)


def test_the_survey_has_every_backend_once_with_a_reason() -> None:
    for facts in (machine(), machine(supported=False), Facts(), gather()):
        found = survey(facts)
        assert [c.name for c in found] == ["msharefs", "hugetlb-1g", "hugetlb-2m", "thp", "shm"]
        assert all(c.reason for c in found)


counts = st.integers(0, 1 << 20)


@given(
    size=st.integers(1, 1 << 47),
    commit=st.sampled_from(["auto", "full", "lazy"]),
    backend=st.sampled_from(["auto", "msharefs", "hugetlb", "thp", "shm"]),
    keep=st.floats(0, 100),
    numbers=st.tuples(counts, counts, counts, counts, counts),
    available=st.none() | st.integers(0, 1 << 44),
    shmem=st.sampled_from(["always", "never", "deny", None]),
)
def test_whatever_the_facts_each_candidate_says_why(
    size: int,
    commit: str,
    backend: str,
    keep: float,
    numbers: tuple[int, int, int, int, int],
    available: int | None,
    shmem: str | None,
) -> None:
    pools = (HugepagePool(HUGE, *numbers), HugepagePool(GIB, *numbers))
    facts = machine(pools, memory_available=available, thp=TransparentHugepages(True, None, shmem, HUGE))
    request = Request(size, commit, backend, keep)
    found = choose(facts, request)
    assert found == choose(facts, request)
    for candidate in found:
        assert candidate.reason
        assert not (candidate.usable and candidate.remedy)
        assert backend in ("auto", candidate.backend)
        assert candidate.commit in ("full", "lazy")
        if candidate.usable and candidate.backend == "hugetlb" and candidate.commit == "full":
            one = facts.pools[candidate.page_size]
            assert (one.available + one.growable) * candidate.page_size >= size
    # With memory enough and nothing forbidden, plain shared memory always serves.
    if backend == "auto" and commit != "full":
        assert found[-1].usable
        assert replace(found[-1], notes=()).name == "shm"
