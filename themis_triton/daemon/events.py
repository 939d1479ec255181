"""Server-sent events: one message a tick to each client, with the whole status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

from aiohttp import web

from themis_triton.core.encoding import plain
from themis_triton.core.status import Status

MAX_CLIENTS = 64
MAX_WAITING = 4
"""Messages that may wait for one client; one that takes them more slowly is disconnected, and connects anew."""
KEEP_ALIVE_S = 15.0
WRITE_WITHIN_S = 10.0
_Queue = asyncio.Queue[bytes | None]


class EventHub:
    """Sends the status to all clients. Without clients `publish` costs nothing; with many the status is encoded once."""

    def __init__(self) -> None:
        self._queues: set[_Queue] = set()

    @property
    def clients(self) -> int:
        """How many clients there are."""
        return len(self._queues)

    def publish(self, status: Callable[[], Status]) -> None:
        """Send the status of a tick. Never waits: a client whose queue is full is dropped."""
        if not self._queues:
            return
        message = encode(status())
        for queue in list(self._queues):
            if queue.full():
                self._queues.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(message)

    def close(self) -> None:
        """End all streams."""
        for queue in self._queues:
            while queue.full():
                queue.get_nowait()
            queue.put_nowait(None)
        self._queues.clear()

    @contextmanager
    def subscribed(self) -> Iterator[_Queue]:
        """The messages of one client; None ends them."""
        queue: _Queue = asyncio.Queue(MAX_WAITING)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)


def encode(status: Status) -> bytes:
    """A status as one message."""
    return b"event: status\ndata: " + json.dumps(plain(status), separators=(",", ":")).encode() + b"\n\n"


async def stream(request: web.Request, hub: EventHub, status: Callable[[], Status]) -> web.StreamResponse:
    """Send the present status and then one message a tick, until the client or the sidecar ends it."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    with hub.subscribed() as queue, suppress(ConnectionError, TimeoutError):
        await response.prepare(request)
        await response.write(b"retry: 1000\n\n" + encode(status()))
        async for message in _messages(queue):
            async with asyncio.timeout(WRITE_WITHIN_S):
                await response.write(message)
    return response


async def _messages(queue: _Queue) -> AsyncIterator[bytes]:
    """The messages of a queue, with comments between them where nothing happens, until None."""
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                message = await queue.get()
        except TimeoutError:
            message = b": nothing new\n\n"
        if message is None:
            return
        yield message
