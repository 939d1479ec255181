"""Admission limits on the real Envoy: what is refused, how, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import httpx
import pytest
import yaml
from aiohttp import web
from tritonclient.grpc import service_pb2 as pb

from tests.e2e.conftest import Launch
from tests.e2e.daemon_setup import DETECTOR, Sidecar, Traffic, beside
from tests.e2e.envoy_setup import free_config, read
from tests.unit.http_server import serving
from tests.unit.kserve_server import SERVICE, KServe
from themis_triton.adapters.envoy.deadlines import PROBE_EVERY
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.routes import Endpoint, ModelRoute, RouteLimit, RouteTable
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.traces import TraceOptions
from themis_triton.settings.shipped import shipped

pytestmark = pytest.mark.e2e

MODEL, FREE = "detector", "classifier"
BURST = 4
LIMIT = RouteLimit(0.01, BURST, reason='Themis: pipeline "video" is full', min_deadline_ms=9000.0)
"""A rate at which no token comes back while the test runs."""


@asynccontextmanager
async def limited(directory: Path) -> AsyncIterator[tuple[EnvoyConfig, EnvoyFiles, Endpoint]]:
    """An Envoy before a gRPC server and a REST server, with a limit on one of two models."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"outputs": []})

    config = free_config(directory)
    process, files = EnvoyProcess(config, directory), EnvoyFiles(config)
    async with serving(answer) as rest, KServe().serve() as server:
        endpoint = Endpoint("one", Address.parse(server.address), rest)
        try:
            await files.write(RouteTable({MODEL: ModelRoute((endpoint,), limit=LIMIT), FREE: ModelRoute((endpoint,))}, (endpoint,)))
            await process.ensure()
            yield config, files, endpoint
        finally:
            await process.stop()
            await process.close()
            await files.close()


async def calls(
    address: Address, model: str, count: int, timeout_s: float = 20.0, metadata: tuple[tuple[str, str], ...] = ()
) -> list[tuple[str, str | None, dict[str, str]]]:
    """The status, message and trailers of each of so many gRPC calls, one after the other."""
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(b"\0\0\0\0")
    answers = []
    async with grpc.aio.insecure_channel(address.authority) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)
        for _ in range(count):
            call = infer(request, timeout=timeout_s, metadata=metadata)
            code, trailers = await call.code(), await call.trailing_metadata() or ()
            answers.append((code.name, await call.details(), {str(key): str(value) for key, value in trailers}))
    return answers


async def posts(address: Address, model: str, count: int) -> list[httpx.Response]:
    async with httpx.AsyncClient(trust_env=False, timeout=20.0) as client:
        return [await client.post(address.url(f"/v2/models/{model}/infer"), json={}) for _ in range(count)]


