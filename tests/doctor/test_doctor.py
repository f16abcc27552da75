"""What the doctor finds: on made-up trees, on trees recorded from real set-ups, and on this machine."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharedregion import doctor, inventory
from sharedregion._kernel.mounts import ShmSpace
from sharedregion.doctor import helper as helper_check
from sharedregion.doctor import regions as region_checks
from sharedregion.footprint.answer import SCHEMA
from sharedregion.footprint.helper import INSTALLED
from tests.unit.trees import ROOT_MOUNT, SHM_MOUNT, THP, pool, write

TREES = Path(__file__).with_name("trees")
COMMAND = [sys.executable, "-P", "-m", "sharedregion", "doctor"]
ROOMY = ShmSpace("/dev/shm", "tmpfs", 16 << 30, 15 << 30, writable=True)

#: A machine on which everything is in order.
GOOD = {
    "proc/sys/kernel/osrelease": "6.12.0\n",
    "proc/filesystems": "nodev\ttmpfs\n",
    "proc/meminfo": "MemTotal: 67108864 kB\nMemAvailable: 50331648 kB\n",
    "proc/self/mountinfo": ROOT_MOUNT + SHM_MOUNT,
    "proc/self/limits": "Max locked memory         unlimited            unlimited            bytes     \n",
    "proc/0/status": "Uid:\t0\t0\t0\t0\nNSpid:\t7\nHugetlbPages:\t0 kB\nTHP_enabled:\t1\n",
    "proc/self/smaps": "00400000-00401000 r--p 00000000 00:00 0\nVmFlags: rd mr mw me\n",
    "proc/kcore": "",
    "boot/config-6.12.0": "CONFIG_BPF_SYSCALL=y\n",
    "sys/kernel/btf/vmlinux": "",
    "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
    f"{THP}/enabled": "always [madvise] never\n",
    f"{THP}/shmem_enabled": "always within_size advise [never] deny force\n",
    f"{THP}/hpage_pmd_size": "2097152\n",
    f"{THP}/hugepages-2048kB/shmem_enabled": "always [inherit] within_size advise never\n",
    f"{THP}/hugepages-64kB/shmem_enabled": "always inherit within_size advise [never]\n",
    "dev/shm/.keep": "",
} | pool(2048, 4096, 4000, reserved=100) | pool(1048576, 0, 0)  # fmt: skip


def findings(root: str, **options: Any) -> dict[str, doctor.Finding]:
    report = doctor.examine(root, **({"shm": ROOMY} | options))
    assert [one.check for one in report.findings] == [check.name for check in doctor.CHECKS]
    json.dumps(report.to_dict())
    return {one.check: one for one in report.findings}


def changed(tmp_path: Path, changes: dict[str, str | None], **options: Any) -> dict[str, doctor.Finding]:
    tree = {path: text for path, text in (GOOD | changes).items() if text is not None}
    return findings(write(tmp_path, tree), **options)


def recorded(name: str, tmp_path: Path) -> tuple[str, ShmSpace]:
    """A file of trees/ as a tree. A line "=== path" begins each of its files."""
    head, *parts = re.split(r"(?m)^=== ", (TREES / f"{name}.txt").read_text())
    _, size, free = head.split()
    files = dict(part.split("\n", 1) for part in parts)
    root = write(tmp_path, {path.lstrip("/"): text for path, text in files.items()} | {"dev/shm/.keep": ""})
    return root, ShmSpace("/dev/shm", "tmpfs", int(size), int(free), writable=True)


# --- made-up trees ---------------------------------------------------------------------------------


def test_a_machine_in_order_is_ready(tmp_path: Path) -> None:
    """But for the helper, which nobody has installed there, and msharefs, which no kernel has."""
    found = changed(tmp_path, {})
    assert {name: one.status for name, one in found.items() if one.status != "ok"} == {
        "msharefs": "note",
        "helper": "less",
    }
    assert found["hugepages"].answer == "3900 of 4096 pages of 2 MiB are free"
    assert "shmem_enabled never: 64 KiB" in found["thp"].evidence


def test_every_question_has_a_name_of_its_own() -> None:
    """Names are keys for programs that read the JSON."""
    names = [check.name for check in doctor.CHECKS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z-]*", name) for name in names)
    assert all(check.question.endswith("?") for check in doctor.CHECKS)


def test_an_empty_tree_gives_answers_and_no_traceback(tmp_path: Path) -> None:
    """Nothing can be read: what is needed is missing, what cannot be told is said so."""
    found = findings(str(tmp_path), shm=None)
    assert found["dev-shm"].status == "broken"
    assert found["hugepages"].status == found["thp"].status == found["btf"].status == "less"
    assert doctor.examine(str(tmp_path)).exit_code == 2


@pytest.mark.parametrize(
    "text", ["", "\x00\xff", "999999999999999999999999\n", "-1\n", "[\n", "a: b: c\n" * 9]
)
def test_nonsense_in_every_file_is_no_crash(tmp_path: Path, text: str) -> None:
    """Kernels differ, and trees may be anything."""
    findings(write(tmp_path, dict.fromkeys(GOOD, text)))


@pytest.mark.parametrize(
    ("changes", "check", "status", "answer", "command"),
    [
        (pool(2048, 0, 0), "hugepages", "less", "none are reserved", "nr_hugepages"),
        (pool(2048, 10, 3, reserved=3), "hugepages", "less", "all are in use or promised", "nr_hugepages"),
        (pool(2048, 0, 0, overcommit=5), "hugepages", "ok", "0 of 0 pages of 2 MiB", None),
        ({f"{THP}/shmem_enabled": "always [deny]\n"}, "thp", "less", "deny", f"/{THP}/shmem_enabled"),
        (
            {f"{THP}/hugepages-2048kB/shmem_enabled": "inherit [never]\n"},
            "thp", "less", "2 MiB pages in shared memory is never", f"/{THP}/hugepages-2048kB/shmem_enabled",
        ),
        ({"proc/0/status": "THP_enabled:\t0\n"}, "thp", "less", "PR_SET_THP_DISABLE", None),
        ({"sys/kernel/btf/vmlinux": None}, "btf", "less", "estimated", None),
        ({"proc/kcore": None}, "kcore", "note", "BPF", None),
        (
            {"proc/kcore": None, "boot/config-6.12.0": "CONFIG_BPF_SYSCALL=n\n"},
            "kcore", "less", "neither", None,
        ),
        (
            {"sys/kernel/security/lockdown": "none integrity [confidentiality]\n"},
            "lockdown", "less", "locked down", None,
        ),
        ({"sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}, "lockdown", "ok", "integrity", None),
        ({"boot/config-6.12.0": "CONFIG_MEM_SOFT_DIRTY=y\n"}, "soft-dirty", "note", "tracks", None),
        ({"proc/self/smaps": "VmFlags: rd mr mw me sd\n"}, "soft-dirty", "note", "tracks", None),
        (
            {"proc/self/limits": "Max locked memory         65536                65536                bytes\n"},
            "memlock", "note", "64 KiB", None,
        ),
        ({"proc/filesystems": "nodev\tmsharefs\n"}, "msharefs", "less", "not mounted", "mount -t msharefs"),
        ({"sys/fs/mshare/.keep": ""}, "msharefs", "less", "not mounted", "mount -t msharefs"),
    ],
)  # fmt: skip
def test_what_is_amiss_is_found_with_its_remedy(
    tmp_path: Path, changes: dict[str, str | None], check: str, status: str, answer: str, command: str | None
) -> None:
    """One thing is changed on a machine in order; its question says so, and no other changes its answer."""
    before = changed(tmp_path / "before", {})
    found = changed(tmp_path / "after", changes)
    one = found[check]
    assert one.status == status
    assert answer in one.answer
    assert (command is None) == (not one.commands)
    assert command is None or any(command in text for text in one.commands)
    others = {name for name in found if found[name].status != before[name].status}
    assert others <= {check}


@pytest.mark.parametrize(
    ("shm", "status", "answer"),
    [
        (ShmSpace("/dev/shm", "tmpfs", 64 << 20, 60 << 20, writable=True), "less", "64 MiB only"),
        (ShmSpace("/dev/shm", "tmpfs", 64 << 20, 4096, writable=True), "broken", "full"),
        (ShmSpace("/dev/shm", "tmpfs", None, None, writable=True), "ok", "no limit"),
        (ShmSpace("/dev/shm", "ext4", 1 << 40, 1 << 39, writable=True), "broken", "not memory"),
        (ShmSpace("/dev/shm", "tmpfs", 1 << 40, 1 << 39, writable=False), "broken", "not for this user"),
    ],
)
def test_room_in_dev_shm(tmp_path: Path, shm: ShmSpace, status: str, answer: str) -> None:
    """Without it no region can have a name; a little of it is enough for regions of other memory."""
    one = changed(tmp_path, {}, shm=shm)["dev-shm"]
    assert one.status == status
    assert answer in one.answer
    assert bool(one.commands) == (status != "ok")


def test_who_uses_the_pool(tmp_path: Path) -> None:
    """The largest users first, by their names, which may hold anything."""
    users = {
        f"proc/{pid}/{file}": text
        for pid in range(10, 20)
        for file, text in (("status", f"HugetlbPages:\t{pid * 2048} kB\n"), ("comm", f"evil\x1b[31m{pid}\n"))
    }
    evidence = changed(tmp_path, users)["hugepages"].evidence
    assert "used by process 19 (evil\x1b[31m19): 38 MiB" in evidence
    assert "and by 5 more processes" in evidence
    assert not any("process 12 " in one for one in evidence)


CGROUP2 = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
CGROUP1 = (
    "41 31 0:38 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "42 31 0:39 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb\n"
)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tight", [False, True])
def test_limits_of_control_groups(tmp_path: Path, version: int, tight: bool) -> None:
    """Of both versions; the tightest ancestor counts, and cache that can be dropped does not."""
    limit = (1 << 30) if tight else (8 << 30)
    if version == 2:
        mounts, own = CGROUP2, "0::/a/b\n"
        memory, huge = "sys/fs/cgroup/a", "sys/fs/cgroup/a"
        files = {
            f"{memory}/memory.max": f"{limit}\n", f"{memory}/memory.current": f"{1 << 30}\n",
            f"{memory}/memory.stat": f"inactive_file {1 << 20}\n", f"{memory}/b/memory.max": "max\n",
            f"{huge}/hugetlb.2MB.max": f"{0 if tight else 1 << 30}\n", f"{huge}/hugetlb.2MB.current": "0\n",
        }  # fmt: skip
    else:
        mounts, own = CGROUP1, "4:memory:/a/b\n3:hugetlb:/a\n"
        memory, huge = "sys/fs/cgroup/memory/a", "sys/fs/cgroup/hugetlb/a"
        files = {
            f"{memory}/memory.limit_in_bytes": f"{limit}\n", f"{memory}/memory.usage_in_bytes": f"{1 << 30}\n",
            f"{memory}/memory.stat": f"total_inactive_file {1 << 20}\n",
            f"{memory}/b/memory.limit_in_bytes": "9223372036854771712\n",
            f"{huge}/hugetlb.2MB.limit_in_bytes": f"{0 if tight else 1 << 30}\n",
            f"{huge}/hugetlb.2MB.usage_in_bytes": "0\n",
        }  # fmt: skip
    found = changed(
        tmp_path,
        files | {"proc/self/cgroup": own, "proc/self/mountinfo": GOOD["proc/self/mountinfo"] + mounts},
    )
    expected = "less" if tight else "ok"
    assert (found["memory-limit"].status, found["hugetlb-limit"].status) == (expected, expected)
    assert found["memory-limit"].answer.startswith(
        "only 1 MiB under /sys/fs/cgroup" if tight else "7 GiB under"
    )
    assert any(memory.removeprefix("sys") in one for one in found["memory-limit"].evidence)


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "owner", "status", "answer"),
    [
        (0o1777, 0, "note", "mounted; not used"),
        (0o777, 0, "less", "without the sticky bit"),
        (0o700, 0, "note", "mounted; not used"),
    ],
)
def test_msharefs_that_is_mounted(tmp_path: Path, mode: int, owner: int, status: str, answer: str) -> None:
    """Where, its unit, its root's mode: 0777 without the sticky bit lets anyone remove another's regions."""
    place = tmp_path / "sys/fs/mshare"
    changes = {
        "proc/filesystems": "nodev\tmsharefs\n",
        "proc/self/mountinfo": GOOD["proc/self/mountinfo"]
        + "50 22 0:50 / /sys/fs/mshare rw - msharefs none rw\n",
        "sys/fs/mshare/mshare_info": "549755813888\n",
    }
    write(tmp_path, GOOD | changes)
    place.chmod(mode)
    one = changed(tmp_path, changes)["msharefs"]
    usable = one.status == "ok"
    assert usable or one.status == status
    assert usable or answer in one.answer
    assert "regions are multiples of 512 GiB (mshare_info)" in one.evidence
    assert any(f"mode {mode:04o}" in text for text in one.evidence)
    assert "interface: none that this version knows" in one.evidence


def capabilities(path: Path, numbers: list[int]) -> None:
    low = sum(1 << n for n in numbers if n < 32)
    high = sum(1 << (n - 32) for n in numbers if n >= 32)
    os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, low, 0, high, 0))


@pytest.mark.root
@pytest.mark.parametrize(
    ("change", "status", "answer"),
    [
        (lambda copy: None, "ok", "in order"),
        (lambda copy: capabilities(copy, [19, 38]), "less", "lacks capabilities: cap_bpf"),
        (
            lambda copy: capabilities(copy, [19, 38, 39, 21]),
            "less",
            "more capabilities than it needs: cap_21",
        ),
        (lambda copy: copy.chmod(0o777), "less", "not root's alone to write"),
        (lambda copy: copy.parent.chmod(0o777), "less", "not root's alone to write"),
        (lambda copy: os.chown(copy, 65534, 65534), "less", "not root's alone to write"),
    ],
)
def test_the_installed_helper(
    tmp_path: Path, change: Callable[[Path], None], status: str, answer: str
) -> None:
    """It must be root's alone, with the three capabilities and no others."""
    copy = tmp_path / INSTALLED.lstrip("/")
    write(tmp_path, GOOD | {INSTALLED.lstrip("/"): "#!/bin/sh\n"})
    copy.chmod(0o755)
    copy.parent.chmod(0o755)
    capabilities(copy, [19, 38, 39])
    change(copy)
    one = findings(str(tmp_path))["helper"]
    assert one.status == status
    assert answer in one.answer
    assert bool(one.commands) == (status == "less")
    nosuid = GOOD["proc/self/mountinfo"] + "60 22 8:2 / /usr/local rw,nosuid - ext4 /dev/sdb rw\n"
    if status == "ok":
        (tmp_path / "proc/self/mountinfo").write_text(nosuid)
        assert "nosuid" in findings(str(tmp_path))["helper"].answer


