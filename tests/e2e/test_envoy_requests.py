"""Requests that must not harm servers or other clients, through a real Envoy in front of small HTTP servers: no Triton here."""

from __future__ import annotations

import asyncio
import io
import json
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.e2e.envoy_setup import free_config, write
from tests.unit.samples import server
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.broken_requests import BrokenRequests
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.envoy.request_check import MAX_DEPTH, PIECE_BYTES
from themis_triton.adapters.process_end import wait_until
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.incident import BrokenRequest
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable

pytestmark = pytest.mark.e2e

INFER = "/v2/models/model/infer"
POISON = b'{"inputs": "poison"}'
MAX_BYTES = 2**20
SERVERS = 4
SLOW_CLIENTS = 2000
ENDLESS_CLIENTS = 50
"""Of these send headers, and never the end of the body."""
TIMEOUT_S = 30.0


@dataclass
class Upstream:
    """Servers that are ready, answer inference with the size of its body, and break the connection of a poisonous one."""

    config: EnvoyConfig
    envoy: EnvoyProcess
    bodies: list[bytes] = field(default_factory=list)

    def url(self) -> str:
        return self.config.http_listen.url(INFER)


@asynccontextmanager
async def served(directory: Path, **changes: Any) -> AsyncIterator[Upstream]:
    config = replace(free_config(directory), **({"max_message_bytes": MAX_BYTES} | changes))
    running = Upstream(config, EnvoyProcess(config, directory))

    async def infer(request: web.Request) -> web.Response:
        body = await request.read()
        running.bodies.append(body)
        if body == POISON and request.transport is not None:
            request.transport.abort()
        return web.json_response({"bytes": len(body)})

    async def ready(_: web.Request) -> web.Response:
        return web.Response()

    async with AsyncExitStack() as stack:
        endpoints = []
        for number in range(SERVERS):
            app = web.Application(client_max_size=64 * MAX_BYTES)
            app.add_routes([web.post(INFER, infer), web.get("/v2/models/model/ready", ready), web.get("/v2/health/live", ready)])
            runner = web.AppRunner(app)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0, reuse_port=False)
            await site.start()
            address = Address("127.0.0.1", int(runner.addresses[0][1]))
            endpoints.append(Endpoint(f"server-{number}", address, address))
        await write(config, RouteTable({"model": ModelRoute(tuple(endpoints))}, tuple(endpoints)))
        stack.push_async_callback(running.envoy.close)
        stack.push_async_callback(running.envoy.stop)
        await running.envoy.ensure()
        yield running


async def posted(client: aiohttp.ClientSession, running: Upstream, body: Any, **headers: str) -> tuple[int, str]:
    async with client.post(running.url(), data=body, headers=headers) as response:
        return response.status, (await response.text()).strip()


def nested(depth: int) -> bytes:
    return b"[" * depth + b"1" + b"]" * depth


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(MAX_BYTES // 2**16 + 1):
        yield bytes(2**16)


def test_a_body_that_is_nested_too_deeply_or_too_large_is_refused_with_the_reason_before_a_server_sees_it(tmp_path: Path) -> None:
    too_deep = f"Themis: the JSON of the request is nested more than {MAX_DEPTH} levels deep"
    too_large = f"Themis: the request has more than {MAX_BYTES} bytes (envoy.max_message)"
    text = b'{"data": ["' + b"[" * 1000 + b'\\"["]}'
    start = b'[{}, "'
    cut = start + b"a" * (PIECE_BYTES - len(start) - 1) + b'\\"' + b"[" * 1000 + b'"]'  # a quote whose backslash ends a piece
    binary = b'{"inputs": []}' + b"[" * 1000

    async def scenario() -> None:
        async with served(tmp_path) as running, aiohttp.ClientSession() as client:
            for body in (nested(200_000), nested(MAX_DEPTH + 1), b'{"a":' * 200, b'["]", "' + b"[" * 70 + b'\\"", ' + nested(MAX_DEPTH)):
                assert await posted(client, running, body) == (400, f'{{"error":"{too_deep}"}}')
            for large in (io.BytesIO(bytes(MAX_BYTES + 1)), chunks()):
                assert await posted(client, running, large) == (413, f'{{"error":"{too_large}"}}')
            assert running.bodies == []
            harmless = {nested(MAX_DEPTH): {}, text: {}, cut: {}, binary: {"Inference-Header-Content-Length": "14"}, b"[1,2]," * 9000: {}}
            for body, headers in harmless.items():
                assert (await posted(client, running, body, **headers))[0] == 200
            assert (await posted(client, running, nested(100), **{"Inference-Header-Content-Length": "-1"}))[0] == 400

    asyncio.run(scenario())


@pytest.mark.parametrize(("resend", "reached"), [(True, 6), (False, 1)])
def test_a_request_that_breaks_its_server_reaches_others_only_by_the_settings_and_is_named(
    tmp_path: Path, resend: bool, reached: int
) -> None:
    async def scenario() -> None:
        async with served(tmp_path, resend_broken=resend) as running, aiohttp.ClientSession() as client:
            assert (await posted(client, running, b"{}"))[0] == 200
            assert (await posted(client, running, POISON))[0] == 503
            assert running.bodies.count(POISON) == reached

            def named() -> list[dict[str, Any]]:
                lines = running.envoy.log_file.read_text(encoding="utf-8").splitlines()
                return [json.loads(line) for line in lines if '"request_broken"' in line]

            assert await wait_until(lambda: bool(named()), TIMEOUT_S)
            (line,) = named()
            assert (line["path"], line["bytes"], line["attempts"]) == (INFER, len(POISON), reached)
            address = Address.parse(line["last_server"])
            ended = replace(server("ended"), grpc_address=address, http_address=address)
            witness = BrokenRequests(running.envoy.log_file, SystemClock())
            assert await witness.broken_requests(ended) == (BrokenRequest("model", "127.0.0.1"),)

    asyncio.run(scenario())


SETTINGS, MAX_CONCURRENT_STREAMS = 4, 3
"""The HTTP/2 frame with what a server allows, and the entry of the streams at once."""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, SETTINGS, 0, 0, 0, 0, 0))


