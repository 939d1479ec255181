"""Reading Triton's metrics, without a Triton."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from tests.unit.http_server import serving
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.triton import metrics as metrics_module
from themis_triton.adapters.triton.metrics import TritonMetrics, fetch_metrics, fetch_statistics, parse_metrics, parse_statistics
from themis_triton.core.address import UNKNOWN_ADDRESS, Address
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import BatchCounters, ModelCounters

TEXT = """\
# HELP nv_inference_request_success Requests that succeeded
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="a",version="1"} 10
nv_inference_request_success{model="a",version="2"} 5
nv_inference_request_success{model="b",version="1"} 7
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="a",reason="BACKEND",version="1"} 1
nv_inference_request_failure{model="a",reason="REJECTED",version="1"} 2
# TYPE nv_inference_count counter
nv_inference_count{model="a",version="1"} 40
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="a",version="1"} 8
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{model="a",version="1"} 1.5e+06
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{model="a",version="1"} 3000
# TYPE nv_inference_compute_input_duration_us counter
nv_inference_compute_input_duration_us{model="a",version="1"} 11
# TYPE nv_inference_compute_infer_duration_us counter
nv_inference_compute_infer_duration_us{model="a",version="1"} 12
# TYPE nv_inference_compute_output_duration_us counter
nv_inference_compute_output_duration_us{model="a",version="1"} 13
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="a",version="1"} 4
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.25
"""


def test_counters_are_summed_over_versions_and_a_refusal_is_no_failure() -> None:
    models = parse_metrics(TEXT)
    assert models["a"] == ModelCounters(15, 1, 40, 8, 1.5e6, 3000, 11, 12, 13, 4, refused=2)
    assert models["b"] == ModelCounters(success=7)
    assert set(models) == {"a", "b"}


def test_no_models_is_no_error() -> None:
    assert parse_metrics("# TYPE nv_cpu_utilization gauge\nnv_cpu_utilization 0.25\n") == {}


def test_something_else_is_not_taken_for_metrics() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        parse_metrics('nv_inference_count{model="a"} many\n')


@pytest.mark.parametrize(
    "text", ["<html>", '{"error": "x"}', 'nv_inference_count{version="1"} 2', 'nv_inference_count{model="a"} NaN', "nv_inference_count{"]
)
def test_a_page_that_cannot_be_right_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected Triton's metrics|not a|could not convert|substring not found"):
        parse_metrics(text)


def test_a_models_name_may_hold_whatever_the_format_can_escape() -> None:
    text = 'nv_inference_count{model="a \\"b\\\\c}\\n,model=\\"x",version="1"} 3\nnv_inference_count{version="1",model="näme"} 2\n'
    assert {name: counters.inferences for name, counters in parse_metrics(text).items()} == {'a "b\\c}\n,model="x': 3.0, "näme": 2.0}


def test_an_answer_is_parsed_and_an_error_status_is_an_error() -> None:
    async def run() -> None:
        async def answer(request: web.Request) -> web.Response:
            return web.Response(text=TEXT) if request.path == "/metrics" else web.Response(status=503)

        async with serving(answer) as address, HttpClient(5.0) as client:
            assert (await fetch_metrics(client, address))["a"].success == 15
            with pytest.raises(HttpError, match="HTTP 503"):
                await fetch_statistics(client, address)

    asyncio.run(run())


def test_the_connection_to_the_metrics_is_kept() -> None:
    async def run() -> None:
        peers = set()

        async def answer(request: web.Request) -> web.Response:
            assert request.transport is not None
            if request.path == "/metrics":
                peers.add(request.transport.get_extra_info("peername"))
            return web.Response(text=TEXT)

        async with serving(answer) as address:
            metrics = TritonMetrics(SystemClock())
            one = Server("one", "cpu:0", UNKNOWN_ADDRESS, address, address, Phase.SERVING, launched=False)
            for _ in range(3):
                (reading,) = await metrics.read_servers([one])
                assert reading.models["a"].success == 15
            await metrics.close()
        assert len(peers) == 1

    asyncio.run(run())


def test_servers_that_do_not_answer_are_readings_with_errors() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        servers = [server("silent", silent.getsockname()[1]), server("closed", closed.getsockname()[1])]

        async def run() -> None:
            metrics = TritonMetrics(SystemClock(), timeout_s=0.2)
            readings = await metrics.read_servers(servers)
            await metrics.close()
            assert [reading.server for reading in readings] == ["silent", "closed"]
            assert "no answer within 0.2 s" in (readings[0].error or "")
            assert "metrics of server closed at http://127.0.0.1:" in (readings[1].error or "")
            assert all(reading.models == {} for reading in readings)

        asyncio.run(run())


def server(name: str, port: int) -> Server:
    return Server(name, "cpu:0", UNKNOWN_ADDRESS, UNKNOWN_ADDRESS, Address("127.0.0.1", port), Phase.SERVING, launched=False)


def batch(size: int, count: int, each_us: int) -> dict[str, Any]:
    parts = {"compute_input": 1, "compute_infer": each_us - 3, "compute_output": 2}
    return {"batch_size": size} | {part: {"count": count, "ns": 1000 * count * us} for part, us in parts.items()}


STATISTICS = {
    "model_stats": [
        {"name": "a", "version": "1", "batch_stats": [batch(4, 3, 700), batch(1, 10, 100)]},
        {"name": "a", "version": "2", "batch_stats": [batch(1, 5, 130)]},
        {"name": "idle", "version": "1", "batch_stats": []},
    ]
}


def test_batches_are_counted_once_by_size_and_summed_over_versions() -> None:
    assert parse_statistics(STATISTICS) == {"a": (BatchCounters(1, 15.0, 1650.0), BatchCounters(4, 3.0, 2100.0)), "idle": ()}


@pytest.mark.parametrize("answer", [{}, {"error": "not found"}, {"model_stats": [{"name": "a"}]}, {"model_stats": None}, []])
def test_something_else_is_not_taken_for_statistics(answer: Any) -> None:
    with pytest.raises(ValueError, match="no statistics of batches"):
        parse_statistics(answer)


def test_a_server_whose_statistics_are_refused_still_has_its_metrics() -> None:
    async def answered(request: web.Request) -> web.Response:
        return web.Response(text=TEXT) if request.path == "/metrics" else web.json_response(STATISTICS)

    async def closed(request: web.Request) -> web.Response:
        return web.Response(text=TEXT) if request.path == "/metrics" else web.Response(status=403)

    async def run() -> None:
        async with serving(answered) as x, serving(closed) as y:
            metrics = TritonMetrics(SystemClock())
            servers = [Server(name, "cpu:0", UNKNOWN_ADDRESS, at, at, Phase.SERVING, launched=False) for name, at in (("x", x), ("y", y))]
            read, refused = await metrics.read_servers(servers)
            await metrics.close()
        assert read.models["a"].batches[1] == BatchCounters(4, 3.0, 2100.0)
        assert read.models["b"].batches == ()
        assert (read.ready, refused.ready) == (frozenset({"a", "idle"}), None)
        assert (read.error, read.batches_error, refused.error) == (None, None, None)
        assert refused.models["a"] == parse_metrics(TEXT)["a"]
        assert f"statistics of server y at http://{y}/v2/models/stats" in (refused.batches_error or "")
        assert "403" in (refused.batches_error or "")

    asyncio.run(run())


def test_batches_are_read_once_a_second_and_why_they_cannot_be_read_is_known_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answered(request: web.Request) -> web.Response:
        return web.Response(text=TEXT) if request.path == "/metrics" else web.Response(status=403)

    async def run() -> None:
        async with serving(answered) as at:
            metrics = TritonMetrics(SystemClock())
            servers = [Server("s", "cpu:0", UNKNOWN_ADDRESS, at, at, Phase.SERVING, launched=False)]
            read = [(await metrics.read_servers(servers))[0] for _ in range(2)]
            monkeypatch.setattr(metrics_module, "STATISTICS_EVERY_S", 0.0)
            read += await metrics.read_servers(servers)
            await metrics.close()
        assert [each.batches_skipped for each in read] == [False, True, False]
        assert all("403" in (each.batches_error or "") for each in read)

    asyncio.run(run())


def test_of_many_servers_the_batches_are_read_in_turn_and_of_new_ones_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "STATISTICS_A_CALL", 2)
    monkeypatch.setattr(metrics_module, "STATISTICS_EVERY_S", 0.0)
    asked = list[str]()

    async def answered(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text=TEXT) if request.path == "/metrics" else web.json_response(STATISTICS)

    async def run() -> None:
        async with serving(answered) as at:
            metrics = TritonMetrics(SystemClock())
            servers = [Server(f"s{n}", "cpu:0", UNKNOWN_ADDRESS, at, at, Phase.SERVING, launched=False) for n in range(4)]
            assert all(reading.has_batches for reading in await metrics.read_servers(servers))
            asked.clear()
            read = [[each.has_batches for each in await metrics.read_servers(servers)] for _ in range(4)]
            await metrics.close()
        assert list(map(sum, zip(*read, strict=True))) == [2] * 4
        assert (asked.count("/metrics"), len(asked)) == (16, 24)

    asyncio.run(run())


def test_servers_that_rest_are_read_in_turn_and_one_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "ALL_AT_ONCE", 4)
    released, hung = asyncio.Event(), [""]

    async def answered(request: web.Request) -> web.Response:
        if request.headers["host"] == hung[0]:
            await released.wait()
        return web.Response(text=TEXT) if request.path == "/metrics" else web.json_response(STATISTICS)

    async def run() -> None:
        async with AsyncExitStack() as stack:
            addresses = [await stack.enter_async_context(serving(answered)) for _ in range(12)]
            clock = SystemClock()
            metrics = TritonMetrics(clock, timeout_s=0.2, wait_s=2.0)
            servers = [Server(f"s{n}", "cpu:0", UNKNOWN_ADDRESS, at, at, Phase.SERVING, launched=False) for n, at in enumerate(addresses)]
            resting = {server.name for server in servers[2:]}
            last = await metrics.read_servers(servers, resting)
            read = dict.fromkeys([server.name for server in servers], 0)
            for _ in range(metrics_module.RESTING_CALLS):
                now = await metrics.read_servers(servers, resting)
                for name in [new.server for old, new in zip(last, now, strict=True) if new is not old]:
                    read[name] += 1
                last = now
            assert [read["s0"], read["s1"]] == [metrics_module.RESTING_CALLS] * 2
            assert {read[name] for name in resting} <= {1, 2}  # 10 of them in 6 calls
            hung[0] = str(addresses[7])
            calls = [await metrics.read_servers(servers, resting) for _ in range(metrics_module.RESTING_CALLS + 2)]
            errors = [readings[7].error for readings in calls]
            first = next(number for number, error in enumerate(errors) if error is not None)
            assert first <= metrics_module.RESTING_CALLS
            assert all(errors[first:])  # from then on at every call
            assert calls[-1][7] is not calls[-2][7]
            released.set()
            await metrics.close()

    asyncio.run(run())
