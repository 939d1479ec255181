"""Run a coroutine so that SIGINT and SIGTERM let it clean up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_interruptible(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Like `asyncio.run`, but SIGTERM also cancels the coroutine, so that it stops what it started. KeyboardInterrupt after a signal.

    A second signal is ignored: an interrupted clean-up would leave servers running, or an adopted server changed.
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
