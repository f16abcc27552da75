"""What a question is, and what an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from sharedregion import _policy
from sharedregion._kernel.facts import Facts, gather
from sharedregion._kernel.mounts import Mount, ShmSpace, mount_table
from sharedregion._machine import machine
from sharedregion.inventory import RegionInfo

__all__ = ["BROKEN", "LESS", "NOTE", "OK", "Check", "Finding", "Scene"]

#: As it should be; worth knowing, nothing to do; something works less well than it could; nothing works.
OK, NOTE, LESS, BROKEN = "ok", "note", "less", "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer. `commands` are for the user to run, as they stand; `advice` is what no command does."""

    check: str
    question: str
    status: str
    answer: str
    evidence: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    advice: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"evidence": list(self.evidence), "commands": list(self.commands)}


class Check(ABC):
    """One question."""

    name: ClassVar[str]
    question: ClassVar[str]

    @abstractmethod
    def look(self, scene: Scene) -> Finding:
        """The answer. OSError, ValueError and errors of the family are caught by the caller."""

    def found(
        self,
        status: str,
        answer: str,
        evidence: tuple[str, ...] | list[str] = (),
        commands: tuple[str, ...] | list[str] = (),
        advice: str | None = None,
    ) -> Finding:
        """An answer to this question."""
        return Finding(self.name, self.question, status, answer, tuple(evidence), tuple(commands), advice)


class Scene:
    """What the questions look at: the machine, or a tree that stands for one."""

    def __init__(self, root: str = "/", shm: ShmSpace | None = None) -> None:
        self.root = root
        self._shm = shm

    @property
    def live(self) -> bool:
        """Whether this is the machine itself, where things can be tried."""
        return self.root == "/"

    @cached_property
    def facts(self) -> Facts:
        """What the choice of a backend rests on."""
        facts = machine() if self.live else gather(self.root)
        return facts if self._shm is None else replace(facts, shm=self._shm)

    @cached_property
    def mounts(self) -> list[Mount]:
        """The mount table."""
        return mount_table(self.root)

    @cached_property
    def regions(self) -> list[RegionInfo]:
        """The machine's regions; none of a tree."""
        from sharedregion import inventory

        return inventory.regions() if self.live else []

    def candidate(self, name: str) -> _policy.Candidate:
        """What the policy says of one kind of memory."""
        return next(one for one in _policy.survey(self.facts) if one.name == name)

    def as_root(self, command: str) -> str:
        """The command, for somebody who is not root."""
        return command if self.facts.root_user else f"sudo {command}"

    def owned(self, command: str, uid: int | None) -> str:
        """The command, for whoever owns what it removes."""
        import os

        mine = uid is None or uid == os.geteuid()
        if mine:
            return command
        return (
            f"{command} --owner {uid}"
            if "sharedregion unlink" in command and self.facts.root_user
            else f"sudo {command}"
        )

    def write(self, value: object, path: str) -> str:
        """The command that writes to a file of the kernel."""
        return f"echo {value} > {path}" if self.facts.root_user else f"echo {value} | sudo tee {path}"
