"""One simulated run of one policy under one seed, and rows that aggregate all seeds of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.policy import PolicyName
from themis_triton.core.recurring import RecurringRise
from themis_triton.core.server_kind import mean_seconds
from themis_triton.decide.policy import Load
from themis_triton.evaluation.clairvoyant import Clairvoyant, clairvoyant
from themis_triton.load.traces import Trace, TraceOptions, arrivals, load_trace
from themis_triton.load.twitter import twitter_for
from themis_triton.policies import policy_named
from themis_triton.report.series import RunSeries
from themis_triton.sim.result import SimResult
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions, simulated
from themis_triton.sim.starts import prepared, start_of
from themis_triton.sim.world import Dispatcher, ServiceNoise, SimWorld, paper_world, triton_world, world_for
from themis_triton.solver.surface import FloatArray

CLAIRVOYANT = "clairvoyant"
WORLDS = ("paper", "triton")
START_SHARE = 30 / 660
"""Policies start for the largest rate of this initial fraction of the trace, as in the paper's evaluation."""


@dataclass(frozen=True, slots=True)
class WorldFlags:
    """Overrides of the simulated cluster that the settings describe. None keeps the settings' value."""

    world: str | None = None
    cold_start_s: float | None = None
    in_place_s: float | None = None
    noise_cv: float = 0.0
    profile_error: float = 0.0
    metrics_lag_s: float = 0.0
    batch_wait_s: float | None = None
    devices: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedRun:
    """One policy under one seed, with the cost of the bound under the same arrivals and its infeasible seconds.

    `refused`: those of the failed requests that an admission limit refused; None where no pipeline has one. `server_seconds_by_kind`:
    empty for the bound, whose servers need no time to start.
    """

    policy: str
    seed: int
    requests: int
    latency_ms: FloatArray
    violated: int
    failed: int
    refused: int | None
    cost: float
    mean_cost: float
    bound_cost: float
    bound_infeasible_s: int
    server_seconds: float
    instance_seconds: float
    max_servers: int
    series: RunSeries
    server_seconds_by_kind: dict[str, float] = field(default_factory=dict)


def check_world(flags: WorldFlags) -> None:
    """SettingsError for a flag that is out of range."""
    if flags.world is not None and flags.world not in WORLDS:
        raise SettingsError(f"--world: {flags.world} is invalid: expected {' or '.join(WORLDS)}")
    minimums = {
        "--cold-start": (flags.cold_start_s, 0),
        "--in-place": (flags.in_place_s, 0),
        "--noise": (flags.noise_cv, 0),
        "--metrics-lag": (flags.metrics_lag_s, 0),
        "--batch-wait": (flags.batch_wait_s, 0),
        "--devices": (flags.devices, 1),
    }
    for flag, (value, minimum) in minimums.items():
        if value is not None and not minimum <= value < np.inf:
            raise SettingsError(f"{flag}: {value} is invalid: expected at least {minimum}")
    if not -1.0 < flags.profile_error < np.inf:
        raise SettingsError(
            f"--profile-error: {flags.profile_error} is invalid: expected a number above -1, such as 0.2 for service times 20 % longer"
        )


def check_fit(flags: WorldFlags, config: ThemisConfig) -> None:
    """SettingsError for a flag that does not apply to these settings."""
    slots, adopted = len(config.launch.slots) if config.launch is not None else 0, len(config.servers)
    if flags.devices is not None and (slots or adopted) and not max(1, adopted) <= flags.devices <= adopted + slots:
        raise SettingsError(
            f"--devices: {flags.devices} is invalid: expected {max(1, adopted)} to {adopted + slots}, for {adopted} adopted servers and "
            f"{slots} slots. Fix: add slots to launch.slots"
        )
    if flags.batch_wait_s is not None and world_from(flags, config, config.policy.name).dispatcher is not Dispatcher.CENTRAL:
        raise SettingsError(
            f"--batch-wait: {flags.batch_wait_s:g} has no effect: there is no central queue, because Triton batches by each model's "
            "max_queue_delay_us. Fix: set that in the settings, or omit --batch-wait"
        )


