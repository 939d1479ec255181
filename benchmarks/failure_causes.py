"""Why requests failed: one table by cause, and the first failures with what Themis had last said before each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from themis_triton.load.results import ERROR_NAMES, OK

RECONNECT_S = 1.0
"""After a failed attempt a gRPC client fails calls by itself for so long, before it connects anew."""
BEFORE_S, LISTED = 5.0, 60
ENVOY_DEATH = "envoy_death"
CAUSES = {
    "no server is available": "no_server",
    "is overloaded": "refused_by_admission",
    "connection termination": "server_broke_connection",
    "connection failure": "server_not_reached",
    "connection timeout": "server_not_reached_in_time",
    "overflow": "proxy_overflow",
    "overload": "proxy_overload_manager",
    "failed to connect": "proxy_not_reached",
    "Socket closed": "proxy_not_reached",
    "Stub process": "triton_backend_died",
    "inference pipe": "triton_backend_died",
    "is not ready": "model_not_ready",
    "unknown model": "model_not_ready",
    "Deadline Exceeded": "client_deadline",
}
"""Words of a message and what they tell; the first that occurs."""


@dataclass(slots=True)
class Rows:
    """Every request of a pipeline."""

    intended_s: Any
    latency_ms: Any
    error: Any
    lateness_ms: Any
    message: Any
    messages: Any

    @property
    def ended_s(self) -> Any:  # noqa: ANN401 - an array
        """When each was answered or had failed."""
        return self.intended_s + self.latency_ms / 1000.0

    def words(self, index: int) -> str:
        """The message of a failed request."""
        return str(self.messages[self.message[index]])


def read_rows(path: Path, pipeline: str) -> Rows:
    """The rows of a load's file."""
    with np.load(path) as data:
        names = ("intended_s", "latency_ms", "error", "lateness_ms", "message", "messages")
        return Rows(*(data[f"{pipeline}/{name}"] for name in names))


def in_envoy_death(rows: Rows, index: int, deaths: Sequence[tuple[str, float, float]]) -> bool:
    """Whether a request was under way while Envoy was dead, or its client had not connected anew."""
    return any(rows.ended_s[index] >= began and rows.intended_s[index] <= back + RECONNECT_S for _, began, back in deaths)


def causes(rows: Rows, deaths: Sequence[tuple[str, float, float]], events: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """`by_cause`: how many failed, when, with which status and message. `failures`: the first ones, with the event before each."""
    table, listed = dict[str, dict[str, Any]](), list[dict[str, Any]]()
    for index in np.flatnonzero(rows.error != OK):
        ended_s, words = round(float(rows.ended_s[index]), 2), rows.words(index)
        cause = ENVOY_DEATH if in_envoy_death(rows, index, deaths) else _cause(words)
        row = table.setdefault(cause, {"requests": 0, "first_s": ended_s, "last_s": ended_s, "statuses": {}, "messages": {}})
        row["requests"] += 1
        row["first_s"], row["last_s"] = min(row["first_s"], ended_s), max(row["last_s"], ended_s)
        for key, value in (("statuses", ERROR_NAMES[int(rows.error[index])]), ("messages", words)):
            row[key][value] = row[key].get(value, 0) + 1
        if cause != ENVOY_DEATH and len(listed) < LISTED:
            before = [event for at_s, event in events if ended_s - BEFORE_S <= at_s <= ended_s]
            listed.append(
                {
                    "ended_s": ended_s,
                    "latency_ms": round(float(rows.latency_ms[index])),
                    "sent_late_ms": round(float(rows.lateness_ms[index])),
                    "cause": cause,
                    "message": words,
                    "themis": before[-1] if before else "",
                }
            )
    return {"by_cause": dict(sorted(table.items(), key=lambda item: -item[1]["requests"])), "failures": listed}


def _cause(words: str) -> str:
    return next((cause for part, cause in CAUSES.items() if part in words), "other")


def log_events(log: Path, start_unix_s: float) -> Iterator[tuple[float, str]]:
    """What a sidecar's log says, in seconds from the load's start."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            at_s = datetime.fromisoformat(entry["timestamp"]).timestamp() - start_unix_s
            yield at_s, f"{entry['event']}: {entry.get('message', '')}"[:300]
        except (ValueError, KeyError, TypeError):
            continue
