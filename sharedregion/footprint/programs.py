"""Programs that can use large pages for the memory they share, and the setting of each.

To add one: its process names, what it shares memory by, and what to set for pages of either size.
`{pages}` is the number of pages that it would need.
"""

from __future__ import annotations

import dataclasses
import fnmatch

__all__ = ["PROGRAMS", "Program", "program_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """`commands` are patterns of process names. `large` and `huge` say what to set for 2 MiB and 1 GiB pages."""

    name: str
    commands: tuple[str, ...]
    memory: tuple[str, ...]
    large: tuple[tuple[str, str | None], ...]
    huge: tuple[tuple[str, str | None], ...] = ()


PROGRAMS = (
    Program(
        "PostgreSQL",
        ("postgres", "postmaster"),
        ("shared anonymous", "System V"),
        large=(
            (
                "PostgreSQL's exact number of pages (version 15 and newer, server stopped)",
                "postgres -D DATA -C shared_memory_size_in_huge_pages",
            ),
            ("PostgreSQL's setting; then restart it", "psql -c \"ALTER SYSTEM SET huge_pages = 'on'\""),
        ),
        huge=(
            ("PostgreSQL's setting", "psql -c \"ALTER SYSTEM SET huge_pages = 'on'\""),
            (
                "and, from version 14 on; then restart it",
                "psql -c \"ALTER SYSTEM SET huge_page_size = '1GB'\"",
            ),
        ),
    ),
    Program(
        "Oracle Database",
        ("oracle*", "ora_*"),
        ("System V", "shared anonymous", "POSIX shared memory"),
        large=(
            (
                "Oracle's setting; then restart the instance",
                "ALTER SYSTEM SET use_large_pages = only SCOPE = SPFILE;",
            ),
        ),
    ),
    Program(
        "QEMU",
        ("qemu*", "kvm"),
        ("memfd", "POSIX shared memory", "shared anonymous", "file"),
        large=(
            (
                "QEMU's option for the guest's memory (libvirt: <memoryBacking><hugepages/>)",
                "-object memory-backend-memfd,id=ram0,size=SIZE,share=on,hugetlb=on,hugetlbsize=2M",
            ),
        ),
        huge=(
            (
                "QEMU's option for the guest's memory",
                "-object memory-backend-memfd,id=ram0,size=SIZE,share=on,hugetlb=on,hugetlbsize=1G",
            ),
        ),
    ),
)


def program_of(commands: tuple[tuple[str, int], ...], memory: str) -> Program | None:
    """The known program that most of `commands` are, if it shares memory of that kind."""
    for command, _ in sorted(commands, key=lambda one: -one[1]):
        for program in PROGRAMS:
            if memory in program.memory and any(
                fnmatch.fnmatchcase(command, glob) for glob in program.commands
            ):
                return program
    return None
