"""Runs jobs: each in a fresh process, subjects in turn, whatever happens undone.

A subject that fails, is killed, hangs or is refused becomes a record like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sharedregion._guardian import Guardian, end_marked, marked_processes, remove_names, reserve
from sharedregion._kernel.sysfs import hugepage_pools
from sharedregion._signals import deferred
from sharedregion._sizes import format_size
from sharedregion.bench import against, cases, machine
from sharedregion.bench.case import Case, Job, Setting
from sharedregion.errors import SharedRegionError

__all__ = ["LIGHT", "Progress", "missing_peers", "plan", "run", "setting"]

#: Peers of a quick run: those that start at once.
LIGHT = ("shared_memory", "lmdb")

#: progress(what is measured now, seconds of estimate done, seconds in all)
Progress = Callable[[str, float, float], None]
Say = Callable[[dict[str, Any]], None]

_VARIABLE = "SHAREDREGION_BENCH_RUN"


def setting(quick: bool, peers: Sequence[str], small: int | None = None) -> Setting:
    """What this machine offers, for the plans of cases."""
    from sharedregion.bench.ours import usable

    kinds, unusable = usable()
    pool = hugepage_pools().get(1 << 30)
    if quick and "hugetlb-1g" in kinds and not (pool and pool.available):
        kinds = tuple(kind for kind in kinds if kind != "hugetlb-1g")
        unusable = {
            **unusable,
            "hugetlb-1g": "none is free, and moving memory together for one can take half a minute",
        }
    return Setting(
        quick=quick,
        peers=tuple(peers) or (LIGHT if quick else against.NAMES),
        kinds=kinds,
        unusable=unusable,
        memory=machine.available(),
        processors=os.cpu_count() or 1,
        root=os.geteuid() == 0,
        small=small,
    )


def missing_peers(names: Iterable[str]) -> dict[str, str]:
    """Peers that are not installed, and what would install them. Nothing is imported for it."""
    found = {}
    for name in names:
        peer = against.load(name)
        if peer.module is not None and importlib.util.find_spec(peer.module.split(".")[0]) is None:
            found[name] = f"not installed: pip install {peer.distribution}"
    return found


def plan(names: Sequence[str], setting: Setting) -> list[Job]:
    """The jobs of these cases, one for each round, in the order of running."""
    jobs: list[Job] = []
    for name in names:
        case = cases.load(name)
        several = [_settled(case, job, setting) for job in case.plan(setting)]
        for _, block in itertools.groupby(several, key=lambda job: sorted(job.params.items())):
            jobs += _in_turn(list(block))
    return jobs


def _settled(case: Case, job: Job, setting: Setting) -> Job:
    reason = job.cannot
    if reason is None and job.subject in against.NAMES:
        reason = against.load(job.subject).cannot.get(case.name)
    return dataclasses.replace(job, cannot=reason, quick=setting.quick)


def _in_turn(block: list[Job]) -> Iterator[Job]:
    for number in range(max(job.rounds for job in block)):
        for job in block if number % 2 == 0 else reversed(block):
            # What cannot be measured says so once.
            if number < (1 if job.cannot else job.rounds):
                yield dataclasses.replace(job, round=number)


def run(jobs: Sequence[Job], say: Say, progress: Progress = lambda *_: None) -> None:
    """Measure them all; `say` gets each sample and status. The machine is given back as it was."""
    mark = f"srb{secrets.token_hex(4)}"
    folder = f"/dev/shm/{mark}"
    guardian = Guardian()
    try:
        # Processes go first, being announced last: what they hold can then be removed.
        guardian.announce("names", mark)
        guardian.announce("folder", f"/tmp/{mark}")
        guardian.announce("processes", f"{_VARIABLE}={mark}")
        os.mkdir(folder, 0o700)
        # What is temporary for a peer is here.
        os.mkdir(f"/tmp/{mark}", 0o700)
        total = sum(job.seconds for job in jobs if not job.cannot)
        done = 0.0
        missing = missing_peers({job.subject for job in jobs} & set(against.NAMES))
        beyond: set[tuple[str, str]] = set()
        for number, job in enumerate(jobs):
            # A prefix for each, so that none stumbles over what another left.
            settled = dataclasses.replace(job, prefix=f"{mark}-{number:x}-", folder=folder)
            progress(_words(job), done, total)
            _one(settled, say, guardian, missing, beyond, mark)
            done += 0 if job.cannot else job.seconds
        progress("", total, total)
    finally:
        with deferred():
            guardian.undo()


def _words(job: Job) -> str:
    params = ", ".join(
        f"{format_size(value) if key in ('size', 'object') else value}{'' if key in ('size', 'object') else ' ' + key}"
        for key, value in job.params.items()
        if isinstance(value, int)
    )
    return f"{job.case}: {job.subject}" + (f", {params}" if params else "")


def _one(
    job: Job, say: Say, guardian: Guardian, missing: dict[str, str], beyond: set[tuple[str, str]], mark: str
) -> None:
    started = time.monotonic()

    def status(word: str, reason: str | None = None) -> None:
        say(
            {
                "record": "status",
                "case": job.case,
                "subject": job.subject,
                "params": dict(job.params),
                "round": job.round,
                "status": word,
                "reason": reason,
                "seconds": round(time.monotonic() - started, 3),
            }
        )

    if job.cannot:
        status("cannot", job.cannot)
        return
    if job.subject in missing:
        # One row says it for all params of the case.
        if (job.case, job.subject) not in beyond:
            beyond.add((job.case, job.subject))
            status("missing", missing[job.subject])
        return
    # Huge pages are given back after each job: the next one may want the memory otherwise.
    with _lender() if job.pool else contextlib.nullcontext(guardian) as lender:
        refusal = _refusal(job, lender)
        answer = ("refused", refusal) if refusal else _process(job, say, guardian, mark)
    status(*answer)


@contextlib.contextmanager
def _lender() -> Iterator[Guardian]:
    guardian = Guardian()
    try:
        yield guardian
    finally:
        with deferred():
            guardian.undo()


def _refusal(job: Job, guardian: Guardian) -> str | None:
    room = machine.available()
    pages = 0
    if job.pool is not None:
        size, pages = job.pool
        pools = hugepage_pools()
        if size not in pools:
            return f"this machine has no huge pages of {format_size(size)}"
        pages = max(0, pages - pools[size].available) * size
    if job.memory + pages > room:
        return f"it needs {format_size(job.memory + pages)} of memory, {format_size(room)} are available"
    if job.pool is not None and pages:
        if os.geteuid() != 0:
            return f"{job.pool[1]} huge pages of {format_size(job.pool[0])} must be free, and only root can reserve them"
        try:
            reserve(guardian, job.pool[1], job.pool[0])
        except (SharedRegionError, OSError) as error:
            return str(error)
    return None


def _process(job: Job, say: Say, guardian: Guardian, mark: str) -> tuple[str, str | None]:
    """(status, reason) of one job in a process of its own."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process, below.
    with deferred():
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sharedregion.bench.subject", json.dumps(dataclasses.asdict(job))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env={**os.environ, _VARIABLE: mark, "PYTHONWARNINGS": "ignore", "TMPDIR": f"/tmp/{mark}"},
        )
    if job.subject in against.NAMES:
        for pattern in against.load(job.subject).leaves:
            guardian.announce("names", pattern.format(pid=process.pid))
    answer = None
    try:
        answer = _listen(process, job, say)
        code = process.wait(30)
    except subprocess.TimeoutExpired:
        # What it said of itself says more.
        answer, code = answer or ("failed", "it did not end after its last figure"), None
    except TimeoutError as error:
        answer, code = ("killed", str(error)), None
    finally:
        _end(process, mark)
        remove_names(job.prefix)
        log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
        said = log.read().decode(errors="replace").strip().splitlines()
        log.close()
        if process.stdout:
            process.stdout.close()
    if answer is not None:
        return answer
    if code is not None and code < 0:
        return "killed", f"by {signal.Signals(-code).name}"
    if code:
        return "failed", f"exit {code}" + (f": {said[-1]}" if said else "")
    return "ok", None


