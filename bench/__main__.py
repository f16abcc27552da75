"""python -m sharedregion.bench [CASE]...: run the cases, print their figures as a table."""

from __future__ import annotations

import json
import subprocess
import sys

CASES = {
    "small": "get, and put with delete, of a small array; beside LMDB and multiprocessing.shared_memory",
    "large": "put of 1 GiB, into a fresh and into a warm region; beside filling a shared_memory block, and memcpy",
    "writers": "puts and deletes by eight processes at once, beside one alone",
    "million": "attach to a region of a million objects, and look all of them up",
}


def main(argv: list[str]) -> int:
    """Run the named cases, or all."""
    unknown = [name for name in argv if name not in CASES]
    if unknown:
        print(f"unknown case {unknown[0]!r}; there are {', '.join(CASES)}", file=sys.stderr)
        return 2
    failed = 0
    for name in argv or CASES:
        print(f"== {name}: {CASES[name]}", flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", f"sharedregion.bench.cases.{name}"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            row = json.loads(line)
            print(f"{row['subject']:<44} {row['figure']:>14,.3f} {row['unit']}", flush=True)
        if process.wait() != 0:
            print(f"   the case failed with exit {process.returncode}", flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
