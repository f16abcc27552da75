"""python -m sharedregion.bench: the same as `sharedregion bench`."""

from __future__ import annotations

import sys

from sharedregion.cli.app import run

if __name__ == "__main__":
    sys.exit(run(["bench", *sys.argv[1:]]))
