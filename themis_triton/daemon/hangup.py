"""SIGHUP means two things: `themis reload`, and that the terminal is gone on which the sidecar was started."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable


def hangup_handler(stop: asyncio.Event, reload: asyncio.Event) -> Callable[[], None]:
    """What SIGHUP does: set `stop` when the terminal of now is gone by then, else `reload`.

    A sidecar that was started with `nohup` ignores the signal so far, and outlives its terminal.
    """
    attached = has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def handle() -> None:
        if has_terminal() or not attached:
            reload.set()
            return
        for stream in (1, 2):  # a log line to a terminal that is gone is an error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream)
            os.close(null)
        stop.set()

    return handle


def has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
