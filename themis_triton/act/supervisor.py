"""Reconciles the fleet with the real servers: crashed, unreachable, recovered, or with other counts than recorded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace

from themis_triton.act.executor import Executor, actuator_of
from themis_triton.core.action import Action, ActionKind, Plan
from themis_triton.core.errors import ServerError, ThemisError
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import ServerReading
from themis_triton.plan.routes import route_table
from themis_triton.ports import Clock, ModelControl, ServerLauncher

LOST_MEMORY_S = 60.0
UNREACHABLE_AFTER_READINGS = 3
REREAD_EVERY_S = 5.0


RESUMED = "resumed"
RESTING = frozenset({Phase.SERVING, Phase.UNREACHABLE})
COMING = frozenset({Phase.LAUNCHING, Phase.WARMING})


def resumption(server: Server) -> Action:
    """The action that completes an interrupted launch or retirement."""
    kind = ActionKind.LAUNCH if server.phase in COMING else ActionKind.RETIRE
    return Action(f"{RESUMED}/{server.name}", kind, RESUMED, server.name, slot=server.slot, models=server.models)


class Supervisor:
    """Checks the servers once a tick; slow checks run as tasks."""

    def __init__(
        self, executor: Executor, control: ModelControl, launcher: ServerLauncher | None, models: tuple[str, ...], clock: Clock
    ) -> None:
        self._executor = executor
        self._control = control
        self._launcher = launcher
        self._models = models
        self._clock = clock
        self._lost_at_s: list[float] = []
        self._silent: dict[str, int] = {}
        self._reread_at_s = float("-inf")
        self._rereading: asyncio.Task[None] | None = None
        self._clearing: set[asyncio.Task[None]] = set()

    @property
    def recently_crashed(self) -> int:
        """Launched servers that crashed in the last minute."""
        return len(self._lost_at_s)

    async def reap_dead_servers(self) -> tuple[Server, ...]:
        """Remove launched servers whose process is gone from the fleet and the routes; returns them."""
        now_s = self._clock.now_s()
        self._lost_at_s = [at_s for at_s in self._lost_at_s if at_s > now_s - LOST_MEMORY_S]
        dead = [server for server in self._executor.fleet.all() if await self._has_died(server)]
        for server in dead:
            await self._executor.forget(server)
            self._silent.pop(server.name, None)
            self._lost_at_s.append(now_s)
        self._executor.reconcile_routes(changed=bool(dead))
        for server in dead:
            self._clear_remains(server)
        return tuple(dead)

    def resume(self) -> None:
        """Resume interrupted launches and retirements, after a restart or a fault."""
        now_s = self._clock.now_s()
        taken = {*self._executor.busy, *self._executor.backoff.active(now_s)}
        actions = [resumption(server) for server in self._executor.fleet.all() if server.launched and server.phase not in RESTING]
        plan = Plan(RESUMED, tuple(action for action in actions if actuator_of(action) not in taken))
        if self._launcher is not None:
            self._executor.submit(plan)

    async def update_reachability(self, readings: Sequence[ServerReading]) -> None:
        """Move adopted servers between SERVING and UNREACHABLE by the last readings; reread the counts every few seconds."""
        changed = [self._update_one(reading) for reading in readings]
        self._executor.reconcile_routes(changed=any(changed))
        now_s = self._clock.now_s()
        if now_s - self._reread_at_s >= REREAD_EVERY_S and (self._rereading is None or self._rereading.done()):
            self._reread_at_s = now_s
            self._rereading = asyncio.create_task(self._reread())

    async def close(self) -> None:
        """Cancel the slow checks."""
        rereading = [self._rereading] if self._rereading is not None else []
        tasks = [*self._clearing, *rereading]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _has_died(self, server: Server) -> bool:
        if self._launcher is None or not server.launched or server.phase is not Phase.SERVING:
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

    def _update_one(self, reading: ServerReading) -> bool:
        fleet = self._executor.fleet
        if reading.server not in fleet:
            return False
        server = fleet.get(reading.server)
        silent = self._silent.get(server.name, 0) + 1 if reading.error is not None else 0
        self._silent[server.name] = silent
        if server.launched:
            return False
        if server.phase is Phase.SERVING and silent >= UNREACHABLE_AFTER_READINGS:
            fleet.move(server.name, Phase.UNREACHABLE)
            return True
        if server.phase is Phase.UNREACHABLE and silent == 0:
            fleet.move(server.name, Phase.SERVING)
            return True
        return False

    async def _reread(self) -> None:
        """Read counts and index anew: another client may have changed them, or an adopted server may have restarted."""
        before = route_table(self._executor.fleet.all(), self._models)
        for server in self._executor.fleet.all():
            if server.phase is Phase.SERVING:
                with contextlib.suppress(ServerError):  # the metrics readings already show that it does not answer
                    await self._reread_one(server)
        if before != route_table(self._executor.fleet.all(), self._models):
            self._executor.reconcile_routes(changed=True)

    async def _reread_one(self, server: Server) -> None:
        """Counts only while no action changes them: an action's result is newer than a reading that began before it ended."""
        fleet = self._executor.fleet
        models = await self._control.read_models(server, self._models) if not self._is_busy(server.name) else None
        ready_models = await self._control.list_ready(server)
        if server.name not in fleet:
            return
        current = fleet.get(server.name)
        fresh = replace(current, ready_models=ready_models)
        if models is not None and current == server and not self._is_busy(server.name):
            fresh = replace(fresh, models=models)
        if fresh != current:
            fleet.put(fresh)

    def _is_busy(self, name: str) -> bool:
        return any(actuator == name or actuator.startswith(f"{name}/") for actuator in self._executor.busy)
