"""Runs the daemon: lock, adoption, Envoy, tick loop, status API, and a stop that leaves the data plane running."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.memory import release_clean_pages
from themis_triton.compilation import CompileProgress, compile_kernels
from themis_triton.core.config import Mode, ThemisConfig
from themis_triton.core.decision import Reason
from themis_triton.core.errors import ThemisError
from themis_triton.core.record import TickRecord, drift_event_words, sentence
from themis_triton.core.status import StatusEvent
from themis_triton.daemon.adopt import adopt
from themis_triton.daemon.api import serving
from themis_triton.daemon.components import Components, build_components
from themis_triton.daemon.control import is_paused
from themis_triton.daemon.lock import locked
from themis_triton.daemon.pacing import is_quiet, wait_for_tick
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.jit import Group
from themis_triton.tick import EngineState, tick

log = structlog.get_logger()
ENVOY_CHECK_EVERY_S = 2.0
QUIET_LOG_EVERY_TICKS = 60
PAUSE_SENTENCES = {
    "paused": "paused by `themis pause`: nothing is changed",
    "resumed": "resumed by `themis resume`: decisions are carried out again",
}


async def run_daemon(config: ThemisConfig) -> None:
    """Run until SIGTERM or SIGINT. Servers and Envoy keep serving afterwards; `themis stop --all` stops them."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with locked(config.state_directory):
        compiling = asyncio.create_task(_compile_kernels())
        async with build_components(config) as components, _cancelled_on_exit(compiling):
            await adopt(components)
            await components.envoy.ensure()
            if await stopped_before(compiling, stop):
                log.info("sidecar_stopped", servers="still serving")
                return
            log.info("memory_released", megabytes=round(release_clean_pages() / 1e6))
            board = StatusBoard(config, components.clock.now_s())
            exporter = Exporter()
            async with serving(config.status.address, board, exporter, components.clock):
                log.info("sidecar_started", mode=config.mode.value, policy=config.policy.name.value, status=str(config.status.address))
                if os.getpid() == 1 and config.envoy.managed:
                    log.warning("init_process_detected", message="servers and Envoy stop with this container. Fix: run it with --pid=host")
                await _run_ticks(_Loop(components, Planner(build_rules(config)), board, exporter), stop)
    log.info("sidecar_stopped", servers="still serving")


async def stopped_before(task: asyncio.Task[None], stop: asyncio.Event) -> bool:
    """Wait for the task or for `stop`; returns whether `stop` came first. Raises an error of the task."""
    stopping = asyncio.create_task(stop.wait())
    async with _cancelled_on_exit(stopping):
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return stop.is_set()


@asynccontextmanager
async def _cancelled_on_exit(task: asyncio.Task[Any]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _compile_kernels() -> None:
    """Load the kernels of a tick. Kernels that are not cached are compiled first, with progress in the log."""

    def report(step: CompileProgress) -> None:
        log.info("kernels_compiling", done=step.done, total=step.total, entry=step.entry)

    result = await compile_kernels((Group.TICK,), report)
    if result.compiled:
        log.info("kernels_compiled", total=result.compiled, seconds=round(result.seconds, 1), cache=str(result.directory))


async def _run_ticks(loop: _Loop, stop: asyncio.Event) -> None:
    """Tick until `stop`. The next tick starts `tick_s` after the end of the last one, or later while nothing moves."""
    policy = loop.components.config.policy
    watching = asyncio.create_task(_watch_envoy(loop.components))
    async with _cancelled_on_exit(watching):
        while not stop.is_set():
            await wait_for_tick(await loop.tick(), policy, stop, loop.has_moved)


async def _watch_envoy(components: Components) -> None:
    """Restart a managed Envoy that has ended; report an unmanaged one that does not answer."""
    while True:
        try:
            await components.envoy.ensure()
        except ThemisError as error:
            log.error("envoy_lost", error=str(error))  # noqa: TRY400 - the message is whole, a traceback adds nothing
        except Exception:
            log.exception("envoy_check_failed")
        await asyncio.sleep(ENVOY_CHECK_EVERY_S)


@dataclass(slots=True)
class _Loop:
    """The state between ticks. An unexpected error is logged and counted; the next tick starts from the last good state."""

    components: Components
    planner: Planner
    board: StatusBoard
    exporter: Exporter
    state: EngineState = field(default_factory=EngineState)
    last_reason: Reason | None = None
    paused: bool = False
    arrivals: float | None = None
    advisory: Planner = field(init=False)

    def __post_init__(self) -> None:
        """Create both planners once, so that their caches survive a pause."""
        rules = self.planner.rules
        self.advisory = Planner(replace(rules, config=replace(rules.config, mode=Mode.ADVISORY)))

    async def tick(self) -> bool:
        """Run one tick and publish it; returns whether the system is idle, so that the next tick may be delayed."""
        started_s = asyncio.get_running_loop().time()
        try:
            self.state, record = await tick(self.state, self.components.world, self._planner_now())
        except Exception:
            self.board.tick_errors += 1
            self.exporter.tick_failed()
            log.exception("tick_failed")
            return False
        duration_s = asyncio.get_running_loop().time() - started_s
        self._report_journal()
        self.board.take(record, 1000.0 * duration_s, paused=self.paused)
        self.exporter.take(record, duration_s)
        self._log_tick(record)
        self.arrivals = sum(route.arrivals for route in record.snapshot.routes)
        return is_quiet(record)

    async def has_moved(self) -> bool:
        """Whether the next tick must start now: a request arrived, Envoy does not answer, or a pause began or ended."""
        if is_paused(self.components.config.state_directory) is not self.paused:
            return True
        return await self.components.observer.count_arrivals() != self.arrivals

    def _report_journal(self) -> None:
        """Log that the journal is not written: the next sidecar then has to discover the launched servers."""
        trouble = self.components.journal.trouble
        if trouble is not None and trouble != self.board.journal_trouble:
            log.error("journal_write_failed", message=trouble)
        self.board.journal_trouble = trouble

    def _planner_now(self) -> Planner:
        """The planner of the settings, or the advisory one during a pause."""
        paused = is_paused(self.components.config.state_directory)
        if paused is not self.paused:
            kind, now_s = "paused" if paused else "resumed", self.components.clock.now_s()
            log.warning("sidecar_paused" if paused else "sidecar_resumed")
            self.paused = paused
            self.components.journal.record_event(now_s, kind, PAUSE_SENTENCES[kind])
            self.board.events.append(StatusEvent(now_s, f"{kind}-{now_s:.0f}", (kind,), PAUSE_SENTENCES[kind]))
        return self.advisory if paused else self.planner

    def _log_tick(self, record: TickRecord) -> None:
        """Log one line per change, and one every `QUIET_LOG_EVERY_TICKS` ticks without a change."""
        for event in record.estimate.drift_events:
            log.warning("drift_changed", model=event.model, change=event.change.value, message=drift_event_words(event))
        changed = record.plan.actions or record.outcomes or record.decision.reason is not self.last_reason
        if changed or record.number % QUIET_LOG_EVERY_TICKS == 0:
            log.info("tick_completed", decision=record.decision.id, reason=record.decision.reason.value, message=sentence(record))
        self.last_reason = record.decision.reason
