"""A member in a process of its own that does as it is told: commands come by a pipe, answers go back.

Pickled (operation, arguments) on standard input, pickled (error or None, result) on
standard output. Arrays that it is told to hold are pinned until it is told to drop them.
"""

import contextlib
import pickle
import sys
from typing import Any

import numpy as np

import sharedregion as sr


class Worker:
    """The operations, as methods."""

    name: str
    region: sr.Region

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}

    def put(self, key: str, value: Any, mutable: bool) -> int:
        return self.region.put(key, value, mutable=mutable)

    def set(self, key: str, value: Any) -> None:
        self.region[key] = value

    def allocate(self, key: str, value: np.ndarray, commit: bool) -> None:
        class Abort(Exception):
            pass

        try:
            with self.region.allocate(key, value.shape, value.dtype) as array:
                array[...] = value
                if not commit:
                    raise Abort
        except Abort:
            pass

    def delete(self, key: str) -> None:
        del self.region[key]

    def get(self, key: str) -> Any:
        value = self.region[key]
        return bytes(value) if isinstance(value, memoryview) else value

    def write(self, key: str, start: int, numbers: np.ndarray) -> None:
        self.region[key][start : start + len(numbers)] = numbers

    def publish(self, key: str) -> int:
        return self.region.publish(key)

    def version(self, key: str) -> int:
        return self.region.version(key)

    def wait(self, key: str, newer_than: int) -> int:
        return self.region.wait(key, 0.01, newer_than=newer_than)

    def hold(self, number: int, key: str) -> None:
        self.held[number] = self.region[key]

    def look(self, number: int) -> Any:
        value = self.held[number]
        return bytes(value) if isinstance(value, memoryview) else value

    def drop(self, number: int) -> None:
        del self.held[number]

    def reattach(self) -> bool:
        """Whether it may write."""
        self.region.close()
        try:
            self.region = sr.attach(self.name, writable=True)
        except sr.ReadOnlyRegion:
            self.region = sr.attach(self.name)
            return False
        return True

    def listing(self) -> list[str]:
        # Who may only read cannot take the lock to look at everything.
        with contextlib.suppress(sr.ReadOnlyRegion):
            self.region._check()
        assert len(self.region) == len(list(self.region))
        return list(self.region)

    def trim(self) -> None:
        self.region.trim()

    def seal(self) -> None:
        self.region.seal()

    def numbers(self) -> tuple[int, int, int]:
        self.region._sweep()
        stats = self.region.stats()
        return stats.objects, stats.withdrawn, stats.used

    def open(self, name: str) -> None:
        self.name = name
        self.region = sr.attach(name, writable=True)

    def close(self) -> None:
        self.held.clear()
        self.region.close()


def main() -> None:
    worker = Worker()
    answers = sys.stdout.buffer
    while True:
        try:
            operation, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        try:
            answer = None, getattr(worker, operation)(*arguments)
        except Exception as error:  # noqa: BLE001  whoever asked decides what it means
            error.__traceback__ = None
            answer = error, None
        pickle.dump(answer, answers)
        answers.flush()
        del answer


main()
