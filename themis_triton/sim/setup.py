"""Builds a serving virtual cluster from settings and options: slots, layout, ports and the first servers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from themis_triton.act.actuators import Actuators
from themis_triton.act.backoff import Backoff
from themis_triton.act.executor import Executor
from themis_triton.act.fleet import Fleet
from themis_triton.act.supervisor import Supervisor
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, LaunchConfig, ModelProfile, PipelineConfig, Placement, ThemisConfig, ThroughputRule
from themis_triton.core.errors import SettingsError
from themis_triton.core.estimate import RequestSize
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.graph import waits
from themis_triton.core.policy import PolicyName
from themis_triton.core.recurring import RecurringRise
from themis_triton.evaluation.starts import initial_state
from themis_triton.sim.cluster import Cluster
from themis_triton.sim.engine import Simulation
from themis_triton.sim.layout import Layout, max_calls
from themis_triton.sim.ports import SimControl, SimLauncher, SimObserver, SimRecorder, SimRoutes
from themis_triton.sim.servers import row_devices
from themis_triton.sim.virtual_time import VirtualClock
from themis_triton.sim.world import SimWorld, world_for
from themis_triton.solver.surface import FloatArray, surface_from_table
from themis_triton.tick import World

PREROLL_S = 5.0
"""Time that the loop runs before the first request, like a sidecar that is started first."""
MAX_CALLS = 5_000_000
"""Calls that requests make at once: each takes 72 bytes."""
Models = Mapping[str, ModelState]


@dataclass(frozen=True, slots=True)
class SimOptions:
    """What a run starts from.

    `world` None: the settings' own. `servers`: the models of each of the first servers, on the slots in their order. None: the adopted
    servers of the settings, or `launched` new ones (a stage, where stages are separate), each with `models` or else the fewest
    instances and the largest batches. `slots`: so many servers can exist where stages are separate and the settings have no
    `launch` section. `deaths_s`: seconds from the start of the load at which the first launched server that serves is killed.
    `slowdowns`: (seconds from the start of the load, factor on all service times from then on).
    `keep_ticks` False: no tick records in the result, nor capacities in its series. `preroll_s`: time before the first request.
    `recurring`: the rises that recur, by pipeline, at seconds after the start of the load.
    """

    seed: int = 0
    policy: PolicyName | None = None
    world: SimWorld | None = None
    launched: int = 1
    models: Models | None = None
    servers: Sequence[Models] | None = None
    slots: int = 64
    deaths_s: tuple[float, ...] = ()
    slowdowns: tuple[tuple[float, float], ...] = ()
    keep_ticks: bool = True
    preroll_s: float = PREROLL_S
    recurring: Mapping[str, tuple[RecurringRise, ...]] = field(default_factory=dict)


def simulated(config: ThemisConfig, options: SimOptions) -> ThemisConfig:
    """The settings of the simulation: with the options' policy, the world's times in the profiles, and slots where there are none.

    Raises SettingsError when there is no server and no slot.
    """
    # The simulated clients call the stages of an ensemble themselves.
    config = replace(config, pipelines=tuple(replace(pipeline, entry=None) for pipeline in config.pipelines))
    config = _measured(config, world_of(config, options))
    if options.policy is not None:
        config = replace(config, policy=replace(config.policy, name=options.policy))
    if config.planning.placement is Placement.SEPARATE and config.launch is None and not config.servers:
        names = [f"replica-{number}" for number in range(1, options.slots + 1)]
        limit = min(options.slots, config.planning.max_servers or options.slots)
        launch = LaunchConfig(tuple(DeviceSlot(name, name) for name in names), Path())
        return replace(config, launch=launch, planning=replace(config.planning, max_servers=limit))
    if not config.servers and (config.launch is None or not config.launch.slots):
        raise SettingsError("neither `servers` nor `launch` is set: expected at least one server or slot to simulate")
    return config


def _measured(config: ThemisConfig, world: SimWorld) -> ThemisConfig:
    """The settings with the durations of the world's changes in the profiles, as if they had been measured."""
    return replace(config, models={name: replace(m, profile=_timed(m.profile, world)) for name, m in config.models.items()})


def _timed(profile: ModelProfile, world: SimWorld) -> ModelProfile:
    return replace(
        profile,
        server_launch_s=profile.server_launch_s if world.cold_start_s is None else world.cold_start_s,
        instance_init_s=profile.instance_init_s if world.grow_s is None else world.grow_s + world.control_s,
        instance_stop_s=profile.instance_stop_s if world.shrink_s is None else world.shrink_s + world.control_s,
    )


def world_of(config: ThemisConfig, options: SimOptions) -> SimWorld:
    """The options' world, or the settings' own."""
    return options.world if options.world is not None else world_for(config)


