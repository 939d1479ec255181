"""Clients of a test that ask again and again while something changes."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

import tritonclient.grpc.aio

MORE_TIMEOUT_S = 30.0


@dataclass
class Clients(ABC):
    """What they finished, and what of it failed or was wrong; a subclass says what one does."""

    client: tritonclient.grpc.aio.InferenceServerClient
    done: int = field(default=0, init=False)
    wrong: list[str] = field(default_factory=list, init=False)
    ended: asyncio.Condition = field(default_factory=asyncio.Condition, init=False)

    @abstractmethod
    async def one(self) -> None:
        """Ask once; append to `wrong` what is not as it should be."""

    async def more(self, count: int) -> None:
        """Wait until so many more are done."""
        enough = self.done + count
        async with asyncio.timeout(MORE_TIMEOUT_S), self.ended:
            await self.ended.wait_for(lambda: self.done >= enough)

    @asynccontextmanager
    async def running(self, clients: int = 1) -> AsyncIterator[Self]:
        """So many clients, for as long as the block lasts."""
        tasks = [asyncio.create_task(self._go_on()) for _ in range(clients)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.client.close()

    async def _go_on(self) -> None:
        while True:
            await self.one()
            async with self.ended:
                self.done += 1
                self.ended.notify_all()
