"""Server-sent events of the status API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from tests.unit.samples import NOW_S
from tests.unit.status_api import ServedApi, served, tick
from themis_triton.core.status import Status, decode_status
from themis_triton.daemon import events


async def messages(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def publish(api: ServedApi, number: int) -> None:
    api.board.take(tick(NOW_S + number, rps=float(number)), 1.0)
    api.hub.publish(api.board.status)


def test_each_client_gets_the_status_at_once_and_then_one_message_a_tick(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "journal.sqlite") as api, api.client.stream("GET", "events") as response:
            assert response.headers["content-type"] == "text/event-stream"
            stream = messages(response)
            assert decode_status(await anext(stream)).tick == 0
            for number in (1, 2):
                publish(api, number)
                assert decode_status(await anext(stream)).at_s == NOW_S + number
            assert api.hub.clients == 1
            api.hub.close()
            assert [message async for message in stream] == []

    asyncio.run(scenario())


def test_a_client_that_reads_too_slowly_is_dropped_and_the_others_are_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "journal.sqlite") as api:
            with api.hub.subscribed() as slow, api.hub.subscribed() as quick:
                for number in range(events.MAX_WAITING + 1):
                    publish(api, number)
                    assert await quick.get() is not None
                assert api.hub.clients == 1
                received = [slow.get_nowait() for _ in range(events.MAX_WAITING)]
                assert received[-1] is None
                assert None not in received[:-1]

    asyncio.run(scenario())


def test_a_status_is_made_only_where_a_client_is_connected(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "journal.sqlite") as api:
            made: list[Status] = []

            def status() -> Status:
                made.append(api.board.status())
                return made[-1]

            api.hub.publish(status)
            assert made == []
            with api.hub.subscribed():
                api.hub.publish(status)
            assert len(made) == 1

    asyncio.run(scenario())


def test_too_many_clients_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "journal.sqlite") as api:
            clients = ExitStack()
            for _ in range(events.MAX_CLIENTS):
                clients.enter_context(api.hub.subscribed())
            refused = await api.client.get("events")
            assert (refused.status_code, refused.json()["error"]) == (503, f"{events.MAX_CLIENTS} clients are connected already")

    asyncio.run(scenario())