def build_simulation(
    config: ThemisConfig, arrivals: Mapping[str, FloatArray], world: SimWorld, seed: int, preroll_s: float = PREROLL_S
) -> Simulation:
    """The simulation of the rows that `row_devices` gives; arrivals start after the preroll."""
    index = {name: number for number, name in enumerate(config.models)}
    chains = tuple(tuple(index[stage] for stage in pipeline.stages) for pipeline in config.pipelines)
    times = [np.asarray(arrivals.get(p.name, ()), dtype=np.float64) + preroll_s for p in config.pipelines]
    pipeline = np.repeat(np.arange(len(times)), [each.size for each in times])
    merged = np.concatenate(times)
    by_time = np.argsort(merged, kind="stable")
    layout = _layout(config, chains)
    if (calls := max_calls(layout, pipeline)) > MAX_CALLS:
        raise SettingsError(f"{calls:,} calls of stages are too many to simulate: expected at most {MAX_CALLS:,}. Fix: shorten the trace")
    return Simulation(layout, world, merged[by_time], pipeline[by_time], seed)


def _layout(config: ThemisConfig, chains: tuple[tuple[int, ...], ...]) -> Layout:
    names = row_devices(config)
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    max_busy = sum(model.max_instances for model in config.models.values()) * max(names.count(name) for name in order)
    batch = max(model.max_batch for model in config.models.values())
    contending = config.planning.throughput is ThroughputRule.INSTANCES
    # Where means were measured, batches take these and not the percentile.
    tables = [model.profile.mean_table or model.profile.table for model in config.models.values()]
    sizes = tuple(RequestSize(model.rows_per_request) for model in config.models.values())
    surfaces = [surface_from_table(table, batch, max_busy, monotone=contending) for table in tables]
    surfaces_ms = np.stack([surface.of_groups(size.rows, batch).latency_ms for surface, size in zip(surfaces, sizes, strict=True)])
    deprioritize_after_s = tuple(config.deprioritize_after_s.get(name, math.inf) for name in config.models)
    follows = tuple(_follows(pipeline) for pipeline in config.pipelines)
    calls = {
        name: tuple(getattr(pipeline, name) for pipeline in config.pipelines) for name in ("per_request", "sequential", "max_per_request")
    }
    devices = tuple(order[name] for name in names)
    return Layout(surfaces_ms, chains, devices, max_busy, deprioritize_after_s, follows, **calls, sizes=sizes)


def _follows(pipeline: PipelineConfig) -> tuple[tuple[int, int], ...] | None:
    if pipeline.graph is None:
        return None
    index = {stage: number for number, stage in enumerate(pipeline.stages)}
    return tuple((index[earlier], index[later]) for earlier, later in waits(pipeline.graph))


def _slots(config: ThemisConfig) -> tuple[DeviceSlot, ...]:
    return config.launch.slots if config.launch is not None else ()


def build_world(config: ThemisConfig, cluster: Cluster, recorder: SimRecorder, world: SimWorld) -> World:
    """The ports over the cluster, and the executor and supervisor over them."""
    clock, control, models = VirtualClock(), SimControl(cluster), tuple(config.models)
    launcher = None
    if config.launch is not None:
        rows = {slot.name: len(config.servers) + number for number, slot in enumerate(config.launch.slots)}
        devices = {slot.name: slot.device for slot in config.launch.slots}
        launcher = SimLauncher(cluster, rows, devices, config.launch.drain_timeout_s)
    actuators = Actuators(control, SimRoutes(cluster, world.route_s), launcher, recorder, clock)
    backoff = Backoff(config.policy.retry_backoff_s, config.policy.retry_backoff_max_s)
    executor = Executor(actuators, Fleet(recorder), backoff, models)
    return World(SimObserver(cluster, world.lag_s), executor, Supervisor(executor, control, launcher, models, clock), recorder, clock)


async def serve_initially(config: ThemisConfig, cluster: Cluster, executor: Executor, options: SimOptions) -> None:
    """Start the first servers with their models and route to them. SettingsError when there are more of them than can exist."""
    initial, launch = _initial_models(config, options), config.launch
    first: list[tuple[str, tuple[str, ...], str | None]] = [(server.name, server.devices, None) for server in config.servers]
    if launch is not None and not config.servers:
        slots = enumerate(launch.slots)
        first = [(f"initial-{number}", (slot.device, *launch.reach_from(slot.device)), slot.name) for number, slot in slots]
    if len(initial) > len(first):
        raise SettingsError(
            f"policy {config.policy.name.value} starts with {len(initial)} servers, but {len(first)} can exist; allow more with "
            "--devices or launch.slots, take fewer pipelines, or lower the load with --scale"
        )
    for row, (models, (name, (device, *further), slot)) in enumerate(zip(initial, first, strict=False)):
        address, reach = Address(name, 0), tuple(further)
        cluster.start(name, row, dict(models), reach)
        cluster.hold(name)
        phase, launched = Phase.SERVING, slot is not None
        executor.fleet.put(Server(name, device, address, address, address, phase, launched, slot, models=dict(models), reach=reach))
    await executor.routes.write()


def _initial_models(config: ThemisConfig, options: SimOptions) -> Sequence[Models]:
    if options.servers is not None:
        return options.servers
    models = options.models or {name: initial_state(model, model.min_instances, None) for name, model in config.models.items()}
    if config.servers:
        return [models] * len(config.servers)
    if config.planning.placement is Placement.SEPARATE:
        return [{name: state} for name, state in models.items() for _ in range(options.launched)]
    return [models] * options.launched
