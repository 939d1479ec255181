"""Synthetic fleets of any size for `scale.py`: settings, the snapshots that a sidecar would read, and servers that follow its plans."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from themis_triton.adapters.envoy.stats import BOUNDS_MS, MANY_MODELS, TURNS
from themis_triton.adapters.triton.metrics import ALL_AT_ONCE, RESTING_CALLS, STATISTICS_A_CALL, STATISTICS_EVERY_S
from themis_triton.core.action import Action, ActionKind, Plan
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, LatencyTable, LaunchConfig, ModelConfig, ModelProfile, PipelineConfig, ThemisConfig
from themis_triton.core.fleet import Models, ModelState, Phase, Server
from themis_triton.core.observation import BatchCounters, LatencyHistogram, ModelCounters, RouteReading, ServerReading, Snapshot
from themis_triton.estimate.work import busy_during_batch, mean_ms
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped
from themis_triton.solver.surface import FloatArray, contention_surface

SLO_MS, MAX_INSTANCES, MAX_BATCH, STAGES = 100.0, 4, 8, 2
SIZES = (2, 4, 6)
RATE_PER_DEVICE_RPS = 1_000.0
LAUNCH_S, START_S = 4.0, 1_700_000_000.0
LATENCY_MS, QUEUE_MS = 6.0, 0.5


def settings(models: int, devices: int, directory: Path) -> ThemisConfig:
    """Pipelines of two models each, and a slot for each device; the shipped settings for all else."""
    base, rng = load_settings(shipped("config") / "themis.yaml"), np.random.default_rng(1)
    names = [f"model-{number:04}" for number in range(models)]
    stages = [tuple(names[first : first + STAGES]) for first in range(0, models, STAGES)]
    pipelines = tuple(PipelineConfig(f"pipeline-{n:04}", own, SLO_MS, weight=float(rng.integers(1, 4))) for n, own in enumerate(stages))
    slots = tuple(DeviceSlot(f"slot-{n:04}", f"gpu:{n}") for n in range(devices))
    return replace(
        base,
        state_directory=directory,
        models={name: model(name, rng.uniform(0.8, 1.2)) for name in names},
        pipelines=pipelines,
        servers=(),
        launch=LaunchConfig(slots, Path()),
        envoy=replace(base.envoy, directory=directory),
    )


def model(name: str, scale: float) -> ModelConfig:
    """A model with contending instances of some 1,500 requests/s each when alone; each differs from the others by its scale."""
    latency_ms = contention_surface(0.05 * scale, 0.2 * scale, 0.3 * scale, scale, MAX_BATCH, MAX_INSTANCES).latency_ms
    rows = tuple(tuple(float(value) for value in row) for row in latency_ms)
    table = LatencyTable(tuple(range(1, MAX_BATCH + 1)), tuple(range(1, MAX_INSTANCES + 1)), rows)
    profile = ModelProfile(table, server_launch_s=LAUNCH_S)
    return ModelConfig(name, profile, max_instances=MAX_INSTANCES, max_batch=MAX_BATCH)


@dataclass(slots=True)
class Fleet:
    """Servers that follow plans, and counters as if all of their requests were served in time.

    Arrivals are those of a Poisson process around a rate of each pipeline, which for a part of them swings in a wave.
    """

    config: ThemisConfig
    moving: float
    servers: dict[str, Server] = field(default_factory=dict)
    ready_at_s: dict[str, float] = field(default_factory=dict)
    counters: dict[tuple[str, str], ModelCounters] = field(default_factory=dict)
    busy: dict[tuple[str, str], float] = field(default_factory=dict)
    arrivals: FloatArray = field(init=False)
    mean_rps: FloatArray = field(init=False)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(2))
    at_s: float = START_S
    ticks: int = 0
    latencies: dict[str, LatencyHistogram] = field(default_factory=dict)
    readings: dict[str, ServerReading] = field(default_factory=dict)
    batches_at: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """One server a pipeline at first, as far as there are slots."""
        pipelines, slots = self.config.pipelines, self.config.launch.slots if self.config.launch is not None else ()
        share = self.rng.uniform(0.5, 1.5, len(pipelines))
        self.mean_rps = share / share.sum() * RATE_PER_DEVICE_RPS * len(slots)
        self.arrivals = np.zeros(len(pipelines))
        for pipeline, slot in zip(pipelines, slots, strict=False):
            states = {name: ModelState(2, MAX_BATCH) for name in pipeline.stages}
            self._start(f"{slot.name}-first", slot.name, states, Phase.SERVING)

    def next(self, tick_s: float, resting: Collection[str] = ()) -> Snapshot:
        """What is read a tick later; in large fleets not of all servers, as `TritonMetrics` chooses them."""
        self.at_s += tick_s
        self.ticks += 1
        for name in [name for name, ready_s in self.ready_at_s.items() if ready_s <= self.at_s]:
            self.servers[name] = replace(self.servers[name], phase=Phase.SERVING)
            del self.ready_at_s[name]
        served = self.rng.poisson(self._rates_rps() * tick_s)
        self.arrivals += served
        holders: dict[str, list[str]] = {}
        for name, server in self.servers.items():
            if server.phase is Phase.SERVING:
                holders.setdefault(next(iter(server.models)), []).append(name)
        for pipeline, count in zip(self.config.pipelines, served.tolist(), strict=True):
            own = holders.get(pipeline.stages[0], [])
            for name in own:
                for stage in pipeline.stages:
                    self._serve(name, stage, count // len(own), tick_s)
        serving = [server.name for server in self.servers.values() if server.phase is Phase.SERVING]
        readings = [self._read(name, number, len(serving), resting) for number, name in enumerate(serving)]
        self.readings = {reading.server: reading for reading in readings}
        return Snapshot(self.at_s, tuple(self.servers.values()), tuple(readings), self._routes())

    def apply(self, plan: Plan) -> None:
        """Carry out what a plan starts: counts change at once, a server comes after `LAUNCH_S`."""
        for action in plan.actions:
            match action.kind:
                case ActionKind.LAUNCH if action.slot is not None:
                    self._start(action.server, action.slot, action.models, Phase.LAUNCHING)
                    self.ready_at_s[action.server] = self.at_s + LAUNCH_S
                case ActionKind.RETIRE:
                    self.servers.pop(action.server, None)
                case ActionKind.GROW | ActionKind.SHRINK | ActionKind.REBATCH:
                    self._change(action)
                case _:
                    raise SystemExit(f"no such action here: {action}")

    def _change(self, action: Action) -> None:
        server = self.servers[action.server]
        if action.model is not None and action.after is not None:
            self.servers[action.server] = replace(server, models={**server.models, action.model: action.after})

    def _start(self, name: str, slot: str, models: Models, phase: Phase) -> None:
        number = int(slot.rpartition("-")[2])
        host = f"10.0.{number // 250}.{number % 250 + 1}"
        grpc, http, metrics = (Address(host, port) for port in (8001, 8000, 8002))
        self.servers[name] = Server(
            name, f"gpu:{number}", grpc, http, metrics, phase, launched=True, slot=slot, models=dict(models), ready_models=tuple(models)
        )

    def _rates_rps(self) -> FloatArray:
        """A wave of a minute around the mean, at its own time in each pipeline."""
        wave = np.sin(2 * np.pi * (self.at_s / 60.0 + np.arange(len(self.mean_rps)) / 7.0))
        return np.asarray(self.mean_rps * (1.0 + self.moving * wave))

    def _serve(self, server: str, stage: str, count: int, tick_s: float) -> None:
        """The requests of a tick in batches of three sizes, which take what the profile says beside those of the tick before."""
        before, now = self.counters.get((server, stage), ModelCounters()), self.servers[server].models
        profile, busy = self.config.models[stage].profile, {name: self.busy.get((server, name), 0.0) for name in now}
        level = busy_during_batch(busy, stage, now[stage].instances)
        each, times_us = count / sum(SIZES), [1000.0 * mean_ms(profile, size, level) for size in SIZES]
        compute_us = sum(each * size * time_us for size, time_us in zip(SIZES, times_us, strict=True))
        self.busy[server, stage] = min(now[stage].instances, each * sum(times_us) / 1e6 / tick_s)
        sizes = before.batches or tuple(BatchCounters(size, 0.0, 0.0) for size in SIZES)
        by_size = tuple(
            BatchCounters(b.size, b.executions + each, b.compute_us + each * time_us) for b, time_us in zip(sizes, times_us, strict=True)
        )
        self.counters[server, stage] = ModelCounters(
            success=before.success + count,
            inferences=before.inferences + count,
            executions=before.executions + each * len(SIZES),
            request_us=before.request_us + compute_us + 1000.0 * QUEUE_MS * count,
            queue_us=before.queue_us + 1000.0 * QUEUE_MS * count,
            compute_infer_us=before.compute_infer_us + compute_us,
            batches=by_size,
        )

    def _read(self, name: str, number: int, servers: int, resting: Collection[str]) -> ServerReading:
        """A new reading, or the previous one."""
        known, rounds = (
            self.readings.get(name),
            max(round(STATISTICS_EVERY_S / self.config.policy.tick_s), -(-servers // STATISTICS_A_CALL)),
        )
        if known is not None and servers > ALL_AT_ONCE and name in resting and (number + self.ticks) % RESTING_CALLS:
            return known
        models = {stage: self.counters.get((name, stage), ModelCounters()) for stage in self.servers[name].models}
        if known is not None and self.ticks - self.batches_at.get(name, 0) < rounds:
            without = {stage: replace(counters, batches=()) for stage, counters in models.items()}
            return ServerReading(name, self.at_s, without, batches_skipped=True)
        self.batches_at[name] = self.ticks - (number % rounds if known is None else 0)
        return ServerReading(name, self.at_s, models, ready=frozenset(models))

    def _routes(self) -> tuple[RouteReading, ...]:
        """The histograms of many models change in turn, as `EnvoyStats` reads them."""
        pairs = [(stage, n) for n, pipeline in enumerate(self.config.pipelines) for stage in pipeline.stages]
        for number, (stage, n) in enumerate(pairs):
            if len(pairs) <= MANY_MODELS or (number + self.ticks) % TURNS == 0 or stage not in self.latencies:
                self.latencies[stage] = LatencyHistogram(BOUNDS_MS, _latencies(float(self.arrivals[n])))
        arrivals, rates = self.arrivals.tolist(), self.mean_rps.tolist()
        return tuple(RouteReading(stage, self.at_s, arrivals[n], 0.005 * rates[n], 0.0, self.latencies[stage]) for stage, n in pairs)


_SHARES = tuple(1.0 - math.exp(-bound / LATENCY_MS) for bound in BOUNDS_MS)


def _latencies(requests: float) -> tuple[float, ...]:
    return tuple([math.floor(requests * share) for share in _SHARES])
