"""What the daemon tells about itself, as one JSON-ready value: the status API, `themis status` and the demo all read it."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import themis_triton
from themis_triton.core.config import ThemisConfig
from themis_triton.core.encoding import plain
from themis_triton.core.fleet import Server
from themis_triton.core.record import TickRecord, drift_event_words, drift_words, sentence
from themis_triton.daemon.usage import UsageTotals

EVENTS_KEPT = 50
SILENT_AT_LEAST_S = 10.0
SILENT_TICKS = 10


@dataclass(slots=True)
class StatusBoard:
    """The last tick and what led to it."""

    config: ThemisConfig
    started_at_s: float
    usage: UsageTotals = field(default_factory=UsageTotals)
    record: TickRecord | None = None
    tick_ms: float = 0.0
    tick_errors: int = 0
    paused: bool = False
    journal_trouble: str | None = None
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))

    def take(self, record: TickRecord, tick_ms: float, *, paused: bool = False) -> None:
        """Note a tick; one that changes something becomes an event."""
        self.paused = paused
        self.usage = self.usage.add(record, self.config)
        self.record = record
        self.tick_ms = tick_ms
        if record.plan.actions or any(outcome.detail for outcome in record.outcomes):
            kinds = sorted({action.kind.value for action in record.started})
            self.events.append(
                {"at_s": record.snapshot.at_s, "decision_id": record.decision.id, "kinds": kinds, "sentence": sentence(record)}
            )

        for event in record.estimate.drift_events:
            said = {"kinds": ["drift"], "sentence": drift_event_words(event)}
            self.events.append({"at_s": record.snapshot.at_s, "decision_id": record.decision.id} | said)

    def silent_s(self, now_s: float) -> float:
        """Seconds since the last good tick, or since the start when there was none yet."""
        return now_s - (self.record.snapshot.at_s if self.record is not None else self.started_at_s)

    def is_live(self, now_s: float) -> bool:
        """Whether the last good tick is recent: at most ten tick intervals ago, and 10 s are always allowed."""
        return self.silent_s(now_s) <= max(SILENT_AT_LEAST_S, SILENT_TICKS * self.config.policy.tick_s)

    def as_plain(self) -> dict[str, Any]:
        """The whole status."""
        base: dict[str, Any] = {
            "version": themis_triton.__version__,
            "pid": os.getpid(),
            "started_at_s": self.started_at_s,
            "paused": self.paused,
            "mode": self.config.mode.value,
            "policy": self.config.policy.name.value,
            "tick_ms": self.tick_ms,
            "tick_errors": self.tick_errors,
            "journal_trouble": self.journal_trouble,
            "usage": plain(self.usage),
            "events": list(self.events),
        }
        return base | (
            _record(self.record, self.config) if self.record is not None else {"sentence": "no tick yet", "servers": [], "pipelines": []}
        )


def _record(record: TickRecord, config: ThemisConfig) -> dict[str, Any]:
    decision = record.decision
    return {
        "tick": record.number,
        "at_s": record.snapshot.at_s,
        "stage": decision.stage.value,
        "reason": decision.reason.value,
        "decision_id": decision.id,
        "sentence": sentence(record),
        "clamps": plain(decision.clamps),
        "stale": record.estimate.stale,
        "drift": [words for words in map(drift_words, record.estimate.models.values()) if words],
        "routes_unwritten": record.snapshot.routes_unwritten,
        "busy": sorted(record.snapshot.busy),
        "held": record.snapshot.backing_off,
        "servers": [_server(server) for server in record.snapshot.servers],
        "pipelines": _pipelines(record, config),
        "models": plain(record.estimate.models),
        "devices": plain(record.snapshot.devices),
    }


def _server(server: Server) -> dict[str, Any]:
    data: dict[str, Any] = plain(server)
    del data["model_control_key"]
    return data


def _pipelines(record: TickRecord, config: ThemisConfig) -> list[dict[str, Any]]:
    evidence = {e.pipeline: plain(e) for e in record.decision.evidence}
    return [
        {"name": p.name, "stages": list(p.stages), "slo_ms": p.slo_ms, "percentile": p.percentile}
        | {"estimate": plain(record.estimate.pipelines.get(p.name)), "evidence": evidence.get(p.name)}
        for p in config.pipelines
    ]
