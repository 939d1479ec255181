"""The status API: JSON, Prometheus text and liveness over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from aiohttp import web

from themis_triton.adapters.exporter import Exporter
from themis_triton.core.address import Address
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.daemon.status import StatusBoard
from themis_triton.ports import Clock

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


@asynccontextmanager
async def serving(address: Address, board: StatusBoard, exporter: Exporter, clock: Clock) -> AsyncIterator[None]:
    """Answer `/status`, `/metrics` and `/healthz` at the address; `/healthz` is 503 when the last good tick is long ago.

    Raises:
        EnvironmentCheckError: the address is taken.
    """

    async def status(_: web.Request) -> web.Response:
        return web.json_response(board.as_plain())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exporter.text(), headers={"Content-Type": PROMETHEUS_TEXT})

    async def healthz(_: web.Request) -> web.Response:
        now_s = clock.now_s()
        if board.is_live(now_s):
            return web.Response(text="ok\n")
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text=f"no good tick for {board.silent_s(now_s):.1f} s; see the log\n")

    app = web.Application()
    app.add_routes([web.get("/status", status), web.get("/metrics", metrics), web.get("/healthz", healthz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, address.host, address.port).start()
        yield
    except OSError as error:
        raise EnvironmentCheckError(f"status.address: {address} cannot be listened on ({error.strerror}); choose a free one") from error
    finally:
        await runner.cleanup()
