"""The live observer: one call reads all sources at once, and one that is silent does not hide the others."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from tests.unit.http_server import serving
from tests.unit.samples import envoy_at
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.stats import EnvoyStats
from themis_triton.adapters.nvml import DeviceReader
from themis_triton.adapters.observer import LiveObserver
from themis_triton.adapters.triton.metrics import TritonMetrics
from themis_triton.core.address import UNKNOWN_ADDRESS, Address
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import Readings

PAGE = 'nv_inference_count{model="m",version="1"} 3\n'
MANY = 3
STATISTICS = json.dumps({"model_stats": []})
ROUTES = json.dumps({"stats": [{"name": "http.grpc.rbac.policy.infer_m.allowed", "value": 7}]})


async def read(server_at: Address, proxy_at: Address) -> Readings:
    clock = SystemClock()
    observer = LiveObserver(TritonMetrics(clock, 5.0), EnvoyStats(envoy_at(proxy_at), ["m"], clock), DeviceReader(["cpu:0"], clock))
    try:
        return await observer.read([Server("a", "cpu:0", UNKNOWN_ADDRESS, server_at, server_at, Phase.SERVING, launched=False)])
    finally:
        await observer.close()


def test_all_sources_are_asked_before_any_has_answered() -> None:
    async def scenario() -> None:
        asked, all_asked = set(), asyncio.Event()

        async def answer(request: web.Request) -> web.Response:
            asked.add(request.path)
            if len(asked) == MANY:
                all_asked.set()
            await all_asked.wait()
            return web.Response(text={"/metrics": PAGE, "/stats": ROUTES}.get(request.path, STATISTICS))

        async with serving(answer) as address:
            readings = await read(address, address)
        assert asked == {"/metrics", "/v2/models/stats", "/stats"}
        assert readings.servers[0].models["m"].inferences == MANY
        assert readings.routes[0].arrivals == 7.0
        assert (readings.servers[0].error, readings.routes_error, readings.devices[0].error) == (None, None, None)

    asyncio.run(scenario())


def test_a_silent_proxy_does_not_hide_the_servers() -> None:
    async def scenario() -> None:
        async def answer(request: web.Request) -> web.Response:
            if request.path == "/stats":
                return web.Response(status=503)
            return web.Response(text=PAGE if request.path == "/metrics" else STATISTICS)

        async with serving(answer) as address:
            readings = await read(address, address)
        assert readings.routes == ()
        assert "503" in (readings.routes_error or "")
        assert readings.servers[0].models["m"].inferences == MANY

    asyncio.run(scenario())


def test_a_hung_server_and_proxy_hold_no_reading_and_their_answers_are_used_once_they_come() -> None:
    """A call that waits without end would fail by the time-out of the suite: the answers come only after it has returned."""

    async def scenario() -> None:
        hangs = asyncio.Event()

        async def answer(request: web.Request) -> web.Response:
            await hangs.wait()
            return web.Response(text={"/metrics": PAGE, "/stats": ROUTES}.get(request.path, STATISTICS))

        clock = SystemClock()
        async with serving(answer) as hung:
            metrics, stats = TritonMetrics(clock, 30.0, wait_s=0.01), EnvoyStats(envoy_at(hung), ["m"], clock, wait_s=0.01)
            observer = LiveObserver(metrics, stats, DeviceReader(["cpu:0"], clock))
            servers = [Server("a", "cpu:0", UNKNOWN_ADDRESS, hung, hung, Phase.SERVING, launched=False)]
            try:
                for _ in range(3):
                    held = await observer.read(servers)
                assert "no answer yet" in (held.servers[0].error or "")
                assert "no answer yet after 0.01 s" in (held.routes_error or "")
                hangs.set()
                for _ in range(500):
                    late = await observer.read(servers)
                    if late.routes and late.servers[0].error is None:
                        break
                assert (late.servers[0].models["m"].inferences, late.routes[0].arrivals) == (MANY, 7.0)
            finally:
                await observer.close()

    asyncio.run(scenario())
