"""PEM files that change while the sidecar runs are read again."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.certificates import self_made_certificate
from tests.unit.kserve_server import serving
from themis_triton.adapters.pem_files import pem_version
from themis_triton.adapters.triton import client as client_module
from themis_triton.adapters.triton.client import TritonClients
from themis_triton.core.address import Address


async def live(_request: Any, _context: Any) -> Any:
    return pb.ServerLiveResponse(live=True)


def test_a_client_is_made_anew_when_a_file_changed_and_the_old_one_ends_after_a_while_or_with_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "REPLACED_FOR_S", 0.0)
    ours, other = (self_made_certificate(tmp_path / name) for name in ("ours", "other"))
    ca = tmp_path / "ca.pem"
    shutil.copy(other["ca"], ca)

    async def scenario() -> None:
        clients = TritonClients()
        async with serving({"ServerLive": (live, pb.ServerLiveRequest, pb.ServerLiveResponse)}, ours) as port:
            address = Address("127.0.0.1", port, tls=True, server_name="localhost", ca=str(ca))
            before = clients.of(address)
            with pytest.raises(InferenceServerException):
                await before.is_server_live(client_timeout=5.0)
            assert clients.of(address) is before
            shutil.copy(ours["ca"], ca)
            after = clients.of(address)
            assert after is not before
            await asyncio.gather(*clients._replaced[address])
            with pytest.raises(Exception, match="closed"):
                await before.is_server_live(client_timeout=5.0)
            assert await after.is_server_live(client_timeout=5.0)
            monkeypatch.undo()
            shutil.copy(other["ca"], ca)
            last = clients.of(address)
            await clients.close()
            for client in (after, last):
                with pytest.raises(Exception, match="closed"):
                    await client.is_server_live(client_timeout=5.0)

    asyncio.run(scenario())


def test_an_address_without_tls_has_no_version_and_an_absent_file_has_one(tmp_path: Path) -> None:
    assert pem_version(Address("a", 1)) == ""
    file = tmp_path / "ca.pem"
    secure = Address("a", 1, tls=True, ca=str(file))
    absent = pem_version(secure)
    file.write_text("one")
    assert absent != pem_version(secure) != ""
