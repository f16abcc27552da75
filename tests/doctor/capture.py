"""Prints what `doctor` reads of this machine, as one text file to be kept in trees/: python capture.py > trees/NAME.txt

What names the machine is replaced: the kernel's local suffix, and groups' paths below the root.
"""

import glob
import gzip
import os
import re
from pathlib import Path

FILES = [
    "/proc/filesystems", "/proc/meminfo", "/proc/self/cgroup", "/proc/self/mountinfo", "/proc/self/limits",
    "/proc/sys/kernel/osrelease", "/sys/kernel/security/lockdown",
    "/sys/kernel/mm/hugepages/*/*_hugepages",
    "/sys/kernel/mm/transparent_hugepage/*enabled", "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
    "/sys/kernel/mm/transparent_hugepage/hugepages-*/shmem_enabled",
]  # fmt: skip
#: There or not; what is in them does not matter.
MARKS = ["/sys/kernel/btf/vmlinux", "/proc/kcore", "/sys/fs/mshare"]
OPTIONS = re.compile(
    r"CONFIG_(MEM_SOFT_DIRTY|BPF_SYSCALL|PROC_KCORE|DEBUG_INFO_BTF|HUGETLBFS|TRANSPARENT_HUGEPAGE|PT_RECLAIM)="
)
KEPT = ("/", "/proc", "/sys", "/dev/shm", "/sys/fs/cgroup")


def contents(path: str) -> str:
    text = Path(path).read_text(errors="replace")
    if path.endswith("osrelease"):
        return re.match(r"[0-9.]+", text)[0] + "\n"  # type: ignore[index]
    if path.endswith("cgroup"):
        return re.sub(r"(?m)^(\d+:[^:]*:/).*$", r"\1", text)
    if path.endswith("mountinfo"):
        lines = [
            line
            for line in text.splitlines()
            if line.split()[4].startswith(KEPT[1:]) or line.split()[4] == "/"
        ]
        return "".join(re.sub(r" - (\S+) \S+ ", r" - \1 none ", line) + "\n" for line in lines)
    return text


def main() -> None:
    room = os.statvfs("/dev/shm")
    print(f"shm {room.f_blocks * room.f_frsize} {room.f_bavail * room.f_frsize}")
    for pattern in FILES:
        for path in sorted(glob.glob(pattern)):
            print(f"=== {path}\n{contents(path)}", end="")
    for path in MARKS:
        if os.path.exists(path):
            print(f"=== {path}")
    with gzip.open("/proc/config.gz", "rt") as file:
        options = "".join(line for line in file if OPTIONS.match(line))
    print(f"=== /boot/config-{contents('/proc/sys/kernel/osrelease').strip()}\n{options}", end="")
    status = Path("/proc/self/status").read_text().splitlines()
    print("=== /proc/0/status")
    print(
        "\n".join(
            line for line in status if line.split(":")[0] in ("Uid", "NSpid", "HugetlbPages", "THP_enabled")
        )
    )
    smaps = Path("/proc/self/smaps").read_text().splitlines()
    print("=== /proc/self/smaps")
    print(
        "\n".join(
            ["00400000-00401000 r--p 00000000 00:00 0 ", *[x for x in smaps if x.startswith("VmFlags")][:1]]
        )
    )


if __name__ == "__main__":
    main()
