"""Envoy's statistics into readings, on answers as its admin address gives them."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web

from tests.unit.http_server import serving
from tests.unit.samples import envoy_at
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy import stats as stats_module
from themis_triton.adapters.envoy.stats import BOUNDS_MS, EnvoyStats
from themis_triton.core.address import Address
from themis_triton.core.observation import RouteReading

SERVICE = "inference.GRPCInferenceService"


def bins(*result: tuple[float, float, int]) -> list[dict[str, float]]:
    return [{"lower_bound": lower, "width": width, "count": count} for lower, width, count in result]


ANSWER = {
    "stats": [
        {"name": "http.grpc.rbac.policy.infer_m.allowed", "value": 7},
        {"name": "http.http.rbac.policy.infer_m.allowed", "value": 3},
        {"name": "http.grpc.rbac.policy.late_m.allowed", "value": 2},
        {"name": f"cluster.model_grpc_m.grpc.{SERVICE}.ModelStreamInfer.request_message_count", "value": 5},
        {"name": f"cluster.model_grpc_m.grpc.{SERVICE}.ModelInfer.failure", "value": 4},
        {"name": "vhost.http.route.infer_m.upstream_rq_4xx", "value": 1},
        {"name": "limit_grpc_m.http_local_rate_limit.enforced", "value": 1},
        {"name": "limit_http_m.http_local_rate_limit.enforced", "value": 2},
        {"name": "cluster.model_grpc_m.upstream_rq_active", "value": 2},
        {"name": "cluster.model_http_m.upstream_rq_pending_active", "value": 1},
        {
            "histograms": {
                "supported_percentiles": [],
                "details": [
                    {"name": "vhost.grpc.route.infer_m.upstream_rq_time", "totals": bins((0, 0, 1), (5, 0.1, 1), (24, 1, 2), (290, 10, 3))},
                    {"name": "vhost.http.route.infer_m.upstream_rq_time", "totals": bins((300, 10, 1), (120000, 10000, 2))},
                ],
            }
        },
    ]
}


@contextmanager
def admin(status: int, body: bytes) -> Iterator[Address]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Address("127.0.0.1", server.server_port)
        finally:
            server.shutdown()
            thread.join()


def read(address: Address) -> tuple[tuple[RouteReading, ...], str | None]:
    async def once() -> tuple[tuple[RouteReading, ...], str | None]:
        stats = EnvoyStats(envoy_at(address), ["m", "quiet"], SystemClock())
        try:
            return await stats.read_routes()
        finally:
            await stats.close()

    return asyncio.run(once())


def test_both_protocols_are_added_up() -> None:
    with admin(200, json.dumps(ANSWER).encode()) as address:
        (reading, quiet), error = read(address)
    assert error is None
    assert (reading.arrivals, reading.failures, reading.in_flight) == (17, 2, 3)
    assert (reading.refused, reading.rest_arrivals) == (5, 3)
    assert (quiet.arrivals, quiet.failures, quiet.in_flight) == (0, 0, 0)
    assert quiet.latency.counts == (0.0,) * len(BOUNDS_MS)


def test_the_histogram_counts_what_took_less_than_each_bound() -> None:
    with admin(200, json.dumps(ANSWER).encode()) as address:
        (reading, _), _ = read(address)
    below = dict(zip(reading.latency.bounds_ms, reading.latency.counts, strict=True))
    expected = {1: 1, 5: 1, 6: 2, 24: 2, 26: 4, 280: 4, 300: 7, 320: 8, 100_000: 8, math.inf: 10}
    assert {bound: below[float(bound)] for bound in expected} == expected


def test_bounds_rise_and_cut_no_bin_of_envoys() -> None:
    assert list(BOUNDS_MS) == sorted(set(BOUNDS_MS))
    for bound in BOUNDS_MS[:-1]:
        assert float(f"{bound:.1e}") == bound


@pytest.mark.parametrize(("status", "body"), [(503, b""), (200, b"not JSON")])
def test_an_admin_address_that_does_not_answer_well_is_a_reason(status: int, body: bytes) -> None:
    with admin(status, body) as address:
        readings, error = read(address)
    assert readings == ()
    assert error is not None
    assert str(address) in error


def test_no_envoy_is_a_reason() -> None:
    with admin(200, b"{}") as address:
        pass
    readings, error = read(address)
    assert readings == ()
    assert error is not None
    assert str(address) in error


def count(address: Address, models: list[str]) -> float | None:
    async def once() -> float | None:
        stats = EnvoyStats(envoy_at(address), models, SystemClock())
        try:
            return await stats.count_arrivals()
        finally:
            await stats.close()

    return asyncio.run(once())


def test_arrivals_are_counted_over_both_protocols_and_streams_of_the_named_models_only() -> None:
    other = {"name": "http.grpc.rbac.policy.infer_other.allowed", "value": 100}
    second = {"name": "http.http.rbac.policy.infer_second.allowed", "value": 20}
    with admin(200, json.dumps({"stats": [*ANSWER["stats"], other, second]}).encode()) as address:
        assert count(address, ["m", "second", "quiet"]) == 37


@pytest.mark.parametrize(("status", "body"), [(503, b""), (200, b"not JSON")])
def test_arrivals_are_unknown_when_the_admin_address_does_not_answer_well(status: int, body: bytes) -> None:
    with admin(status, body) as address:
        assert count(address, ["m"]) is None


def test_no_arrivals_differ_from_unknown_arrivals() -> None:
    with admin(200, b'{"stats": []}') as address:
        assert count(address, ["m"]) == 0.0
    assert count(address, ["m"]) is None


@pytest.mark.parametrize("model", ["model-{:03}", "m{:03}-gpu", "{:03}.onnx"])
def test_of_many_models_the_histograms_are_read_in_turn(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_module, "MANY_MODELS", 50)
    models, served = [model.format(n) for n in range(100)], [1.0]

    async def answered(request: web.Request) -> web.Response:
        pattern = re.compile(request.query["filter"])
        names = {each: stats_module._names(each) for each in models}
        entries: list[Any] = [{"name": each.arrivals[0], "value": served[0]} for each in names.values() if pattern.search(each.arrivals[0])]
        bins = [{"lower_bound": 5, "width": 1, "count": served[0]}]
        details = [{"name": each.latency[0], "totals": bins} for each in names.values() if pattern.search(each.latency[0])]
        return web.json_response({"stats": [*entries, {"histograms": {"details": details}}]})

    async def run() -> list[tuple[RouteReading, ...]]:
        async with serving(answered) as address:
            stats, read = EnvoyStats(envoy_at(address), models, SystemClock()), []
            for _ in range(1 + stats_module.TURNS):
                routes, error = await stats.read_routes()
                assert error is None
                read.append(routes)
                served[0] = 2.0
            await stats.close()
            return read

    first, *later = asyncio.run(run())
    assert all((route.arrivals, route.latency.counts[-1]) == (1.0, 1.0) for route in first)
    assert all(route.arrivals == 2.0 for routes in later for route in routes)
    fresh = [sum(route.latency.counts[-1] == 2.0 for route in routes) for routes in later]
    assert fresh[-1] == len(models)
    assert all(15 <= more - before <= 35 for before, more in pairwise([0, *fresh]))
