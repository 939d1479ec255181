"""Executes plans off the loop. While actions run, ticks go on; a busy actuator takes no second action."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from themis_triton.act.backoff import Backoff
from themis_triton.act.fleet import Fleet
from themis_triton.act.launch_proofs import LaunchProofs
from themis_triton.act.launch_rests import LaunchRests
from themis_triton.act.server_locks import ServerLocks
from themis_triton.core.action import Action, ActionKind, Outcome, OutcomeKind, Plan
from themis_triton.core.errors import ChangeRefusedError, LaunchFailedError, ServerError, ThemisError, WarmupFailedError
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import OpenCall
from themis_triton.core.routes import RouteLimit, RouteTable
from themis_triton.plan.routes import route_table
from themis_triton.ports import Clock, ModelControl, Recorder, RouteWriter, ServerLauncher


@dataclass(frozen=True, slots=True)
class Actuators:
    """The ports through which the executor acts. `launcher` None: no server can be launched."""

    control: ModelControl
    routes: RouteWriter
    launcher: ServerLauncher | None
    recorder: Recorder
    clock: Clock


class Executor:
    """Runs actions as tasks; keeps the fleet, the busy actuators, the back-off, and outcomes until they are collected."""

    def __init__(self, actuators: Actuators, fleet: Fleet, backoff: Backoff, models: tuple[str, ...]) -> None:
        self.fleet = fleet
        self.backoff = backoff
        self.rests = LaunchRests()
        self.proofs = LaunchProofs(backoff)
        self.locks = ServerLocks()
        self.unchangeable: dict[str, str] = {}
        self.routes_unwritten: str | None = None
        self._taken_up: RouteTable | None = None
        self._to_retire: frozenset[str] = frozenset()
        self.limits: dict[str, RouteLimit] = {}
        self._unrouted: frozenset[tuple[str, str]] = frozenset()
        self._reconciling: asyncio.Task[None] | None = None
        self._actuators = actuators
        self._models = models
        self._tasks: dict[str, asyncio.Task[Outcome]] = {}
        self._busy: dict[str, str] = {}
        self._launching: dict[str, Action] = {}
        self._loading: dict[str, tuple[str, str]] = {}
        self._open_calls: dict[str, OpenCall] = {}
        self._outcomes: list[Outcome] = []
        self._procedures: dict[ActionKind, Callable[[Action], Awaitable[str]]] = {
            ActionKind.GROW: self._change,
            ActionKind.SHRINK: self._change,
            ActionKind.REBATCH: self._change,
            ActionKind.LAUNCH: self._launch,
            ActionKind.RETIRE: self._retire,
            ActionKind.KILL: self._kill,
            ActionKind.RELOAD: self._reload,
        }

    @property
    def busy(self) -> frozenset[str]:
        """Actuators with an action under way."""
        return frozenset(self._busy)

    @property
    def launching(self) -> tuple[Action, ...]:
        """Launches under way whose process has not started yet: the fleet does not contain their servers."""
        return tuple(action for action in self._launching.values() if action.server not in self.fleet)

    @property
    def loading(self) -> frozenset[tuple[str, str]]:
        """(server, model) pairs that are being loaded."""
        return frozenset(self._loading.values())

    @property
    def open_calls(self) -> tuple[OpenCall, ...]:
        """Changes of counts under way, oldest first."""
        return tuple(call for call in self._open_calls.values() if not call.renews_all)

    @property
    def reloads(self) -> tuple[OpenCall, ...]:
        """Changes under way that make all instances of a model anew, oldest first."""
        return tuple(call for call in self._open_calls.values() if call.renews_all)

    def submit(self, plan: Plan) -> None:
        """Start a plan's actions; returns at once. An action that cannot start becomes an outcome SKIPPED, with the reason."""
        if plan.retire is not None:
            self._to_retire = plan.retire
        if plan.unrouted is not None:
            self._set_unrouted(plan.unrouted)
        if plan.limits is not None and plan.limits != self.limits:
            self.limits = plan.limits
            self.reconcile_routes(changed=True)
        for action in plan.actions:
            obstacle = self._obstacle(action)
            if obstacle is None:
                self._start(action)
            else:
                now_s = self._actuators.clock.now_s()
                self._note(actuator_of(action), Outcome(action, OutcomeKind.SKIPPED, now_s, now_s, obstacle))

    def _set_unrouted(self, pairs: frozenset[tuple[str, str]]) -> None:
        """Take (server, model) pairs out of the routes and let the others return, off the loop."""
        if pairs != self._unrouted:
            self._unrouted = pairs
            self.reconcile_routes(changed=True)

    def _obstacle(self, action: Action) -> str | None:
        """Why an action cannot start now; None when it can."""
        running = self._busy.get(actuator_of(action))
        if running is not None:
            return f"{actuator_of(action)} is busy with {running}"
        missing = [required for required in action.requires if required not in self._tasks]
        if missing:
            return f"it requires {', '.join(missing)}, which did not start"
        return self.locks.obstacle(action) if not action.requires else None

    def _start(self, action: Action) -> None:
        actuator = actuator_of(action)
        needed = [self._tasks[required] for required in action.requires]
        self._busy[actuator] = action.id
        if action.kind is ActionKind.LAUNCH:
            self._launching[action.id] = action
        if action.kind is ActionKind.RELOAD and action.model is not None:
            self._loading[action.id] = (action.server, action.model)
        self._tasks[action.id] = asyncio.create_task(self._run(action, actuator, needed), name=action.id)

    def collect(self) -> tuple[Outcome, ...]:
        """Outcomes since the last call, in the order in which they ended."""
        collected, self._outcomes = tuple(self._outcomes), []
        return collected

    async def cancel(self) -> None:
        """Cancel all running actions when the daemon stops; servers stay as they are, and the next daemon adopts them."""
        reconciling = [self._reconciling] if self._reconciling is not None else []
        tasks: list[asyncio.Task[Any]] = [*self._tasks.values(), *reconciling]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._unrouted:
            self._unrouted = frozenset()
            with contextlib.suppress(ThemisError, OSError):  # the next daemon writes the routes anew
                await self.write_routes()

    async def write_routes(self) -> None:
        """Write the routes of the serving servers. Raises the port's errors; `routes_unwritten` has the reason until a write succeeds."""
        table = self._route_table()
        try:
            await self._actuators.routes.write(table)
        except Exception as error:
            self.routes_unwritten = f"{error}"
            raise
        self._taken_up = table
        # The fleet may have changed while the proxy took the routes up: then the next tick writes again.
        current = table == self._route_table()
        self.routes_unwritten = None if current else "the fleet changed during the last write"

    def as_routed(self, servers: Iterable[Server]) -> tuple[Server, ...]:
        """The servers, those as WARMING that serve and to which the proxy does not route yet: they are no capacity so far."""
        if self.routes_unwritten is None or self._taken_up is None:
            return tuple(servers)
        routed = {endpoint.server for endpoint in self._taken_up.any}
        waiting = {endpoint.server for endpoint in self._route_table().any} - routed
        return tuple(
            replace(each, phase=Phase.WARMING) if each.phase is Phase.SERVING and each.launched and each.name in waiting else each
            for each in servers
        )

    def backing_off(self, now_s: float) -> dict[str, float]:
        """Actuators in back-off, with its end (s); a resting one is in back-off anew at each call."""
        return self.backoff.active(now_s) | dict.fromkeys(self.resting, now_s + self.backoff.longest_s)

    @property
    def resting(self) -> dict[str, str]:
        """Actuators that are not used, with the reason: slots whose launches rest, and models of servers that refuse changes."""
        return self.rests.reasons | self.unchangeable

    async def end_rests(self) -> None:
        """End the rests of launches whose model's files have changed."""
        for slot, model in self.rests.models.items():
            self.rests.end(slot, await self._launcher().read_files_version(model))

    def _route_table(self) -> RouteTable:
        return route_table(self.fleet.all(), self._models, self._unrouted, self.limits)

    def reconcile_routes(self, *, changed: bool = False) -> None:
        """Start to write the routes, off the loop, if they changed or an earlier write failed."""
        if changed:
            self.routes_unwritten = "a write is under way"
        if self.routes_unwritten is not None and (self._reconciling is None or self._reconciling.done()):
            self._reconciling = asyncio.create_task(self._reconcile_routes())

    async def _reconcile_routes(self) -> None:
        with contextlib.suppress(ThemisError, OSError):  # `routes_unwritten` has the reason, and the next tick tries again
            await self.write_routes()

    async def _run(self, action: Action, actuator: str, needed: list[asyncio.Task[Outcome]]) -> Outcome:
        started_at_s = self._actuators.clock.now_s()
        try:
            kind, detail = await self._guarded(action, needed)
        finally:
            self._busy.pop(actuator, None)
            self._launching.pop(action.id, None)
            self._loading.pop(action.id, None)
            self._tasks.pop(action.id, None)
        outcome = Outcome(action, kind, started_at_s, self._actuators.clock.now_s(), detail)
        self._note(actuator, outcome)
        return outcome

    def _note(self, actuator: str, outcome: Outcome) -> None:
        if outcome.kind is OutcomeKind.DONE:
            if outcome.action.kind is not ActionKind.LAUNCH:  # a launch has succeeded once its server has served for a while
                self.backoff.succeeded(actuator)
        elif outcome.kind is not OutcomeKind.SKIPPED and (outcome.action.kind is ActionKind.LAUNCH or outcome.action.server in self.fleet):
            self.backoff.failed(actuator, outcome.ended_at_s)
        self._outcomes.append(outcome)
        self._actuators.recorder.record_outcome(outcome)

    async def _guarded(self, action: Action, needed: list[asyncio.Task[Outcome]]) -> tuple[OutcomeKind, str]:
        """Run the action once what it requires has succeeded; every failure becomes an outcome."""
        outcomes = await asyncio.gather(*needed)
        obstacle = self._obstacle_after(action, outcomes)
        if obstacle is not None:
            return OutcomeKind.SKIPPED, obstacle
        try:
            with self.locks.held(action):
                detail = await self._procedures[action.kind](action)
        except (ChangeRefusedError, LaunchFailedError) as error:
            return OutcomeKind.REFUSED, str(error)
        except TimeoutError as error:
            return OutcomeKind.TIMED_OUT, str(error)
        except Exception as error:  # noqa: BLE001 - without an outcome the actuator would stay busy for ever
            return OutcomeKind.LOST, f"{type(error).__name__}: {error}"
        return OutcomeKind.DONE, detail

    def _obstacle_after(self, action: Action, outcomes: Sequence[Outcome]) -> str | None:
        """Why an action cannot begin once what it requires has these outcomes; None when it can."""
        if any(outcome.kind is not OutcomeKind.DONE for outcome in outcomes):
            return "an action that it requires failed"
        if outcomes and action.kind is ActionKind.RETIRE and action.server not in self._to_retire:
            return "the newest target keeps the server"
        if action.kind is not ActionKind.LAUNCH and action.server not in self.fleet:
            return f"{action.server} is gone"
        return self.locks.obstacle(action)

    async def _change(self, action: Action) -> str:
        if action.model is None or action.after is None:
            raise ThemisError(f"action {action.id} names no model or no state")
        server = self.fleet.get(action.server)
        if action.before is not None:
            now_s = self._actuators.clock.now_s()
            self._open_calls[action.id] = OpenCall(action.server, action.model, action.before, action.after, now_s)
        try:
            state = await self._actuators.control.change(server, action.model, action.after)
        except ServerError:
            await self._reread(action.server, action.model)
            raise
        finally:
            self._open_calls.pop(action.id, None)
        if action.kind is not ActionKind.SHRINK:  # a queue was emptied for the growth
            self._set_unrouted(self._unrouted - {(action.server, action.model)})
        if action.server in self.fleet:
            self.fleet.set_model(action.server, action.model, state)
        return ""

    async def _reload(self, action: Action) -> str:
        """Load a model anew; on a server that Themis launched it gets requests only after its warm-up."""
        if action.model is None:
            raise ThemisError(f"action {action.id} names no model")
        server = self.fleet.get(action.server)
        if action.after is None:
            return await self._load_ensemble(server, action.model)
        with contextlib.suppress(ThemisError, OSError):  # what it fails is no worse off while it is loaded
            await self.write_routes()
        if server.launched:
            await self._launcher().add_model(server, action.model, action.after)
        state = await self._actuators.control.reload(server, action.model, action.after)
        if server.launched:
            await self._launcher().warm_up(replace(server, models={action.model: state}))
        if action.server in self.fleet:
            self.fleet.set_model(action.server, action.model, state)
            await self.write_routes()
        return ""

    async def _load_ensemble(self, server: Server, name: str) -> str:
        """Load an ensemble whose members the server has; it has no instances to warm up."""
        await self._launcher().add_ensembles(server)
        await self._actuators.control.load(server, name)
        if server.name in self.fleet:
            current = self.fleet.get(server.name)
            self.fleet.put(replace(current, ready_models=tuple(sorted({*(current.ready_models or ()), name}))))
            await self.write_routes()
        return ""

    async def _reread(self, name: str, model: str) -> None:
        """Read the model's state from the server after a failure: the old state should still serve."""
        if name not in self.fleet:
            return
        states = await self._actuators.control.read_models(self.fleet.get(name), [model])
        if model in states and name in self.fleet:
            self.fleet.set_model(name, model, states[model])

    async def _launch(self, action: Action) -> str:
        launcher = self._launcher()
        if action.slot is None:
            raise ThemisError(f"action {action.id} names no slot")
        if action.server not in self.fleet:  # a server that an earlier daemon launched needs no second launch
            self.fleet.put(await launcher.launch(action.server, action.slot, action.models))
        await self._bring_up(action.server)
        return ""

    async def _bring_up(self, name: str) -> None:
        """Wait until the server is ready, warm it up, then route to it; a server that fails before is stopped and forgotten."""
        launcher = self._launcher()
        try:
            server = await launcher.wait_ready(self.fleet.get(name))
            self.fleet.put(replace(server, phase=Phase.WARMING))
            await launcher.warm_up(self.fleet.get(name))
        except Exception as error:
            if isinstance(error, WarmupFailedError):
                self.rests.failed(self.fleet.get(name).slot or "", error, await launcher.read_files_version(error.model))
            try:
                await self._dispose(name)
            except (ThemisError, OSError) as stop_error:
                raise LaunchFailedError(f"{error}; nor could it be stopped: {stop_error}") from error
            raise
        server = self.fleet.move(name, Phase.SERVING)
        self.rests.succeeded(server.slot or "")
        self.proofs.began(server, self._actuators.clock.now_s())
        await self.write_routes()

    async def _retire(self, action: Action) -> str:
        before = self.fleet.get(action.server).phase
        self.fleet.move(action.server, Phase.DRAINING)
        idle = await self._take_down(action.server, serves=before is Phase.SERVING)
        return "" if idle else "requests were still in flight at the drain time-out"

    async def _kill(self, action: Action) -> str:
        """End a server that is out of the routes and does not answer; one that answers again lives on."""
        server = self.fleet.get(action.server)
        if server.phase is not Phase.UNRESPONSIVE:
            return "it answers again"
        await self._launcher().kill(server)
        await self.forget(server)
        return ""

    async def _take_down(self, name: str, *, serves: bool) -> bool:
        """Take the server out of the routes, drain it, then stop it; False when the drain timed out.

        A server that may still be routed to is not stopped: if it `serves`, it keeps serving and retires once the routes can be written.
        """
        try:
            await self.write_routes()
        except Exception:
            if serves:
                self.fleet.move(name, Phase.SERVING)
            raise
        idle = await self._launcher().wait_idle(self.fleet.get(name))
        await self._dispose(name)
        return idle

    async def _dispose(self, name: str) -> None:
        server = self.fleet.move(name, Phase.STOPPING)
        await self._launcher().stop(server)
        await self.forget(server)

    async def forget(self, server: Server) -> None:
        """Remove a stopped server from the fleet, with its back-off and its connections."""
        self.fleet.remove(server.name)
        self.backoff.forget(server.name)
        self.proofs.ended(server)
        await self._actuators.control.forget(server)

    def _launcher(self) -> ServerLauncher:
        if self._actuators.launcher is None:
            raise ThemisError("no servers can be launched or stopped: the settings have no `launch` section")
        return self._actuators.launcher


def actuator_of(action: Action) -> str:
    """The actuator that an action occupies; see Snapshot.busy."""
    match action.kind:
        case ActionKind.LAUNCH:
            return str(action.slot)
        case ActionKind.RETIRE | ActionKind.KILL:
            return action.server
        case _:
            return f"{action.server}/{action.model}"
