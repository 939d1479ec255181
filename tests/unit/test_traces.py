"""Traces of actions reach a collector by OTLP, and nothing is needed where none is named."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.unit.http_server import serving
from tests.unit.samples import NOW_S, action, launch, record
from themis_triton.adapters import traces
from themis_triton.adapters.traces import ENDPOINTS, build_traces
from themis_triton.core.action import ActionKind, Outcome, OutcomeKind


def test_a_decision_is_a_trace_with_a_span_for_each_action(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[ExportTraceServiceRequest] = []

    async def collect(request: web.Request) -> web.StreamResponse:
        assert request.path == "/v1/traces"
        got.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response()

    async def run() -> None:
        async with serving(collect) as address:
            environment = {ENDPOINTS[1]: f"http://{address}", "OTEL_SERVICE_NAME": "mine"}
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            made = build_traces(environment)
            assert made is not None
            made.take(record(action(ActionKind.GROW), launch()))
            refused = Outcome(action(ActionKind.GROW), OutcomeKind.REFUSED, NOW_S + 0.5, NOW_S + 2.0, "out of memory")
            made.take(replace(record(number=2), outcomes=(refused,)))
            made.take(replace(record(number=3), outcomes=(Outcome(launch(), OutcomeKind.DONE, NOW_S, NOW_S + 9.0),)))
            made.take(record(action(ActionKind.GROW), number=4, advisory=True))
            await asyncio.to_thread(made.close)

    asyncio.run(run())
    (resource,) = got[0].resource_spans
    assert {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"] == "mine"
    spans = {span.name: span for span in resource.scope_spans[0].spans}
    assert set(spans) == {"decision steady", "grow", "launch"}
    root, grow = spans["decision steady"], spans["grow"]
    assert grow.trace_id == spans["launch"].trace_id == root.trace_id
    assert grow.parent_span_id == root.span_id
    assert (grow.end_time_unix_nano - grow.start_time_unix_nano) / 1e9 == pytest.approx(1.5)
    assert root.end_time_unix_nano == spans["launch"].end_time_unix_nano
    assert (grow.status.message, spans["launch"].status.message) == ("out of memory", "")
    known = {each.key: each.value.string_value for each in grow.attributes}
    assert (known["themis.server"], known["themis.outcome"]) == ("a", "refused")


def test_without_a_collector_or_the_extra_there_are_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(traces.log, "warning", lambda event, message: told.append((event, message)), raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert build_traces({}) is None
    assert build_traces({ENDPOINTS[1]: "http://c:4318", "OTEL_SDK_DISABLED": "true"}) is None
    assert told == []
    assert build_traces({ENDPOINTS[1]: "http://c:4318"}) is None
    ((event, message),) = told
    assert event == "traces_unavailable"
    assert message.endswith("Fix: pip install 'themis-triton[otel]'")
