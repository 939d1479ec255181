"""Watches Envoy: a managed one that ends or does not serve is started again; one that was started elsewhere is reported meanwhile."""

from __future__ import annotations

import asyncio

import structlog

from themis_triton.act.executor import Executor
from themis_triton.act.supervisor import Supervisor
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.process_end import wait_for_exit
from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError, ThemisError
from themis_triton.core.fleet import ProcessId
from themis_triton.core.incident import Incident, IncidentKind
from themis_triton.ports import Clock

log = structlog.get_logger()
CHECK_EVERY_S = 2.0
"""Time between checks of an Envoy that was started elsewhere, and the longest between attempts to start one."""
FIRST_RETRY_S = 0.05
STABLE_S = 10.0
"""An Envoy that served for a shorter time is started again with a growing delay."""
GLANCE_EVERY_S, PROBE_EVERY_S, COUNT_EVERY_S = 0.15, 1.0, 10.0
EXIT_NOTICE_S = 0.1
"""By how much the end of a process may be seen after its listeners have refused a connection."""


class EnvoyWatch:
    """Keeps Envoy running, and tells the supervisor when it ended and when it serves again."""

    def __init__(self, envoy: EnvoyProcess, executor: Executor, supervisor: Supervisor, clock: Clock) -> None:
        self._envoy = envoy
        self._executor = executor
        self._supervisor = supervisor
        self._clock = clock
        self._lost_at_s: float | None = None
        self._admin_noted: Address | None = None
        self._script_errors = 0
        self._counted_at_s = float("-inf")
        self.process: ProcessId | None = None
        """The managed Envoy that is watched now."""

    async def run(self) -> None:
        """Watch until cancelled."""
        retry_s = FIRST_RETRY_S
        while True:
            if await self._watched():
                retry_s = FIRST_RETRY_S
            else:
                await asyncio.sleep(retry_s)
                retry_s = min(CHECK_EVERY_S, 2.0 * retry_s)

    async def _watched(self) -> bool:
        """Adopt or start Envoy and watch it until it is lost; returns whether it served for a while."""
        loop = asyncio.get_running_loop()
        try:
            if self.process is None and self._envoy.managed and not await self._files_in_place():
                raise ServerError("Envoy's files are missing; they are written again")  # noqa: TRY301 - noted as any other
            self.process = await self._envoy.ensure()
            self._note_running(self.process)
            self._note_admin()
            began_s, managed = loop.time(), self.process is not None
            await self._until_lost()
        except ThemisError as error:
            self._note_lost(str(error))
        except Exception as error:
            log.exception("envoy_check_failed")
            self._note_lost(f"{type(error).__name__}: {error}")
        else:
            return not managed or loop.time() - began_s >= STABLE_S
        return False

    def _note_admin(self) -> None:
        """Say once where Envoy answers, if it was started with another admin address than that of the settings."""
        actual, configured = self._envoy.admin_address, self._envoy.configured_admin_address
        if actual not in (configured, self._admin_noted):
            remedy = f"it moves to {configured} at its next start. To move it now: `themis stop --all`, then start the sidecar"
            log.warning("envoy_admin_outdated", address=str(actual), message=remedy)
        self._admin_noted = actual

    async def _until_lost(self) -> None:
        process = self.process
        if process is None:
            await asyncio.sleep(CHECK_EVERY_S)
            fault = await self._fault()
            if fault is not None:
                raise ServerError(f"{fault}. Fix: restart it, because it is not managed by Themis")
            return
        exited = asyncio.create_task(wait_for_exit(process))
        try:
            fault = None
            while fault is None and not exited.done():
                await self._until_due(exited, process)
                fault = await self._fault_before(exited)
        finally:
            exited.cancel()
        if fault is None:
            self._note_lost(f"Envoy (pid {process.pid}) has ended; its log: {self._envoy.log_file}")
        else:
            self._note_lost(f"{fault}; it is killed and started again")
            await self._envoy.kill(process)
        self.process = None
        self._script_errors, self._counted_at_s = 0, float("-inf")  # The next one counts anew.

    async def _until_due(self, exited: asyncio.Task[None], process: ProcessId) -> None:
        """Wait for the next check; one is due at once when the process has ended, is stopped or refuses connections."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + PROBE_EVERY_S
        while loop.time() < due_s:
            await asyncio.wait({exited}, timeout=min(GLANCE_EVERY_S, PROBE_EVERY_S))
            if exited.done() or self._envoy.is_suspect(process):
                return

    async def _fault_before(self, exited: asyncio.Task[None]) -> str | None:
        """The fault of a process that runs; None at once when it has ended, whatever check is under way."""
        checking = asyncio.create_task(self._fault())
        try:
            await asyncio.wait({exited, checking}, return_when=asyncio.FIRST_COMPLETED)
            if checking.done() and checking.result() is not None:
                await asyncio.wait({exited}, timeout=EXIT_NOTICE_S)
            return checking.result() if not exited.done() else None
        finally:
            checking.cancel()

    async def _fault(self) -> str | None:
        """Why Envoy does not serve or cannot be told what to serve."""
        await self._files_in_place()
        fault = await self._envoy.find_fault(self.process)
        if fault is None:
            await self._note_script_errors()
        name = "Envoy" if self.process is None else f"Envoy (pid {self.process.pid})"
        return f"{name} does not serve: {fault}" if fault is not None else None

    async def _note_script_errors(self) -> None:
        """Tell of checks that failed: Envoy passes such a request on unchecked."""
        now_s = self._clock.now_s()
        if now_s - self._counted_at_s < COUNT_EVERY_S:
            return
        self._counted_at_s = now_s
        try:
            count = await self._envoy.count_script_errors()
        except ServerError:
            return  # a later count has them
        before, self._script_errors = self._script_errors, count
        failed = count - before if before <= count else count
        if failed:
            since = "" if before else " since it started"
            what = f"{failed} requests{since} (size, nesting, deadline)"
            words = f"Envoy could not check {what} and passed them on; its log: {self._envoy.log_file}"
            self._supervisor.report(Incident(IncidentKind.REQUEST_CHECK_FAILED, None, words))

    async def _files_in_place(self) -> bool:
        """Whether Envoy's files exist; those that are missing are written meanwhile."""
        if await self._envoy.has_files():
            return True
        self._executor.routes.reconcile(changed=True)
        return False

    def _note_lost(self, reason: str) -> None:
        """The first loss is an incident; later failures to start it are the present fault."""
        if self._lost_at_s is None:
            self._lost_at_s = self._clock.now_s()
            self._supervisor.report(Incident(IncidentKind.PROXY_LOST, None, f"{reason}; requests fail until Envoy serves again"))
        if self._supervisor.proxy_fault not in (None, reason):
            log.error("envoy_start_failed", message=reason)
        self._supervisor.proxy_fault = reason

    def _note_running(self, process: ProcessId | None) -> None:
        self._supervisor.proxy_fault = None
        if self._lost_at_s is None:
            return
        after_s, self._lost_at_s = self._clock.now_s() - self._lost_at_s, None
        started = f"was started again with its last files (pid {process.pid})" if process is not None else "answers again"
        self._supervisor.report(Incident(IncidentKind.PROXY_RESTORED, None, f"Envoy {started} after {after_s:.2f} s"))