def test_a_helper_of_another_version_is_told(tmp_path: Path) -> None:
    """By what it says of itself: schema, version, or nothing sensible."""
    path = tmp_path / "helper"
    for said, problem in (
        (f'{{"name":"x","version":"0.0.1","schema":{SCHEMA}}}', "of version 0.0.1"),
        ('{"name":"x","version":"0.1.0","schema":999}', "schema 999"),
        ("hello", "does not say"),
        ("[]", "does not say"),
    ):
        path.write_text(f"#!/bin/sh\necho '{said}'\n")
        path.chmod(0o755)
        assert problem in (helper_check._handshake(str(path)) or "")


# --- regions, as data ------------------------------------------------------------------------------


class Scene(doctor.Scene):
    """A tree with regions of its own."""

    def __init__(self, *regions: inventory.RegionInfo) -> None:
        super().__init__("/nonexistent")
        self.__dict__["regions"] = list(regions)


def hugetlb(tables: str, *alone: inventory.Alone) -> inventory.RegionInfo:
    return inventory.RegionInfo("r", "live", "hugetlb", "hugetlb-2m", tables=tables, alone=alone)


def test_regions_that_are_linked_but_for_some() -> None:
    """A writer beside readers is as it should be; a process that maps askew is not."""
    check = region_checks.LinkedTables()
    writer = inventory.Alone(7, 2, "it is mapped for writing", expected=True)
    askew = inventory.Alone(8, 3, "askew")
    assert check.look(Scene()).status == "ok"
    assert check.look(Scene(hugetlb("linked", writer))).status == "ok"
    assert check.look(Scene(hugetlb("unknown"))).status == "note"
    found = check.look(Scene(hugetlb("partly", writer, askew)))
    assert found.status == "less"
    assert "r: process 8 has 3 GiB alone: askew" in found.evidence
    assert "one process has" in found.answer


