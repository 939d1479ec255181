"""OpenTelemetry traces: one a decision that changes something, with a span for each of its actions.

The SDK is optional (extra `otel`), and configured by its own environment variables. It exports beside the event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

import themis_triton
from themis_triton.core.action import Action, Outcome, OutcomeKind
from themis_triton.core.record import TickRecord, describe, sentence

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = structlog.get_logger()
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
DISABLED = "OTEL_SDK_DISABLED"
SERVICE = "themis"
CLOSE_S = 2.0
"""For so long the end of the sidecar waits for a collector."""
MAX_OPEN = 64
"""Decisions with actions under way; the oldest is ended without those of its actions that never ended."""


@dataclass(slots=True)
class _Open:
    """A decision's span, its actions that have not ended, and the newest end (s) of those that have."""

    span: Span
    actions: set[str]
    end_s: float


@dataclass(slots=True)
class ActionTraces:
    """Turns ticks into spans."""

    provider: TracerProvider
    _open: dict[str, _Open] = field(default_factory=dict)

    def take(self, record: TickRecord) -> None:
        """Begin the span of a decision whose actions start, and end those of actions that ended."""
        if record.started and not record.advisory:
            self._begin(record)
        for outcome in record.outcomes:
            if outcome.kind is not OutcomeKind.SKIPPED:
                self._end(outcome)

    def close(self) -> None:
        """End all spans, and export them as far as a collector takes them in time."""
        for name in list(self._open):
            self._close(name)
        exporting = threading.Thread(target=self.provider.shutdown, daemon=True)
        exporting.start()
        exporting.join(CLOSE_S)

    def _begin(self, record: TickRecord) -> None:
        decision = record.decision
        if len(self._open) >= MAX_OPEN:
            self._close(next(iter(self._open)))
        attributes = {
            "themis.decision.id": decision.id,
            "themis.decision.reason": decision.reason.value,
            "themis.policy": decision.policy,
            "themis.sentence": sentence(record),
        }
        tracer = self.provider.get_tracer("themis_triton", themis_triton.__version__)
        span = tracer.start_span(f"decision {decision.reason.value}", start_time=_ns(decision.at_s), attributes=attributes)
        self._open[decision.id] = _Open(span, {action.id for action in record.started}, decision.at_s)

    def _end(self, outcome: Outcome) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context  # noqa: PLC0415 - the extra's

        action, decision = outcome.action, self._open.get(outcome.action.decision_id)
        tracer = self.provider.get_tracer("themis_triton", themis_triton.__version__)
        span = tracer.start_span(
            action.kind.value,
            context=set_span_in_context(decision.span) if decision is not None else None,
            start_time=_ns(outcome.started_at_s),
            attributes=_attributes(action) | {"themis.outcome": outcome.kind.value},
        )
        if outcome.kind is not OutcomeKind.DONE:
            span.set_status(Status(StatusCode.ERROR, outcome.detail))
        span.end(_ns(outcome.ended_at_s))
        if decision is not None:
            decision.actions.discard(action.id)
            decision.end_s = max(decision.end_s, outcome.ended_at_s)
            if not decision.actions:
                self._close(action.decision_id)

    def _close(self, decision_id: str) -> None:
        decision = self._open.pop(decision_id)
        decision.span.end(_ns(decision.end_s))


def _attributes(action: Action) -> dict[str, str]:
    named = {
        "themis.action.id": action.id,
        "themis.action": describe(action),
        "themis.decision.id": action.decision_id,
        "themis.server": action.server,
        "themis.model": action.model,
        "themis.slot": action.slot,
    }
    return {key: value for key, value in named.items() if value is not None}


def _ns(at_s: float) -> int:
    return round(at_s * 1e9)


def build_traces(environment: Mapping[str, str]) -> ActionTraces | None:
    """Traces to the collector that the environment names; None without one, or without the extra, which is then logged."""
    endpoint = next((environment[name] for name in ENDPOINTS if environment.get(name)), None)
    if endpoint is None or environment.get(DISABLED, "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - the extra's
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        log.warning("traces_unavailable", message=f"{endpoint}: {error}. Fix: pip install 'themis-triton[otel]'")
        return None
    name = environment.get("OTEL_SERVICE_NAME", SERVICE)
    resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: themis_triton.__version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    log.info("traces_started", endpoint=endpoint)
    return ActionTraces(provider)
