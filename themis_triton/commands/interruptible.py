"""Running a coroutine that cleans up after itself, whichever signal ends it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


def run_interruptible(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """`asyncio.run`, but SIGTERM too cancels the work, so that what it started is stopped. KeyboardInterrupt after either signal."""
    return asyncio.run(_until_terminated(work))


async def _until_terminated(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    task = asyncio.ensure_future(work)
    terminated = asyncio.Event()

    def terminate() -> None:
        # Once: a second signal must not cut the cleaning up short.
        if not terminated.is_set():
            terminated.set()
            task.cancel()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task
    except asyncio.CancelledError:
        if terminated.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
