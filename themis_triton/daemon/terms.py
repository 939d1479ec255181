"""Leads in turn with sidecars of other machines: follows while another one leads, leads while it has the lease, and follows again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.launchers import build_launcher
from themis_triton.adapters.leases import build_lease
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.fleet import Phase
from themis_triton.core.lease import Handover, LeaseRecord
from themis_triton.daemon.access import prepare_access
from themis_triton.daemon.api import serving
from themis_triton.daemon.components import Components
from themis_triton.daemon.control import is_paused, set_paused
from themis_triton.daemon.election import Election
from themis_triton.daemon.overrides import OverrideKeeper
from themis_triton.daemon.status import StatusBoard
from themis_triton.daemon.tasks import cancelled_on_exit, stopped_before
from themis_triton.ports import ServerLauncher

log = structlog.get_logger()
TAKEN_OVER = "leadership_taken_over"


@dataclass(frozen=True, slots=True)
class Term:
    """What a sidecar leads with. `launcher`: connected since it began to follow, so that a takeover is quick."""

    election: Election
    launcher: ServerLauncher | None

    @property
    def former(self) -> LeaseRecord | None:
        """The lease of the sidecar that led before; None where none did."""
        return self.election.former

    @property
    def words(self) -> str:
        """Which sidecar led before, in a sentence."""
        if self.former is None:
            return "the first lease: no sidecar led before"
        former = self.former.holder or "a sidecar that gave the lease up"
        return f"this sidecar leads in place of {former}, lease epoch {self.election.leader.epoch}"

    def take_over(self, config: ThemisConfig) -> None:
        """Put into force here the overrides that an operator gave to the former leader."""
        if self.former is None:
            return
        try:
            set_paused(config.state_directory, self.former.handover.paused)
        except EnvironmentCheckError as error:
            log.warning("pause_not_taken_over", error=str(error))
        OverrideKeeper(config.state_directory).take_over(self.former.handover.overrides)

    def begin(self, components: Components, board: StatusBoard, keeper: OverrideKeeper) -> None:
        """Tell of the takeover, and leave at each renewal the servers in the routes and the operator's orders for the next leader."""
        board.leader = lambda: self.election.leader
        now_s = components.clock.now_s()
        components.journal.record_event(now_s, TAKEN_OVER, self.words)
        board.add_event(now_s, TAKEN_OVER, self.words)

        def handover() -> Handover:
            routed = [each for each in components.world.executor.fleet.all() if each.launched and each.phase is Phase.SERVING]
            serving = tuple(sorted(each.incarnation for each in routed if each.incarnation is not None))
            return Handover(serving, is_paused(components.config.state_directory), keeper.overrides)

        self.election.handover = handover


async def lead_in_turn(config: ThemisConfig, stop: asyncio.Event, lead: Callable[[Term], Coroutine[Any, Any, None]]) -> None:
    """Until `stop`: follow, and `lead` while the lease is this sidecar's. What leads is cancelled as soon as the lease is lost."""
    async with contextlib.AsyncExitStack() as stack:
        launcher = build_launcher(config.launch, config.state_directory, config.deprioritize_after_s) if config.launch is not None else None
        if launcher is not None:
            stack.push_async_callback(launcher.close)
        store = build_lease(config.launch, launcher)
        stack.push_async_callback(store.close)
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        election = Election(store, name, config.standby.lease_s)
        stack.push_async_callback(election.release)
        while not stop.is_set():
            async with _following(config, election):
                if await stopped_before(asyncio.create_task(election.wait()), stop):
                    return
            term = Term(election, launcher)
            log.warning(TAKEN_OVER, message=term.words)
            await _lead(term, lead)


async def _lead(term: Term, lead: Callable[[Term], Coroutine[Any, Any, None]]) -> None:
    leading, keeping = asyncio.create_task(lead(term)), asyncio.create_task(term.election.keep())
    async with cancelled_on_exit(keeping), cancelled_on_exit(leading):
        await asyncio.wait({leading, keeping}, return_when=asyncio.FIRST_COMPLETED)
        if leading.done():
            leading.result()
            return
        log.error("leadership_lost", reason=keeping.result(), message="this sidecar changes nothing more, and follows")


@contextlib.asynccontextmanager
async def _following(config: ThemisConfig, election: Election) -> AsyncIterator[None]:
    """Answer with who leads, meanwhile."""
    clock, exporter = SystemClock(), Exporter()
    board = StatusBoard(config, clock.now_s())
    board.leader = lambda: election.leader
    exporter.show_leader(leads=False)
    async with serving(config.status.address, board, exporter, clock, prepare_access(config), (), config.status.tls):
        yield
