"""One simulated run: the same `tick()` as live, over the virtual cluster, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from themis_triton.act.backoff import Backoff
from themis_triton.act.executor import Executor, Levers
from themis_triton.act.fleet import Fleet
from themis_triton.act.supervisor import Supervisor
from themis_triton.core.action import OutcomeKind
from themis_triton.core.config import PolicyName, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.decide.rules import build_rules
from themis_triton.sim.cluster import Cluster
from themis_triton.sim.engine import Layout, Simulation
from themis_triton.sim.ports import SimControl, SimLauncher, SimObserver, SimRecorder, SimRoutes
from themis_triton.sim.result import PipelineRun, SimResult, used_between
from themis_triton.sim.virtual_time import VirtualClock, run_virtual
from themis_triton.sim.world import SimWorld, triton_world
from themis_triton.solver.surface import FloatArray, surface_from_table
from themis_triton.tick import EngineState, World, tick

PREROLL_S = 5.0
"""Before the first request the loop runs for a while, as a sidecar does that is started first."""
DRAIN_S = 60.0
"""After the last arrival, requests that are still inside may end for so long."""


@dataclass(frozen=True, slots=True)
class SimOptions:
    """What a run starts from. `models` None: the fewest instances and the largest batch of the settings, on each initial server.

    The adopted servers of the settings serve from the start; where there are none, `launched` servers on the first slots do.
    `deaths_s`: seconds from the start of the load at which the first launched server that serves dies unasked.
    """

    seed: int = 0
    policy: PolicyName | None = None
    world: SimWorld = field(default_factory=triton_world)
    launched: int = 1
    models: Mapping[str, ModelState] | None = None
    deaths_s: tuple[float, ...] = ()


def simulate(config: ThemisConfig, arrivals: Mapping[str, FloatArray], duration_s: float, options: SimOptions | None = None) -> SimResult:
    """Run the settings' policy against arrivals (seconds from the start, ascending, by pipeline). The same seed gives the same bytes.

    Raises SettingsError when a pipeline is unknown or there is no server and no slot.
    """
    options = options or SimOptions()
    if options.policy is not None:
        config = replace(config, policy=replace(config.policy, name=options.policy))
    _check(config, arrivals)
    return run_virtual(_run(config, arrivals, duration_s, options))


def _check(config: ThemisConfig, arrivals: Mapping[str, FloatArray]) -> None:
    known = {pipeline.name for pipeline in config.pipelines}
    for name in arrivals:
        if name not in known:
            raise SettingsError(f"arrivals for '{name}': not a pipeline of the settings; allowed are {', '.join(sorted(known))}")
    if not config.servers and (config.launch is None or not config.launch.slots):
        raise SettingsError("servers, launch.slots: found neither; a simulation needs a server or a slot where one can be launched")


async def _run(config: ThemisConfig, arrivals: Mapping[str, FloatArray], duration_s: float, options: SimOptions) -> SimResult:
    simulation = _simulation(config, arrivals, options)
    cluster = Cluster(config, options.world, simulation, options.seed)
    recorder = SimRecorder()
    world = _world(config, cluster, recorder, options.world)
    await _serve_initially(config, cluster, world.executor, options)
    for at_s in options.deaths_s:
        asyncio.get_running_loop().call_at(PREROLL_S + at_s, _die, cluster, world.executor)
    await _ticks(world, config, PREROLL_S + duration_s)
    await world.supervisor.close()
    await world.executor.cancel()
    simulation.advance(PREROLL_S + duration_s + DRAIN_S)
    usage = used_between(cluster.usage, PREROLL_S, PREROLL_S + duration_s)
    done = Counter(o.action.kind.value for o in recorder.outcomes if o.kind is OutcomeKind.DONE)
    missed = Counter(o.action.kind.value for o in recorder.outcomes if o.kind not in (OutcomeKind.DONE, OutcomeKind.SKIPPED))
    return SimResult(
        policy=config.policy.name.value,
        seed=options.seed,
        duration_s=duration_s,
        start_s=PREROLL_S,
        pipelines=_pipeline_runs(config, simulation),
        prices=config.prices,
        usage=usage,
        actions=dict(done),
        failed_actions=dict(missed),
        ticks=tuple(recorder.ticks),
        outcomes=tuple(recorder.outcomes),
    )


async def _ticks(world: World, config: ThemisConfig, until_s: float) -> None:
    """A tick each period, never two at once; one that takes longer skips what it missed."""
    rules, state, period_s = build_rules(config), EngineState(), config.policy.tick_s
    loop = asyncio.get_running_loop()
    number = 0
    while number * period_s < until_s:
        await asyncio.sleep(max(0.0, number * period_s - loop.time()))
        state, _ = await tick(state, world, rules)
        number = max(number + 1, int(loop.time() / period_s))
    await asyncio.sleep(max(0.0, until_s - loop.time()))


def _die(cluster: Cluster, executor: Executor) -> None:
    """The first launched server that serves ends; the loop finds out by itself."""
    for server in executor.fleet.all():
        if server.launched and server.phase is Phase.SERVING and cluster.is_alive(server.name):
            cluster.kill(server.name)
            return


def _simulation(config: ThemisConfig, arrivals: Mapping[str, FloatArray], options: SimOptions) -> Simulation:
    slots = config.launch.slots if config.launch is not None else ()
    names = [server.device for server in config.servers] + [slot.device for slot in slots]
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    most = sum(model.max_instances for model in config.models.values()) * max(names.count(name) for name in order)
    batch = max(model.max_batch for model in config.models.values())
    surfaces = np.stack([surface_from_table(model.profile.table, batch, most).latency_ms for model in config.models.values()])
    index = {name: number for number, name in enumerate(config.models)}
    chains = tuple(tuple(index[stage] for stage in pipeline.stages) for pipeline in config.pipelines)
    layout = Layout(surfaces, chains, tuple(order[name] for name in names), most)
    times = [np.asarray(arrivals.get(p.name, ()), dtype=np.float64) + PREROLL_S for p in config.pipelines]
    pipeline = np.repeat(np.arange(len(times)), [each.size for each in times])
    merged = np.concatenate(times)
    by_time = np.argsort(merged, kind="stable")
    return Simulation(layout, options.world, merged[by_time], pipeline[by_time], options.seed)


def _world(config: ThemisConfig, cluster: Cluster, recorder: SimRecorder, world: SimWorld) -> World:
    clock, control, models = VirtualClock(), SimControl(cluster), tuple(config.models)
    launcher = None
    if config.launch is not None:
        places = {slot.name: len(config.servers) + number for number, slot in enumerate(config.launch.slots)}
        devices = {slot.name: slot.device for slot in config.launch.slots}
        launcher = SimLauncher(cluster, places, devices, config.launch.drain_timeout_s)
    levers = Levers(control, SimRoutes(cluster, world.route_s), launcher, recorder, clock)
    backoff = Backoff(config.policy.retry_backoff_s, config.policy.retry_backoff_max_s)
    executor = Executor(levers, Fleet(recorder), backoff, models)
    return World(SimObserver(cluster), executor, Supervisor(executor, control, launcher, models, clock), recorder, clock)


async def _serve_initially(config: ThemisConfig, cluster: Cluster, executor: Executor, options: SimOptions) -> None:
    states = options.models or {
        name: ModelState(model.min_instances, model.max_batch, model.max_queue_delay_us) for name, model in config.models.items()
    }
    slots = config.launch.slots if config.launch is not None and not config.servers else ()
    initial: list[tuple[str, str, str | None]] = [(server.name, server.device, None) for server in config.servers]
    initial += [(f"initial-{number}", slot.device, slot.name) for number, slot in enumerate(slots[: options.launched])]
    for place, (name, device, slot_name) in enumerate(initial):
        cluster.start(name, place, dict(states))
        cluster.hold(name)
        executor.fleet.put(
            Server(name, device, name, name, name, Phase.SERVING, launched=slot_name is not None, slot=slot_name, models=dict(states))
        )
    await executor.write_routes()


def _pipeline_runs(config: ThemisConfig, simulation: Simulation) -> tuple[PipelineRun, ...]:
    engine = simulation.engine
    runs = []
    for number, pipeline in enumerate(config.pipelines):
        chosen = engine.pipeline == number
        arrival_s = engine.arrival_s[chosen]
        latency_ms = 1000.0 * (engine.ended_s[chosen] - arrival_s)
        runs.append(PipelineRun(pipeline.name, pipeline.slo_ms, arrival_s - PREROLL_S, latency_ms, engine.failed[chosen].astype(bool)))
    return tuple(runs)
