"""Adoption at start: servers of the settings, servers launched by an earlier daemon, and discovered servers missing in the journal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import structlog

from themis_triton.adapters.launchers import bare_launchers
from themis_triton.core.action import Action, ActionKind, Plan
from themis_triton.core.config import AdoptedServer, Mode
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.daemon.components import Components
from themis_triton.daemon.control import is_paused

log = structlog.get_logger()
ADOPTION = "adoption"
READ_ATTEMPTS, READ_AGAIN_AFTER_S = 3, 0.5
LEAVING = frozenset({Phase.DRAINING, Phase.STOPPING})


async def adopt(components: Components) -> None:
    """Fill the fleet with the running servers, write the routes, and resume unfinished actions. No serving server is disturbed.

    Raises:
        SettingsError: servers of an earlier daemon run, and the settings have no `launch` section.
    """
    if components.launcher is None:
        await _refuse_forgotten_servers(components.config.state_directory)
    for configured in components.config.servers:
        components.world.executor.fleet.put(await _adopted(configured, components))
    unfinished = await _launched(components)
    await components.world.executor.write_routes()
    if components.config.mode is Mode.ACTIVE and not is_paused(components.config.state_directory):
        components.world.executor.submit(Plan(ADOPTION, tuple(unfinished)))


async def _refuse_forgotten_servers(state_directory: Path) -> None:
    running = [server.name for launcher in bare_launchers(state_directory) for server in await launcher.discover()]
    if running:
        names = ", ".join(running)
        raise SettingsError(
            f"launch: missing, but servers {names}, which an earlier sidecar launched with state_directory {state_directory}, still serve "
            "and would lose their routes. Fix: restore the section, or stop them and their Envoy with `themis down` first"
        )


async def _adopted(configured: AdoptedServer, components: Components) -> Server:
    server = Server(
        name=configured.name,
        device=configured.device,
        reach=configured.reach,
        grpc_address=configured.grpc_address,
        http_address=configured.http_address,
        metrics_address=configured.metrics_address,
        phase=Phase.SERVING,
        launched=False,
        model_control_key=configured.model_control_key,
        model_repository=str(configured.model_repository) if configured.model_repository is not None else None,
    )
    try:
        models = await _read(server, components)
        ready_models = await components.control.list_ready(server)
    except ServerError as error:
        log.warning("server_unreachable", server=server.name, address=server.grpc_address, error=str(error))
        return replace(server, phase=Phase.UNREACHABLE)
    log.info("server_adopted", server=server.name, models={name: state.instances for name, state in models.items()})
    return replace(server, models=models, ready_models=ready_models)


async def _read(server: Server, components: Components) -> dict[str, ModelState]:
    """The server's models; read with retries, because an unreadable server is removed from the routes."""
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return await components.control.read_models(server, tuple(components.config.models))
        except ServerError:
            await components.clock.sleep(READ_AGAIN_AFTER_S)
    return await components.control.read_models(server, tuple(components.config.models))


async def _launched(components: Components) -> list[Action]:
    """Adopt launched servers that still run; returns the actions that complete their launches and retirements."""
    if components.launcher is None:
        return []
    journalled = {server.name: server for server in components.journal.load_servers()}
    running = {server.name: server for server in await components.launcher.discover()}
    slots = {slot.name for slot in components.config.launch.slots} if components.config.launch is not None else set()
    # A server that was restarted on other ports runs under the name of a journalled process that ended.
    known = {name: server for name, server in journalled.items() if name not in running or await components.launcher.is_alive(server)}
    unfinished = []
    for name, server in sorted((running | known).items()):
        if not await components.launcher.is_alive(server):
            log.warning("server_lost", server=name)
            await components.launcher.stop(server)
            components.journal.forget_server(name)
            continue
        action = await _readopted(server, components)
        if action is None and server.slot not in slots:
            log.warning(
                "slot_unknown",
                server=name,
                slot=server.slot,
                remedy="it keeps serving. Fix: name its slot again, or stop the sidecar and run `themis down`",
            )
        unfinished.extend([action] if action is not None else [])
    return unfinished


async def _readopted(server: Server, components: Components) -> Action | None:
    fleet = components.world.executor.fleet
    if server.phase in LEAVING:
        fleet.put(replace(server, phase=Phase.DRAINING))
        return Action(f"{ADOPTION}/{server.name}", ActionKind.RETIRE, ADOPTION, server.name)
    if server.phase is Phase.SERVING:
        try:
            models = await components.control.read_models(server, tuple(server.models))
        except ServerError as error:
            log.warning("server_unreachable", server=server.name, error=str(error))
            models = server.models
        fleet.put(replace(server, models=models))
        log.info("server_readopted", server=server.name, models={name: state.instances for name, state in models.items()})
        return None
    fleet.put(replace(server, phase=Phase.LAUNCHING))
    return Action(f"{ADOPTION}/{server.name}", ActionKind.LAUNCH, ADOPTION, server.name, slot=server.slot, models=server.models)