def _listen(process: subprocess.Popen[bytes], job: Job, say: Say) -> tuple[str, str | None] | None:
    """Pass samples on until the process closes its output; what it said about its own end."""
    assert process.stdout
    descriptor = process.stdout.fileno()
    limit = 60 + 20 * job.seconds
    deadline = time.monotonic() + limit
    waiting = b""
    ended: tuple[str, str | None] | None = None
    while True:
        ready, _, _ = select.select([descriptor], [], [], 0.5)
        if not ready:
            if time.monotonic() > deadline:
                raise TimeoutError(f"stopped after {limit:.0f} s")
            if process.poll() is not None:
                # It has gone; a process that it left behind may hold the pipe open.
                return ended
            continue
        chunk = os.read(descriptor, 65536)
        *lines, waiting = (waiting + chunk).split(b"\n")
        for line in lines:
            words = json.loads(line)
            if "metric" in words:
                unit = cases.load(job.case).metrics[words["metric"]].unit
                say(
                    {
                        "record": "sample",
                        "case": job.case,
                        "subject": job.subject,
                        "params": dict(job.params),
                        "round": job.round,
                        "metric": words["metric"],
                        "unit": unit,
                        "value": words["value"],
                    }
                )
            elif "missing" in words:
                ended = ("missing", words["missing"])
            elif "failed" in words:
                ended = ("failed", words["failed"])
        if not chunk:
            return ended


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the process, and all that it started and left. It gets time to clean up after itself."""
    with deferred():
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        # Its own processes go with it in a moment; those that do not are ended.
        deadline = time.monotonic() + 1
        while any(marked_processes(f"{_VARIABLE}={mark}")) and time.monotonic() < deadline:
            time.sleep(0.01)
        end_marked(f"{_VARIABLE}={mark}")
        process.wait()
