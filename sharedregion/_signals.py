"""Signals that would end a process, while it makes others.

A KeyboardInterrupt between the making of a process and the note of its pid would leave it behind;
one inside a new process, before it is ready for that, would print a traceback or, after a fork, run
the cleanup of its maker.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["become_child", "deferred"]

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Put off what ends this process until the block is left; children start with it blocked.

    Both are needed: the mask is inherited by children, but another thread could still take the
    signal, and Python would act on it in this one.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python acts on signals in the main thread alone.
        yield
        return
    arrived: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    handlers = {number: signal.signal(number, lambda got, _: arrived.append(got)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # None: set by C code, and not ours to restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for caught in arrived:
            signal.raise_signal(caught)


def become_child() -> None:
    """In a process made inside `deferred`: it ends by SIGTERM and SIGHUP; Ctrl-C is for its maker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
