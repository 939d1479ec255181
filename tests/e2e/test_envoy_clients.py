"""Clients that need an API key or a token at the real Envoy: who gets in, what is counted, and keys that change under load."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import httpx
import pytest
from aiohttp import web
from tritonclient.grpc import service_pb2 as pb

from tests.e2e.envoy_setup import free_config, read
from tests.unit.http_server import serving
from tests.unit.kserve_server import SERVICE, KServe
from themis_triton.adapters.envoy.admin import EnvoyAdmin
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.core.address import Address
from themis_triton.core.client_auth import JwtConfig
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable
from themis_triton.load.generator import run_load
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.traces import TraceOptions

pytestmark = pytest.mark.e2e

MODEL = "detector"
ALICE, BOB, CAROL = "a" * 32, "b" * 32, "c" * 32
BASE = f"/v2/models/{MODEL}"


@dataclass
class Guarded:
    """A running Envoy that lets in clients with a key or token."""

    config: EnvoyConfig
    files: EnvoyFiles
    table: RouteTable
    seen: list[Mapping[str, str]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def held_request(self, headers: Mapping[str, str]) -> AsyncIterator[None]:
        """A request that its server answers only at the end of the block; it must end well."""
        request = asyncio.create_task(self.post(headers, "generate"))
        try:
            await asyncio.wait_for(self.arrived.wait(), 10.0)
            yield
        finally:
            self.release.set()
        assert (await request).status_code == 200

    async def replaced_listeners(self) -> int:
        """How many listeners were replaced, each of which ends its connections."""
        admin = EnvoyAdmin(self.config)
        try:
            statistics = await admin.stats(r"^listener_manager\.(listener_modified|listener_in_place_updated)$")
        finally:
            await admin.close()
        assert len(statistics) == 2
        return sum(int(entry["value"]) for entry in statistics)

    async def post(self, headers: Mapping[str, str], method: str = "infer") -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, timeout=20.0) as client:
            return await client.post(self.config.http_listen.url(f"{BASE}/{method}"), json={}, headers=headers)

    async def get(self, path: str) -> int:
        async with httpx.AsyncClient(trust_env=False, timeout=20.0) as client:
            return (await client.get(self.config.http_listen.url(path))).status_code

    async def call(self, method: str, *headers: tuple[str, str]) -> tuple[str, str]:
        async with grpc.aio.insecure_channel(self.config.grpc_listen.authority) as channel:
            return await call(channel, method, *headers)


async def call(channel: grpc.aio.Channel, method: str, *headers: tuple[str, str]) -> tuple[str, str]:
    """The status and message of a gRPC call."""
    if method == "ModelInfer":
        request = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[b"\0\0\0\0"])
        request.inputs.add(name="INPUT", datatype="FP32", shape=[1, 1])
    else:
        request = getattr(pb, f"{method}Request")(name=MODEL)
    made = channel.unary_unary(f"/{SERVICE}/{method}", lambda each: each.SerializeToString(), lambda data: data)
    answer = made(request, timeout=20.0, metadata=headers)
    return (await answer.code()).name, await answer.details() or ""


@asynccontextmanager
async def guarded(directory: Path, config: EnvoyConfig) -> AsyncIterator[Guarded]:
    files, process = EnvoyFiles(config), EnvoyProcess(config, directory)

    async def answer(request: web.Request) -> web.Response:
        running.seen.append(dict(request.headers))
        if request.path.endswith("generate"):
            running.arrived.set()
            await running.release.wait()
        return web.json_response({"outputs": []})

    async with serving(answer) as rest, KServe().serve() as server:
        endpoint = Endpoint("one", Address.parse(server.address), rest)
        running = Guarded(config, files, RouteTable({MODEL: ModelRoute((endpoint,))}, (endpoint,)))
        try:
            await files.write(running.table)
            await process.ensure()
            yield running
        finally:
            await process.stop()
            await process.close()
            await files.close()


async def assert_refused(running: Guarded, headers: Mapping[str, str]) -> None:
    refused = await running.post(headers)
    assert (refused.status_code, refused.json()["error"][:33]) == (401, "Themis: a valid API key is needed")
    code, message = await running.call("ModelInfer", *headers.items())
    assert (code, message[:33]) == ("UNAUTHENTICATED", "Themis: a valid API key is needed")


@asynccontextmanager
async def opened(running: Guarded) -> AsyncIterator[Callable[[Mapping[str, str]], Awaitable[tuple[int, str]]]]:
    """Sends a request with these headers over REST and over gRPC, on connections that are open; the statuses."""
    url = running.config.http_listen.url(f"{BASE}/infer")
    async with (
        httpx.AsyncClient(trust_env=False, timeout=20.0) as client,
        grpc.aio.insecure_channel(running.config.grpc_listen.authority) as channel,
    ):

        async def infer(headers: Mapping[str, str]) -> tuple[int, str]:
            code, _ = await call(channel, "ModelInfer", *headers.items())
            return (await client.post(url, json={}, headers=headers)).status_code, code

        yield infer


def test_only_clients_with_an_api_key_get_in_and_keys_come_and_go_on_open_connections_without_a_failed_request(tmp_path: Path) -> None:
    keys = tmp_path / "clients.keys"
    keys.write_text(f"alice {ALICE}\n")
    keys.chmod(0o600)

    async def infer_until(end: asyncio.Event, running: Guarded) -> int:
        """Requests on one connection until the end, none of which may fail."""
        sent = 0
        async with grpc.aio.insecure_channel(running.config.grpc_listen.authority) as channel:
            while not end.is_set():
                assert await call(channel, "ModelInfer", ("x-api-key", ALICE)) == ("OK", "")
                assert (await running.post({"x-api-key": ALICE})).status_code == 200
                sent += 2
        return sent

    async def scenario() -> None:
        async with guarded(tmp_path, replace(free_config(tmp_path), api_keys=keys)) as running:
            for headers in ({}, {"x-api-key": BOB}, {"authorization": "Bearer no"}):
                await assert_refused(running, headers)
            assert (await running.call("ModelConfig"))[0] == "UNAUTHENTICATED"
            assert [await running.get(path) for path in (f"{BASE}/config", "/v2/models/stats")] == [401, 401]
            assert [await running.get(path) for path in ("/v2", "/v2/health/ready", f"{BASE}/ready", BASE, "/v2/models/other")] == [200] * 5
            assert await running.call("ModelMetadata") == ("OK", "")
            assert (await read(running.config, [MODEL]))[MODEL].arrivals == 0, "what is refused is no demand"
            running.seen.clear()
            assert (await running.post({"authorization": f"Bearer {ALICE}"})).status_code == 200
            assert await running.call("ModelInfer", ("x-api-key", ALICE)) == ("OK", "")
            assert not [header for header in running.seen if ALICE in str(header)]
            assert (await read(running.config, [MODEL]))[MODEL].arrivals == 2
            report, _ = await run_load(load_with(tmp_path, running.config))
            assert (report.summaries[0].requests > 0, report.summaries[0].failed) == (True, 0)
            end = asyncio.Event()
            load = asyncio.create_task(infer_until(end, running))
            keys.write_text(f"# two\nalice {ALICE}\nbob {BOB}\n")
            assert await running.files.renew_certificates()
            assert (await running.post({"x-api-key": BOB})).status_code == 200
            keys.write_text("alice\n")
            with pytest.raises(ServerError, match=r"envoy\.api_keys: .*:1: there is no client and key"):
                await running.files.renew_certificates()
            assert not await running.files.renew_certificates()
            async with opened(running) as infer, running.held_request({"x-api-key": BOB}):
                assert await infer({"x-api-key": BOB}) == (200, "OK")
                keys.write_text(f"alice {ALICE}\ncarol {CAROL}\n")
                assert await running.files.renew_certificates()
                assert await infer({"x-api-key": BOB}) == (401, "UNAUTHENTICATED")
                assert await infer({"x-api-key": CAROL}) == (200, "OK")
            end.set()
            assert await load > 0
            assert await running.replaced_listeners() == 0

    asyncio.run(scenario())
    assert modes_of_envoys_files_with(ALICE, tmp_path) == {0o600}


def modes_of_envoys_files_with(secret: str, folder: Path) -> set[int]:
    files = [*folder.glob("envoy/**/*.json"), *folder.glob("envoy-check.json")]
    return {path.stat().st_mode & 0o777 for path in files if secret in path.read_text()}


def load_with(folder: Path, config: EnvoyConfig) -> LoadOptions:
    """A second of load with an API key."""
    bearer = folder / "bearer"
    bearer.write_text(f"{ALICE}\n")
    pipeline = PipelineLoad("video", (MODEL,), 1000.0, TraceOptions(rate_rps=50.0, duration_s=1))
    return LoadOptions(config.grpc_listen.authority, (pipeline,), bearer_file=bearer)


def signed(secret: bytes, **claims: object) -> str:
    """A JSON Web Token with a keyed hash."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=").decode()

    head = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'one'})}.{part(claims)}"
    return f"{head}.{part(hmac.digest(secret, head.encode(), hashlib.sha256))}"


