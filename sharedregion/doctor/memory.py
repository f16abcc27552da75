"""Questions about memory: pools, large pages, room, limits."""

from __future__ import annotations

from sharedregion._kernel import config, processes, smaps
from sharedregion._kernel.mounts import ShmSpace
from sharedregion._sizes import format_size
from sharedregion.doctor.finding import BROKEN, LESS, NOTE, OK, Check, Finding, Scene
from sharedregion.errors import SharedRegionError

__all__ = [
    "HugepagePools",
    "HugetlbGroups",
    "Memlock",
    "MemoryGroups",
    "SharedMemoryRoom",
    "TransparentHugePages",
]

MIB = 1 << 20
LARGE = 2 * MIB
_SHOWN = 5
# A catalog and members segment of a small region, with something to spare.
_LEAST_ROOM = MIB
# Less than this under a memory limit, and the next region meets it.
_LITTLE = 256 * MIB


class HugepagePools(Check):
    """The pools of hugetlb pages."""

    name, question = "hugepages", "Are huge pages reserved, and who uses them?"

    def look(self, scene: Scene) -> Finding:
        """Each size, with its users."""
        pools = scene.facts.pools
        if not pools:
            return self.found(
                LESS,
                "this kernel has no hugetlb pages",
                advice="thp serves; a kernel built with CONFIG_HUGETLBFS links page tables, too",
            )
        evidence = [
            f"{format_size(size)} pages: {pool.total} in the pool, {pool.free} free"
            + (f", {pool.reserved} of them promised" if pool.reserved else "")
            + (f", {pool.growable} more on demand" if pool.growable else "")
            for size, pool in sorted(pools.items())
        ]
        evidence += _pool_users(scene)
        commands = []
        candidate = scene.candidate("hugetlb-2m")
        if candidate.remedy and not candidate.usable:
            commands.append(candidate.remedy)
            count = candidate.remedy.split()[1]
            line = f"vm.nr_hugepages={count}"
            commands.append(scene.write(line, "/etc/sysctl.d/60-hugepages.conf"))
        if all(pool.total + pool.growable == 0 for pool in pools.values()):
            return self.found(
                LESS,
                "none are reserved: regions are made of thp instead",
                evidence,
                commands,
                "choose the number: pages times 2 MiB is what regions of hugetlb can hold in all",
            )
        free = [pool for pool in pools.values() if pool.available + pool.growable]
        if not free:
            return self.found(
                LESS, "all are in use or promised: hugetlb has nothing left", evidence, commands
            )
        text = ", ".join(
            f"{pool.available} of {pool.total} pages of {format_size(pool.page_size)} are free"
            for pool in sorted(free, key=lambda pool: pool.page_size)
        )
        return self.found(OK, text, evidence)


def _pool_users(scene: Scene) -> list[str]:
    """Processes with hugetlb pages of their own, and regions. Linked pages count for who touched them first."""
    users = []
    for pid in processes.pids(scene.root):
        status = processes.status(pid, scene.root)
        if status is not None and status.hugetlb:
            users.append((status.hugetlb, pid))
    shown = [
        f"used by process {pid} ({processes.command(pid, scene.root) or '?'}): {format_size(size)}"
        for size, pid in sorted(users, reverse=True)[:_SHOWN]
    ]
    if len(users) > _SHOWN:
        shown.append(f"and by {len(users) - _SHOWN} more processes")
    shown += [
        f"region {one.name}: {format_size(one.backed or one.size or 0)}"
        for one in scene.regions
        if one.backend == "hugetlb"
    ]
    return shown


class TransparentHugePages(Check):
    """Large pages in shared memory, which need no pool."""

    name, question = "thp", "Can shared memory be made of 2 MiB pages (thp)?"

    def look(self, scene: Scene) -> Finding:
        """The settings, and on the machine itself a trial."""
        thp = scene.facts.thp
        candidate = scene.candidate("thp")
        evidence = []
        if thp.present:
            evidence.append(
                f"enabled: {thp.enabled or 'unknown'}; shmem_enabled: {thp.shmem_enabled or 'absent'}"
            )
        groups: dict[str, list[str]] = {}
        for size, setting in sorted(thp.per_size.items()):
            groups.setdefault(setting, []).append(format_size(size))
        evidence += [f"shmem_enabled {setting}: {', '.join(sizes)}" for setting, sizes in groups.items()]
        if not candidate.usable:
            commands = [candidate.remedy] if candidate.remedy else []
            return self.found(LESS, candidate.reason, evidence, commands)
        own = processes.status(_self(scene), scene.root)
        if own is not None and not own.thp_enabled:
            return self.found(
                LESS,
                "large pages are switched off for this process and its children (PR_SET_THP_DISABLE)",
                evidence,
                advice="whatever started it did that: a service manager, a container's runtime, a wrapper",
            )
        if scene.live:
            tried = _try_collapse()
            if tried is not None:
                return self.found(
                    LESS, tried, evidence, advice="`dmesg` or the kernel's configuration may say why"
                )
            evidence.append("tried: 2 MiB of shared memory were collapsed into one page")
        return self.found(OK, "shared memory can be collapsed into 2 MiB pages, with no privilege", evidence)


def _self(scene: Scene) -> int:
    import os

    return os.getpid() if scene.live else 0


def _try_collapse() -> str | None:
    """None if it works; a page is taken, and given back."""
    from sharedregion import _native

    try:
        segment = _native.Segment.create("thp", LARGE, "memfd")
        segment.commit(0, LARGE)
        mapping = segment.map()
        mapping.touch(0, LARGE, 4096)
        fraction = smaps.huge_fraction(mapping.address, LARGE)
    except SharedRegionError as error:
        return f"2 MiB of shared memory could not be collapsed: {error.message}"
    return None if fraction == 1.0 else "2 MiB of shared memory were collapsed, but are mapped by small pages"


