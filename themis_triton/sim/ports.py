"""The ports over the virtual cluster."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from themis_triton.core.action import Outcome
from themis_triton.core.address import Address
from themis_triton.core.errors import LaunchFailedError, ServerError
from themis_triton.core.fleet import Models, ModelState, Phase, Server
from themis_triton.core.model_config import ModelInputs
from themis_triton.core.nodes import Node
from themis_triton.core.observation import Readings, RouteReading, ServerReading
from themis_triton.core.record import TickRecord
from themis_triton.core.routes import RouteTable
from themis_triton.sim.cluster import Cluster
from themis_triton.sim.durations import PROCESS_S

Reading = TypeVar("Reading", ServerReading, RouteReading)


class SimObserver:
    """Triton's and the proxy's counters as of `lag_s` ago, rounded up to whole ticks. There is no NVML in the virtual world."""

    def __init__(self, cluster: Cluster, lag_s: float = 0.0) -> None:
        self._cluster = cluster
        self._lag_s = lag_s
        self._servers: deque[tuple[float, tuple[ServerReading, ...]]] = deque()
        self._routes: deque[tuple[float, tuple[RouteReading, ...]]] = deque()

    async def read(self, servers: Sequence[Server], resting: Collection[str] = ()) -> Readings:  # noqa: ARG002 - reads all
        """All readings; no devices, because memory is not simulated."""
        return Readings(
            self._delayed(self._servers, tuple(self._read(server.name) for server in servers)),
            self._delayed(self._routes, tuple(self._route(model) for model in self._cluster.config.models)),
        )

    def _read(self, name: str) -> ServerReading:
        cluster = self._cluster
        try:
            server = cluster.find(name)
        except ServerError as error:
            return ServerReading(name, cluster.now_s(), error=str(error))
        simulation = cluster.sync()
        models = {model: simulation.counters(server.row, cluster.model_index(model)) for model in server.models}
        return ServerReading(name, cluster.now_s(), models)

    def _route(self, model: str) -> RouteReading:
        simulation, index = self._cluster.sync(), self._cluster.model_index(model)
        latency, refused = simulation.latency(index), simulation.refused(index)
        return RouteReading(model, self._cluster.now_s(), *simulation.route_counts(index), latency, refused)

    def _delayed(self, readings: deque[tuple[float, tuple[Reading, ...]]], newest: tuple[Reading, ...]) -> tuple[Reading, ...]:
        """The readings of `lag_s` ago; none before that."""
        if self._lag_s <= 0.0:
            return newest
        readings.append((self._cluster.now_s(), newest))
        due_s = self._cluster.now_s() - self._lag_s + 1e-9
        while len(readings) > 1 and readings[1][0] <= due_s:
            readings.popleft()
        return readings[0][1] if readings[0][0] <= due_s else ()


@dataclass(frozen=True, slots=True)
class SimControl:
    """The vertical actuator."""

    cluster: Cluster

    async def read_models(self, server: Server, models: Sequence[str]) -> dict[str, ModelState]:
        """The models that the server runs now."""
        return {model: state for model, state in self.cluster.find(server.name).models.items() if model in models}

    async def read_refusal(self, server: Server) -> str | None:
        """None: virtual servers take changes."""
        self.cluster.find(server.name)
        return None

    async def list_ready(self, server: Server) -> tuple[str, ...] | None:
        """The models that the server runs now, in order."""
        return tuple(sorted(self.cluster.find(server.name).models))

    async def list_stateful(self, server: Server, models: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002 - the port's arguments
        """None: the simulated requests are independent."""
        return ()

    async def answers(self, server: Server) -> bool:
        """Whether its process runs."""
        return self.cluster.is_alive(server.name)

    async def change(self, server: Server, model: str, state: ModelState) -> ModelState:
        """Load the model with the given counts and batching."""
        return await self.cluster.change(server.name, model, state)

    async def reload(self, server: Server, model: str, state: ModelState) -> ModelState:
        """Load the model with the given counts and batching; virtual models never leave their server."""
        return await self.cluster.change(server.name, model, state)

    async def load(self, server: Server, model: str) -> None:
        """Does nothing: virtual servers answer for an ensemble once they have its members."""

    async def forget(self, server: Server) -> None:
        """Does nothing: no state is kept per server."""


PLACE_POLL_S = 0.1


@dataclass(slots=True)
class SimEngine:
    """The nodes for launched servers: `places` for servers in all, None for as many as there are slots.

    A launch waits for `place_timeout_s` for one. `waiting`: the servers that do. `runs`: launches so far.
    """

    places: int | None = None
    place_timeout_s: float = 300.0
    waiting: list[str] = field(default_factory=list)
    runs: int = 0


@dataclass(frozen=True, slots=True)
class SimLauncher:
    """The horizontal actuator; `rows` are the simulation's rows of the slots, `devices` their devices.

    `engine`: the nodes on which servers find places.
    """

    cluster: Cluster
    rows: dict[str, int]
    devices: dict[str, str]
    drain_timeout_s: float
    engine: SimEngine = field(default_factory=SimEngine)
    launched: dict[str, Server] = field(default_factory=dict)

    async def launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        """Start a process on the slot."""
        if slot not in self.rows:
            raise LaunchFailedError(
                f"server {name}: device slot {slot} does not exist: expected one of launch.slots: {', '.join(self.rows)}"
            )
        device, launch, address = self.devices[slot], self.cluster.config.launch, Address(name, 0)
        reach = launch.reach_from(device) if launch is not None else ()
        self.engine.runs += 1
        server = Server(
            name, device, address, address, address, Phase.LAUNCHING, launched=True, slot=slot, models=dict(models), reach=reach
        )
        server = replace(server, incarnation=str(self.engine.runs))
        if self._has_place():
            self._start(server)
        else:
            self.engine.waiting.append(name)
        await asyncio.sleep(PROCESS_S)
        self.launched[name] = server
        return server

    def _has_place(self) -> bool:
        return self.engine.places is None or sum(map(self.cluster.is_alive, self.launched)) < self.engine.places

    def _start(self, server: Server) -> None:
        self.cluster.start(server.name, self.rows[server.slot or ""], server.models, server.reach)

    async def wait_ready(self, server: Server) -> Server:
        """Wait until it has a place, and its models are loaded."""
        await self._wait_for_place(server)
        await self.cluster.load(server.models)
        if not await self.is_alive(server):
            raise LaunchFailedError(f"server {server.name} on slot {server.slot} ended before it was ready")
        self.cluster.hold(server.name)
        return replace(server, phase=Phase.WARMING)

    async def _wait_for_place(self, server: Server) -> None:
        deadline_s = self.cluster.now_s() + self.engine.place_timeout_s
        while server.name in self.engine.waiting:
            if self._has_place():
                self.engine.waiting.remove(server.name)
                self._start(server)
            elif self.cluster.now_s() >= deadline_s:
                raise LaunchFailedError(f"server {server.name} found no place within {self.engine.place_timeout_s:g} s: all nodes are full")
            else:
                await asyncio.sleep(PLACE_POLL_S)

    async def warm_up(self, server: Server) -> None:
        """Wait for the duration of the warm-up requests."""
        await asyncio.sleep(self.cluster.durations.warm_up_s(server.models))
        self.cluster.find(server.name)

    async def discover(self) -> tuple[Server, ...]:
        """Every launched server that runs now, by name."""
        return tuple([self.launched[name] for name in sorted(self.launched) if await self.is_alive(self.launched[name])])

    async def read_memory(self, server: Server) -> int:
        """0: memory is not simulated."""
        del server
        return 0

    async def list_nodes(self) -> tuple[Node, ...]:
        """None: virtual devices are no machine's."""
        return ()

    async def stop_all(self) -> tuple[str, ...]:
        """Stop every launched server."""
        stopped = await self.discover()
        for server in stopped:
            await self.stop(server)
        return tuple(server.name for server in stopped)

    async def add_model(self, server: Server, model: str, state: ModelState) -> None:
        """Does nothing: every server could hold every model."""

    def ensembles_of(self, models: Collection[str]) -> tuple[str, ...]:  # noqa: ARG002 - the port's
        """None: virtual servers answer for an ensemble once they have its members."""
        return ()

    async def add_ensembles(self, server: Server) -> None:
        """Does nothing: virtual servers have no repository."""

    def use_inputs(self, inputs: Mapping[str, ModelInputs]) -> None:
        """Does nothing: virtual models take any inputs."""

    async def read_files_versions(self, models: Collection[str]) -> dict[str, str]:
        """Virtual models have no files."""
        return {model: model for model in models}

    async def is_alive(self, server: Server) -> bool:
        """Whether its process runs, or waits for a place."""
        known = self.launched.get(server.name, server)
        if server.incarnation != known.incarnation:
            return False
        return server.name in self.engine.waiting or self.cluster.is_alive(server.name)

    async def resize(self, server: Server, models: Models) -> None:
        """Does nothing: processor time is in the profiles, and memory is not simulated."""

    async def read_log(self, server: Server, lines: int) -> str:  # noqa: ARG002 - the port's arguments
        """Virtual servers write nothing."""
        return ""

    async def wait_idle(self, server: Server) -> bool:
        """Wait, bounded, until the server is idle."""
        return await self.cluster.wait_idle(server.name, self.drain_timeout_s)

    async def stop(self, server: Server) -> None:
        """End the process."""
        if not server.launched:
            raise ServerError(f"server {server.name} was not launched by Themis, which does not stop it; stop it where it was started")
        if server.name in self.engine.waiting:
            self.engine.waiting.remove(server.name)
        await self.cluster.stop(server.name)
        self.launched.pop(server.name, None)

    async def kill(self, server: Server) -> None:
        """End the process; virtual servers do not hang."""
        await self.stop(server)

    async def close(self) -> None:
        """Does nothing: there is no connection."""


@dataclass(frozen=True, slots=True)
class SimRoutes:
    """The proxy's routes; a table applies after `apply_s`."""

    cluster: Cluster
    apply_s: float

    async def write(self, table: RouteTable) -> None:
        """Apply the table."""
        await asyncio.sleep(self.apply_s)
        self.cluster.write_routes(table)


@dataclass(slots=True)
class SimRecorder:
    """The journal in memory; `keep_ticks` False drops tick records."""

    keep_ticks: bool = True
    ticks: list[TickRecord] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    servers: dict[str, Server] = field(default_factory=dict)

    def record_tick(self, record: TickRecord) -> None:
        """Append a tick."""
        if self.keep_ticks:
            self.ticks.append(record)

    def record_outcome(self, outcome: Outcome) -> None:
        """Append an action's end."""
        self.outcomes.append(outcome)

    def save_server(self, server: Server) -> None:
        """Remember a launched server."""
        self.servers[server.name] = replace(server, models=dict(server.models))

    def forget_server(self, name: str) -> None:
        """The server is gone."""
        self.servers.pop(name, None)

    def load_servers(self) -> tuple[Server, ...]:
        """Launched servers that were not forgotten."""
        return tuple(self.servers[name] for name in sorted(self.servers))
