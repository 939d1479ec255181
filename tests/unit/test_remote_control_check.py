"""Who else can load models over REST, of a server behind a real TLS listener."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.certificates import authority, issued_certificate
from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.remote_control_check import check_remote_control
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.address import Address
from themis_triton.core.config import AdoptedServer

INDEX = "/v2/repository/index"


@asynccontextmanager
async def repository_api(port: int, own: Mapping[str, str], *, asks: bool) -> AsyncIterator[None]:
    """Answers as Triton does to a GET of its repository; `asks`: for clients' certificates."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response([])

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own["certificate"], own["key"])
    context.load_verify_locations(own["ca"])
    context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE
    application = web.Application()
    application.router.add_post(INDEX, models)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "localhost", port, ssl_context=context).start()
        yield
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("asks", [True, False])
def test_a_proxy_that_asks_for_clients_certificates_keeps_others_from_loading_models_over_rest(
    asks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, (port,) = issued_certificate(tmp_path / "proxy", authority(tmp_path / "authority")), free_ports(1)
    behind = Address("localhost", port, tls=True, ca=own["ca"], certificate=own["certificate"], key=own["key"])
    server = AdoptedServer("first", Address("127.0.0.1", 1), behind, behind, "gpu:0")
    monkeypatch.setattr(Address, "is_loopback", property(lambda self: self.port == 1))  # REST is as on another machine.

    async def check() -> list[str]:
        async with repository_api(port, own, asks=asks), HttpClient(5.0) as http:
            with pytest.raises(HttpError, match="405"):  # With its own certificate the sidecar itself gets through.
                await http.get_at(behind, INDEX)
            return [finding.found for finding in await check_remote_control(server, http, 5.0)]

    open_to_others = f"any client that reaches {behind} can load and unload models over REST: it asks for no key and no certificate"
    assert asyncio.run(check()) == ([] if asks else [open_to_others])
