"""Running a coroutine that cleans up after itself, whichever signal ends it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_interruptible(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """`asyncio.run`, but SIGTERM too cancels the work, so that what it started is stopped. KeyboardInterrupt after either signal.

    A second signal changes nothing: cut short, the cleaning up would leave servers running, or an adopted one changed.
    """
    return asyncio.run(_until_terminated(work))


async def _until_terminated(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    task = asyncio.ensure_future(work)
    ended = asyncio.Event()

    def end() -> None:
        if not ended.is_set():
            ended.set()
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, end)
    try:
        return await task
    except asyncio.CancelledError:
        if ended.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
