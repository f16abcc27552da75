"""Loaded by every Python of the throw-away environment: installs the drop-in, and writes down who used what.

Found through a .pth file, which Python reads under -E and -I too. LOG is replaced when it is copied.
"""

import json
import os
import sys

LOG = "@LOG@"


def record(kind, **more):
    """One line, whole: a short write to a file opened for appending is not torn."""
    line = json.dumps({"kind": kind, "pid": os.getpid(), **more}) + "\n"
    fd = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _audit(event, arguments):
    # The import system runs a module's code by exec(): nothing can use the standard module unseen.
    if event == "exec" and getattr(arguments[0], "co_filename", "").endswith(
        "multiprocessing/shared_memory.py"
    ):
        record("standard", argv=sys.orig_argv)


def _count(module):
    original = module.SharedMemory.__init__

    def __init__(self, *arguments, **options):  # noqa: N807
        original(self, *arguments, **options)
        record("construction", file=module.__file__)

    module.SharedMemory.__init__ = __init__


sys.addaudithook(_audit)

import sharedregion  # noqa: E402
from sharedregion.awaiting import when_imported  # noqa: E402

sharedregion.install()
when_imported("sharedregion.shared_memory", _count)
