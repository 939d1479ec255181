"""The status API's connections: any user of the machine can open some, and none of them keeps others out."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.certificates import self_made_certificate
from tests.unit.fakes import FakeClock
from tests.unit.samples import NOW_S, config
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.status_client import get
from themis_triton.core.address import Address
from themis_triton.core.listener_tls import ListenerTls
from themis_triton.daemon import bounded_listener
from themis_triton.daemon.api import serving
from themis_triton.daemon.status import StatusBoard

TIMEOUT_S = 20.0


class Api:
    """A status API with a slow call, and the clients of a test."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.may_answer = asyncio.Event()
        self.began: asyncio.Queue[None] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []

    async def slow(self, _: web.Request) -> web.Response:
        self.began.put_nowait(None)
        await self.may_answer.wait()
        return web.Response(text="at last")

    async def connected(self, sent: bytes = b"GET /metrics HTTP/1.1\r\nhost: loc") -> asyncio.StreamReader:
        """A connection with the start of a request."""
        reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
        self.writers.append(writer)
        writer.write(sent)
        return reader

    async def called(self) -> asyncio.StreamReader:
        """A connection whose request is under way."""
        reader = await self.connected(b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await self.began.get()
        return reader

    async def code(self) -> int:
        return (await asyncio.to_thread(get, self.address, "/metrics")).code


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends without an answer; waits for it."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:  # by what has not been read
        return True


@pytest.fixture(autouse=True)
def _few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_listener, "MAX_CONNECTIONS", 3)


@asynccontextmanager
async def serving_api(tls: ListenerTls | None = None) -> AsyncIterator[Api]:
    address = Address("127.0.0.1", free_ports(1)[0], tls=tls is not None, ca=str(tls.certificate) if tls is not None else None)
    api, board = Api(address), StatusBoard(config(), NOW_S)
    routes = [web.get("/slow", api.slow)]
    async with serving(address, board, Exporter(), FakeClock(), routes=routes, tls=tls), asyncio.timeout(TIMEOUT_S):
        try:
            yield api
        finally:
            for writer in api.writers:
                writer.close()


def test_the_oldest_connections_without_a_request_make_room_and_those_with_one_are_answered() -> None:
    async def scenario() -> None:
        async with serving_api() as api:
            busy = await api.called()
            idle = [await api.connected() for _ in range(8)]
            assert [await closed(reader) for reader in idle[:6]] == [True] * 6
            assert [await api.code() for _ in range(5)] == [200] * 5
            api.may_answer.set()
            assert await busy.readline() == b"HTTP/1.1 200 OK\r\n"

    asyncio.run(scenario())


def test_where_all_have_a_request_a_further_one_is_closed() -> None:
    async def scenario() -> None:
        async with serving_api() as api:
            busy = [await api.called() for _ in range(3)]
            assert await closed(await api.connected())
            api.may_answer.set()
            assert [await reader.readline() for reader in busy] == [b"HTTP/1.1 200 OK\r\n"] * 3

    asyncio.run(scenario())


def test_clients_that_begin_no_handshake_keep_none_out(tmp_path: Path) -> None:
    files = self_made_certificate(tmp_path / "tls")

    async def scenario() -> None:
        async with serving_api(ListenerTls(Path(files["certificate"]), Path(files["key"]), require_client_certificate=False)) as api:
            silent = [await api.connected(b"") for _ in range(8)]
            assert await api.code() == 200
            assert [await closed(reader) for reader in silent[:6]] == [True] * 6

    asyncio.run(scenario())


def test_a_process_without_a_free_descriptor_accepts_again_once_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_listener, "RETRY_S", 0.01)
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept

        async def failing(listener: socket.socket) -> tuple[socket.socket, object]:
            if failures:
                raise failures.pop()
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", failing)
        async with serving_api() as api:
            assert await api.code() == 200
        assert not failures

    asyncio.run(scenario())
