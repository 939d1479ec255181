"""One simulated run: the same `tick()` as live, over the virtual cluster, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import numpy as np

from themis_triton.act.executor import Executor
from themis_triton.core.action import OutcomeKind
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import Phase
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.estimate.estimate import History
from themis_triton.forecast.forecast import Forecaster
from themis_triton.forecast.known import KnownArrivals
from themis_triton.sim.cluster import Cluster
from themis_triton.sim.engine import Simulation
from themis_triton.sim.ports import SimRecorder
from themis_triton.sim.result import PipelineRun, SimResult, used_between
from themis_triton.sim.setup import SimOptions, build_simulation, build_world, serve_initially, simulated, world_of
from themis_triton.sim.state import REFUSED
from themis_triton.sim.virtual_time import run_virtual
from themis_triton.sim.world import Sharing
from themis_triton.solver.surface import FloatArray
from themis_triton.tick import EngineState, World, tick

DRAIN_S = 60.0
"""Time after the last arrival for requests to end."""


def simulate(config: ThemisConfig, arrivals: Mapping[str, FloatArray], duration_s: float, options: SimOptions | None = None) -> SimResult:
    """Run the settings' policy against arrivals (seconds from the start, ascending, by pipeline). The same seed gives the same bytes.

    Raises SettingsError when a pipeline is unknown or there is no server and no slot.
    """
    options = options or SimOptions()
    known = {pipeline.name for pipeline in config.pipelines}
    for name in arrivals:
        if name not in known:
            raise SettingsError(f"arrivals for '{name}': expected a pipeline of the settings: {', '.join(sorted(known))}")
    return run_virtual(_run(simulated(config, options), arrivals, duration_s, options))


async def _run(config: ThemisConfig, arrivals: Mapping[str, FloatArray], duration_s: float, options: SimOptions) -> SimResult:
    times, start_s = world_of(config, options), options.preroll_s
    simulation = build_simulation(config, arrivals, times, options.seed, options.preroll_s)
    cluster = Cluster(config, times, simulation, options.seed)
    recorder = SimRecorder(keep_ticks=options.keep_ticks)
    world = build_world(config, cluster, recorder, times)
    await serve_initially(config, cluster, world.executor, options)
    for at_s in options.deaths_s:
        asyncio.get_running_loop().call_at(start_s + at_s, _kill_first_launched, cluster, world.executor)
    for at_s, factor in options.slowdowns:
        asyncio.get_running_loop().call_at(start_s + at_s, cluster.slow_down, factor)
    known = KnownArrivals({p.name: np.asarray(arrivals.get(p.name, ()), dtype=np.float64) + start_s for p in config.pipelines})
    recurring = {name: tuple(rise.shifted(start_s) for rise in rises) for name, rises in options.recurring.items()}
    state = EngineState(history=History(recurring=recurring))
    await _ticks(world, Planner(build_rules(config), Forecaster(known)), state, start_s + duration_s)
    await world.supervisor.close()
    await world.executor.cancel()
    simulation.advance(start_s + duration_s + DRAIN_S)
    done = Counter(o.action.kind.value for o in recorder.outcomes if o.kind is OutcomeKind.DONE)
    missed = Counter(o.action.kind.value for o in recorder.outcomes if o.kind not in (OutcomeKind.DONE, OutcomeKind.SKIPPED))
    return SimResult(
        policy=config.policy.name.value,
        seed=options.seed,
        duration_s=duration_s,
        start_s=start_s,
        pipelines=_pipeline_runs(config, simulation, options.preroll_s),
        usage=used_between(cluster.usage, start_s, start_s + duration_s),
        actions=dict(done),
        failed_actions=dict(missed),
        ticks=tuple(recorder.ticks),
        outcomes=tuple(recorder.outcomes),
        counted="Cores" if times.sharing is Sharing.CORES else "Model instances",
        kinds=tuple(cluster.kinds),
    )


async def _ticks(world: World, planner: Planner, state: EngineState, until_s: float) -> None:
    """A tick each period, never two at once; a longer one skips the ticks that it missed."""
    period_s = planner.rules.config.policy.tick_s
    loop = asyncio.get_running_loop()
    number = 0
    while number * period_s < until_s:
        await asyncio.sleep(max(0.0, number * period_s - loop.time()))
        state, _ = await tick(state, world, planner)
        number = max(number + 1, int(loop.time() / period_s))
    await asyncio.sleep(max(0.0, until_s - loop.time()))


def _kill_first_launched(cluster: Cluster, executor: Executor) -> None:
    """Kill the first launched server that serves; the loop detects it."""
    for server in executor.fleet.all():
        if server.launched and server.phase is Phase.SERVING and cluster.is_alive(server.name):
            cluster.kill(server.name)
            return


def _pipeline_runs(config: ThemisConfig, simulation: Simulation, preroll_s: float) -> tuple[PipelineRun, ...]:
    engine = simulation.engine
    runs = []
    for number, pipeline in enumerate(config.pipelines):
        chosen = engine.pipeline == number
        arrival_s = engine.arrival_s[chosen]
        latency_ms = 1000.0 * (engine.ended_s[chosen] - arrival_s)
        failed = engine.failed[chosen]
        times = (arrival_s - preroll_s, latency_ms)
        runs.append(PipelineRun(pipeline.name, pipeline.slo_ms, *times, failed.astype(bool), failed == REFUSED))
    return tuple(runs)
