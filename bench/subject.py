"""What the fresh process of one subject runs: `python -P -m sharedregion.bench.subject JOB`.

It prints one JSON object a line, on the standard output that it was started with; whatever a peer
prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Any, NoReturn

from sharedregion._signals import become_child
from sharedregion.bench import against, cases
from sharedregion.bench.case import Job


def _leave(number: int, _: FrameType | None) -> NoReturn:
    # As an exception, so that what the case made is undone on the way out.
    raise SystemExit(128 + number)


def main(argument: str) -> int:
    """Measure one job."""
    # Ctrl-C is the runner's to decide on. It started this process with signals blocked, and what is started here,
    # servers that are to end by SIGTERM among them, would have them blocked too.
    become_child()
    signal.signal(signal.SIGTERM, _leave)
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)

    def say(**words: Any) -> None:
        out.write(json.dumps(words, allow_nan=False) + "\n")
        out.flush()

    job = Job(**json.loads(argument))
    if job.subject in against.NAMES:
        reason = against.load(job.subject).missing()
        if reason:
            say(missing=reason)
            return 0
    try:
        for metric, value in cases.load(job.case).measure(job):
            say(metric=metric, value=float(value))
    # Whatever it is becomes a row of the table; the traceback is in the log of the run.
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        say(failed=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