def test_damaged_and_foreign_regions() -> None:
    """The command removes exactly what is damaged, whatever its name holds; another build's is left alone."""
    bad = inventory.RegionInfo("it's", "corrupt", error="fails", uid=os.geteuid())
    odd = inventory.RegionInfo("\x1b[31m'\udcff", "corrupt", error="a name", uid=os.geteuid())
    other = inventory.RegionInfo("o", "foreign", error="another build")
    check = region_checks.Damaged()
    assert check.look(Scene(other)).status == "note"
    assert check.look(Scene(other)).commands == ()
    found = check.look(Scene(bad, odd, other))
    assert found.status == "less"
    assert len(found.commands) == 2
    for command, wanted in zip(
        found.commands, (b"it's", b"/dev/shm/sharedregion.\x1b[31m'\xff.catalog"), strict=True
    ):
        assert command.isprintable()
        said = subprocess.run(
            [
                "bash",
                "-c",
                command.replace("sharedregion unlink", "printf %s").replace("rm ", "printf %s ", 1),
            ],
            capture_output=True,
            check=True,
        )
        assert said.stdout == wanted


# --- trees recorded from real set-ups ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "less", "exit_code"),
    [
        ("hugepages", {"helper"}, 1),
        ("no-hugepages", {"helper", "hugepages"}, 1),
        ("small-shm", {"helper", "hugepages", "dev-shm"}, 1),
    ],
)
def test_recorded_set_ups(tmp_path: Path, name: str, less: set[str], exit_code: int) -> None:
    """Linux 6.18 with 64 huge pages, with none, and with a /dev/shm of 64 MB: capture.py recorded them."""
    root, shm = recorded(name, tmp_path)
    report = doctor.examine(root, shm=shm)
    assert {one.check for one in report.findings if one.status == "less"} == less
    assert not [one for one in report.findings if one.status == "broken"]
    assert report.exit_code == exit_code
    found = {one.check: one for one in report.findings}
    assert "6.18.44" in found["kernel"].answer
    assert found["kcore"].status == "note"
    if name == "hugepages":
        assert found["hugepages"].answer == "64 of 64 pages of 2 MiB are free"
    else:
        assert any("nr_hugepages" in one for one in found["hugepages"].commands)
    if name == "small-shm":
        assert "64 MiB only" in found["dev-shm"].answer


