"""Executes plans off the loop. While actions run, ticks go on; a busy actuator takes no second action."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from themis_triton.act.actuators import Actuators
from themis_triton.act.backoff import Backoff
from themis_triton.act.fleet import Fleet
from themis_triton.act.fleet_routes import FleetRoutes
from themis_triton.act.launch_proofs import LaunchProofs
from themis_triton.act.launch_rests import LaunchRests
from themis_triton.act.procedures import Procedures
from themis_triton.act.server_locks import ServerLocks
from themis_triton.core.action import Action, ActionKind, Outcome, OutcomeKind, Plan
from themis_triton.core.errors import ChangeRefusedError, DeviceRefusedError, LaunchFailedError
from themis_triton.core.observation import OpenCall, devices_of


class Executor:
    """Runs actions as tasks; keeps the fleet, the busy actuators, the back-off, and outcomes until they are collected."""

    def __init__(self, actuators: Actuators, fleet: Fleet, backoff: Backoff, models: tuple[str, ...]) -> None:
        self.fleet = fleet
        self.backoff = backoff
        self.rests = LaunchRests()
        self.proofs = LaunchProofs(backoff)
        self.locks = ServerLocks()
        self.routes = FleetRoutes(fleet, actuators.routes, models)
        self.procedures = Procedures(actuators, fleet, self.routes, backoff, self.rests, self.proofs)
        self.unchangeable: dict[str, str] = {}
        self.at_home: dict[str, str] = {}
        self._to_retire: frozenset[str] = frozenset()
        self._actuators = actuators
        self._tasks: dict[str, asyncio.Task[Outcome]] = {}
        self._busy: dict[str, str] = {}
        self._launching: dict[str, Action] = {}
        self._loading: dict[str, tuple[str, str]] = {}
        self._outcomes: list[Outcome] = []
        self._procedures: dict[ActionKind, Callable[[Action], Awaitable[str]]] = {
            ActionKind.GROW: self.procedures.change,
            ActionKind.SHRINK: self.procedures.change,
            ActionKind.REBATCH: self.procedures.change,
            ActionKind.LAUNCH: self.procedures.launch,
            ActionKind.RETIRE: self.procedures.retire,
            ActionKind.KILL: self.procedures.kill,
            ActionKind.RELOAD: self.procedures.reload,
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
        return tuple(call for call in self.procedures.open_calls.values() if not call.renews_all)

    @property
    def reloads(self) -> tuple[OpenCall, ...]:
        """Changes under way that make all instances of a model anew, oldest first."""
        return tuple(call for call in self.procedures.open_calls.values() if call.renews_all)

    def submit(self, plan: Plan) -> None:
        """Start a plan's actions; returns at once. An action that cannot start becomes an outcome SKIPPED, with the reason."""
        if plan.retire is not None:
            self._to_retire = plan.retire
        if plan.unrouted is not None:
            self.routes.set_unrouted(plan.unrouted)
        if plan.limits is not None:
            self.routes.set_limits(plan.limits)
        if plan.drained is not None:
            self.routes.set_drained(plan.drained)
        for action in plan.actions:
            obstacle = self._obstacle(action)
            if obstacle is None:
                self._start(action)
            else:
                now_s = self._actuators.clock.now_s()
                self._note(actuator_of(action), Outcome(action, OutcomeKind.SKIPPED, now_s, now_s, obstacle))

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
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.routes.close()

    def backing_off(self, now_s: float) -> dict[str, float]:
        """Actuators in back-off, with its end (s); a resting one is in back-off anew at each call."""
        return self.backoff.active(now_s) | dict.fromkeys(self.resting, now_s + self.backoff.longest_s)

    @property
    def resting(self) -> dict[str, str]:
        """Actuators that are not used, with the reason.

        Slots whose launches rest, models of servers that refuse changes, and further devices for models that cannot be there.
        """
        at_home = {actuator: why for actuator, why in self.at_home.items() if actuator.partition("/")[0] in self.fleet}
        return self.rests.reasons | self.unchangeable | at_home

    async def end_rests(self) -> None:
        """End the rests of launches whose model's files have changed."""
        if models := self.rests.models:
            self.rests.end_changed(await self._actuators.required_launcher().read_files_versions(models))

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
            if isinstance(error, DeviceRefusedError):
                self.at_home[devices_of(action.server, action.model or "")] = str(error)
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


def actuator_of(action: Action) -> str:
    """The actuator that an action occupies; see Snapshot.busy."""
    match action.kind:
        case ActionKind.LAUNCH:
            return str(action.slot)
        case ActionKind.RETIRE | ActionKind.KILL:
            return action.server
        case _:
            return f"{action.server}/{action.model}"
