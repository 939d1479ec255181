"""Answers of servers and of Envoy that are garbage, not finite, unlabelled, too large or compressed: a reading with an error."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.http_server import serving
from tests.unit.samples import envoy_at
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.stats import EnvoyStats
from themis_triton.adapters.http import MAX_BYTES
from themis_triton.adapters.nvml import DeviceReader
from themis_triton.adapters.observer import LiveObserver
from themis_triton.adapters.triton.metrics import TritonMetrics, parse_metrics, parse_statistics
from themis_triton.core.address import UNKNOWN_ADDRESS
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import Readings

METRICS = 'nv_inference_count{model="m",version="1"} 3\n'
ROUTES = {"stats": [{"name": "http.grpc.rbac.policy.infer_m.allowed", "value": 7}]}
TIME = "vhost.grpc.route.infer_m.upstream_rq_time"


def read(path: str, body: bytes, headers: dict[str, str] | None = None) -> Readings:
    """A reading in which one path answers with this body, and all others as they should."""

    async def scenario() -> Readings:
        async def answer(request: web.Request) -> web.Response:
            if request.path == path:
                return web.Response(body=body, headers=headers)
            return web.Response(body={"/metrics": METRICS, "/stats": json.dumps(ROUTES)}.get(request.path, '{"model_stats": []}'))

        clock = SystemClock()
        async with serving(answer) as at:
            observer = LiveObserver(TritonMetrics(clock, 20.0), EnvoyStats(envoy_at(at), ["m"], clock), DeviceReader(["cpu:0"], clock))
            try:
                await observer.count_arrivals()
                return await observer.read([Server("a", "cpu:0", UNKNOWN_ADDRESS, at, at, Phase.SERVING, launched=False)])
            finally:
                await observer.close()

    return asyncio.run(scenario())


LARGE = b"#" * (2 * MAX_BYTES)
BOMB = gzip.compress(b"#" * (40 * MAX_BYTES))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (LARGE, f"more than {MAX_BYTES} bytes"),
        (b"nv_inference_count 5\n", "a counter without a model"),
        (b'nv_inference_count{model="m"} +Inf\n', "not a counter of a model"),
        (b'nv_inference_count{model="m"} -1\n', "not a counter of a model"),
        (b"\xff\xfe", "can't decode"),
    ],
)
def test_metrics_that_cannot_be_right_are_an_error(body: bytes, error: str) -> None:
    reading = read("/metrics", body).servers[0]
    assert error in (reading.error or "")
    assert reading.models == {}


@pytest.mark.parametrize("path", ["/metrics", "/stats"])
def test_a_compressed_answer_is_refused_unread(path: str) -> None:
    readings = read(path, BOMB, {"Content-Encoding": "gzip"})
    assert "compressed (gzip)" in str((readings.servers[0].error, readings.routes_error))


def one_statistic(value: Any) -> bytes:
    return json.dumps({"stats": [{"name": "http.grpc.rbac.policy.infer_m.allowed", "value": value}]}).encode()


def one_bin(**bin_: Any) -> bytes:
    return json.dumps({"stats": [{"histograms": {"details": [{"name": TIME, "totals": [bin_]}]}}]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        *map(one_statistic, ("many", None, -1, float("nan"), float("inf"), True, {}, [])),
        one_bin(lower_bound=1, width=1),
        one_bin(lower_bound=-1, width=1, count=1),
        one_bin(lower_bound=1, width=1, count=float("nan")),
        b'{"stats": [{"histograms": 3}]}',
        b'{"stats": [{"histograms": {"details": [[]]}}]}',
        b'{"stats": [{"name": "x"}]}',
        b'{"stats": [1]}',
        b'{"stats": 1}',
        b"{}",
        b"[]",
        b"<html>",
        b"[" * 200_000,
        LARGE,
    ],
    ids=lambda body: str(body[:70]),
)
def test_statistics_of_envoy_that_cannot_be_right_are_an_error(body: bytes) -> None:
    readings = read("/stats", body)
    assert readings.routes == ()
    assert readings.routes_error
    assert readings.servers[0].error is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["model_stats", "name", "batch_stats", "batch_size", "compute_infer", "compute_input", "compute_output", "ns", "count"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_any_statistics_of_batches_are_a_value_or_an_error(answer: Any) -> None:
    try:
        parsed = parse_statistics(answer)
    except ValueError:
        return
    assert all(each.executions >= 0.0 and each.compute_us >= 0.0 for batches in parsed.values() for each in batches)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(['nv_inference_count{model="m"}', "nv_inference_count", "{", "}", '"', " 1", " NaN", " -1", "\n", "#", " 1e999"])
    )
)
def test_any_page_of_metrics_is_a_value_or_an_error(parts: list[str]) -> None:
    try:
        parsed = parse_metrics("".join(parts))
    except ValueError:
        return
    assert all(0.0 <= counters.inferences < float("inf") for counters in parsed.values())


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
BINS = st.lists(NUMBERS | st.dictionaries(st.sampled_from(["lower_bound", "width", "count"]), NUMBERS, max_size=3), max_size=2)
DETAILS = st.lists(NUMBERS | st.fixed_dictionaries({"name": st.just(TIME) | NUMBERS, "totals": BINS | NUMBERS}), max_size=2)
STATISTICS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["http.grpc.rbac.policy.infer_m.allowed", "limit_grpc_m.http_local_rate_limit.enforced", "x"])
            | NUMBERS,
            "value": NUMBERS,
            "histograms": NUMBERS | st.fixed_dictionaries({"details": DETAILS}),
        },
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(STATISTICS)
def test_any_statistics_of_envoy_are_readings_or_an_error(entries: list[Any]) -> None:
    readings = read("/stats", json.dumps({"stats": entries}).encode())
    assert bool(readings.routes) is (readings.routes_error is None)
    amounts = [each for route in readings.routes for each in (route.arrivals, route.failures, route.refused, *route.latency.counts)]
    assert all(0.0 <= each < float("inf") for each in amounts)


def test_what_envoy_and_a_server_rightly_answer_is_read() -> None:
    readings = read("/nothing", b"")
    assert (readings.servers[0].error, readings.routes_error) == (None, None)
    assert (readings.servers[0].models["m"].inferences, readings.routes[0].arrivals) == (3.0, 7.0)
