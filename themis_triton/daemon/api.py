"""The status API: JSON, Prometheus text and liveness over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus

from aiohttp import web

from themis_triton.adapters.exporter import Exporter
from themis_triton.core.address import Address
from themis_triton.core.encoding import plain
from themis_triton.core.listener_tls import ListenerTls
from themis_triton.core.status import STATUS_PATH, STATUS_VERSION
from themis_triton.daemon.access import Access
from themis_triton.daemon.bounded_listener import BoundedListener
from themis_triton.daemon.page import page_routes
from themis_triton.daemon.status import StatusBoard
from themis_triton.daemon.status_listener import listening
from themis_triton.ports import Clock

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
SHUTDOWN_WITHIN_S = 2.0
"""For calls that are being answered when the sidecar stops."""


@asynccontextmanager
async def serving(
    address: Address,
    board: StatusBoard,
    exporter: Exporter,
    clock: Clock,
    access: Access | None = None,
    routes: Sequence[web.RouteDef] = (),
    tls: ListenerTls | None = None,
) -> AsyncIterator[None]:
    """Serve `/v1/status`, `/metrics`, `/healthz` and the web page at `/`. `/healthz` is 503 when the last good tick is long ago.

    `routes`: further ones. `access` checks all requests; by default reads are open, and nothing can be changed.

    Raises:
        EnvironmentCheckError: the address is taken, or the PEM files of `tls` cannot be used.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exporter.text(), headers={"Content-Type": PROMETHEUS_TEXT})

    async def status(request: web.Request) -> web.Response:
        version = request.match_info["version"]
        if version != f"v{STATUS_VERSION}":
            error = f"status version {version} is not served: expected {STATUS_PATH}"
            return web.json_response({"error": error}, status=HTTPStatus.NOT_FOUND)
        return web.json_response(plain(board.status()))

    async def healthz(_: web.Request) -> web.Response:
        now_s = clock.now_s()
        if board.is_live(now_s):
            return web.Response(text="ok\n")
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text=f"no good tick for {board.silent_s(now_s):.1f} s; see the log\n")

    door = BoundedListener()
    app = web.Application(middlewares=[door.middleware(), (access or Access()).middleware()])
    reads = [web.get("/{version:v[0-9]+}/status", status), web.get("/metrics", metrics), web.get("/healthz", healthz)]
    app.add_routes([*reads, *page_routes(), *routes])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_WITHIN_S)
    await runner.setup()
    try:
        async with listening(runner, door, address, tls):
            yield
    finally:
        await runner.cleanup()
