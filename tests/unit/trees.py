"""Made-up trees of /proc and /sys, as files in a folder."""

from pathlib import Path

POOL = "sys/kernel/mm/hugepages/hugepages-{kib}kB"
THP = "sys/kernel/mm/transparent_hugepage"
ROOT_MOUNT = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
SHM_MOUNT = "25 22 0:23 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw,size=65536k\n"


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return str(root)


def pool(
    kib: int, total: int, free: int, reserved: int = 0, surplus: int = 0, overcommit: int = 0
) -> dict[str, str]:
    folder = POOL.format(kib=kib)
    return {
        f"{folder}/nr_hugepages": f"{total}\n",
        f"{folder}/free_hugepages": f"{free}\n",
        f"{folder}/resv_hugepages": f"{reserved}\n",
        f"{folder}/surplus_hugepages": f"{surplus}\n",
        f"{folder}/nr_overcommit_hugepages": f"{overcommit}\n",
    }
