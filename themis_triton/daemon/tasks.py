"""Tasks that end with what they belong to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


async def stopped_before(task: asyncio.Task[Any], stop: asyncio.Event) -> bool:
    """Wait for the task or for `stop`, which cancels it; returns whether `stop` came. Raises an error of the task."""
    stopping = asyncio.create_task(stop.wait())
    async with cancelled_on_exit(stopping), cancelled_on_exit(task):
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return stop.is_set()


@asynccontextmanager
async def cancelled_on_exit(task: asyncio.Task[Any]) -> AsyncIterator[None]:
    """Cancel the task at the end of the block, and wait until it has ended."""
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
