"""The past as the status API serves it: samples of each pipeline, what was decided and done, and one decision whole."""

from __future__ import annotations

from dataclasses import dataclass

from themis_triton.core.decision import Clamp, PipelineEvidence

HISTORY_PATH = "/v1/history"
DECISION_PATH = "/v1/decisions/{id}"


@dataclass(frozen=True, slots=True)
class PipelineSample:
    """One pipeline over `seconds` seconds from `at_s` on; rates, capacity, counts and cost are means weighted by time.

    `p50_ms` is the mean and `p99_ms` the maximum over the `traffic_s` seconds with traffic; None without. `late_s`: seconds in which
    the measured percentile exceeded the SLO. `requests`: those that ended, `late_requests`: those of them that missed the SLO.
    """

    pipeline: str
    at_s: float
    width_s: int
    seconds: float
    rate_rps: float
    peak_rps: float
    demand_rps: float
    capacity_rps: float
    refused_rps: float
    servers: float
    instances: float
    traffic_s: float
    late_s: float
    p50_ms: float | None
    p99_ms: float | None
    requests: float = 0.0
    late_requests: float = 0.0


@dataclass(frozen=True, slots=True)
class TrafficMinute:
    """One pipeline's requests in the minute from `at_s` on: arrivals by second, requests that ended, and those that were late or failed."""

    pipeline: str
    at_s: int
    arrivals: tuple[float, ...]
    ended: float
    late: float


@dataclass(frozen=True, slots=True)
class UsageMinute:
    """The fleet over the `seconds` of a minute that were observed: seconds of servers and of instances, and their cost."""

    at_s: int
    seconds: float
    server_s: float
    instance_s: float
    cost: float


@dataclass(frozen=True, slots=True)
class PipelineHistory:
    """The series of one pipeline, one value per step that has samples; `at_s` are the starts of the steps.

    `rate_rps`, `demand_rps`, `capacity_rps`, `refused_rps`, `servers` and `instances` are means, `peak_rps` and `p99_ms` maxima, `p50_ms`
    means. `traffic_s`: seconds with traffic in the whole range; `late_s`: those of them in which the measured percentile exceeded the
    SLO, also by step in `late_by_step_s`. `requests` and `late_requests`: those that ended, and those of them that missed the SLO.
    """

    name: str
    slo_ms: float
    traffic_s: float
    late_s: float
    requests: float = 0.0
    late_requests: float = 0.0
    at_s: tuple[float, ...] = ()
    rate_rps: tuple[float, ...] = ()
    peak_rps: tuple[float, ...] = ()
    demand_rps: tuple[float, ...] = ()
    capacity_rps: tuple[float, ...] = ()
    refused_rps: tuple[float, ...] = ()
    servers: tuple[float, ...] = ()
    instances: tuple[float, ...] = ()
    p50_ms: tuple[float | None, ...] = ()
    p99_ms: tuple[float | None, ...] = ()
    late_by_step_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class HistoryDecision:
    """One change in the journal: a decision with actions, an incident, or a change of the sidecar itself (`reason` is then its kind)."""

    id: str
    at_s: float
    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class HistoryAction:
    """One ended action: when it ran, what it was, and how it ended."""

    id: str
    started_at_s: float
    duration_s: float
    kind: str
    outcome: str
    sentence: str
    detail: str


@dataclass(frozen=True, slots=True)
class History:
    """What the journal holds of a range of time, in steps of `step_s`. The newest decisions and actions come first.

    `omitted`: how many older decisions and actions of the range were left out.
    """

    from_s: float
    until_s: float
    step_s: float
    pipelines: tuple[PipelineHistory, ...] = ()
    decisions: tuple[HistoryDecision, ...] = ()
    actions: tuple[HistoryAction, ...] = ()
    omitted: int = 0


@dataclass(frozen=True, slots=True)
class DecisionStep:
    """One action of a decision. `outcome` null: it has not ended, or was never started (advisory mode)."""

    id: str
    kind: str
    sentence: str
    requires: tuple[str, ...] = ()
    outcome: str | None = None
    started_at_s: float | None = None
    duration_s: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DecisionResult:
    """What was predicted for one pipeline, and what came of it.

    `measured_p99_ms`: the largest p99 in the minute after the last step. `held_after_s`: seconds until the measured percentile was inside
    the SLO and stayed there for a sample; null where it did not within `observed_s`, the seconds that are known of.
    """

    pipeline: str
    slo_ms: float
    predicted_p99_ms: float | None
    predicted_holds_after_s: float | None
    servers_desired: int
    measured_p99_ms: float | None = None
    held_after_s: float | None = None
    servers: float | None = None
    observed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DecisionDetail:
    """One decision whole: numbers, limits, the best plan that lost (`runner_up` of the evidence), steps, and what came of it.

    Changes of the sidecar itself, such as a pause, have no evidence, and their kind as `reason`.
    """

    id: str
    at_s: float
    reason: str
    sentence: str
    policy: str | None = None
    stage: str | None = None
    advisory: bool = False
    detail: str = ""
    evidence: tuple[PipelineEvidence, ...] = ()
    clamps: tuple[Clamp, ...] = ()
    steps: tuple[DecisionStep, ...] = ()
    results: tuple[DecisionResult, ...] = ()