def test_requests_beyond_a_limit_are_refused_with_the_reason_and_still_count_as_arrivals(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with limited(tmp_path) as (config, files, endpoint):
            late = await calls(config.grpc_listen, MODEL, PROBE_EVERY + 1, timeout_s=8.0)
            refused = [code for code, message, _ in late if "fastest answer takes more than 9000 ms" in (message or "")]
            assert refused == ["DEADLINE_EXCEEDED"] * (PROBE_EVERY - 1), "the others are let through, so that a wrong profile shows"
            assert [code for code, _, _ in (late[0], late[-1])] == ["OK"] * 2
            [(code, _, _)] = await calls(config.grpc_listen, FREE, 1, timeout_s=8.0)
            assert code == "OK"
            answers = await calls(config.grpc_listen, MODEL, BURST)
            assert [code for code, _, _ in answers] == ["OK"] * (BURST - 2) + ["RESOURCE_EXHAUSTED"] * 2
            _, message, trailers = answers[-1]
            assert (message, trailers["retry-after"], trailers["grpc-retry-pushback-ms"]) == (LIMIT.reason, "1", "1000")
            assert {code for code, _, _ in await calls(config.grpc_listen, FREE, 2 * BURST)} == {"OK"}
            first, second = await posts(config.http_listen, MODEL, 2)
            assert (first.status_code, second.status_code, second.headers["retry-after"]) == (200, 429, "1")
            assert second.json() == {"error": LIMIT.reason}
            reading = (await read(config, [MODEL]))[MODEL]
            sent = PROBE_EVERY + 1 + BURST + 2
            assert (reading.arrivals, reading.refused, reading.rest_arrivals, reading.failures) == (sent, PROBE_EVERY - 1 + 3, 2, 0)
            # A new limit applies without a new listener: the connections and counters go on.
            await files.write(RouteTable({MODEL: ModelRoute((endpoint,)), FREE: ModelRoute((endpoint,))}, (endpoint,)))
            assert {code for code, _, _ in await calls(config.grpc_listen, MODEL, 2 * BURST)} == {"OK"}
            assert (await read(config, [MODEL]))[MODEL].arrivals == sent + 2 * BURST

            # Each change of a limit fills the buckets of all, which is why they change together and seldom; a server that joins fills none.
            async def admitted(first: RouteLimit, *servers: Endpoint) -> list[int]:
                models = {MODEL: ModelRoute(servers, limit=first), FREE: ModelRoute(servers, limit=LIMIT)}
                await files.write(RouteTable(models, servers))
                answers = [await calls(config.grpc_listen, model, BURST + 1) for model in (MODEL, FREE)]
                return [sum(code == "OK" for code, _, _ in each) for each in answers]

            assert await admitted(LIMIT, endpoint) == [BURST, BURST]
            assert await admitted(LIMIT, endpoint, replace(endpoint, server="two")) == [0, 0]
            assert await admitted(replace(LIMIT, requests_per_s=0.02), endpoint) == [BURST, BURST]

    asyncio.run(scenario())


def test_the_lower_the_class_the_more_tokens_are_kept_from_it(tmp_path: Path) -> None:
    """A limit whose tokens do not come back: each class gets its third, the lowest first refused, the highest the rest."""
    limit = replace(LIMIT, burst=12, min_deadline_ms=0.0, class_header="x-priority", classes=("high", "normal"))

    async def scenario() -> None:
        async with limited(tmp_path) as (config, files, endpoint):
            await files.write(RouteTable({MODEL: ModelRoute((endpoint,), limit=limit)}, (endpoint,)))
            admitted = []
            for priority in ("none of these", "normal", "high"):
                answers = await calls(config.grpc_listen, MODEL, 12, metadata=(("x-priority", priority),))
                assert {code for code, _, _ in answers} == {"OK", "RESOURCE_EXHAUSTED"}
                admitted.append(sum(code == "OK" for code, _, _ in answers))
            # The first request that is refused for its class takes the one token of such requests.
            assert admitted == [4 + 1, 4, 4 - 1]
            reading = (await read(config, [MODEL]))[MODEL]
            assert (reading.arrivals, reading.refused) == (36, 36 - sum(admitted))

    asyncio.run(scenario())


def test_a_sidecar_sheds_an_overload_says_so_and_its_limit_outlives_it(launch: Launch, tmp_path: Path) -> None:
    fixed = {DETECTOR: yaml.safe_load((shipped("config") / "themis.yaml").read_text())["models"][DETECTOR] | {"instances": [1, 1]}}
    pipelines = {"video": {"model": DETECTOR, "slo_ms": 300, "overload": "shed"}}

    async def scenario(sidecar: Sidecar) -> None:
        await sidecar.start()
        idle = await sidecar.until("a limit", lambda status: bool((status["pipelines"][0]["evidence"] or {}).get("limit_rps")))
        limit_rps = idle["pipelines"][0]["evidence"]["limit_rps"]
        trace = TraceOptions(rate_rps=3.0 * limit_rps, duration_s=60)
        async with LoadProcess(LoadOptions(sidecar.grpc_address, (PipelineLoad("video", (DETECTOR,), 300.0, trace),))) as process:
            running = Traffic(process)
            try:
                seen = await sidecar.until("a demand above the limit", lambda s: s["pipelines"][0]["evidence"]["refused_rps"] > limit_rps)
                shown = await asyncio.to_thread(sidecar.command, "status")
                await sidecar.kill()
                await running.more(20)
                answers = await calls(Address.parse(sidecar.grpc_address), DETECTOR, 20)
                summary = await running.end()
            finally:
                await running.abandon()
        assert seen["pipelines"][0]["evidence"]["demand_fast_rps"] > limit_rps
        assert "admission: video refuses" in shown.stdout
        assert "RESOURCE_EXHAUSTED" in {code for code, _, _ in answers}, "the limit holds without a sidecar"
        assert set(summary.errors) == {"resource_exhausted"}
        assert "Themis: pipeline video is overloaded" in summary.first_messages["resource_exhausted"]
        assert summary.errors["resource_exhausted"] > 0.3 * summary.requests

        assert summary.slo_attainment > 0.7 * (1.0 - summary.errors["resource_exhausted"] / summary.requests)

    with beside(launch, tmp_path, slots=(), models=fixed, pipelines=pipelines) as sidecar:
        asyncio.run(scenario(sidecar))