# --- this machine ----------------------------------------------------------------------------------


def run(*command: str, expect: int | None = None, **options: Any) -> dict[str, Any]:
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, **options)
    assert done.stderr == ""
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == document["exit_code"]
    assert expect is None or done.returncode == expect
    return {one["check"]: one for one in document["findings"]}


def test_on_this_machine() -> None:
    """It answers everything, works at least with less, and agrees with `backends`."""
    found = run(*COMMAND)
    assert found["kernel"]["status"] == "ok"
    assert os.uname().release in found["kernel"]["answer"]
    assert "broken" not in {one["status"] for one in found.values()}
    if os.geteuid() == 0 and found["btf"]["status"] == "ok":
        assert found["helper"]["status"] == "ok"


@pytest.mark.root
@pytest.mark.parametrize(("size", "status", "exit_code"), [("64m", "less", 1), ("512k", "broken", 2)])
def test_a_small_dev_shm_made_for_real(size: str, status: str, exit_code: int) -> None:
    """In a mount namespace of its own, as in a container; 512 kB are not enough for any region."""
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    found = run("unshare", "-m", "sh", "-c", script, "sh", *COMMAND, expect=exit_code)
    assert found["dev-shm"]["status"] == status
    assert any("remount,size=" in one for one in found["dev-shm"]["commands"])