async def allowed_streams(config: EnvoyConfig) -> int:
    """What the gRPC listener tells a client."""
    reader, writer = await asyncio.open_connection(config.grpc_listen.host, config.grpc_listen.port)
    writer.write(HELLO)
    head = await reader.readexactly(9)
    assert head[3] == SETTINGS
    body = await reader.readexactly(int.from_bytes(head[:3], "big"))
    writer.transport.abort()
    entries = (body[at : at + 6] for at in range(0, len(body), 6))
    return next(int.from_bytes(each[2:], "big") for each in entries if int.from_bytes(each[:2], "big") == MAX_CONCURRENT_STREAMS)


def test_connections_streams_and_memory_have_the_bounds_of_the_settings(tmp_path: Path) -> None:
    connections, held, part = 12, 4, 30 * MAX_BYTES

    async def scenario() -> None:
        bounds = {"max_connections": connections, "max_streams": 7, "max_memory_bytes": held * part, "max_message_bytes": 2 * part}
        async with served(tmp_path, **bounds) as running, aiohttp.ClientSession() as client:
            assert await allowed_streams(running.config) == 7
            assert (await posted(client, running, b"{}"))[0] == 200
            listen = running.config.http_listen
            streams = [await asyncio.open_connection(listen.host, listen.port) for _ in range(2 * connections)]
            closed = [asyncio.create_task(reader.read()) for reader, _ in streams]
            async with asyncio.timeout(TIMEOUT_S):
                while sum(each.done() for each in closed) < connections:
                    await asyncio.wait([each for each in closed if not each.done()], return_when=asyncio.FIRST_COMPLETED)
            for each in closed:
                each.cancel()
            bodies = [writer for (_, writer), each in zip(streams, closed, strict=True) if not each.done()][:held]
            for _, writer in streams:
                if writer not in bodies:
                    writer.transport.abort()
            for writer in bodies:
                writer.write(f"POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: {part + 1}\r\n\r\n".encode() + bytes(part))
                await writer.drain()

            async def status(expected: int) -> None:
                async with asyncio.timeout(TIMEOUT_S):
                    while (await posted(client, running, b"{}"))[0] != expected:
                        pass

            await status(503)
            for writer in bodies:
                writer.transport.abort()
            await status(200)

    asyncio.run(scenario())


def test_thousands_of_slow_clients_delay_no_other_and_are_closed(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def scenario() -> None:
        async with served(tmp_path, header_timeout_s=3.0, max_request_s=3.0) as running, aiohttp.ClientSession() as client:
            listen = running.config.http_listen
            slow = [await asyncio.open_connection(listen.host, listen.port) for _ in range(min(SLOW_CLIENTS, hard // 4))]
            for _, writer in slow:
                writer.write(b"POST / HTTP/1.1\r\nhost: a\r\nx-slow: ")
            for _, writer in slow[:ENDLESS_CLIENTS]:
                writer.write(b"1\r\nx-end: 1\r\ncontent-length: 9\r\n\r\n1")
            assert (await posted(client, running, b"{}"))[0] == 200
            async with asyncio.timeout(TIMEOUT_S):
                answers = await asyncio.gather(*(reader.read() for reader, _ in slow))
            assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
            for _, writer in slow:
                writer.close()

    try:
        asyncio.run(scenario())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
