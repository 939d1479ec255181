"""Closed-loop load: one client or more per instance, each with one request in flight, so that all instances are busy."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import grpc

from themis_triton.core.errors import ServerError
from themis_triton.load.requests import StageRequest, wrong_answer

_WARM_ROUNDS = 2
_SETTLE_REQUESTS = 5
_STABLE_FRACTION = 0.95


@dataclass(slots=True)
class ClosedLoop:
    """Clients that keep a model busy. `latencies_ms` holds the client-side time of every answered request, in order of the responses.

    Args:
        stub: generated gRPC stub.
        request: what every client sends.
        instances: the model's instances.
        timeout_s: the maximum service time of a request.
        per_instance: clients per instance. With one, an instance idles from its response to the client's next request, so the others
            meet less contention; with more, requests wait in the model's queue, and the client's times contain that wait.
    """

    stub: Any
    request: StageRequest
    instances: int
    timeout_s: float
    per_instance: int = 1
    latencies_ms: list[float] = field(default_factory=list)
    failure: ServerError | None = None
    _progress: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def clients(self) -> int:
        """The number of requests in flight."""
        return self.instances * self.per_instance

    async def answered(self, count: int) -> None:
        """Wait until `count` requests in total were answered. Raises the ServerError of the first request that failed."""
        while len(self.latencies_ms) < count and self.failure is None:
            self._progress.clear()
            await self._progress.wait()
        if self.failure is not None:
            raise self.failure

    async def settle(self, max_s: float) -> None:
        """Wait until the latency no longer falls: the median of a window is not below 95 % of the one before. At most `max_s`."""
        size = max(_SETTLE_REQUESTS, _WARM_ROUNDS * self.instances)
        previous = math.inf
        with suppress(TimeoutError):
            async with asyncio.timeout(max_s):
                while True:
                    start = len(self.latencies_ms)
                    await self.answered(start + size)
                    current = median(self.latencies_ms[start : start + size])
                    if current >= _STABLE_FRACTION * previous:
                        return
                    previous = current

    async def client(self) -> None:
        """Send one request after the other until cancelled or until one fails."""
        loop = asyncio.get_running_loop()
        timeout_s = self.timeout_s * self.per_instance
        while self.failure is None:
            sent_s = loop.time()
            try:
                answer = await self.stub.ModelInfer(self.request.message, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                self._fail(f"answered {error.code().name}: {' '.join(str(error.details()).split())}")
                return
            self.latencies_ms.append(1000.0 * (loop.time() - sent_s))
            if (wrong := wrong_answer(self.request, answer)) is not None:
                self._fail(f"answered wrongly: {wrong}")
            self._progress.set()

    def _fail(self, what: str) -> None:
        name = self.request.message.model_name
        self.failure = self.failure or ServerError(f"model {name} {what}. Fix: see the server's log, and the inputs (--shape, --data)")
        self._progress.set()


@asynccontextmanager
async def closed_loop(
    stub: Any,  # noqa: ANN401 - generated stubs have no types
    request: StageRequest,
    instances: int,
    timeout_s: float,
    per_instance: int = 1,
) -> AsyncIterator[ClosedLoop]:
    """A running closed loop; each instance's first requests are answered already."""
    loop = ClosedLoop(stub, request, instances, timeout_s, per_instance)
    tasks = [asyncio.create_task(loop.client()) for _ in range(loop.clients)]
    try:
        await loop.answered(_WARM_ROUNDS * instances)
        yield loop
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
