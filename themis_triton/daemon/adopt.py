"""Adoption at start: servers of the settings, servers launched by an earlier daemon, and discovered servers missing in the journal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import structlog

from themis_triton.adapters.envoy.current_routes import CurrentRoutes, read_current_routes
from themis_triton.adapters.launchers import discover_all
from themis_triton.adapters.triton.config_files import model_folder
from themis_triton.adapters.triton.groups import active_groups, expected_devices, numbered_devices
from themis_triton.adapters.triton.model_config import parse_config, read_config_text
from themis_triton.core.action import Action, ActionKind, Plan
from themis_triton.core.config import AdoptedServer, Mode, ThemisConfig
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.core.fleet import Models, ModelState, Phase, Server
from themis_triton.core.lease import LeaseRecord
from themis_triton.core.routes import RouteLimit
from themis_triton.daemon.components import Components
from themis_triton.daemon.control import is_paused

log = structlog.get_logger()
ADOPTION = "adoption"
READ_ATTEMPTS, READ_AGAIN_AFTER_S = 3, 0.5
LEAVING = frozenset({Phase.DRAINING, Phase.STOPPING})
RUNNING = frozenset({Phase.SERVING, Phase.UNREACHABLE, Phase.UNRESPONSIVE})


async def adopt(components: Components, former: LeaseRecord | None = None) -> None:
    """Fill the fleet with the running servers, write the routes, and resume unfinished actions. No serving server is disturbed.

    `former`: the lease of another sidecar, which led before. What it had in the routes serves; the journal here is older than that.

    Raises:
        SettingsError: servers of an earlier daemon run, and the settings have no `launch` section.
    """
    if components.launcher is None:
        await _refuse_forgotten_servers(components.config.state_directory)
    routes = await read_current_routes(components.config.envoy)
    adopted = [await _adopted(configured, components) for configured in components.config.servers]
    if former is not None:
        for server in components.journal.load_servers():
            components.journal.forget_server(server.name)
    serving = frozenset(former.handover.serving) if former is not None else frozenset()
    launched, unfinished = await _launched(components, routes, serving)
    components.world.executor.fleet.put_all(_pinned(server, routes) for server in (*adopted, *launched))
    components.world.executor.routes.limits = _kept_limits(components.config, routes)
    await components.world.executor.routes.write()
    if components.config.mode is Mode.ACTIVE and not is_paused(components.config.state_directory):
        components.world.executor.submit(Plan(ADOPTION, tuple(unfinished)))


def _kept_limits(config: ThemisConfig, routes: CurrentRoutes) -> dict[str, RouteLimit]:
    """The limits of an earlier sidecar, which hold until the first decision; advisory mode refuses nothing."""
    fronts = {pipeline.front for pipeline in config.pipelines if pipeline.sheds and config.mode is Mode.ACTIVE}
    return {model: limit for model, limit in routes.limits.items() if model in fronts}


async def _refuse_forgotten_servers(state_directory: Path) -> None:
    running = [server.name for server in await discover_all(state_directory)]
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
        further_repositories=tuple(map(str, configured.further_repositories)),
        model_config_name=configured.model_config_name,
        zone=configured.zone,
    )
    try:
        models = await _read(server, components)
        ready_models = await components.control.list_ready(server)
        stateful = await components.control.list_stateful(server, ready_models if ready_models is not None else tuple(models))
    except ServerError as error:
        expected = await asyncio.to_thread(_expected_devices, server, tuple(components.config.models))
        log.warning("server_unreachable", server=server.name, address=server.grpc_address, devices_held=expected, error=str(error))
        return replace(server, phase=Phase.UNREACHABLE, unread_devices=expected)
    log.info("server_adopted", server=server.name, models={name: state.instances for name, state in models.items()})
    if stateful:
        log.info("sequences_detected", server=server.name, models=stateful, message="calls of such a model go to one server")
    return replace(server, models=models, ready_models=ready_models, stateful=stateful)


def _expected_devices(server: Server, models: Iterable[str]) -> tuple[str, ...]:
    """The devices that a server which does not answer may hold, by its models' own files; all that it may use where these are unknown."""
    devices = numbered_devices(server)
    if server.model_repository is None or not devices:
        return server.devices
    expected = set[str]()
    for model in models:
        try:
            folder = model_folder(server, model)
            text = read_config_text(folder.parent, model, server.model_config_name) if folder is not None else None
            expected |= expected_devices(active_groups(parse_config(*text)), devices) if text is not None else set()
        except (SettingsError, OSError):
            return server.devices
    return tuple(device for device in server.devices if device in expected)


