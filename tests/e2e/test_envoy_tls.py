"""A real Envoy with TLS to a server, and with TLS to its clients: both use the PEM files as they are now."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from tests.certificates import authority, issued_certificate, self_made_certificate
from tests.e2e.envoy_setup import free_config, tensors, values
from tests.unit.kserve_server import KServe
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.probe import Answer, probe_listeners
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.listener_tls import ListenerTls
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable

pytestmark = pytest.mark.e2e
MODEL = "detector"


def test_changed_certificates_are_read_again_and_a_file_that_is_none_leaves_the_old_ones(tmp_path: Path) -> None:
    ours, other = (self_made_certificate(tmp_path / name) for name in ("ours", "other"))
    ca = tmp_path / "ca.pem"
    shutil.copy(other["ca"], ca)
    config = free_config(tmp_path)
    files, process = EnvoyFiles(config), EnvoyProcess(config, tmp_path)

    async def scenario() -> None:
        client = tritonclient.grpc.aio.InferenceServerClient(config.grpc_listen.authority)
        async with KServe().serve(ours) as server:
            address = Address("127.0.0.1", int(server.address.rpartition(":")[2]), tls=True, server_name="localhost", ca=str(ca))
            endpoint = Endpoint("one", address, Address("127.0.0.1", address.port))
            await files.write(RouteTable({MODEL: ModelRoute((endpoint,))}, (endpoint,)))
            await process.ensure()

            async def infer() -> None:
                await client.infer(MODEL, tensors(tritonclient.grpc, values()), client_timeout=10.0)

            with pytest.raises(InferenceServerException, match="remote connection failure"):
                await infer()
            assert not await files.renew_certificates()
            shutil.copy(ours["ca"], ca)
            assert await files.renew_certificates()
            await infer()
            ca.write_text("-----BEGIN CERTIFICATE-----")
            with pytest.raises(ServerError, match=r"Envoy refused cds/clusters\.json"):
                await files.renew_certificates()
            assert not await files.renew_certificates()
            await files.write(RouteTable({MODEL: ModelRoute((endpoint,))}, ()))
            await infer()
        await client.close()

    async def clean() -> None:
        await files.close()
        await process.stop()
        await process.close()

    async def whole() -> None:
        try:
            await scenario()
        finally:
            await clean()

    asyncio.run(whole())


def test_clients_need_a_certificate_and_none_of_their_requests_fails_when_that_of_envoy_changes(tmp_path: Path) -> None:
    ca, foreign = authority(tmp_path / "ca"), authority(tmp_path / "foreign")
    one, two, mine, stranger = (
        issued_certificate(tmp_path / name, by, serial)
        for name, by, serial in (("one", ca, 1), ("two", ca, 2), ("mine", ca, 3), ("stranger", foreign, 4))
    )
    now = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key")}
    copy_pair(one, now)
    config = replace(free_config(tmp_path), tls=ListenerTls(now["certificate"], now["key"], Path(ca["ca"])))
    files, process = EnvoyFiles(config), EnvoyProcess(config, tmp_path)

    async def shown() -> set[str]:
        listeners = ((config.grpc_listen, "h2"), (config.http_listen, "http/1.1"))
        return {await asyncio.to_thread(serial_number, address.port, ca, mine, alpn) for address, alpn in listeners}

    async def scenario() -> None:
        async with KServe().serve() as server:
            address = Address("127.0.0.1", int(server.address.rpartition(":")[2]))
            endpoint = Endpoint("one", address, address)
            await files.write(RouteTable({MODEL: ModelRoute((endpoint,))}, (endpoint,)))
            await process.ensure()
            assert await probe_listeners(config, 5.0) is Answer.ANSWERED
            assert await shown() == {"01"}
            for certificate in (stranger, None):
                async with tls_client(config, ca, certificate) as client:
                    with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
                        await infer(client)
            end = asyncio.Event()
            load = asyncio.create_task(infer_until(end, config, ca, mine))
            copy_pair(two, now)
            assert await files.renew_certificates()
            assert await shown() == {"02"}
            shutil.copy(one["key"], now["key"])
            with pytest.raises(ServerError, match=r"envoy\.tls: .*key\.pem is not the key of .*certificate\.pem"):
                await files.renew_certificates()
            assert not await files.renew_certificates()
            await files.write(RouteTable({MODEL: ModelRoute((endpoint,))}, ()))
            assert await shown() == {"02"}
            copy_pair(one, now)
            assert await files.renew_certificates()
            assert await shown() == {"01"}
            end.set()
            assert await load > 0

    async def whole() -> None:
        try:
            await scenario()
        finally:
            await files.close()
            await process.stop()
            await process.close()

    asyncio.run(whole())


async def infer(client: Any) -> None:
    await client.infer(MODEL, tensors(tritonclient.grpc, values()), client_timeout=10.0)


async def infer_until(end: asyncio.Event, config: EnvoyConfig, ca: Mapping[str, str], own: Mapping[str, str]) -> int:
    """Requests on one connection and on new ones in turn; the number of them."""
    sent = 0
    async with tls_client(config, ca, own) as kept:
        while not end.is_set():
            await infer(kept)
            async with tls_client(config, ca, own) as new:
                await infer(new)
            sent += 2
    return sent


def copy_pair(files: Mapping[str, str], to: Mapping[str, Path]) -> None:
    """Overwrite a certificate and its key in place."""
    for name, path in to.items():
        shutil.copy(files[name], path)


@asynccontextmanager
async def tls_client(config: EnvoyConfig, ca: Mapping[str, str], own: Mapping[str, str] | None) -> AsyncIterator[Any]:
    secret = {"private_key": own["key"], "certificate_chain": own["certificate"]} if own is not None else {}
    # Channels with equal arguments share their connections.
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    url = config.grpc_listen.authority
    client = tritonclient.grpc.aio.InferenceServerClient(url, ssl=True, root_certificates=ca["ca"], channel_args=options, **secret)
    try:
        yield client
    finally:
        await client.close()


def serial_number(port: int, ca: Mapping[str, str], own: Mapping[str, str], alpn: str) -> str:
    """That of the certificate which a new connection sees."""
    context = ssl.create_default_context(cafile=ca["ca"])
    context.load_cert_chain(own["certificate"], own["key"])
    context.set_alpn_protocols([alpn])
    with socket.create_connection(("127.0.0.1", port), 10.0) as plain, context.wrap_socket(plain, server_hostname="localhost") as secure:
        assert secure.selected_alpn_protocol() == alpn
        return str((secure.getpeercert() or {})["serialNumber"])
