"""Builds the real adapters and connects them; closes all of them at exit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from themis_triton.act.actuators import Actuators
from themis_triton.act.backoff import Backoff
from themis_triton.act.executor import Executor
from themis_triton.act.fleet import Fleet
from themis_triton.act.supervisor import Supervisor
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.broken_requests import BrokenRequests
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.envoy.stats import EnvoyStats
from themis_triton.adapters.envoy.version import needed_version
from themis_triton.adapters.envoy.xds.routes import SharedRoutes
from themis_triton.adapters.envoy.xds.server import XdsServer
from themis_triton.adapters.envoy.xds.shares import ArrivalShares
from themis_triton.adapters.envoy.xds.stats import SummedStats
from themis_triton.adapters.launchers import build_launcher
from themis_triton.adapters.nvml import DeviceReader
from themis_triton.adapters.observer import LiveObserver
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.triton.metrics import TritonMetrics
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.address import Address
from themis_triton.core.config import LaunchConfig, ThemisConfig
from themis_triton.core.observation import ProxyConnection
from themis_triton.daemon.fencing import fenced
from themis_triton.daemon.nodes_watch import NodesWatch
from themis_triton.ports import ModelControl, ServerLauncher
from themis_triton.tick import World

READING_WAIT_S = 0.25
"""For how long a tick waits for readings; slower ones are used by a later tick."""


@dataclass(frozen=True, slots=True)
class Components:
    """The adapters and stages of the daemon."""

    config: ThemisConfig
    world: World
    control: ModelControl
    launcher: ServerLauncher | None
    journal: Journal
    envoy: EnvoyProcess
    routes: EnvoyFiles | SharedRoutes
    clock: SystemClock
    observer: LiveObserver
    nodes: NodesWatch = field(default_factory=lambda: NodesWatch(None, None, dict, SystemClock()))


@dataclass(frozen=True, slots=True)
class Fence:
    """The launcher of a sidecar that leads by a lease, which stays open, and what raises once it does not lead any more."""

    launcher: ServerLauncher | None
    check: Callable[[], None]


@asynccontextmanager
async def build_components(config: ThemisConfig, fence: Fence | None = None) -> AsyncIterator[Components]:
    """The opened components of a configuration, closed at exit. Building them starts and changes nothing."""
    async with AsyncExitStack() as stack:
        clock = SystemClock()
        models = tuple(config.models)
        journal = Journal(journal_path(config.state_directory), config.retention)
        stack.callback(journal.close)
        envoy = EnvoyProcess(config.envoy, config.state_directory, needed=needed_version(config))
        stack.push_async_callback(envoy.close)
        files = EnvoyFiles(config.envoy, log_file=envoy.log_file, on_ignored=envoy.note_ignored)
        server = XdsServer(config.envoy.xds) if config.envoy.xds is not None else None
        arrivals = ArrivalShares()
        routes = SharedRoutes(files, server, arrivals) if server is not None else files
        stack.push_async_callback(routes.close)
        control = TritonModelControl(callees=config.callees)
        stack.push_async_callback(control.close)
        launcher = fence.launcher if fence is not None else _launcher(config, stack)
        nodes = NodesWatch(config.launch, launcher, lambda: _launched(config.launch, executor), clock)
        observer = build_observer(config, clock, server, arrivals, nodes.free_places)
        stack.push_async_callback(observer.close)
        actuators = Actuators(control, routes, launcher, journal, clock)
        if fence is not None:
            control, launcher = fenced(control, fence.check), fenced(launcher, fence.check) if launcher is not None else None
            actuators = Actuators(control, fenced(routes, fence.check), launcher, journal, clock)
        backoff = Backoff(config.policy.retry_backoff_s, config.policy.retry_backoff_max_s)
        executor = Executor(actuators, Fleet(journal), backoff, models)
        stack.push_async_callback(executor.cancel)
        supervisor = Supervisor(executor, control, launcher, models, clock, BrokenRequests(envoy.log_file, clock))
        stack.push_async_callback(supervisor.close)
        supervisor.further_faults = lambda: refusals(routes.proxies)
        world = World(observer, executor, supervisor, journal, clock)
        yield Components(config, world, control, launcher, journal, envoy, routes, clock, observer, nodes)


def _launched(launch: LaunchConfig | None, executor: Executor) -> dict[str, str]:
    """The servers that are launched or being launched, with the node types of their slots."""
    slots = launch.slot_by_name if launch is not None else {}
    of_slot = {server.name: server.slot or "" for server in executor.fleet.all() if server.launched}
    of_slot |= {action.server: action.slot or "" for action in executor.launching}
    return {name: slots[slot].node_type or "" for name, slot in of_slot.items() if slot in slots}


def _launcher(config: ThemisConfig, stack: AsyncExitStack) -> ServerLauncher | None:
    """The launcher of the settings, closed with the stack."""
    if config.launch is None:
        return None
    launcher = build_launcher(config.launch, config.state_directory, config.deprioritize_after_s)
    stack.push_async_callback(launcher.close)
    return launcher


def build_observer(
    config: ThemisConfig,
    clock: SystemClock,
    server: XdsServer | None = None,
    arrivals: ArrivalShares | None = None,
    free_places: Callable[[], dict[str, int]] = dict,
) -> LiveObserver:
    """The observer of a configuration's servers, Envoys and devices.

    `server`: the one to which Envoys of other machines connect; `arrivals` counts those of each. `free_places`: of the last reading of
    the engine's nodes.
    """
    models = config.called_models
    own = EnvoyStats(config.envoy, models, clock, READING_WAIT_S)

    def reader(address: Address) -> EnvoyStats:
        tls = server.client_context() if server is not None and address.tls else None
        # It has no files here that would name another address of it.
        elsewhere = replace(config.envoy, admin_address=address, directory=config.envoy.directory / "xds")
        return EnvoyStats(elsewhere, models, clock, READING_WAIT_S, tls)

    stats = SummedStats(own, lambda: server.nodes, reader, arrivals) if server is not None else own
    return LiveObserver(TritonMetrics(clock, wait_s=READING_WAIT_S), stats, DeviceReader(sorted(config.local_devices), clock), free_places)


def refusals(proxies: Sequence[ProxyConnection]) -> tuple[str, ...]:
    """The faults of Envoys that get their routes over xDS."""
    return tuple(
        f"Envoy {each.name} at {each.address} refused new routes and keeps its last ones: {each.refused}"
        for each in proxies
        if each.refused is not None
    )