async def _read(server: Server, components: Components) -> dict[str, ModelState]:
    """The server's models; read with retries, because an unreadable server is removed from the routes."""
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return await components.control.read_models(server, tuple(components.config.models))
        except ServerError:
            await components.clock.sleep(READ_AGAIN_AFTER_S)
    return await components.control.read_models(server, tuple(components.config.models))


def _pinned(server: Server, routes: CurrentRoutes) -> Server:
    """The server with the models whose sequences Envoy sends to it now, so that a restart cuts none."""
    return replace(server, pinned=routes.models_of(server, server.stateful) or server.pinned) if server.stateful else server


async def _launched(components: Components, routes: CurrentRoutes, serving: frozenset[str]) -> tuple[list[Server], list[Action]]:
    """The launched servers that still run, and the actions that complete their launches and retirements."""
    if components.launcher is None:
        return [], []
    journalled = {server.name: server for server in components.journal.load_servers()}
    running = {server.name: server for server in await components.launcher.discover()}
    slots = {slot.name for slot in components.config.launch.slots} if components.config.launch is not None else set()
    # A server that was restarted on other ports runs under the name of a journalled process that ended.
    known = {name: server for name, server in journalled.items() if name not in running or await components.launcher.is_alive(server)}
    servers, unfinished = list[Server](), list[Action]()
    for name, server in sorted((running | known).items()):
        if not await components.launcher.is_alive(server):
            log.warning("server_lost", server=name)
            await components.launcher.stop(server)
            components.journal.forget_server(name)
            continue
        routed = routes.lead_to(server) or server.incarnation in serving
        if name not in known:
            log.warning("server_missing_in_journal", server=name, routed=routed)
        readopted, action = await _readopted(server, components, routed=routed)
        servers.append(readopted)
        if action is None and server.slot not in slots:
            log.warning(
                "slot_unknown",
                server=name,
                slot=server.slot,
                remedy="it keeps serving. Fix: name its slot again, or stop the sidecar and run `themis down`",
            )
        unfinished.extend([action] if action is not None else [])
    return servers, unfinished


async def _readopted(server: Server, components: Components, *, routed: bool) -> tuple[Server, Action | None]:
    """The server as it is now, and the action that completes its launch or its retirement; None if it serves.

    What Envoy routes to serves, whatever the journal says of it or does not say, and stays in the routes.
    """
    if server.phase in LEAVING:
        return replace(server, phase=Phase.DRAINING), Action(f"{ADOPTION}/{server.name}", ActionKind.RETIRE, ADOPTION, server.name)
    models = await _serving_models(server, components) if server.phase in RUNNING or routed else {}
    if not models:
        launch = Action(f"{ADOPTION}/{server.name}", ActionKind.LAUNCH, ADOPTION, server.name, slot=server.slot, models=server.models)
        return replace(server, phase=Phase.LAUNCHING), launch
    ready_models, stateful = server.ready_models, server.stateful
    with contextlib.suppress(ServerError):  # it was told that the server does not answer
        ready_models = await components.control.list_ready(server)
        stateful = await components.control.list_stateful(server, ready_models if ready_models is not None else tuple(models))
    log.info("server_readopted", server=server.name, models={name: state.instances for name, state in models.items()})
    return replace(server, phase=Phase.SERVING, models=models, ready_models=ready_models, stateful=stateful), None


async def _serving_models(server: Server, components: Components) -> Models:
    """The models that are READY there; those that it was known to hold if it does not answer."""
    try:
        return await components.control.read_models(server, tuple(server.models))
    except ServerError as error:
        log.warning("server_unreachable", server=server.name, error=str(error))
        return server.models