def key_set(secret: bytes) -> str:
    """A JSON Web Key Set with this key."""
    key = base64.urlsafe_b64encode(secret).rstrip(b"=").decode()
    return json.dumps({"keys": [{"kty": "oct", "kid": "one", "alg": "HS256", "k": key}]})


def test_only_clients_with_a_token_of_the_issuer_get_in_and_its_keys_come_and_go_on_open_connections(tmp_path: Path) -> None:
    secret, other, jwks = b"s" * 32, b"o" * 32, tmp_path / "jwks.json"
    jwks.write_text(key_set(secret))
    now_s = int(time.time())
    claims = {"iss": "https://issuer.example", "aud": "triton", "exp": now_s + 600}

    async def scenario() -> None:
        config = replace(free_config(tmp_path), jwt=JwtConfig("https://issuer.example", jwks, ("triton",)))
        async with guarded(tmp_path, config) as running:
            for wrong in ({"iss": "https://other.example"}, {"aud": "other"}, {"exp": now_s - 600}):
                token = signed(secret, **{**claims, **wrong})
                assert (await running.post({"authorization": f"Bearer {token}"})).status_code in {401, 403}
            assert (await running.call("ModelInfer", ("authorization", f"Bearer {signed(b'x' * 32, **claims)}")))[0] == "UNAUTHENTICATED"
            assert (await running.post({})).json()["error"].startswith("Themis: a valid JSON Web Token is needed")
            assert await running.get("/v2/health/live") == 200
            bearer = f"Bearer {signed(secret, **claims)}"
            assert (await running.post({"authorization": bearer})).status_code == 200
            assert await running.call("ModelInfer", ("authorization", bearer)) == ("OK", "")
            assert "authorization" not in {name.lower() for name in running.seen[-1]}
            assert (await read(config, [MODEL]))[MODEL].arrivals == 2
            async with opened(running) as infer, running.held_request({"authorization": bearer}):
                assert await infer({"authorization": bearer}) == (200, "OK")
                jwks.write_text(key_set(other))
                assert await running.files.renew_certificates()
                assert await infer({"authorization": bearer}) == (401, "UNAUTHENTICATED")
                assert await infer({"authorization": f"Bearer {signed(other, **claims)}"}) == (200, "OK")
            assert await running.replaced_listeners() == 0

    asyncio.run(scenario())
    assert modes_of_envoys_files_with(json.loads(key_set(other))["keys"][0]["k"], tmp_path) == {0o600}


def test_a_changed_listener_moves_open_connections_at_once_and_cuts_no_running_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = free_config(tmp_path)
        async with guarded(tmp_path, config) as running, httpx.AsyncClient(trust_env=False, timeout=20.0) as client:
            url = config.http_listen.url(f"{BASE}/infer")
            assert "connection" not in (await client.post(url, json={})).headers
            async with running.held_request({}):
                changed = EnvoyFiles(replace(config, header_timeout_s=9.0))
                await changed.write(running.table)
                await changed.close()
                assert await running.replaced_listeners() > 0
                async with asyncio.timeout(10.0):  # The old listener is left once the new one is warm.
                    while (moved := await client.post(url, json={})).headers.get("connection") != "close":
                        assert moved.status_code == 200
                assert moved.status_code == 200

    asyncio.run(scenario())