def world_from(flags: WorldFlags, config: ThemisConfig, policy: PolicyName) -> SimWorld:
    """The simulated cluster for a policy. With a central queue, `themis` does not wait for full batches; baselines wait as in the paper."""
    own = {None: world_for(config), "paper": paper_world(), "triton": triton_world()}[flags.world]
    world = replace(own, sharing=world_for(config).sharing, service_factor=1.0 + flags.profile_error, lag_s=flags.metrics_lag_s)
    if flags.cold_start_s is not None:
        world = replace(world, cold_start_s=flags.cold_start_s)
    if flags.in_place_s is not None:
        world = replace(world, grow_s=flags.in_place_s, shrink_s=flags.in_place_s, reload_s=flags.in_place_s, control_s=0.0)
    if flags.noise_cv > 0.0:
        world = replace(world, noise=ServiceNoise.LOGNORMAL, noise_cv=flags.noise_cv)
    if flags.batch_wait_s is not None or (world.dispatcher is Dispatcher.CENTRAL and not policy_named(policy).waits_for_batches):
        world = replace(world, central_delay_s=flags.batch_wait_s or 0.0)
    return world


def simulated_run(config: ThemisConfig, options: TraceOptions, flags: WorldFlags, drawn: int | None, task: tuple[str, int]) -> SimulatedRun:
    """Run a policy (or the bound) under a seed. `drawn`: the seed whose capacity is computed too, for its picture."""
    traces = {p.name: load_trace(replace(options, source=twitter_for(options.source, p.name)), task[1]) for p in config.pipelines}
    return run_under(config, traces, flags, drawn, task)


def run_under(
    config: ThemisConfig,
    traces: dict[str, Trace],
    flags: WorldFlags,
    drawn: int | None,
    task: tuple[str, int],
    recurring: Mapping[str, tuple[RecurringRise, ...]] | None = None,
) -> SimulatedRun:
    """Like `simulated_run`, with the given traces by pipeline, and rises that recur (`SimOptions.recurring`).

    The bound uses the settings' section `policy`, and no overrides of `policies`.
    """
    name, seed = task
    duration_s = max(trace.duration_s for trace in traces.values())
    times = _arrivals(traces, seed)
    limited = _limited(config, flags.devices)
    start = SimOptions(seed=seed, slots=flags.devices or SimOptions().slots)
    bound = bound_of(limited, times, duration_s, start)
    if name == CLAIRVOYANT:
        return _bound_run(bound, seed)
    policy, load = PolicyName(name), _load(traces)
    world, own = world_from(flags, limited, policy), prepared(limited, policy, load)
    start = replace(start, world=world, keep_ticks=seed == drawn, recurring=recurring or {})
    waits = world.dispatcher is Dispatcher.CENTRAL and world.central_delay_s > 0.0
    result = simulate(own, times, duration_s, replace(start, servers=start_of(own, policy, load, start, waits=waits)))
    return _policy_run(result, bound, seed, sheds=any(pipeline.sheds for pipeline in config.pipelines))


def bound_of(config: ThemisConfig, arrivals_s: dict[str, FloatArray], duration_s: float, options: SimOptions) -> Clairvoyant:
    """The bound for all policies under these settings, from their section `policy`."""
    return clairvoyant(simulated(config, options), arrivals_s, duration_s)


def _load(traces: dict[str, Trace]) -> Load:
    first = [trace.rates_rps[: max(1, round(START_SHARE * trace.duration_s))] for trace in traces.values()]
    return Load(max(float(rates.max()) for rates in first), max(float(trace.rates_rps.max()) for trace in traces.values()))


def _limited(config: ThemisConfig, devices: int | None) -> ThemisConfig:
    if devices is None or config.launch is None:
        return config
    return replace(config, launch=replace(config.launch, slots=config.launch.slots[: devices - len(config.servers)]))


