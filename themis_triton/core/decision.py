"""A decision as a value: its target, one of a closed set of reasons, the evidence, the clamps and an id."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from themis_triton.core.construction import quick_init
from themis_triton.core.fleet import Models
from themis_triton.core.prediction import PredictionScore
from themis_triton.core.routes import RouteLimit


class Reason(StrEnum):
    """The reason of a decision. The set is closed: tests and dashboards enumerate it."""

    SURGE = "surge"
    SETTLE = "settle"
    STEADY = "steady"
    SCALE_OUT = "scale_out"
    SCALE_IN = "scale_in"
    REPLACE = "replace"
    INFEASIBLE = "infeasible"
    HOLD_NO_DATA = "hold_no_data"
    HOLD_STALE = "hold_stale"
    HOLD_WARMUP = "hold_warmup"
    HOLD_NO_SERVER = "hold_no_server"


class Stage(StrEnum):
    """The stages of Themis: ABSORB a surge in place, OPTIMISE towards the cheapest joint plan, HOLD what runs."""

    ABSORB = "absorb"
    OPTIMISE = "optimise"
    HOLD = "hold"


class ClampKind(StrEnum):
    """Which guard changed a target."""

    BOUNDS = "bounds"
    MEMORY = "memory"
    BACKOFF = "backoff"
    DEVICES = "devices"
    SURVIVORS = "survivors"
    PACE = "pace"
    OPERATION = "operation"
    OPEN_CALL = "open_call"
    CROWDED = "crowded"
    LEARNING = "learning"
    DRAIN = "drain"
    PREDICTION = "prediction"


@dataclass(frozen=True, slots=True)
class Clamp:
    """What a guard changed and why, in one sentence."""

    kind: ClampKind
    sentence: str


@quick_init
@dataclass(frozen=True, slots=True)
class Target:
    """The desired fleet: the models of each server that stays.

    `launch`: the models of new servers by device slot. `retire`: servers to be retired. `whole_changes`: in-place changes take less
    than a tick, or reload nothing, and need no small steps. `unrouted`: (server, model) pairs that get no new requests for now.
    `drained`: servers that get no new requests at all. `early_shrinks`: the servers that serve carry the demand with these counts, so
    that removals of instances need not wait for servers that are launched.
    """

    servers: dict[str, Models] = field(default_factory=dict)
    launch: dict[str, Models] = field(default_factory=dict)
    retire: tuple[str, ...] = ()
    whole_changes: bool = False
    unrouted: tuple[tuple[str, str], ...] = ()
    drained: tuple[str, ...] = ()
    early_shrinks: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """The limit of a pipeline's requests, at the model whose arrivals are its demand."""

    pipeline: str
    model: str
    limit: RouteLimit


@quick_init
@dataclass(frozen=True, slots=True)
class PipelineEvidence:
    """The numbers behind a decision for one pipeline.

    `unit`: what `servers_now`, `servers_desired`, `servers_missing` and the runner-up count: "server", or "device" where a server of the
    pipeline may use several; then each device with the pipeline's instances counts.
    `holds_after_s`: seconds until the SLO is expected to hold, by the chosen migration; None where it holds or that is unknown.
    `stage_servers_now`, `stage_servers_desired`: by stage, where these are separate; else empty.
    `limit_rps`: what is admitted; None: everything. `refused_rps`: what was refused lately.
    `explains`: the policy wants another number of instances, places or servers for it, leaves a server, or finds no feasible plan.
    """

    pipeline: str
    demand_fast_rps: float
    demand_slow_rps: float
    capacity_rps: float
    slo_ms: float
    measured_p99_ms: float | None
    predicted_p99_ms: float | None
    servers_now: int
    servers_desired: int
    servers_missing: int = 0
    runner_up: str = ""
    holds_after_s: float | None = None
    unit: str = "server"
    limit_rps: float | None = None
    refused_rps: float = 0.0
    stage_servers_now: tuple[int, ...] = ()
    stage_servers_desired: tuple[int, ...] = ()
    explains: bool = False

    @property
    def servers_words(self) -> str:
        """The servers now and desired, such as `2→3`; of separate stages `1+2+1→1+3+1`."""
        now = "+".join(map(str, self.stage_servers_now)) or str(self.servers_now)
        desired = "+".join(map(str, self.stage_servers_desired)) or str(self.servers_desired)
        return now if now == desired else f"{now}→{desired}"


@quick_init
@dataclass(frozen=True, slots=True)
class Decision:
    """The result of one tick's policy. `target` None: no change. `admissions`: all limits from now on; None: they stay as they are.

    `predictions`: how those of each pipeline compare with what was observed; empty where the policy makes none, or nothing is observed.
    """

    id: str
    at_s: float
    policy: str
    stage: Stage
    reason: Reason
    target: Target | None
    evidence: tuple[PipelineEvidence, ...] = ()
    clamps: tuple[Clamp, ...] = ()
    detail: str = ""
    admissions: tuple[Admission, ...] | None = None
    predictions: tuple[PredictionScore, ...] = ()