def test_large_pages_switched_off_for_this_process() -> None:
    """As a service manager or a wrapper may do."""
    code = "import ctypes, os, sys\nassert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0\nos.execv(sys.argv[1], sys.argv[1:])"
    found = run(sys.executable, "-c", code, *COMMAND)
    assert found["thp"]["status"] == "less"
    assert "PR_SET_THP_DISABLE" in found["thp"]["answer"]


@pytest.mark.root
def test_what_the_dead_left_is_found(unique: str) -> None:
    """A region whose only process was killed, with its memory; `gc` is the remedy, and helps."""
    code = f"import os, sharedregion as sr\nr = sr.create('{unique}', size='8 MiB', backend='shm')\nr['x'] = bytes(1 << 20)\nos.kill(os.getpid(), 9)"
    assert (
        subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=False).returncode == -9
    )
    one = run(*COMMAND)["leftovers"]
    assert one["status"] == "less"
    assert any(unique in text for text in one["evidence"])
    assert one["commands"] == ["sharedregion gc"]
    subprocess.run([sys.executable, "-P", "-m", "sharedregion", "gc"], capture_output=True, check=True)
    assert not any(unique in text for text in run(*COMMAND)["leftovers"]["evidence"])


NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


@pytest.mark.root
def test_the_helpers_remedy_works_as_it_stands(nobodys_python: str) -> None:
    """As an ordinary user page tables are estimated; after root ran the named commands they are read exactly.

    In a mount namespace: nothing is installed on this machine.
    """
    if shutil.which("setcap") is None:
        pytest.skip("setcap is not installed")
    doctor_command = " ".join([*NOBODY, nobodys_python, "-P", "-m", "sharedregion", "doctor", "--json"])
    script = (
        "mount -t tmpfs -o mode=755 tmpfs /usr/local && cd /\n"
        f"{doctor_command} > $1/before; echo $? >> $1/codes\n"
        "PATH=$PATH:/sbin:/usr/sbin sh -e $1/remedy $1/before || exit 1\n"
        f"{doctor_command} > $1/after; echo $? >> $1/codes\n"
    )
    python = sys.executable
    remedy = (
        f"{python} -c \"import json, sys; [print(c.removeprefix('sudo ')) for f in "
        "json.load(open(sys.argv[1]))['findings'] if f['check'] == 'helper' for c in f['commands']]\" $1 | sh -ex\n"
    )
    import tempfile

    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o777)
        Path(folder, "remedy").write_text(remedy)
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", folder], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        before, after = (
            {one["check"]: one for one in json.loads(Path(folder, name).read_text())["findings"]}["helper"]
            for name in ("before", "after")
        )
    assert before["status"] == "less"
    assert "estimated" in before["answer"]
    assert [command.split()[:2] for command in before["commands"]] == [
        ["sudo", "install"],
        ["sudo", "setcap"],
    ]
    assert after["status"] == "ok", after
    assert "this user's processes are read exactly" in after["answer"]


def test_doctor_text_holds_nothing_that_moves_a_terminal() -> None:
    """And names every question."""
    done = subprocess.run([*COMMAND, "--verbose"], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1)
    assert all(c.isprintable() or c == "\n" for c in done.stdout)
    assert all(check.name in done.stdout for check in doctor.CHECKS)
