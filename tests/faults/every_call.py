"""A program: one operation on one kind of memory, with each of its kernel calls made to fail once.

every_call.py TESTS KIND OPERATION NAME prints one JSON object: how many cases there were, and what
was wrong in which. Each case has a process of its own, so that a crash or a hang is that case's.
"""

import contextlib
import errno
import gc
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

import sharedregion as sr
from sharedregion import _native, references

sys.path.insert(0, sys.argv[1])
import kinds

PATIENCE = 60.0

#: What each call answers when it fails in life. Answers that would be untrue of what is there (ENOENT
#: for a file that exists) are left out: those are other tests'.
ERRORS = {
    "openat": (errno.EMFILE, errno.ENOMEM, errno.EACCES),
    "close": (errno.EIO,),
    "pread": (errno.EIO,),
    "read": (errno.EIO,),
    "write": (errno.ENOSPC,),
    "fstatfs": (errno.ENOMEM,),
    "ioctl": (errno.ENOMEM, errno.EINVAL, errno.ENOTTY),
    "fstat": (errno.ENOMEM,),
    "fstatat": (errno.ENOMEM, errno.EACCES),
    "ftruncate": (errno.ENOMEM, errno.EFBIG),
    "fallocate": (errno.ENOSPC, errno.ENOMEM),
    "fchmod": (errno.EPERM,),
    "fchmodat": (errno.EPERM,),
    "linkat": (errno.ENOSPC, errno.ENOENT, errno.EEXIST),
    "renameat": (errno.ENOSPC,),
    "unlinkat": (errno.EPERM, errno.ENOMEM),
    "fcntl_lock": (errno.ENOLCK,),
    "mmap": (errno.ENOMEM,),
    "munmap": (errno.ENOMEM,),
    "madvise": (errno.ENOMEM, errno.EAGAIN, errno.EINVAL),
    "memfd_create": (errno.EMFILE, errno.ENOMEM),
    "futex_wait": (errno.EINTR, errno.EAGAIN),
    "futex_wake": (errno.EFAULT,),
    "clock_gettime": (errno.EINVAL,),
    "socket": (errno.EMFILE, errno.ENOMEM),
    "bind": (errno.ENOSPC, errno.EADDRINUSE),
    "listen": (errno.EADDRINUSE,),
    "connect": (errno.ECONNREFUSED, errno.EAGAIN),
    "getsockopt": (errno.ENOBUFS,),
    "setsockopt": (errno.ENOMEM,),
    "sendmsg": (errno.EPIPE, errno.ENOBUFS),
    "recvmsg": (errno.ECONNRESET, errno.EAGAIN),
    "getrandom": (errno.ENOSYS,),
    "spawn_detached": (errno.EAGAIN, errno.ENOENT),
}

#: Calls whose failure an operation may survive, and why.
HARMLESS = {
    "fstat": "a descriptor that cannot be told from another file's is left alone, and opened anew",
    "close": "the descriptor is released all the same",
    "fstatfs": "memory that is not told from hugetlb is taken for pages that can be",
    "munmap": "address space stays in use",
    "madvise": "small pages serve, or a fork copies a row",
    "clock_gettime": "a time that is shown is 0",
    "futex_wake": "sleepers look every few milliseconds",
    "futex_wait": "it is a hint to look again",
    "linkat": "there are two ways to name a file, and EEXIST may be of the dead",
}
#: The same, of some operations alone.
HINTS = {
    ("create", "openat"): "a look at the name beforehand, for a better error",
    ("create", "fstatat"): "the same",
    ("create whole", "openat"): "the same",
    ("create whole", "fstatat"): "the same",
    ("attach", "fcntl_lock"): "who cannot be probed counts as alive, and joining takes a lock of its own",
    ("attach to write", "fcntl_lock"): "the same",
    ("claim", "fcntl_lock"): "the same",
    ("many pins", "fcntl_lock"): "another row is taken",
    ("grow", "fallocate"): "large pages, or a larger index, at the next put",
    ("replace", "openat"): "names of the old generation, which its last member removes",
    ("replace", "pread"): "the same",
    **dict.fromkeys([("replace", call) for call in ("fstatat", "unlinkat", "fcntl_lock")], "the same"),
    **dict.fromkeys(
        [("unlink", call) for call in ("openat", "fcntl_lock", "socket", "connect", "getsockopt")]
        + [("unlink", call) for call in ("setsockopt", "sendmsg", "recvmsg")],
        "the keeper is told to look at once; it looks every two seconds",
    ),
    ("unlink", "fstatat"): "names without a catalog, which the next create takes",
    **dict.fromkeys(
        [("numbers", call) for call in ("openat", "pread", "fstatat", "fcntl_lock")],
        "a region that cannot be looked at is not listed, who cannot be probed counts as alive",
    ),
    ("delete", "fcntl_lock"): "who cannot be probed counts as alive",
    ("put replacing", "fcntl_lock"): "the same",
    ("grow", "fcntl_lock"): "the same",
}


