"""Closed-loop load: as many clients as instances, each sending its next request when the last was answered, so all are busy at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from themis_triton.core.errors import ServerError
from themis_triton.load.requests import StageRequest, wrong_answer

_WARM_ROUNDS = 2


@dataclass(slots=True)
class ClosedLoop:
    """Clients that keep a model busy. `latencies_ms` holds the client-side time of every answered request, in the order of answers."""

    stub: Any
    request: StageRequest
    clients: int
    timeout_s: float
    latencies_ms: list[float] = field(default_factory=list)
    failure: ServerError | None = None
    _progress: asyncio.Event = field(default_factory=asyncio.Event)

    async def answered(self, count: int) -> None:
        """Wait until so many requests were answered in all. ServerError of the first request that failed."""
        while len(self.latencies_ms) < count and self.failure is None:
            self._progress.clear()
            await self._progress.wait()
        if self.failure is not None:
            raise self.failure

    async def client(self) -> None:
        """Send one request after the other, until cancelled or one fails."""
        loop = asyncio.get_running_loop()
        while self.failure is None:
            sent_s = loop.time()
            try:
                answer = await self.stub.ModelInfer(self.request.message, timeout=self.timeout_s)
            except grpc.aio.AioRpcError as error:
                self._fail(f"answered {error.code().name}: {' '.join(str(error.details()).split())}")
                return
            self.latencies_ms.append(1000.0 * (loop.time() - sent_s))
            if (wrong := wrong_answer(self.request, answer)) is not None:
                self._fail(f"answered wrongly: {wrong}")
            self._progress.set()

    def _fail(self, what: str) -> None:
        name = self.request.message.model_name
        self.failure = self.failure or ServerError(f"model {name} {what}; see the server's log, and the inputs (--shape, --data)")
        self._progress.set()


@asynccontextmanager
async def closed_loop(stub: Any, request: StageRequest, clients: int, timeout_s: float) -> AsyncIterator[ClosedLoop]:  # noqa: ANN401 - generated stubs have no types
    """A running closed loop, already warm: each client's first requests are answered and forgotten."""
    loop = ClosedLoop(stub, request, clients, timeout_s)
    tasks = [asyncio.create_task(loop.client()) for _ in range(clients)]
    try:
        await loop.answered(_WARM_ROUNDS * clients)
        yield loop
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
