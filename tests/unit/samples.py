"""Small configurations, servers, snapshots and records, built by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from themis_triton.core.action import Action, ActionKind, Plan
from themis_triton.core.address import Address
from themis_triton.core.config import (
    DeviceSlot,
    EnvoyConfig,
    LatencyTable,
    LocalLaunchConfig,
    Mode,
    ModelConfig,
    ModelProfile,
    PipelineConfig,
    ThemisConfig,
)
from themis_triton.core.decision import Decision, Reason, Stage
from themis_triton.core.estimate import Estimate, PipelineEstimate
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import LatencyHistogram, RouteReading, Snapshot
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.core.record import TickRecord
from themis_triton.decide.planner import Planner
from themis_triton.decide.policies import decide
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.policies import policy_named

DETECTOR = "video-detector"
CLASSIFIER = "video-classifier"
STAGES = (DETECTOR, CLASSIFIER)
BY_METRIC = frozenset({PolicyName.QUEUE_TIME, PolicyName.CONCURRENCY})
"""Policies that follow a metric of the servers and plan for no rate."""
NOW_S = 1_700_000_000.0
MIB = 2**20
BOUNDS_MS = (10.0, 100.0, float("inf"))


def table(alpha: float, beta: float, gamma: float, zeta: float) -> LatencyTable:
    """`l(b, k) = αbk + βb + γk + ζ` for batches to 8 and 16 busy instances."""
    batches, instances = tuple(range(1, 9)), tuple(range(1, 17))
    return LatencyTable(batches, instances, tuple(tuple(alpha * b * k + beta * b + gamma * k + zeta for k in instances) for b in batches))


def model(name: str, latency: LatencyTable, memory_bytes: int = 0) -> ModelConfig:
    return ModelConfig(name, ModelProfile(latency, instance_init_s=0.5, instance_memory_bytes=memory_bytes))


def with_burst_headroom(policy: PolicyConfig, factor: float) -> PolicyConfig:
    return replace(policy, scale_up=replace(policy.scale_up, burst_headroom_factor=factor))


def envoy_at(admin: Address) -> EnvoyConfig:
    """An Envoy with this admin address, whose files are nowhere."""
    return EnvoyConfig(Address("127.0.0.1", 1), Address("127.0.0.1", 2), admin, Path("envoy"))


def config(
    policy: PolicyConfig | None = None,
    slots: int = 4,
    memory_bytes: int = 0,
    slot_memory_bytes: int | None = None,
    mode: Mode = Mode.ACTIVE,
    burst_headroom_factor: float = 1.0,
) -> ThemisConfig:
    """The video pipeline on CPU slots `cpu:0`, `cpu:1`…; no launch section for no slots. No room is kept for a surge unless asked."""
    names = [f"cpu:{number}" for number in range(slots)]
    models = (
        model(DETECTOR, table(4.0, 8.0, 4.0, 20.0), memory_bytes),
        model(CLASSIFIER, table(2.0, 4.0, 2.0, 10.0), memory_bytes),
    )
    return ThemisConfig(
        state_directory=Path("state"),
        models={m.name: m for m in models},
        pipelines=(PipelineConfig("video", STAGES, slo_ms=300.0),),
        servers=(),
        envoy=envoy_at(Address("127.0.0.1", 3)),
        launch=LocalLaunchConfig(tuple(DeviceSlot(n, n, slot_memory_bytes) for n in names), Path("models")) if slots else None,
        policy=with_burst_headroom(policy or PolicyConfig(), burst_headroom_factor),
        mode=mode,
    )


def server(
    name: str,
    counts: tuple[int, int] = (1, 1),
    *,
    phase: Phase = Phase.SERVING,
    launched: bool = True,
    slot: str | None = None,
    max_batch: int = 8,
) -> Server:
    """A server that holds both video models."""
    return Server(
        name=name,
        device=slot or "cpu:0",
        grpc_address=Address(name, 8001),
        http_address=Address(name, 8000),
        metrics_address=Address(name, 8002),
        phase=phase,
        launched=launched,
        slot=slot,
        model_control_key=f"secret-of-{name}",
        models={stage: ModelState(count, max_batch) for stage, count in zip(STAGES, counts, strict=True)},
        ready_models=tuple(sorted(STAGES)),
    )


def snapshot(servers: Sequence[Server] = (), at_s: float = NOW_S) -> Snapshot:
    return Snapshot(at_s, tuple(servers))


def estimate(rps: float, at_s: float = NOW_S, *, burst_rps: float | None = None, history_s: float = 60.0) -> Estimate:
    """A steady rate at every time scale, or with a higher recent peak."""
    video = PipelineEstimate("video", rps, rps if burst_rps is None else burst_rps, rps, 0.0, 0.0, None)
    return Estimate(at_s, pipelines={"video": video}, history_s=history_s)


def route(name: str, at_s: float, arrivals: float, counts: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> RouteReading:
    """Envoy's word on a model, with a histogram of three buckets."""
    return RouteReading(name, at_s, arrivals, 2.0, 0.0, LatencyHistogram(BOUNDS_MS, counts))


def action(kind: ActionKind, name: str = "a", model_name: str = DETECTOR, before: int = 1, after: int = 2) -> Action:
    """A vertical action."""
    return Action(f"d/{name}/{model_name}", kind, "d", name, model_name, ModelState(before, 8), ModelState(after, 8))


def launch(slot: str = "cpu:1", name: str = "new") -> Action:
    models = {DETECTOR: ModelState(2, 8), CLASSIFIER: ModelState(1, 8)}
    return Action(f"d/{slot}", ActionKind.LAUNCH, "d", name, slot=slot, models=models)


def retire(name: str = "a", requires: tuple[str, ...] = ()) -> Action:
    return Action(f"d/{name}", ActionKind.RETIRE, "d", name, requires=requires)


def record(
    *actions: Action,
    decision: Decision | None = None,
    seen: Snapshot | None = None,
    number: int = 1,
    advisory: bool = False,
) -> TickRecord:
    decision = decision or Decision("d", NOW_S, "themis", Stage.OPTIMISE, Reason.STEADY, None)
    seen = seen or snapshot()
    return TickRecord(number, seen, Estimate(seen.at_s), decision, Plan("d", actions), advisory=advisory)


def decided(state: PolicyState, policy_input: PolicyInput, planner: Planner) -> tuple[PolicyState, Decision]:
    """One tick's decision by the policy that the settings name."""
    return decide(state, policy_input, planner, policy_named(planner.rules.config.policy.name))