class SharedMemoryRoom(Check):
    """/dev/shm."""

    name, question = "dev-shm", "Is there room in /dev/shm?"

    def look(self, scene: Scene) -> Finding:
        """Its size and use. Every region needs a little of it, those of thp and shm may lie in it whole."""
        shm = scene.facts.shm
        if shm is None:
            return self.found(
                BROKEN,
                "there is no /dev/shm: no region can have a name",
                commands=[scene.as_root("mkdir -p /dev/shm"), _mount(scene, "50%")],
            )
        evidence = [f"{shm.fstype or 'of unknown type'}, {_size(shm)}"]
        if shm.fstype not in (None, "tmpfs"):
            return self.found(
                BROKEN, f"/dev/shm is {shm.fstype}, not memory", evidence, [_mount(scene, "50%")]
            )
        if not shm.writable:
            return self.found(
                BROKEN,
                "/dev/shm is not for this user to write",
                evidence,
                [scene.as_root("chmod 1777 /dev/shm")],
            )
        grow = [scene.as_root("mount -o remount,size=50% /dev/shm")]
        if shm.free is not None and shm.free < _LEAST_ROOM:
            return self.found(
                BROKEN,
                f"/dev/shm is full: {format_size(shm.free)} are free",
                evidence,
                ["df -h /dev/shm", "sharedregion gc", *grow],
                "in a container: start it with a larger one (--shm-size=8g, or an emptyDir of medium Memory)",
            )
        if shm.size is not None and shm.size <= 64 * MIB:
            return self.found(
                LESS,
                f"/dev/shm has {format_size(shm.size)} only: larger regions are nameless memory behind a keeper process",
                evidence,
                grow,
                "in a container: start it with a larger one (--shm-size=8g, or an emptyDir of medium Memory)",
            )
        return self.found(OK, _size(shm), evidence)


def _size(shm: ShmSpace) -> str:
    if shm.size is None or shm.free is None:
        return "no limit of its own"
    return f"{format_size(shm.free)} of {format_size(shm.size)} are free"


def _mount(scene: Scene, size: str) -> str:
    return scene.as_root(f"mount -t tmpfs -o mode=1777,nosuid,nodev,size={size} tmpfs /dev/shm")


class Memlock(Check):
    """RLIMIT_MEMLOCK."""

    name, question = "memlock", "How much memory may a process lock?"

    def look(self, scene: Scene) -> Finding:
        """Regions lock nothing; what uses them may (RDMA, GPUs, mlock)."""
        limit = config.soft_limit("Max locked memory", scene.root)
        if limit is None:
            return self.found(NOTE, "the kernel does not say")
        if limit == "unlimited":
            return self.found(OK, "a process may lock as much memory as it likes")
        assert isinstance(limit, int)
        return self.found(
            NOTE if limit < 1 << 30 else OK,
            f"a process may lock {format_size(limit)}; regions need none of it",
            advice="programs that pin a region (RDMA, GPUs, mlock) need as much as they pin: "
            "`ulimit -l`, LimitMEMLOCK= of a service"
            if limit < 1 << 30
            else None,
        )


class MemoryGroups(Check):
    """Limits of control groups on memory."""

    name, question = "memory-limit", "How much memory do control groups leave?"

    def look(self, scene: Scene) -> Finding:
        """The tightest of all ancestors: going beyond it is answered with SIGKILL."""
        limits = scene.facts.memory_limits
        if not limits:
            return self.found(OK, "no control group limits memory")
        evidence = [
            f"{limit.group}: {format_size(limit.usage)} of {format_size(limit.limit)} used"
            + (f", {format_size(limit.cache)} of that file cache" if limit.cache else "")
            + ("; huge pages count" if limit.counts_hugetlb else "")
            for limit in limits
        ]
        tight = min(limits, key=lambda limit: limit.headroom)
        left = f"{format_size(tight.headroom)} under {tight.group}"
        if tight.headroom < _LITTLE:
            return self.found(
                LESS,
                f"only {left}",
                evidence,
                advice="raise the group's limit (memory.max; docker run --memory; a service's MemoryMax=)",
            )
        return self.found(OK, f"{left} can be taken", evidence)


class HugetlbGroups(Check):
    """Limits of control groups on huge pages."""

    name, question = "hugetlb-limit", "How many huge pages do control groups leave?"

    def look(self, scene: Scene) -> Finding:
        """Of the sizes that have a pool."""
        limits = scene.facts.hugetlb_limits
        if not limits:
            return self.found(OK, "no control group limits huge pages")
        evidence = [
            f"{limit.group}: {format_size(limit.usage)} of {format_size(limit.limit)} in pages of "
            f"{format_size(limit.page_size)} used"
            for limit in limits
        ]
        starved = [
            limit
            for limit in limits
            if limit.headroom < limit.page_size
            and (pool := scene.facts.pools.get(limit.page_size))
            and pool.available + pool.growable
        ]
        if starved:
            limit = starved[0]
            return self.found(
                LESS,
                f"{limit.group} may take no more pages of {format_size(limit.page_size)}, though there are some",
                evidence,
                advice="raise the group's hugetlb limit (hugetlb.*.max; hugepages-2Mi in a pod's limits)",
            )
        return self.found(OK, "control groups leave enough for what the pools hold", evidence)