# --- what a process has --------------------------------------------------------------------------


def maps_of_regions() -> list[str]:
    with open("/proc/self/maps") as lines:
        return sorted(
            " ".join(line.split()[1:3] + line.split()[5:6])
            for line in lines
            if "/dev/shm/" in line or "memfd:sharedregion" in line
        )


def descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if not target.startswith("/proc"):
                found.append(target)
    return sorted(found)


def names(name: str) -> list[str]:
    return sorted(file for file in os.listdir("/dev/shm") if name in file)


def keepers(name: str) -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().split(b"\0")[:2] == [b"sharedregion-keeper", name.encode()]:
                found.append(int(pid))
    return found


def nameless() -> set[str]:
    """Sockets of keepers, and catalogs about to take a name: their names tell nothing of the region's."""
    return {file for file in os.listdir("/dev/shm") if file.endswith((".keeper", ".new"))}


def comes_true(check: Callable[[], Any], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# --- operations ----------------------------------------------------------------------------------


class Case:
    """One process's region, and what is to be done with it. `act` can be done again after a failure."""

    exists = True  # before act

    def __init__(self, kind: str, name: str) -> None:
        self.kind, self.name = kind, name
        self.open: list[Any] = []
        self.array: Any = None

    def host(self, **options: Any) -> sr.Region:
        region = kinds.make(self.kind, self.name, **options)
        self.open.append(region)
        return region

    def prepare(self) -> None:
        if self.exists:
            region = self.host()
            region["a"] = np.arange(100)
            region["big"] = np.full(70_000, 7, "u1")
            region["text"] = "what was there before"

    def act(self) -> None:
        """The operation itself; each case has its own."""

    def content(self) -> dict[str, Any] | None:
        """Of the region by that name, whole, and with every invariant looked at."""
        try:
            with sr.attach(self.name, writable=True) as region:
                region._check()
                return {key: repr(np.asarray(value).tolist()) for key, value in region.items()}
        except sr.RegionNotFound:
            return None


class Create(Case):
    exists = False

    def act(self) -> None:
        self.host()


class CreateWhole(Case):
    exists = False

    def act(self) -> None:
        self.host(commit="full")


class Replace(Case):
    def act(self) -> None:
        self.host(replace=True)


class Attach(Case):
    def act(self) -> None:
        self.open.append(sr.attach(self.name))


class AttachToWrite(Case):
    def act(self) -> None:
        self.open.append(sr.attach(self.name, writable=True))


class PutSmall(Case):
    def act(self) -> None:
        self.open[0]["small"] = np.arange(10)


class PutLarge(Case):
    def act(self) -> None:
        self.open[0]["large"] = np.full(1_500_000, 3, "u1")


class PutReplacing(Case):
    def act(self) -> None:
        self.open[0]["a"] = np.arange(50_000)


class PutPickle(Case):
    def act(self) -> None:
        self.open[0]["dict"] = {"weights": np.arange(3000), "name": "model"}


class Grow(Case):
    """The catalog grows beyond its first generation: entries, blocks, index."""

    def act(self) -> None:
        for n in range(1100):
            self.open[0][f"n{n}"] = np.array([n])


class Allocate(Case):
    def act(self) -> None:
        with self.open[0].allocate("allocated", 30_000, "f4") as array:
            array[:] = 2


class AllocateAborted(Case):
    def act(self) -> None:
        with contextlib.suppress(ZeroDivisionError), self.open[0].allocate("never", 30_000, "f4") as array:
            array[:] = 1 / 0


class Delete(Case):
    def act(self) -> None:
        if "big" in self.open[0]:
            del self.open[0]["big"]


class ManyPins(Case):
    """More pins than a row has: a second one is taken."""

    def prepare(self) -> None:
        super().prepare()
        for n in range(420):
            self.open[0][f"n{n}"] = np.array([n])

    def act(self) -> None:
        held = [self.open[0][f"n{n}"] for n in range(420)]
        assert [int(x[0]) for x in held] == list(range(420))
        self.open += held


class Fork(Case):
    def prepare(self) -> None:
        super().prepare()
        self.array = self.open[0]["a"]

    def act(self) -> None:
        pid = os.fork()
        if pid == 0:
            _native.fail_none()
            # Without a row the child is no member: then it says so, and what it looks at is its parent's.
            try:
                good = self.open[0]["text"] == "what was there before"
            except sr.SharedRegionError:
                good = True
            os._exit(0 if good and self.array.sum() == 4950 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the child"


class Close(Case):
    def act(self) -> None:
        while self.open:
            self.open.pop().close()


class CloseOneOfTwo(Case):
    def prepare(self) -> None:
        super().prepare()
        self.open.append(sr.attach(self.name))

    def act(self) -> None:
        if len(self.open) > 1:
            self.open.pop().close()


class Unlink(Case):
    def act(self) -> None:
        with contextlib.suppress(sr.RegionNotFound):
            sr.unlink(self.name)


class Claim(Case):
    """A reference to a region that this process does not have open."""

    payload: Any = None

    def act(self) -> None:
        # The same one at the second try: a reference that nobody claims holds its object.
        self.payload = self.payload or ForkingPickler.dumps(self.open[0]["a"])
        references._handles.clear()
        array = ForkingPickler.loads(self.payload)
        assert array.sum() == 4950
        self.open.append(array)


class Numbers(Case):
    def act(self) -> None:
        region = self.open[0]
        assert region.stats().objects == 3
        region.members()
        sr.regions()


class Trim(Case):
    def act(self) -> None:
        self.open[0].trim()


class Repair(Case):
    def act(self) -> None:
        self.open[0].repair()


class Wait(Case):
    def act(self) -> None:
        region = self.open[0]
        version = region.version("a")
        with contextlib.suppress(sr.RegionTimeout):
            region.wait("a", 0.01, newer_than=version)
            raise AssertionError("there is no newer version")


class Seal(Case):
    def act(self) -> None:
        self.open[0].seal()

    def content(self) -> dict[str, Any] | None:
        """Nobody can attach for writing any more: who was there before looks."""
        try:
            with sr.attach(self.name) as reader:
                if reader.stats().sealed:
                    self.open[0]._check()
                    return {key: repr(np.asarray(value).tolist()) for key, value in reader.items()}
        except sr.RegionNotFound:
            return None
        return super().content()


OPERATIONS = {
    "create": Create,
    "create whole": CreateWhole,
    "replace": Replace,
    "attach": Attach,
    "attach to write": AttachToWrite,
    "put small": PutSmall,
    "put large": PutLarge,
    "put replacing": PutReplacing,
    "put pickle": PutPickle,
    "grow": Grow,
    "allocate": Allocate,
    "allocate aborted": AllocateAborted,
    "delete": Delete,
    "many pins": ManyPins,
    "fork": Fork,
    "close": Close,
    "close one of two": CloseOneOfTwo,
    "unlink": Unlink,
    "claim": Claim,
    "numbers": Numbers,
    "trim": Trim,
    "repair": Repair,
    "wait": Wait,
    "seal": Seal,
}


# --- one case ------------------------------------------------------------------------------------


def clean_run(case: Case) -> dict[str, Any]:
    """How often each call is made, and what the operation leaves."""
    case.prepare()
    before = case.content()
    had = descriptors(), maps_of_regions()
    _native.count_calls()
    case.act()
    counts = _native.calls()
    _native.fail_none()
    gc.collect()
    grown = len(descriptors()) - len(had[0]), len(maps_of_regions()) - len(had[1])
    result = {"calls": counts, "before": before, "after": case.content(), "grown": grown}
    finish(case, [])
    return result


def finish(case: Case, wrong: list[str]) -> None:
    """Close everything; nothing of it may remain."""
    case.array = None
    while case.open:
        last = case.open.pop()
        if isinstance(last, sr.Region):
            last.close()
        del last
    gc.collect()
    if not comes_true(lambda: not names(case.name) and not keepers(case.name)):
        wrong.append(f"left at the end: {names(case.name)}, keepers {keepers(case.name)}")


def faulty_run(
    operation: str, case: Case, good: dict[str, Any], call: str, nth: int, number: int
) -> list[str]:
    wrong: list[str] = []
    others = nameless()
    case.prepare()
    gc.collect()
    had = descriptors(), maps_of_regions(), names(case.name), len(keepers(case.name))
    count = len(case.open)
    _native.fail_call(call, nth, number)
    error = None
    try:
        case.act()
    except sr.SharedRegionError as caught:
        error = caught
        if not isinstance(caught.errno, int) or not caught.message:
            wrong.append(f"an error without number or text: {caught!r}")
        # Frames would hold arrays.
        caught.__traceback__ = caught.__cause__ = caught.__context__ = None
    except BaseException as caught:  # noqa: BLE001  what it is, is the finding
        wrong.append(f"an error of another family: {caught!r}")
        error = caught  # type: ignore[assignment]
    _native.fail_none()
    gc.collect()
    # close() and fork have nobody to tell: what they could not do, others do.
    silent = call in HARMLESS or (operation, call) in HINTS or isinstance(case, Close | CloseOneOfTwo | Fork)
    if error is None and not silent:
        wrong.append("the failure was passed over")
    # --- nothing leaked
    fds, maps = descriptors(), maps_of_regions()
    fd_room, map_room = (0, 0) if error is not None else good["grown"]
    if error is not None and len(case.open) > count:
        fd_room, map_room = good["grown"]  # the first half of the operation had gone well
    if error is not None or not isinstance(case, Close | CloseOneOfTwo):
        if len(fds) > len(had[0]) + max(fd_room, 0) and call != "fstat":
            wrong.append(f"descriptors: {[fd for fd in fds if fd not in had[0]]}")
        if len(maps) > len(had[1]) + max(map_room, 0) and call != "munmap" and not isinstance(case, Grow):
            wrong.append(f"maps: {had[1]} -> {maps}")
    as_before = lambda: names(case.name) == had[2] and len(keepers(case.name)) == had[3]  # noqa: E731
    if error is not None and not case.exists and call != "unlinkat" and not comes_true(as_before):
        wrong.append(f"names {names(case.name)}, keepers {keepers(case.name)}")
    if call == "munmap" and case.exists:
        # A row whose mapping stays is a member for as long as this process lives.
        case.open.clear()
        gc.collect()
        return wrong
    # --- as before or as after, and usable
    content = case.content()
    if error is None and content != good["after"]:
        wrong.append("done, but not what it should have done")
    if error is not None and content not in (good["before"], good["after"]) and not isinstance(case, Grow):
        wrong.append("neither as before nor as after")
    # --- again
    if error is not None:
        try:
            case.act()
        except BaseException as caught:  # noqa: BLE001  what it is, is the finding
            wrong.append(f"the second try: {caught!r}")
        else:
            if case.content() != good["after"]:
                wrong.append("after the second try it is not what it should be")
    if isinstance(case, Close | Unlink) and names(case.name):
        # What could not be removed is nobody's once all have closed, and the next create takes the name.
        while case.open:
            case.open.pop().close()
        case.open.append(kinds.make(case.kind, case.name))
    finish(case, wrong)
    mine = lambda: {file for file in nameless() - others if not alive(file)}  # noqa: E731
    if not comes_true(lambda: not mine()) and call != "unlinkat":
        wrong.append(f"left: {mine()}")
    return wrong


def alive(file: str) -> bool:
    """Whether somebody (another test's keeper) answers there."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(f"/dev/shm/{file}")
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


# --- all of them ---------------------------------------------------------------------------------


def in_a_process(function: Callable[[], Any]) -> Any:
    """What the function returned, or a text that says how its process ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        status = 1
        try:
            os.write(writing, json.dumps(function()).encode())
            status = 0
        except BaseException as error:  # noqa: BLE001
            import traceback

            traceback.print_exc()
            print(error, file=sys.stderr)
        finally:
            os._exit(status)
    os.close(writing)
    data = b""
    deadline = time.monotonic() + PATIENCE
    while True:
        ready, _, _ = select.select([reading], [], [], max(0, deadline - time.monotonic()))
        piece = os.read(reading, 1 << 16) if ready else b""
        data += piece
        if not piece:
            break
    if not ready:
        os.kill(pid, signal.SIGKILL)
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not ready:
        return "hangs"
    return json.loads(data) if status == 0 else f"ends with {status}"


def main() -> None:
    logging.disable()
    kind, operation, name = sys.argv[2:5]
    kind_of_case = OPERATIONS[operation]
    good = in_a_process(lambda: clean_run(kind_of_case(kind, f"{name}-clean")))
    assert isinstance(good, dict), good
    cases, failures = 0, []
    for call, count in good["calls"].items():
        # The same call a hundred times over in one loop is the same case; its first and last are looked at.
        times = list(range(1, count + 1)) if count <= 24 else [*range(1, 13), *range(count - 11, count + 1)]
        for nth in times:
            for number in ERRORS[call]:
                case = kind_of_case(kind, f"{name}-{cases}.")
                wrong = in_a_process(partial(faulty_run, operation, case, good, call, nth, number))
                cases += 1
                if wrong:
                    failures.append([call, nth, errno.errorcode[number], wrong])
    print(json.dumps({"cases": cases, "calls": sum(good["calls"].values()), "failures": failures}))


main()
