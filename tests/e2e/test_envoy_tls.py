"""A real Envoy in front of a server with TLS: its requests use the PEM files as they are now."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from tests.certificates import self_made_certificate
from tests.e2e.envoy_setup import free_config, tensors, values
from tests.unit.kserve_server import KServe
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError
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
