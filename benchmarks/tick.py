"""Processor time of the tick's pure stages, from snapshots that the simulator recorded; writes results/tick.json.

`python benchmarks/tick.py` takes about four minutes.
Readings, actions and the writing of the record are not in the figures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import percentiles_ms, versions, write_result

from themis_triton.adapters.memory import exempt_from_collection
from themis_triton.core.address import Address
from themis_triton.core.config import (
    AdoptedServer,
    DeviceSlot,
    LatencyTable,
    LaunchConfig,
    ModelConfig,
    ModelProfile,
    PipelineConfig,
    ThemisConfig,
)
from themis_triton.core.observation import Snapshot
from themis_triton.decide.correction import with_drift
from themis_triton.decide.planner import Planner
from themis_triton.decide.policies import decide
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput
from themis_triton.estimate.busy import busy_instances
from themis_triton.estimate.estimate import estimate
from themis_triton.plan.steps import plan
from themis_triton.policies import policy_named
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import PREROLL_S, SimOptions, simulated
from themis_triton.solver.surface import FloatArray, contention_surface
from themis_triton.tick import EngineState

DURATION_S, WARM_UP_S = 30.0, 10.0
SLO_MS, MAX_INSTANCES, MAX_BATCH = 500.0, 4, 8
STAGES = ("estimate", "decide", "plan")


@dataclass(frozen=True, slots=True)
class Case:
    """Pipelines of so many models each, on slots or on adopted servers that hold all models and may use so many devices each.

    `goal_ms`: processor time of a tick.
    """

    pipelines: int
    models: int
    slots: int = 0
    servers: int = 0
    devices: int = 1
    rate_rps: float = 20.0
    goal_ms: float = 20.0


CASES = {
    "1 pipeline of 2 models, 8 slots": Case(1, 2, slots=8, rate_rps=60.0, goal_ms=1.0),
    "20 pipelines of 5 models, 16 slots": Case(20, 5, slots=16),
    "4 pipelines of 5 models, 8 adopted servers": Case(4, 5, servers=8, rate_rps=60.0),
    "4 pipelines of 5 models, 8 adopted servers of 8 devices": Case(4, 5, servers=8, devices=8, rate_rps=400.0),
}


def main() -> None:
    """Measure each case with steady rates and with rates that change at every tick."""
    measured: dict[str, Any] = {}
    for name, case in CASES.items():
        for load in ("steady", "changing"):
            figures = measured[f"{name}, {load}"] = ticks_of(case, changing=load == "changing")
            total = figures["total"]
            print(f"{name}, {load}: median {total['p50_ms']}, p99 {total['p99_ms']}, worst {total['worst_ms']} ms (goal {case.goal_ms})")
    print(write_result("tick", {"ticks": measured, "versions": versions("numba", "numpy")}))


def ticks_of(case: Case, *, changing: bool) -> dict[str, Any]:
    """The stages' processor time after the warm-up, and the worst tick of the whole run with a planner that remembers nothing at first."""
    config = simulated(settings(case), SimOptions())
    arrivals = {p.name: arrivals_of(case, number, changing=changing) for number, p in enumerate(config.pipelines)}
    ticks = simulate(config, arrivals, DURATION_S, SimOptions()).ticks  # compiles the kernels too
    rows = replay(config, [tick.snapshot for tick in ticks])
    warm = rows[int((PREROLL_S + WARM_UP_S) / config.policy.tick_s) :]
    total = warm.sum(axis=1)
    return {
        "goal_ms": case.goal_ms,
        "total": {**percentiles_ms(total.tolist()), "worst_ms": round(float(rows.sum(axis=1).max()) * 1000, 3)},
        **{stage: percentiles_ms(warm[:, s].tolist()) for s, stage in enumerate(STAGES)},
    }


def settings(case: Case) -> ThemisConfig:
    """The shipped settings with the case's models, pipelines and servers."""
    shipped_config = load_settings(shipped("config") / "themis.yaml")
    rng = np.random.default_rng(1)
    pipelines = tuple(
        PipelineConfig(f"p{p}", tuple(f"p{p}-m{m}" for m in range(case.models)), SLO_MS, weight=float(rng.integers(1, 4)))
        for p in range(case.pipelines)
    )
    models = {name: model(name, rng.uniform(0.6, 1.4)) for pipeline in pipelines for name in pipeline.stages}
    address = shipped_config.envoy.grpc_listen
    return replace(
        shipped_config,
        models=models,
        pipelines=pipelines,
        servers=tuple(adopted(case, n, address) for n in range(case.servers)),
        launch=LaunchConfig(tuple(DeviceSlot(f"slot-{n}", f"gpu:{n}") for n in range(case.slots)), Path()) if case.slots else None,
    )


def adopted(case: Case, number: int, address: Address) -> AdoptedServer:
    """An adopted server with its own device, and those that it may use too."""
    first, *others = (f"gpu:{case.devices * number + d}" for d in range(case.devices))
    return AdoptedServer(f"server-{number}", address, address, address, first, reach=tuple(others))


def model(name: str, scale: float) -> ModelConfig:
    """A model with contending instances; each differs from the others by its scale."""
    latency_ms = contention_surface(2 * scale, 4 * scale, 2 * scale, 10 * scale, MAX_BATCH, MAX_INSTANCES).latency_ms
    rows = tuple(tuple(float(value) for value in row) for row in latency_ms)
    table = LatencyTable(tuple(range(1, MAX_BATCH + 1)), tuple(range(1, MAX_INSTANCES + 1)), rows)
    return ModelConfig(name, ModelProfile(table), max_instances=MAX_INSTANCES, max_batch=MAX_BATCH)


def arrivals_of(case: Case, number: int, *, changing: bool) -> FloatArray:
    """Poisson arrivals; changing: the rate of each quarter of a second is drawn anew around a wave."""
    rng = np.random.default_rng(number)
    start_s = np.arange(0.0, DURATION_S, 0.25)
    rate_rps = np.full(start_s.shape, case.rate_rps)
    if changing:
        rate_rps *= (1.0 + 0.6 * np.sin(2 * np.pi * start_s / 40.0 + number)) * rng.uniform(0.6, 1.4, start_s.shape)
    counts = rng.poisson(0.25 * rate_rps)
    return np.sort(np.repeat(start_s, counts) + rng.uniform(0.0, 0.25, int(counts.sum())))


def replay(config: ThemisConfig, snapshots: Sequence[Snapshot]) -> FloatArray:
    """Processor seconds of each stage, a row for each tick; as `tick()` composes them, with a fresh planner."""
    planner, policy, state = Planner(build_rules(config)), policy_named(config.policy.name), EngineState()
    rows = []
    exempt_from_collection(len(config.models))  # as the daemon does
    for observed in snapshots:
        marks = [time.process_time()]
        history, estimated = estimate(state.history, observed, config, per_second=policy.needs_arrivals_per_second)
        snapshot = history.seen
        seen = PolicyInput(snapshot, estimated, busy_instances(snapshot, history.served, config))
        marks.append(time.process_time())
        policy_state, decision = decide(state.policy, seen, planner, policy)
        marks.append(time.process_time())
        plan(with_drift(decision, estimated), snapshot, config)
        marks.append(time.process_time())
        state = EngineState(state.number + 1, history, policy_state)
        rows.append(np.diff(marks))
    return np.array(rows)


if __name__ == "__main__":
    main()