def _arrivals(traces: dict[str, Trace], seed: int) -> dict[str, FloatArray]:
    """The arrivals by pipeline. The first pipeline's equal those of `themis load` with that seed."""
    seeds: list[int | tuple[int, ...]] = [seed, *((seed, number) for number in range(1, len(traces)))]
    return {name: arrivals(trace, each) for (name, trace), each in zip(traces.items(), seeds, strict=True)}


def _policy_run(result: SimResult, bound: Clairvoyant, seed: int, *, sheds: bool) -> SimulatedRun:
    return SimulatedRun(
        policy=result.policy,
        seed=seed,
        requests=result.requests,
        latency_ms=np.concatenate([run.latency_ms[~run.failed & np.isfinite(run.latency_ms)] for run in result.pipelines]),
        violated=sum(int(np.count_nonzero(run.violated)) for run in result.pipelines),
        failed=result.failed,
        refused=result.refused if sheds else None,
        cost=result.cost,
        mean_cost=result.mean_cost,
        bound_cost=bound.cost,
        bound_infeasible_s=bound.infeasible_s,
        server_seconds=result.server_seconds,
        instance_seconds=result.instance_seconds,
        max_servers=result.max_servers,
        series=result.series(),
        server_seconds_by_kind=result.server_seconds_by_kind,
    )


def _bound_run(bound: Clairvoyant, seed: int) -> SimulatedRun:
    """The bound as a run: no latencies, because no request is simulated, and no violations in feasible seconds."""
    nothing = np.zeros(bound.rate_rps.size)
    unknown = [None] * bound.rate_rps.size
    return SimulatedRun(
        policy=CLAIRVOYANT,
        seed=seed,
        requests=int(bound.rate_rps.sum()),
        latency_ms=np.zeros(0),
        violated=0,
        failed=0,
        refused=None,
        cost=bound.cost,
        mean_cost=bound.mean_cost,
        bound_cost=bound.cost,
        bound_infeasible_s=bound.infeasible_s,
        server_seconds=float(bound.servers.sum()),
        instance_seconds=float(bound.instances.sum()),
        max_servers=int(bound.servers.max()),
        series=RunSeries(CLAIRVOYANT, bound.rate_rps, unknown, unknown, bound.servers, bound.instances, nothing, nothing),
    )


def row_of(policy: str, runs: Sequence[SimulatedRun]) -> dict[str, Any]:
    """One row for all seeds: fractions and percentiles over all requests, costs as means over the seeds.

    `bound_infeasible_s` counts the seconds of all seeds that no configuration carries. Above 0, `cost_vs_clairvoyant` is overestimated.
    """
    latency_ms = np.concatenate([run.latency_ms for run in runs])
    failed = sum(run.failed for run in runs)
    requests, infeasible_s = sum(run.requests for run in runs), sum(run.bound_infeasible_s for run in runs)
    unknown = policy == CLAIRVOYANT and infeasible_s > 0
    bound_cost = sum(run.bound_cost for run in runs)
    refused = [run.refused for run in runs if run.refused is not None]
    return {
        "policy": policy,
        "seeds": len(runs),
        "requests": requests,
        "violations": None if unknown else sum(run.violated for run in runs) / max(1, requests),
        "p50_ms": float(np.percentile(latency_ms, 50)) if latency_ms.size else None,
        "p99_ms": float(np.percentile(latency_ms, 99)) if latency_ms.size else None,
        "cost": float(np.mean([run.cost for run in runs])),
        "mean_cost": float(np.mean([run.mean_cost for run in runs])),
        "cost_vs_clairvoyant": sum(run.cost for run in runs) / bound_cost if bound_cost else None,
        "bound_infeasible_s": infeasible_s,
        "failed": failed,
        **({"refused": sum(refused)} if refused else {}),
        "server_seconds": float(np.mean([run.server_seconds for run in runs])),
        "server_seconds_by_kind": mean_seconds([run.server_seconds_by_kind for run in runs]),
        "instance_seconds": float(np.mean([run.instance_seconds for run in runs])),
        "max_servers": max(run.max_servers for run in runs),
    }
