"""A listener of a web application with bounded connections: clients without a request, however many, keep no other client out."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware
from aiohttp.web_protocol import RequestHandler

MAX_CONNECTIONS = 256
"""More than one client needs: any user of the machine may connect, and each connection takes one of the sidecar's descriptors."""
HANDSHAKE_S = 10.0
RETRY_S = 0.1
"""Until the next attempt to accept where the process has no descriptor left."""


class BoundedListener:
    """Accepts the connections of one socket. At `MAX_CONNECTIONS` the oldest without a request makes room for the next one."""

    def __init__(self) -> None:
        self.context: ssl.SSLContext | None = None
        """TLS of new connections; without one they have none."""
        self._open: dict[RequestHandler, asyncio.Task[None]] = {}
        self._busy: set[object] = set()

    def middleware(self) -> Middleware:
        """Tells which connections have a request: a part of the application, before all others."""

        @web.middleware
        async def note(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
            self._busy.add(request.protocol)
            try:
                return await handler(request)
            finally:
                self._busy.discard(request.protocol)

        return note

    async def accept(self, server: web.Server, listener: socket.socket) -> None:
        """Serve connections of a non-blocking socket until cancelled. The server ends those that are open then."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    client, _ = await loop.sock_accept(listener)
                except OSError:
                    await asyncio.sleep(RETRY_S)
                    continue
                if self._make_room():
                    handler = server()
                    self._open[handler] = asyncio.create_task(self._connect(handler, client))
                else:
                    client.close()
        finally:
            for connecting in self._open.values():
                connecting.cancel()

    async def _connect(self, handler: RequestHandler, client: socket.socket) -> None:
        """Hand the connection over, after its handshake where there is TLS."""
        handshake_s = HANDSHAKE_S if self.context is not None else None
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: handler, client, ssl=self.context, ssl_handshake_timeout=handshake_s)
        except OSError:  # This client has gone, or speaks no TLS.
            client.close()
        except asyncio.CancelledError:
            client.close()
            raise

    def _make_room(self) -> bool:
        """Whether one more connection may be opened."""
        for handler in [handler for handler, connecting in self._open.items() if connecting.done() and handler.transport is None]:
            del self._open[handler]
        if len(self._open) < MAX_CONNECTIONS:
            return True
        oldest = next((handler for handler in self._open if handler not in self._busy), None)
        if oldest is None:
            return False
        self._open.pop(oldest).cancel()
        if isinstance(oldest.transport, asyncio.Transport):
            oldest.transport.abort()
        return True
