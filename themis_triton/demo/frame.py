"""The demo's data: one frame per update of the view, and one summary at the end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from themis_triton.core.fleet import Phase


@dataclass(frozen=True, slots=True)
class DemoServer:
    """One server in the view: its phase and its instances by model."""

    name: str
    phase: Phase
    instances: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DemoFrame:
    """The state `at_s` seconds into a run of `duration_s`. None: unknown, because no request ended in the last second.

    `rate_rps` are requests sent in the last second, `capacity_rps` what the serving fleet carries inside the SLO. `mode` is one
    word. `recent_events` has the newest last. `requests`, `failed` and `attainment` (a fraction) count from the run's start.
    """

    at_s: float
    duration_s: float
    rate_rps: float
    capacity_rps: float | None
    p50_ms: float | None
    p99_ms: float | None
    slo_ms: float
    servers: tuple[DemoServer, ...]
    instances: int
    mode: str
    last_decision: str
    recent_events: tuple[str, ...]
    requests: int
    failed: int
    attainment: float

    @property
    def serving(self) -> int:
        """The number of servers that receive traffic."""
        return sum(server.phase is Phase.SERVING for server in self.servers)


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """The whole run. `slo_attainment`: fraction of all requests answered without error within the SLO. `actions`: count by kind.

    Seconds and cost cover the duration of the trace; `cost` uses the settings' prices. `cold_start_s`: the process start of launched
    servers; None: their own. `joined_at_s`: when launched servers were first seen serving, in seconds of the run.
    `server_seconds_by_kind`: adopted, launched, starting (until they are in the routes), draining.
    """

    policy: str
    requests: int
    failed: int
    slo_ms: float
    slo_attainment: float
    p50_ms: float | None
    p99_ms: float | None
    server_seconds: float
    instance_seconds: float
    max_servers: int
    max_instances: int
    actions: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0
    cold_start_s: float | None = None
    joined_at_s: tuple[int, ...] = ()
    server_seconds_by_kind: dict[str, float] = field(default_factory=dict)

    def json_line(self) -> str:
        """The summary as one line of JSON."""
        return json.dumps(asdict(self))
