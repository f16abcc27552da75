"""The store against a dict, on every kind of memory, its writers and readers in different processes."""

import importlib.util
import os
import pickle
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import sharedregion as sr

_spec = importlib.util.spec_from_file_location("kinds", Path(__file__).parent.parent / "kinds.py")
assert _spec and _spec.loader
kinds = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kinds)

WORKERS = 3
#: `make fuzz` asks for more.
EXAMPLES = int(os.environ.get("SHAREDREGION_STATEFUL", "30"))

KEYS = st.sampled_from(["a", "b", "c", "d", "a longer name than fits beside its description " * 3, "größe"])
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.sampled_from([0, 1, 7, 64, 500, 4096, 5000, 40_000, 300_000])
WHO = st.integers(0, WORKERS - 1)


def value_of(seed: int, size: int) -> Any:
    """An array, text, bytes or object that is told by its seed."""
    random = np.random.default_rng(seed)
    match seed % 6:
        case 0 | 1:
            return random.integers(0, 255, size, dtype="u1")
        case 2:
            return np.asfortranarray(random.random((size // 16 + 1, 2)))
        case 3:
            return random.bytes(size)
        case 4:
            return "text " * (size // 5)
        case _:
            return {"array": random.random(size // 8), "list": [seed]}


def same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, np.ndarray):
        return value.dtype == wanted.dtype and value.shape == wanted.shape and bool((value == wanted).all())
    if isinstance(wanted, dict):
        return bool(value["list"] == wanted["list"] and (value["array"] == wanted["array"]).all())
    return bool(value == wanted)


class Process:
    """A worker, as the machine talks to it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __call__(self, operation: str, *arguments: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        pickle.dump((operation, arguments), self.process.stdin)
        self.process.stdin.flush()
        error, result = pickle.load(self.process.stdout)
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        self.process.communicate()


def machine(make: Callable[[str], sr.Region], processes: list[Process]) -> type[RuleBasedStateMachine]:
    """The state machine, with regions of one kind and these workers."""

    class Store(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.region = make(f"test-{secrets.token_hex(6)}")
            self.model: dict[str, Any] = {}
            self.mutable: set[str] = set()
            self.versions: dict[str, int] = {}
            self.newest = 0
            self.held: dict[int, tuple[int, Any]] = {}  # number -> whose, what it should stay
            self.count = 0
            self.sealed = False
            for process in processes:
                process("open", self.region.name)

        def teardown(self) -> None:
            for who, process in enumerate(processes):
                for number, (whose, wanted) in self.held.items():
                    if whose == who:
                        assert same(process("look", number), wanted)
                        process("drop", number)
            if not self.sealed:
                for key in list(self.model):
                    processes[0]("delete", key)
                # Nobody looks at anything any more: every block is back.
                assert processes[0]("numbers") == (0, 0, 0)
            for process in processes:
                process("close")
            self.region.close()

        def changes(self, who: int, operation: str, *arguments: Any) -> bool:
            """Whether it was carried out; it is refused if and only if the region is sealed or full."""
            try:
                self.result = processes[who](operation, *arguments)
            except sr.ReadOnlyRegion:
                assert self.sealed
                return False
            except sr.RegionFull as error:
                assert error.wanted > error.largest
                return False
            assert not self.sealed
            return True

        def placed(self, key: str, value: Any, *, mutable: bool = False) -> None:
            self.model[key] = value
            (self.mutable.add if mutable else self.mutable.discard)(key)
            self.saw_version(key)

        def saw_version(self, key: str) -> None:
            version = processes[0]("version", key)
            assert version > self.newest, "a version is given once, and they only grow"
            self.newest = self.versions[key] = version

        @rule(who=WHO, key=KEYS, seed=SEEDS, size=SIZES)
        def put(self, who: int, key: str, seed: int, size: int) -> None:
            value = value_of(seed, size)
            if self.changes(who, "set", key, value):
                self.placed(key, value)

        @rule(who=WHO, key=KEYS, seed=SEEDS, size=st.sampled_from([1, 100, 5000]))
        def put_mutable(self, who: int, key: str, seed: int, size: int) -> None:
            value = np.random.default_rng(seed).random(size)
            if self.changes(who, "put", key, value, True):
                self.placed(key, value.copy(), mutable=True)
                assert self.result == self.versions[key]

        @rule(who=WHO, key=KEYS, seed=SEEDS, size=SIZES, commit=st.booleans())
        def allocate(self, who: int, key: str, seed: int, size: int, commit: bool) -> None:
            value = np.random.default_rng(seed).random(size // 8)
            if self.changes(who, "allocate", key, value, commit) and commit:
                self.placed(key, value)

        @rule(who=WHO, key=KEYS)
        def delete(self, who: int, key: str) -> None:
            try:
                if self.changes(who, "delete", key):
                    del self.model[key]
                    self.mutable.discard(key)
            except sr.ObjectNotFound:
                assert key not in self.model

        @precondition(lambda self: self.mutable)
        @rule(who=WHO, data=st.data(), seed=SEEDS)
        def write_in_place(self, who: int, data: st.DataObject, seed: int) -> None:
            key = data.draw(st.sampled_from(sorted(self.mutable)))
            array = self.model[key]
            start = seed % len(array)
            numbers = np.random.default_rng(seed).random(min(len(array) - start, 10))
            try:
                processes[who]("write", key, start, numbers)
            except ValueError:
                # Attached again since the region was sealed: for reading.
                assert self.sealed
                return
            array[start : start + len(numbers)] = numbers

        @rule(who=WHO, key=KEYS)
        def publish(self, who: int, key: str) -> None:
            try:
                processes[who]("publish", key)
            except sr.ObjectNotFound:
                assert key not in self.model
            except sr.ReadOnlyRegion:
                assert self.sealed or key not in self.mutable
            else:
                assert key in self.mutable and not self.sealed
                self.saw_version(key)

        @rule(who=WHO, key=KEYS)
        def wait(self, who: int, key: str) -> None:
            if key in self.model:
                assert processes[who]("wait", key, self.versions[key] - 1) == self.versions[key]
            with pytest.raises(sr.RegionTimeout):
                processes[who]("wait", key, self.newest)

        @rule(who=WHO, key=KEYS)
        def hold(self, who: int, key: str) -> None:
            try:
                processes[who]("hold", self.count, key)
            except sr.ObjectNotFound:
                assert key not in self.model
            else:
                # A mutable array is shared with the model: it shows what is written to it later.
                self.held[self.count] = (who, self.model[key])
                self.count += 1

        @precondition(lambda self: self.held)
        @rule(data=st.data())
        def look_and_drop(self, data: st.DataObject) -> None:
            number = data.draw(st.sampled_from(sorted(self.held)))
            who, wanted = self.held.pop(number)
            assert same(processes[who]("look", number), wanted)
            processes[who]("drop", number)

        @rule(who=WHO)
        def close_and_attach_again(self, who: int) -> None:
            # What is sealed is attached for reading alone.
            assert processes[who]("reattach") != self.sealed

        @rule(who=WHO)
        def trim(self, who: int) -> None:
            try:
                processes[who]("trim")
            except sr.ReadOnlyRegion:
                assert self.sealed

        @precondition(lambda self: self.count > 3)
        @rule(who=WHO, really=st.sampled_from([False] * 7 + [True]))
        def seal(self, who: int, really: bool) -> None:
            if really:
                try:
                    processes[who]("seal")
                except sr.ReadOnlyRegion:
                    assert self.sealed
                self.sealed = True

        @rule(who=WHO, key=KEYS)
        def get(self, who: int, key: str) -> None:
            try:
                value = processes[who]("get", key)
            except sr.ObjectNotFound:
                assert key not in self.model
            else:
                assert same(value, self.model[key])

        @invariant()
        def is_whole(self) -> None:
            """Every invariant of catalog and allocator; names as in the model; a pinned array unchanged."""
            who = self.count % WORKERS
            assert sorted(processes[who]("listing")) == sorted(self.model)
            for number, (whose, wanted) in list(self.held.items())[:1]:
                assert same(processes[whose]("look", number), wanted)

    return Store


@pytest.fixture(params=kinds.KINDS)
def make(
    request: pytest.FixtureRequest, pool: Callable[[int, int], None], msharefs: Callable[[int], Any]
) -> Callable[[str], sr.Region]:
    """A region of the kind, by its name."""
    if request.param in kinds.UNITS:
        msharefs(kinds.UNITS[request.param])
    if request.param in kinds.POOLS:
        pool(*kinds.POOLS[request.param])
    return lambda name: kinds.make(request.param, name, "1 MiB")


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started = [Process() for _ in range(WORKERS)]
    yield started
    for process in started:
        process.end()


def test_store_is_a_dict(
    request: pytest.FixtureRequest, make: Callable[[str], sr.Region], processes: list[Process]
) -> None:
    """Whatever members of several processes do, it is a dict with versions, and held arrays stay as they were."""
    run_state_machine_as_test(
        machine(make, processes),
        settings=settings(
            # Every region of one 1 GiB page is a GiB to be cleared.
            max_examples=max(2, EXAMPLES // 8) if "hugetlb-1g" in request.node.name else EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
            print_blob=True,
        ),
    )
