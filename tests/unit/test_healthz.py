"""Liveness over HTTP: a daemon whose ticks no longer end is not healthy."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.unit.fakes import FakeClock
from tests.unit.samples import config, record, snapshot
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.address import Address
from themis_triton.core.policy import PolicyConfig
from themis_triton.daemon.api import serving
from themis_triton.daemon.status import StatusBoard

LONG_TICK = PolicyConfig(tick_s=2.0)


@pytest.mark.parametrize(("policy", "allowed_s"), [(PolicyConfig(), 10.0), (LONG_TICK, 20.0)])
def test_healthz_is_503_when_the_last_good_tick_is_long_ago(policy: PolicyConfig, allowed_s: float) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        board = StatusBoard(config(policy), clock.now_s())
        address = Address("127.0.0.1", free_ports(1)[0])

        async def answer() -> httpx.Response:
            return await client.get(address.url("/healthz"))

        async with serving(address, board, Exporter(), clock), httpx.AsyncClient(trust_env=False) as client:
            await clock.sleep(allowed_s)
            assert (await answer()).status_code == 200
            await clock.sleep(1.0)
            late = await answer()
            assert (late.status_code, late.text) == (503, f"no good tick for {allowed_s + 1:.1f} s; see the log\n")
            board.take(record(seen=snapshot(at_s=clock.now_s())), 1.0)
            assert (await answer()).status_code == 200

    asyncio.run(scenario())
