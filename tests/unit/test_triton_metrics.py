"""Reading Triton's metrics, without a Triton."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.triton.metrics import TritonMetrics, fetch_metrics, parse_metrics, parse_statistics
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


def test_counters_are_summed_over_versions_and_reasons() -> None:
    models = parse_metrics(TEXT)
    assert models["a"] == ModelCounters(15, 3, 40, 8, 1.5e6, 3000, 11, 12, 13, 4)
    assert models["b"] == ModelCounters(success=7)
    assert set(models) == {"a", "b"}


def test_no_models_is_no_error() -> None:
    assert parse_metrics("# TYPE nv_cpu_utilization gauge\nnv_cpu_utilization 0.25\n") == {}


def test_something_else_is_not_taken_for_metrics() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        parse_metrics('nv_inference_count{model="a"} many\n')


def test_an_answer_is_parsed_and_an_error_status_is_an_error() -> None:
    answers = {"/metrics": httpx.Response(200, text=TEXT)}

    async def run() -> None:
        transport = httpx.MockTransport(lambda request: answers.get(request.url.path if request.url.port == 1 else "", httpx.Response(503)))
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await fetch_metrics(client, Address("127.0.0.1", 1)))["a"].success == 15
            with pytest.raises(httpx.HTTPStatusError):
                await fetch_metrics(client, Address("127.0.0.1", 2))

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
    assert parse_statistics(STATISTICS) == {"a": (BatchCounters(1, 15.0, 1650.0), BatchCounters(4, 3.0, 2100.0))}


@pytest.mark.parametrize("answer", [{}, {"error": "not found"}, {"model_stats": [{"name": "a"}]}, {"model_stats": None}, []])
def test_something_else_is_not_taken_for_statistics(answer: Any) -> None:
    with pytest.raises(ValueError, match="no statistics of batches"):
        parse_statistics(answer)


def test_a_server_whose_statistics_are_refused_still_has_its_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            return httpx.Response(200, text=TEXT)
        return httpx.Response(200 if request.url.port == 1 else 403, json=STATISTICS)

    def client(_: float) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(answered))

    async def run() -> None:
        monkeypatch.setattr("themis_triton.adapters.triton.metrics.new_http_client", client)
        metrics = TritonMetrics(SystemClock())
        told, refused = await metrics.read_servers(
            [
                Server(name, "cpu:0", UNKNOWN_ADDRESS, Address(name, port), Address(name, 8002), Phase.SERVING, launched=False)
                for name, port in (("x", 1), ("y", 2))
            ]
        )
        await metrics.close()
        assert told.models["a"].batches[1] == BatchCounters(4, 3.0, 2100.0)
        assert told.models["b"].batches == ()
        assert (told.error, told.batches_error, refused.error) == (None, None, None)
        assert refused.models["a"] == parse_metrics(TEXT)["a"]
        assert "statistics of server y at http://y:2/v2/models/stats" in (refused.batches_error or "")
        assert "403" in (refused.batches_error or "")

    asyncio.run(run())
