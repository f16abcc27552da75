"""Views of Linux on made-up trees, on damaged ones, and on the machine that runs the tests."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharedregion._kernel import cgroup, facts, files, mounts, procfs, sysfs

MIB = 1 << 20
GIB = 1 << 30


def _load(name: str) -> ModuleType:
    # importlib mode puts no test folder on the path.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trees = _load("trees")


def test_an_empty_tree_gives_facts_that_know_nothing(tmp_path: Path) -> None:
    found = facts.gather(str(tmp_path))
    assert found.memory_available is None
    assert not found.pools
    assert not found.thp.present
    assert found.shm is None
    assert not found.msharefs.known
    assert found.memory_limits == found.hugetlb_limits == ()


def test_meminfo_is_in_bytes_and_counts_are_counts(tmp_path: Path) -> None:
    text = "MemTotal:       24684096 kB\nHugePages_Total:       7\nPageTables:  1816 kB\nOdd: x kB\nOdder 5\nOddest: 1 MB\n"
    root = trees.write(tmp_path, {"proc/meminfo": text})
    assert procfs.meminfo(root) == {
        "MemTotal": 24684096 * 1024,
        "HugePages_Total": 7,
        "PageTables": 1816 * 1024,
    }
    assert procfs.page_tables(root) == 1816 * 1024
    assert not procfs.refresh_statistics(root)


def test_process_status_and_filesystems(tmp_path: Path) -> None:
    root = trees.write(
        tmp_path,
        {
            "proc/7/status": "Name:\tcat\nVmPTE:\t      48 kB\nThreads:\t1\nCpus_allowed_list:\t0-1\n",
            "proc/filesystems": "nodev\tsysfs\n\text4\nnodev\tmsharefs\n\n",
        },
    )
    assert procfs.process_status(7, root) == {"VmPTE": 48 * 1024, "Threads": 1}
    assert procfs.filesystems(root) == {"sysfs", "ext4", "msharefs"}


def test_pools_by_page_size(tmp_path: Path) -> None:
    root = trees.write(
        tmp_path,
        {
            **trees.pool(2048, total=100, free=60, reserved=10, surplus=5, overcommit=8),
            **trees.pool(1048576, total=2, free=1, reserved=3),
            "sys/kernel/mm/hugepages/hugepages-junk/nr_hugepages": "9\n",
        },
    )
    pools = sysfs.hugepage_pools(root)
    assert set(pools) == {2 * MIB, GIB}
    small, large = pools[2 * MIB], pools[GIB]
    assert (small.available, small.growable, small.persistent) == (50, 3, 95)
    # More promised than free, as while a page is on its way: nothing is available, not minus two.
    assert (large.available, large.growable) == (0, 0)
    assert large.control == "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"


@pytest.mark.parametrize("text", ["", "-1", "+4", "1_0", "0x10", "٣", "9" * 30, "nan", "max", "1 2"])
def test_what_is_no_plain_number_is_none(tmp_path: Path, text: str) -> None:
    root = trees.write(tmp_path, {"value": text})
    assert files.read_int(root, "value") is None


def test_thp_settings(tmp_path: Path) -> None:
    root = trees.write(
        tmp_path,
        {
            f"{trees.THP}/enabled": "always [madvise] never\n",
            f"{trees.THP}/shmem_enabled": "always within_size advise never [deny] force\n",
            f"{trees.THP}/hpage_pmd_size": "2097152\n",
            f"{trees.THP}/hugepages-2048kB/shmem_enabled": "always [inherit] within_size advise never\n",
            f"{trees.THP}/hugepages-64kB/shmem_enabled": "no brackets\n",
        },
    )
    found = sysfs.transparent_hugepages(root)
    assert found.present
    assert (found.enabled, found.shmem_enabled, found.pmd_size) == ("madvise", "deny", 2 * MIB)
    assert dict(found.per_size) == {2 * MIB: "inherit"}


def test_the_mount_table_is_unescaped_and_the_newest_mount_counts(tmp_path: Path) -> None:
    text = (
        trees.ROOT_MOUNT
        + "30 22 0:40 / /mnt/with\\040space rw - msharefs none rw\n"
        + "31 22 0:41 / /mnt/later\\134 rw,noexec shared:7 master:2 - msharefs none rw\n"
        + "not a mount line\n"
        + "32 22 0:41 / /short rw -\n"
    )
    root = trees.write(tmp_path, {"proc/self/mountinfo": text, "proc/filesystems": ""})
    table = mounts.mount_table(root)
    assert [mount.point for mount in table] == ["/", "/mnt/with space", "/mnt/later\\"]
    found = facts.gather(root).msharefs
    # A mount proves that the kernel knows it, whatever the list of filesystems says.
    assert (found.known, found.mounted, found.path) == (True, True, "/mnt/later\\")


def test_mounts_stand_in_for_mountinfo(tmp_path: Path) -> None:
    root = trees.write(tmp_path, {"proc/self/mounts": "none /share msharefs rw 0 0\nshort\n"})
    found = mounts.mounted("msharefs", mounts.mount_table(root))
    assert found
    assert found.point == "/share"


def test_shm_space_is_the_directory_s_own(tmp_path: Path) -> None:
    (tmp_path / "dev/shm").mkdir(parents=True)
    root = trees.write(tmp_path, {"proc/self/mountinfo": trees.ROOT_MOUNT + trees.SHM_MOUNT})
    space = mounts.shm_space(root)
    room = os.statvfs(tmp_path)
    assert space
    assert (space.path, space.fstype, space.size) == ("/dev/shm", "tmpfs", room.f_blocks * room.f_frsize)
    assert space.writable


V1 = "40 22 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n41 22 0:31 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb\n"
V2 = "42 22 0:32 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate{extra}\n"


def test_cgroup_v1_every_ancestor_counts_and_no_limit_is_none(tmp_path: Path) -> None:
    memory, hugetlb = "sys/fs/cgroup/memory", "sys/fs/cgroup/hugetlb"
    root = trees.write(
        tmp_path,
        {
            "proc/self/mountinfo": V1,
            "proc/self/cgroup": "4:memory:/outer/inner\n3:hugetlb:/outer\n2:cpu,cpuacct:/x\n0::/\n",
            f"{memory}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{memory}/outer/memory.limit_in_bytes": f"{GIB}\n",
            f"{memory}/outer/memory.usage_in_bytes": f"{600 * MIB}\n",
            f"{memory}/outer/memory.stat": f"cache 1\ntotal_inactive_file {100 * MIB}\n",
            f"{memory}/outer/inner/memory.limit_in_bytes": f"{2 * GIB}\n",
            f"{memory}/outer/inner/memory.usage_in_bytes": f"{3 * GIB}\n",
            f"{hugetlb}/outer/hugetlb.2MB.limit_in_bytes": f"{64 * MIB}\n",
            f"{hugetlb}/outer/hugetlb.2MB.usage_in_bytes": f"{62 * MIB}\n",
            f"{hugetlb}/outer/hugetlb.1GB.limit_in_bytes": "9223372036854771712\n",
            f"{hugetlb}/outer/hugetlb.2MB.rsvd.limit_in_bytes": "0\n",
        },
    )
    limits = cgroup.memory_limits(root)
    assert [(limit.group, limit.headroom) for limit in limits] == [
        ("/sys/fs/cgroup/memory/outer/inner", 0),
        ("/sys/fs/cgroup/memory/outer", GIB - 500 * MIB),
    ]
    assert [(limit.page_size, limit.headroom) for limit in cgroup.hugetlb_limits(root)] == [
        (2 * MIB, 2 * MIB),
        (2 * MIB, 0),
    ]


@pytest.mark.parametrize("counts", [False, True])
def test_cgroup_v2_in_a_container_sees_what_is_mounted(tmp_path: Path, counts: bool) -> None:
    """The path may repeat the part of the hierarchy that the mount already shows."""
    extra = ",memory_hugetlb_accounting" if counts else ""
    root = trees.write(
        tmp_path,
        {
            "proc/self/mountinfo": V2.format(root="/docker/abc", extra=extra),
            "proc/self/cgroup": "0::/docker/abc/app\n",
            "sys/fs/cgroup/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/memory.current": f"{GIB // 2}\n",
            "sys/fs/cgroup/app/memory.max": "max\n",
            "sys/fs/cgroup/app/memory.current": "5\n",
            "sys/fs/cgroup/app/hugetlb.1GB.max": "max\n",
            "sys/fs/cgroup/app/hugetlb.2MB.max": "4194304\n",
            "sys/fs/cgroup/app/hugetlb.2MB.current": "2097152\n",
        },
    )
    limits = cgroup.memory_limits(root)
    assert [(limit.group, limit.headroom) for limit in limits] == [("/sys/fs/cgroup", GIB // 2)]
    assert limits[0].counts_hugetlb == counts
    assert [(limit.page_size, limit.headroom) for limit in cgroup.hugetlb_limits(root)] == [
        (2 * MIB, 2 * MIB)
    ]


def test_a_cgroup_path_cannot_lead_out_of_the_mount(tmp_path: Path) -> None:
    root = trees.write(
        tmp_path,
        {
            "proc/self/mountinfo": V2.format(root="/", extra=""),
            "proc/self/cgroup": "0::/../../../etc\n",
            "sys/fs/cgroup/memory.max": "1\n",
            "etc/memory.max": "2\n",
        },
    )
    assert [limit.limit for limit in cgroup.memory_limits(root)] == [1]


NAMES = [
    "proc/meminfo",
    "proc/filesystems",
    "proc/self/mountinfo",
    "proc/self/cgroup",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    f"{trees.THP}/shmem_enabled",
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory.stat",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=200)))
def test_no_bytes_in_kernel_files_raise(tmp_path: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    found = facts.gather(str(tmp_path))
    assert all(pool.available >= 0 for pool in found.pools.values())
    assert all(limit.headroom >= 0 for limit in found.memory_limits)


def test_the_real_machine_agrees_with_its_own_tools() -> None:
    found = facts.gather()
    assert found.memory_total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.memory_available
    assert found.memory_available <= found.memory_total
    shown = subprocess.run(
        ["df", "-B1", "--output=size", "/dev/shm"], check=True, capture_output=True, text=True
    )
    assert found.shm
    assert found.shm.size == int(shown.stdout.split()[-1])
    for size, pool in found.pools.items():
        assert int(Path(pool.control).read_text()) == pool.total
        assert pool.page_size == size
    assert procfs.page_tables()
    assert procfs.process_status()["Threads"] >= 1


def test_importing_the_views_looks_at_nothing() -> None:
    """No work at import: with every open() refused it still succeeds."""
    code = (
        "import sys, importlib.machinery as m\n"
        "import sharedregion._kernel.facts as first\n"
        "names = [n for n in sys.modules if n.startswith('sharedregion._kernel')]\n"
        "for n in names: del sys.modules[n]\n"
        "seen = []\n"
        "sys.addaudithook(lambda e, a: seen.append(a[0]) if e in ('open', 'os.listdir') else None)\n"
        "import sharedregion._kernel.facts\n"
        "print([s for s in seen if str(s).startswith(('/proc', '/sys', '/dev'))])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
