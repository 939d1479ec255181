"""Files that Envoy reads late, or not at all, by what its admin address tells, and those that could not be given to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from tests.unit.http_server import serving
from themis_triton.adapters.envoy import files as envoy_files
from themis_triton.adapters.envoy.file_steps import expected_versions, statistics_prefix
from themis_triton.adapters.envoy.files import EnvoyFiles, read_files
from themis_triton.adapters.envoy.render import node_id
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable

READ_TIMEOUT_S = 0.2
TABLE = RouteTable({"model": ModelRoute()}, ())
OTHER = RouteTable({"other": ModelRoute()}, ())


@dataclass
class FakeAdmin:
    """An Envoy's admin address. `reads_from`: the number of the answer from which on it has read its files."""

    directory: Path
    reads_from: int
    ready: bool = True
    held_up_s: float = 0.0
    broken: bool = False
    timeout_s: float = 30.0
    answers: int = 0
    reasons: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        if self.broken:
            return web.Response(status=503)
        if request.path == "/server_info":
            return web.json_response({"node": {"id": node_id(self.directory)}})
        if request.path == "/ready":
            return web.Response(status=200 if self.ready else 503)
        self.answers += 1
        if self.answers == 2:  # the first one after the files were moved
            await asyncio.sleep(self.held_up_s)
        return web.json_response({"stats": self._stats()})

    def _stats(self) -> list[dict[str, object]]:
        if self.answers < self.reads_from:
            return []
        files = read_files(self.directory)
        versions = {f"{prefix}.version_text": version for prefix, version in expected_versions(files).items()}
        attempts = {f"{statistics_prefix(name)}.update_attempt": self.answers for name in files if "/" in name}
        return [{"name": name, "value": value} for name, value in (versions | attempts).items()]


@asynccontextmanager
async def written(directory: Path, admin: FakeAdmin) -> AsyncIterator[EnvoyFiles]:
    """Files of `TABLE` that were written before Envoy ran."""
    async with serving(admin.answer) as address:
        config = EnvoyConfig(Address("127.0.0.1", 1), Address("127.0.0.1", 2), address, directory)
        without = EnvoyConfig(config.grpc_listen, config.http_listen, Address(str(directory / "admin" / "none.sock"), 0), directory)
        first = EnvoyFiles(without)
        await first.write(TABLE)
        await first.close()
        files = EnvoyFiles(config, timeout_s=admin.timeout_s, on_ignored=admin.reasons.append)
        try:
            yield files
        finally:
            await files.close()


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_files, "READ_TIMEOUT_S", READ_TIMEOUT_S)


def test_an_envoy_that_answers_and_never_reads_its_files_is_reported(tmp_path: Path) -> None:
    admin = FakeAdmin(tmp_path, reads_from=10_000)

    async def scenario() -> None:
        async with written(tmp_path, admin) as files:
            with pytest.raises(ServerError, match="does not read its files"):
                await files.write(OTHER)

    asyncio.run(scenario())
    assert len(admin.reasons) == 1


def test_an_envoy_that_was_held_up_and_answers_before_it_reads_is_not_reported(tmp_path: Path) -> None:
    admin = FakeAdmin(tmp_path, reads_from=3, held_up_s=2 * READ_TIMEOUT_S)

    async def scenario() -> None:
        async with written(tmp_path, admin) as files:
            await files.write(OTHER)

    asyncio.run(scenario())
    assert admin.reasons == []


def test_an_envoy_that_is_not_ready_yet_is_not_reported(tmp_path: Path) -> None:
    admin = FakeAdmin(tmp_path, reads_from=10_000, ready=False, timeout_s=4 * READ_TIMEOUT_S)

    async def scenario() -> None:
        async with written(tmp_path, admin) as files:
            with pytest.raises(ServerError, match="did not apply its files"):
                await files.write(OTHER)

    asyncio.run(scenario())
    assert admin.reasons == []


def test_certificates_that_could_not_be_renewed_are_renewed_once_envoy_answers_again(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_text("one")
    endpoint = Endpoint("a", Address("127.0.0.1", 3, tls=True, ca=str(pem)), Address("127.0.0.1", 4))
    admin = FakeAdmin(tmp_path / "envoy", reads_from=1)

    async def scenario() -> None:
        async with written(admin.directory, admin) as files:
            await files.write(RouteTable({"model": ModelRoute((endpoint,))}, (endpoint,)))
            pem.write_text("another one")
            admin.broken = True
            for _ in range(2):
                with pytest.raises(ServerError):
                    await files.renew_certificates()
            admin.broken = False
            assert await files.renew_certificates()
            assert not await files.renew_certificates()

    asyncio.run(scenario())
