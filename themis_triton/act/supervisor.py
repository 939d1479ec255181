"""Reconciles the fleet with the real servers: crashed, not answering, recovered, or with other counts than recorded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from themis_triton.act.crash_reports import CrashReports
from themis_triton.act.executor import Executor, actuator_of
from themis_triton.act.health import ServerHealth
from themis_triton.act.repairs import REPAIR, Repairs
from themis_triton.act.stray_sequences import StraySequences
from themis_triton.core.action import Action, ActionKind, Plan
from themis_triton.core.errors import ServerError, ThemisError
from themis_triton.core.estimate import ModelFailure
from themis_triton.core.fleet import Models, ModelState, Phase, Server
from themis_triton.core.incident import Incident, IncidentKind
from themis_triton.core.observation import ServerReading
from themis_triton.plan.routes import route_table
from themis_triton.ports import Clock, CrashWitness, ModelControl, ServerLauncher

LOST_MEMORY_S = 60.0
REREAD_EVERY_S = 5.0
ALL_SLOTS = ""


RESUMED = "resumed"
RUNNING = frozenset({Phase.SERVING, Phase.UNREACHABLE, Phase.UNRESPONSIVE})
COMING = frozenset({Phase.LAUNCHING, Phase.WARMING})


def resumption(server: Server) -> Action:
    """The action that completes an interrupted launch or retirement."""
    kind = ActionKind.LAUNCH if server.phase in COMING else ActionKind.RETIRE
    return Action(f"{RESUMED}/{server.name}", kind, RESUMED, server.name, slot=server.slot, models=server.models)


class Supervisor:
    """Checks the servers once a tick; slow checks run as tasks."""

    def __init__(
        self,
        executor: Executor,
        control: ModelControl,
        launcher: ServerLauncher | None,
        models: tuple[str, ...],
        clock: Clock,
        witness: CrashWitness | None = None,
    ) -> None:
        self._executor = executor
        self._control = control
        self._launcher = launcher
        self._models = models
        self._clock = clock
        self._crashes = CrashReports(self._report_crash, witness)
        self._lost_at_s: list[float] = []
        self._health = ServerHealth(control)
        self._incidents: list[Incident] = []
        self.repairs = Repairs(executor, self._incidents, launcher)
        self._strays = StraySequences(self._incidents)
        self.proxy_fault: str | None = None
        self.further_faults: Callable[[], tuple[str, ...]] = tuple
        """What is wrong with parts that are watched elsewhere."""
        self._doubted: set[tuple[str, str]] = set()
        self._reread_due = False
        self._reread_at_s = float("-inf")
        self._rereading: dict[str, asyncio.Task[None]] = {}
        self._clearing: set[asyncio.Task[None]] = set()

    @property
    def recently_crashed(self) -> int:
        """Launched servers that crashed or stopped answering in the last minute."""
        return len(self._lost_at_s)

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with the proxy and with servers now, a sentence each."""
        now_s = self._clock.now_s()
        silent = [server for server in self._executor.fleet.all() if self._health.is_unresponsive(server.name)]
        silences = (_silence_words(server, self._health.words(server.name, now_s)) for server in silent)
        proxy = [self.proxy_fault] if self.proxy_fault is not None else []
        return (*proxy, *self.further_faults(), *silences, *self.repairs.faults, *self._strays.faults)

    def report(self, incident: Incident) -> None:
        """Take in what happened to a part that is watched elsewhere."""
        self._incidents.append(incident)

    def collect_incidents(self) -> tuple[Incident, ...]:
        """What happened to servers since the last call."""
        collected = tuple(self._incidents)
        self._incidents.clear()
        return collected

    async def reap_dead_servers(self) -> tuple[Server, ...]:
        """Remove launched servers whose process is gone from the fleet and the routes; returns them."""
        now_s = self._clock.now_s()
        self._lost_at_s = [at_s for at_s in self._lost_at_s if at_s > now_s - LOST_MEMORY_S]
        self._executor.proofs.prove(now_s)
        dead = [server for server in self._executor.fleet.all() if await self._has_died(server)]
        for server in dead:
            words = f"{server.name} has crashed{self._executor.proofs.lost(server, now_s)}{_log_words(server)}"
            await self._executor.procedures.forget(server)
            self._health.forget(server.name)
            self._lost_at_s.append(now_s)
            self._crashes.report(server, words)
        self._executor.routes.reconcile(changed=bool(dead))
        for server in dead:
            self._clear_remains(server)
        return tuple(dead)

    def resume(self) -> None:
        """Resume interrupted launches and retirements, after a restart or a fault."""
        now_s = self._clock.now_s()
        taken = {*self._executor.busy, *self._executor.backing_off(now_s)}
        interrupted = [server for server in self._executor.fleet.all() if server.launched and server.phase not in RUNNING]
        actions = [resumption(server) for server in interrupted if server.name not in self._executor.locks]
        plan = Plan(RESUMED, tuple(action for action in actions if actuator_of(action) not in taken))
        if self._launcher is not None:
            self._executor.submit(plan)

    def repair(self, failures: Sequence[ModelFailure] = ()) -> None:
        """Kill launched servers that do not answer, so that their requests end and their slots are free again; reload lost models.

        Models that fail on one server leave the routes there and are reloaded too.
        """
        now_s = self._clock.now_s()
        self._executor.routes.reconcile(changed=self.repairs.eject(failures, now_s))
        taken = {*self._executor.busy, *self._executor.backing_off(now_s)}
        servers = self._executor.fleet.all()
        hung = [server for server in servers if server.launched and server.phase is Phase.UNRESPONSIVE]
        kills = [Action(f"{REPAIR}/{s.name}", ActionKind.KILL, REPAIR, s.name) for s in hung if s.name not in taken]
        self._executor.submit(Plan(REPAIR, (*kills, *self.repairs.actions(servers, taken, now_s))))

    async def update_reachability(self, readings: Sequence[ServerReading]) -> None:
        """Move servers between SERVING, UNREACHABLE and UNRESPONSIVE by their readings; reread the counts every few seconds."""
        now_s = self._clock.now_s()
        self._health.note(self._executor.fleet.all(), readings)
        self._strays.note(self._executor.fleet.all(), readings)
        read = {reading.server for reading in readings}
        running = [server for server in self._executor.fleet.all() if server.phase in RUNNING and server.name in read]
        # Where no server answers, the network or the machine may be at fault: then none leaves the routes, and none is killed.
        answered = any(reading.error is None for reading in readings)
        changed = [self._move(server, self._phase_of(server, others_answer=answered), now_s) for server in running]
        changed.append(self.repairs.note(now_s))
        self._executor.routes.reconcile(changed=any(changed))
        self._reread_due |= self._has_lost_models(readings) or now_s - self._reread_at_s >= REREAD_EVERY_S
        if self._reread_due:
            self._reread_at_s, self._reread_due = now_s, False
            self._reread()

    async def close(self) -> None:
        """Cancel the slow checks."""
        tasks = [*self._clearing, *self._rereading.values(), *self._crashes.tasks]
        for task in tasks:
            task.cancel()
        await self._health.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _report_crash(self, server: Server, words: str) -> None:
        self._incidents.append(Incident(IncidentKind.SERVER_CRASHED, server.name, words))

    async def _has_died(self, server: Server) -> bool:
        if self._launcher is None or not server.launched or server.phase not in RUNNING or server.name in self._executor.busy:
            return False
        return not await self._launcher.is_alive(server)

    def _clear_remains(self, server: Server) -> None:
        """Stop the child processes of a crashed server, off the loop, because they may take seconds."""
        if self._launcher is not None:
            task = asyncio.create_task(self._stopped(self._launcher, server))
            self._clearing.add(task)
            task.add_done_callback(self._clearing.discard)

    async def _stopped(self, launcher: ServerLauncher, server: Server) -> None:
        """A surviving process is discovered by its mark at the next adoption and by `themis stop --all`."""
        with contextlib.suppress(ThemisError, OSError):
            await launcher.stop(server)

    def _phase_of(self, server: Server, *, others_answer: bool) -> Phase:
        if self._health.is_unresponsive(server.name):
            return Phase.UNRESPONSIVE if others_answer else Phase.UNREACHABLE
        return Phase.UNREACHABLE if self._health.is_unreadable(server.name) and not server.launched else Phase.SERVING

    def _move(self, server: Server, phase: Phase, now_s: float) -> bool:
        """Put a server into a phase; returns whether the routes change."""
        if phase is server.phase:
            return False
        self._executor.fleet.move(server.name, phase)
        if phase is Phase.UNRESPONSIVE:
            sentence = _silence_words(self._executor.fleet.get(server.name), self._health.words(server.name, now_s))
            sentence += self._executor.proofs.lost(server, now_s)
            self._incidents.append(Incident(IncidentKind.SERVER_EJECTED, server.name, sentence))
            self._lost_at_s.extend([now_s] if server.launched else [])
        elif server.phase is Phase.UNRESPONSIVE:
            self._incidents.append(Incident(IncidentKind.SERVER_RECOVERED, server.name, f"{server.name} answers again"))
        return True

    def _has_lost_models(self, readings: Sequence[ServerReading]) -> bool:
        """Whether a model of a server is not READY there any more by its metrics, and was in the reading before."""
        known = {server.name: server for server in self._executor.fleet.all()}
        doubted = {
            (reading.server, model)
            for reading in readings
            if reading.ready is not None and reading.server in known
            for model in known[reading.server].models.keys() - reading.ready
        }
        new, self._doubted = doubted - self._doubted, doubted
        return bool(new)

    def _reread(self) -> None:
        """Read counts and index anew: another client may have changed them, or an adopted server may have restarted.

        Servers are read side by side, so that a slow one delays no other.
        """
        self._rereading = {name: task for name, task in self._rereading.items() if not task.done()}
        serving = [server for server in self._executor.fleet.all() if server.phase is Phase.SERVING]
        calls = {ALL_SLOTS: self._executor.end_rests} | {server.name: partial(self._reread_server, server) for server in serving}
        for name in [name for name in calls if name not in self._rereading]:
            self._rereading[name] = asyncio.create_task(calls[name]())

    async def _reread_server(self, server: Server) -> None:
        before = route_table(self._executor.fleet.all(), self._models)
        with contextlib.suppress(ServerError):  # the metrics readings already show that it does not answer
            await self._reread_one(server)
        if before != route_table(self._executor.fleet.all(), self._models):
            self._executor.routes.reconcile(changed=True)

    async def _reread_one(self, server: Server) -> None:
        """Counts only while no action changes them: an action's result is newer than a reading that began before it ended."""
        fleet = self._executor.fleet
        models = await self._control.read_models(server, self._models) if not self._is_busy(server.name) else None
        if models is not None:
            models = self.repairs.trusted(server.name, models)
        ready_models = await self._control.list_ready(server)
        named = tuple(models if models is not None else server.models)
        stateful = await self._control.list_stateful(server, ready_models if ready_models is not None else named)
        if server.name not in fleet:
            return
        current = fleet.get(server.name)
        fresh = replace(current, ready_models=ready_models, stateful=stateful)
        if models is not None and current == server and not self._is_busy(server.name):
            self.repairs.unloaded(server, models)
            self._note_counts(server, models)
            fresh = replace(fresh, models=models, unread_devices=())
        if fresh != current:
            fleet.put(fresh)

    def _note_counts(self, server: Server, models: Models) -> None:
        """Tell what a server runs otherwise than it did, though no action changed it."""
        for model in sorted(server.models.keys() & models.keys()):
            before, now = server.models[model], models[model]
            if before != now:
                changed = f"{model} has {_state_words(now, before)} on {server.name} instead of {_state_words(before, now)}"
                sentence = f"{changed}, without an action of Themis; plans start from this"
                self._incidents.append(Incident(IncidentKind.COUNTS_CHANGED, server.name, sentence, model))

    def _is_busy(self, name: str) -> bool:
        return any(actuator == name or actuator.startswith(f"{name}/") for actuator in self._executor.busy)


def _silence_words(server: Server, silence: str) -> str:
    if server.phase is not Phase.UNRESPONSIVE:
        return f"{silence}; it stays in the routes, because no other server answers{_log_words(server)}"
    return f"{silence}; it is out of the routes{' and is replaced' if server.launched else ''}{_log_words(server)}"


def _state_words(state: ModelState, other: ModelState) -> str:
    """The instances, by device where there are several, and the batching where the other state has another one."""
    where = f" ({', '.join(f'{count} on {device}' for device, count in state.spread)})" if state.spread else ""
    batches = f" with batches of {state.max_batch} and a delay of {state.max_queue_delay_us} µs" if state.batching != other.batching else ""
    return f"{state.instances} instance{'' if state.instances == 1 else 's'}{where}{batches}"


def _log_words(server: Server) -> str:
    return f"; its log: {server.log_file}" if server.log_file else ""
