"""Runs the daemon: lock, adoption, Envoy, tick loop, status API, and a stop that leaves the data plane running."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, closing

import structlog

from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.memory import exempt_from_collection, release_clean_pages
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.traces import build_traces
from themis_triton.core.config import StandbyKind, ThemisConfig
from themis_triton.daemon.access import prepare_access
from themis_triton.daemon.adopt import adopt
from themis_triton.daemon.api import serving
from themis_triton.daemon.certificates import keep_certificates
from themis_triton.daemon.components import Fence, build_components
from themis_triton.daemon.control_api import control_routes
from themis_triton.daemon.day_reports import keep_reports
from themis_triton.daemon.envoy_watch import EnvoyWatch
from themis_triton.daemon.events import EventHub
from themis_triton.daemon.fixed_counts import changeable, find_fixed
from themis_triton.daemon.hangup import hangup_handler
from themis_triton.daemon.housekeeping import keep_logs_bounded
from themis_triton.daemon.kernels import INTERPRETED, Kernels, load_cached_kernels, preparing_kernels
from themis_triton.daemon.limit_shares import keep_limits_shared
from themis_triton.daemon.lock import Leadership, locked
from themis_triton.daemon.loop import Loop
from themis_triton.daemon.override_api import override_routes
from themis_triton.daemon.overrides import OverrideKeeper
from themis_triton.daemon.pacing import wait_for_tick
from themis_triton.daemon.reads_api import Reads
from themis_triton.daemon.recurring import keep_recurring
from themis_triton.daemon.settings_watch import SettingsFile, watch_settings
from themis_triton.daemon.status import StatusBoard, recall_requests
from themis_triton.daemon.status_listener import check_free
from themis_triton.daemon.tasks import cancelled_on_exit, stopped_before
from themis_triton.daemon.terms import Term, lead_in_turn
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules

log = structlog.get_logger()


async def run_daemon(config: ThemisConfig, settings: SettingsFile, *, standby: bool = False) -> None:
    """Run until SIGTERM or SIGINT. Servers and Envoy keep serving afterwards; `themis stop --all` stops them.

    SIGHUP: `settings.read` returns the edited settings; its ThemisError leaves those that are in force. It ends the sidecar when the
    terminal that it was started on is gone.
    `standby`: wait while another sidecar leads with the same state directory, and take over when it ends or hangs. With a lease
    (`standby.kind`) every sidecar does so.
    """
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup_handler(stop, reload))
    if config.standby.kind is not StandbyKind.FILE:
        with locked(config.state_directory):
            await load_cached_kernels(config.state_directory)
            await lead_in_turn(config, stop, lambda term: _lead(config, settings, stop, reload, term))
        log.info("sidecar_stopped", servers="still serving")
        return
    leadership = Leadership(config.state_directory)
    if standby and await stopped_before(asyncio.create_task(_stand_by(leadership, config)), stop):
        log.info("sidecar_stopped", servers="still serving")
        return
    with leadership.held():
        if not standby:
            check_free(config.status.address)
        async with cancelled_on_exit(asyncio.create_task(leadership.beat())):
            await _lead(config, settings, stop, reload)
    log.info("sidecar_stopped", servers="still serving")


async def _stand_by(leadership: Leadership, config: ThemisConfig) -> None:
    """Wait for the lead, meanwhile with the kernels loaded, so that a takeover is quick."""
    async with cancelled_on_exit(asyncio.create_task(load_cached_kernels(config.state_directory))):
        await leadership.wait()


async def _lead(config: ThemisConfig, settings: SettingsFile, stop: asyncio.Event, reload: asyncio.Event, term: Term | None = None) -> None:
    """Adopt what serves, then tick until `stop`."""
    fence = Fence(term.launcher, term.election.check) if term is not None else None
    async with preparing_kernels(config.state_directory) as kernels, build_components(config, fence) as components:
        hung = await components.envoy.end_if_hung()
        if hung is not None:
            log.error("envoy_killed", message=f"the running Envoy does not serve: {hung}; it is started again")
        if term is not None:
            term.take_over(config)
        keeper = OverrideKeeper(config.state_directory)
        components.world.executor.routes.drained = keeper.overrides.out_of_routes
        await adopt(components, term.former if term is not None else None)
        fixed = await find_fixed(components)
        planned = changeable(config, components, fixed)
        await components.envoy.ensure()
        if await stopped_before(asyncio.create_task(kernels.start()), stop):
            return
        log.info("memory_released", megabytes=round(release_clean_pages() / 1e6))
        board = StatusBoard(planned, components.clock.now_s())
        recall_requests(board, journal_path(config.state_directory), board.started_at_s)
        if term is not None:
            term.begin(components, board, keeper)
        exporter = Exporter()
        access, hub = prepare_access(config), EventHub()
        reads = Reads(board, components.clock, journal_path(config.state_directory), hub, lambda: not kernels.interpreted)
        controls = [*control_routes(config.state_directory, reload), *override_routes(keeper, board, components.clock)]
        routes = [*reads.routes(), *controls]
        async with serving(config.status.address, board, exporter, components.clock, access, routes, config.status.tls):
            log.info("sidecar_started", mode=config.mode.value, policy=config.policy.name.value, status=str(config.status.address))
            if os.getpid() == 1 and config.envoy.managed:
                log.warning("init_process_detected", message="servers and Envoy stop with this container. Fix: run it with --pid=host")
            ticking = Loop(components, Planner(build_rules(planned)), board, exporter, kernels.compute)
            ticking.reload, ticking.read_settings, ticking.hub = reload, settings.read, hub
            ticking.keeper, ticking.fixed = keeper, fixed
            ticking.recall_places()
            if kernels.interpreted:
                board.add_event(components.clock.now_s(), "kernels_interpreted", INTERPRETED)
            exempt_from_collection(len(config.models))
            ticking.traces = build_traces(os.environ)
            try:
                with closing(hub):
                    await _run_ticks(ticking, kernels, settings, stop)
            finally:
                if ticking.traces is not None:
                    await asyncio.to_thread(ticking.traces.close)


async def _run_ticks(loop: Loop, kernels: Kernels, settings: SettingsFile, stop: asyncio.Event) -> None:
    """Tick until `stop`. The next tick starts `tick_s` after the end of the last one, or later while nothing moves."""
    world = loop.components.world
    watching = asyncio.create_task(EnvoyWatch(loop.components.envoy, world.executor, world.supervisor, world.clock).run())
    tidying = asyncio.create_task(keep_logs_bounded(lambda: loop.components))
    renewing = asyncio.create_task(keep_certificates(loop.components.routes))
    sharing = asyncio.create_task(keep_limits_shared(loop.components.routes))
    reporting = asyncio.create_task(keep_reports(lambda: loop.components, loop.board, lambda: loop.planner.rules.config))
    learning = asyncio.create_task(keep_recurring(journal_path(loop.components.config.state_directory), world.clock, loop.use_recurring))
    reading = asyncio.create_task(watch_settings(settings, loop))
    listing = asyncio.create_task(loop.components.nodes.run())
    tasks = (watching, tidying, renewing, reporting, learning, reading, listing, sharing)
    async with AsyncExitStack() as stack:
        for task in tasks:
            await stack.enter_async_context(cancelled_on_exit(task))
        while not stop.is_set():
            if await kernels.switch():
                log.info("memory_released", megabytes=round(release_clean_pages() / 1e6))
            await loop.reload_settings()
            loop.apply_overrides()
            ticking = asyncio.create_task(loop.tick())
            if not await stopped_before(ticking, stop):
                await wait_for_tick(ticking.result(), loop.components.config.policy, stop, loop.has_moved)
