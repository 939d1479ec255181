"""One tick: observe → estimate → decide → plan → act → record. The only place that composes the stages; live and simulated alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from themis_triton.act.executor import Executor
from themis_triton.act.supervisor import Supervisor
from themis_triton.core.action import Action, Plan
from themis_triton.core.address import UNKNOWN_ADDRESS
from themis_triton.core.config import DrainState, Mode, ThemisConfig
from themis_triton.core.decision import Decision
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import Snapshot
from themis_triton.core.record import TickRecord
from themis_triton.decide.correction import with_drift
from themis_triton.decide.planner import Planner
from themis_triton.decide.policies import decide
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.estimate.busy import busy_instances
from themis_triton.estimate.estimate import History, estimate
from themis_triton.plan.steps import plan
from themis_triton.policies import policy_named
from themis_triton.ports import Clock, Observer, Recorder

READABLE = frozenset({Phase.SERVING, Phase.DRAINING, Phase.UNREACHABLE, Phase.UNRESPONSIVE})


@dataclass(frozen=True, slots=True)
class EngineState:
    """The state that one tick passes to the next."""

    number: int = 0
    history: History = field(default_factory=History)
    policy: PolicyState = field(default_factory=PolicyState)


@dataclass(frozen=True, slots=True)
class World:
    """The ports and the executor that a tick works with."""

    observer: Observer
    executor: Executor
    supervisor: Supervisor
    recorder: Recorder
    clock: Clock


Decided = tuple[PolicyState, Decision]
Compute = Callable[[Callable[[], Decided]], Awaitable[Decided]]
"""How a decision is computed."""


async def at_once(work: Callable[[], Decided]) -> Decided:
    """Compute a decision where it is asked for."""
    return work()


async def tick(
    state: EngineState, world: World, planner: Planner, compute: Compute = at_once, *, paused: bool = False
) -> tuple[EngineState, TickRecord]:
    """Run one tick; returns the next state and the record of what happened.

    `paused`: the planner is in advisory mode for a time only, so that admission limits go on following what serves.
    """
    config = planner.rules.config
    await world.supervisor.reap_dead_servers()
    history, seen = estimated_input(state, await observe(world, config, state.policy.resting_servers), planner)
    snapshot, estimated = seen.snapshot, seen.estimate
    policy_state, decision = await compute(lambda: decided(state, seen, planner))
    planned = plan(decision, snapshot, config)
    advisory = config.mode is Mode.ADVISORY
    if not advisory:
        world.supervisor.resume()
        world.supervisor.repair(estimated.failures)
    # Neither a hold nor advisory mode drains a server; one that is drained no longer returns to the routes in both.
    out = frozenset(name for name, drain in config.drains.items() if drain is DrainState.LEFT or name in world.executor.routes.drained)
    # Advisory mode starts nothing and drops waiting retirements.
    shown = Plan(decision.id, retire=frozenset(), unrouted=frozenset(), limits=planned.limits if paused else None, drained=out)
    world.executor.submit(shown if advisory else replace(planned, drained=out if planned.drained is None else planned.drained))
    record = TickRecord(state.number + 1, snapshot, estimated, decision, planned, world.executor.collect(), advisory)
    world.recorder.record_tick(record)
    return EngineState(state.number + 1, history, policy_state), record


def estimated_input(state: EngineState, observed: Snapshot, planner: Planner) -> tuple[History, PolicyInput]:
    """The policy's input from what was observed, or from the snapshot of a record: the instances that servers execute stay as they are."""
    config = planner.rules.config
    policy = policy_named(config.policy.name)
    history, estimated = estimate(
        state.history, observed, config, per_second=policy.needs_arrivals_per_second, work_window_s=policy.work_window_s
    )
    return history, PolicyInput(history.seen, estimated, busy_instances(history.seen, history.served, config))


def decided(state: EngineState, seen: PolicyInput, planner: Planner) -> Decided:
    """The policy's next state and the decision, which names the models that drift."""
    policy = policy_named(planner.rules.config.policy.name)
    policy_state, decision = decide(state.policy, seen, planner, policy)
    return policy_state, with_drift(decision, seen.estimate)


def redecide(state: EngineState, observed: Snapshot, planner: Planner) -> tuple[EngineState, Decision, Plan]:
    """What a tick makes of an observation: the next state, the decision and the plan. Pure: no clock, no I/O."""
    history, seen = estimated_input(state, observed, planner)
    policy_state, decision = decided(state, seen, planner)
    return EngineState(state.number + 1, history, policy_state), decision, plan(decision, seen.snapshot, planner.rules.config)


async def observe(world: World, config: ThemisConfig, resting: frozenset[str] = frozenset()) -> Snapshot:
    """Read everything once; of the `resting` servers on which no action runs, perhaps a part."""
    servers = [server for server in world.executor.fleet.all() if server.phase in READABLE]
    at_work = {actuator.partition("/")[0] for actuator in world.executor.busy} | {call.server for call in world.executor.open_calls}
    readings = await world.observer.read(servers, resting - at_work)
    await world.supervisor.update_reachability(readings.servers)
    now_s = world.clock.now_s()
    return Snapshot(
        at_s=now_s,
        servers=(*world.executor.routes.as_routed(world.executor.fleet.all()), *announced(world.executor, config)),
        readings=readings.servers,
        routes=readings.routes,
        devices=readings.devices,
        busy=world.executor.busy,
        open_calls=world.executor.open_calls,
        reloads=world.executor.reloads,
        backing_off=world.executor.backing_off(now_s),
        resting=world.executor.resting,
        recently_crashed=world.supervisor.recently_crashed,
        routes_error=readings.routes_error,
        routes_unwritten=world.executor.routes.unwritten,
        incidents=world.supervisor.collect_incidents(),
        faults=world.supervisor.faults,
        loading=world.executor.loading,
        free_places=readings.free_places,
    )


def announced(executor: Executor, config: ThemisConfig) -> tuple[Server, ...]:
    """Servers in launch without a process yet. Without them, the policy would launch them again."""
    devices = {slot.name: slot.device for slot in config.launch.slots} if config.launch is not None else {}
    return tuple(_announced(action, devices.get(action.slot or "", ""), config) for action in executor.launching)


def _announced(launch: Action, device: str, config: ThemisConfig) -> Server:
    unknown = (UNKNOWN_ADDRESS, UNKNOWN_ADDRESS, UNKNOWN_ADDRESS)
    reach = config.launch.reach_from(device) if config.launch is not None else ()
    return Server(launch.server, device, *unknown, Phase.LAUNCHING, launched=True, slot=launch.slot, models=launch.models, reach=reach)
