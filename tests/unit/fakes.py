"""The ports over plain Python values, for tests of the stages that act."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.unit.samples import STAGES
from themis_triton.act.actuators import Actuators
from themis_triton.act.backoff import Backoff
from themis_triton.act.executor import Executor
from themis_triton.act.fleet import Fleet
from themis_triton.act.supervisor import Supervisor
from themis_triton.core.action import Outcome
from themis_triton.core.address import Address
from themis_triton.core.errors import ChangeRefusedError, DeviceRefusedError, LaunchFailedError, ModelFailedError, ServerError
from themis_triton.core.fleet import Models, ModelState, Phase, Server
from themis_triton.core.model_config import ModelInputs
from themis_triton.core.nodes import Node
from themis_triton.core.observation import DeviceReading, ModelCounters, Readings, RouteReading, ServerReading
from themis_triton.core.record import TickRecord
from themis_triton.core.routes import RouteTable
from themis_triton.tick import World

TURNS = 500


@dataclass
class FakeClock:
    """Time that only tests move."""

    at_s: float = 1_700_000_000.0

    def now_s(self) -> float:
        return self.at_s

    async def sleep(self, seconds: float) -> None:
        self.at_s += seconds
        await asyncio.sleep(0)


@dataclass
class FakeObserver:
    """Answers what it was given; servers in `silent` answer with an error."""

    clock: FakeClock
    routes: tuple[RouteReading, ...] = ()
    routes_error: str | None = None
    devices: tuple[DeviceReading, ...] = ()
    silent: set[str] = field(default_factory=set)
    alive: set[str] | None = None
    ready: dict[str, frozenset[str]] = field(default_factory=dict)
    counters: dict[str, dict[str, ModelCounters]] = field(default_factory=dict)

    async def read(self, servers: Sequence[Server], resting: Collection[str] = ()) -> Readings:  # noqa: ARG002 - reads all
        gone = {server.name for server in servers if self.alive is not None and server.name not in self.alive}
        errors = {server.name: "connection refused" if server.name in self.silent | gone else None for server in servers}
        at_s = self.clock.at_s
        readings = tuple(
            ServerReading(name, at_s, self.counters.get(name, {}) if error is None else {}, error, ready=self.ready.get(name))
            for name, error in errors.items()
        )
        return Readings(readings, self.routes, self.routes_error, self.devices)


@dataclass
class FakeControl:
    """What each server really runs; `gate` holds changes until it is set.

    `others`: models that the settings do not name. `unlisting`: servers that refuse to list their models.
    `stateful`: models with state between calls.
    """

    log: list[str]
    runs: dict[str, dict[str, ModelState]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    gate: asyncio.Event | None = None
    forgotten: list[str] = field(default_factory=list)
    alive: set[str] | None = None
    others: dict[str, set[str]] = field(default_factory=dict)
    unlisting: set[str] = field(default_factory=set)
    stateful: set[str] = field(default_factory=set)
    unchangeable: dict[str, str] = field(default_factory=dict)
    at_home: set[str] = field(default_factory=set)

    def _check_answers(self, server: Server) -> None:
        if server.name in self.silent or (self.alive is not None and server.name not in self.alive):
            raise ServerError(f"{server.name} does not answer")

    async def read_models(self, server: Server, models: Sequence[str]) -> dict[str, ModelState]:
        self._check_answers(server)
        return {name: state for name, state in self.runs.get(server.name, server.models).items() if name in models}

    async def read_refusal(self, server: Server) -> str | None:
        self._check_answers(server)
        return self.unchangeable.get(server.name)

    async def list_ready(self, server: Server) -> tuple[str, ...] | None:
        self._check_answers(server)
        if server.name in self.unlisting:
            return None
        return tuple(sorted({*self.runs.get(server.name, server.models), *self.others.get(server.name, ())}))

    async def list_stateful(self, server: Server, models: Sequence[str]) -> tuple[str, ...]:
        self._check_answers(server)
        return tuple(sorted(self.stateful.intersection(models)))

    async def answers(self, server: Server) -> bool:
        return server.name not in self.silent and (self.alive is None or server.name in self.alive)

    async def change(self, server: Server, model: str, state: ModelState) -> ModelState:
        self.log.append(f"change {server.name}/{model} to {state.instances}")
        if self.gate is not None:
            await self.gate.wait()
        self._check_answers(server)
        if model not in self.runs.get(server.name, server.models):
            raise ChangeRefusedError(f"{server.name} does not serve {model}")
        if model in self.refused:
            raise ChangeRefusedError(f"{model}: out of memory")
        if model in self.at_home and state.spread and len(state.spread) > 1:
            raise DeviceRefusedError(f"{model} is of KIND_MODEL")
        self.runs[server.name] = {**self.runs.get(server.name, server.models), model: state}
        return state

    async def load(self, server: Server, model: str) -> None:
        self.log.append(f"load {server.name}/{model}")
        self._check_answers(server)
        if model in self.refused:
            raise ChangeRefusedError(f"{model}: a member is not ready")
        self.others.setdefault(server.name, set()).add(model)

    async def reload(self, server: Server, model: str, state: ModelState) -> ModelState:
        self.log.append(f"reload {server.name}/{model}")
        self._check_answers(server)
        if model in self.refused:
            raise ChangeRefusedError(f"{model}: out of memory")
        self.runs[server.name] = {**self.runs.get(server.name, server.models), model: state}
        return state

    async def forget(self, server: Server) -> None:
        self.forgotten.append(server.name)


@dataclass
class FakeLauncher:
    """Servers that are up at once, unless a stage of theirs is in `failing` (`launch`, `ready`, `warm`, `stop`).

    `stop_gate` holds stops until it is set.
    """

    log: list[str]
    alive: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    idle: bool = True
    launched: dict[str, Server] = field(default_factory=dict)
    slots: tuple[str, ...] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    ensembles: dict[str, set[str]] = field(default_factory=dict)
    refusing: ModelFailedError | None = None
    unloadable: ModelFailedError | None = None
    stop_gate: asyncio.Event | None = None
    inputs: Mapping[str, ModelInputs] = field(default_factory=dict)
    cramped: set[str] = field(default_factory=set)
    sizes: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    nodes: tuple[Node, ...] = ()

    def _step(self, name: str, what: str) -> None:
        self.log.append(f"{what} {name}")
        if what in self.failing:
            raise LaunchFailedError(f"{name}: {what} failed, see {name}.log")

    async def launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        self._step(name, "launch")
        if self.slots is not None and slot not in self.slots:
            raise LaunchFailedError(f"{name}: there is no slot {slot}")
        self.alive.add(name)
        self.launched[name] = Server(
            name, slot, Address(name, 1), Address(name, 2), Address(name, 3), Phase.LAUNCHING, launched=True, slot=slot, models=dict(models)
        )
        return self.launched[name]

    async def discover(self) -> tuple[Server, ...]:
        return tuple(self.launched[name] for name in sorted(self.launched) if name in self.alive)

    async def read_memory(self, server: Server) -> int:
        self.log.append(f"memory {server.name}")
        return 0

    async def list_nodes(self) -> tuple[Node, ...]:
        self._step("nodes", "nodes")
        return self.nodes

    async def stop_all(self) -> tuple[str, ...]:
        stopped = await self.discover()
        for server in stopped:
            await self.stop(server)
        return tuple(server.name for server in stopped)

    async def wait_ready(self, server: Server) -> Server:
        self._step(server.name, "ready")
        if self.unloadable is not None:
            raise self.unloadable
        if server.name not in self.alive:
            raise LaunchFailedError(f"{server.name} ended before it was ready, see {server.name}.log")
        return replace(server, phase=Phase.WARMING)

    async def warm_up(self, server: Server) -> None:
        self._step(server.name, "warm")
        if self.refusing is not None:
            raise self.refusing

    async def add_model(self, server: Server, model: str, state: ModelState) -> None:
        self.log.append(f"add {server.name}/{model}×{state.instances}")

    def ensembles_of(self, models: Collection[str]) -> tuple[str, ...]:
        return tuple(name for name, needed in self.ensembles.items() if needed <= set(models))

    async def add_ensembles(self, server: Server) -> None:
        self.log.append(f"add {server.name}/{','.join(self.ensembles_of(server.models))}")

    def use_inputs(self, inputs: Mapping[str, ModelInputs]) -> None:
        self.inputs = inputs

    async def read_files_versions(self, models: Collection[str]) -> dict[str, str]:
        return {model: self.versions.get(model, "first") for model in models}

    async def is_alive(self, server: Server) -> bool:
        return server.name in self.alive

    async def resize(self, server: Server, models: Models) -> None:
        self.sizes.append((server.name, {name: state.instances for name, state in models.items()}))
        if server.name in self.cramped:
            raise ChangeRefusedError(f"{server.name}: its node has no room")

    async def read_log(self, server: Server, lines: int) -> str:
        self.log.append(f"log {server.name}, {lines} lines")
        return ""

    async def close(self) -> None: ...

    async def wait_idle(self, server: Server) -> bool:
        self.log.append(f"idle {server.name}")
        return self.idle

    async def stop(self, server: Server) -> None:
        if not server.launched:
            raise ServerError(f"{server.name} was not launched by Themis")
        self._step(server.name, "stop")
        if self.stop_gate is not None:
            await self.stop_gate.wait()
        self.alive.discard(server.name)

    async def kill(self, server: Server) -> None:
        if not server.launched:
            raise ServerError(f"{server.name} was not launched by Themis")
        self._step(server.name, "kill")
        self.alive.discard(server.name)


@dataclass
class FakeRoutes:
    """Remembers every table; refuses while `broken`."""

    log: list[str]
    tables: list[RouteTable] = field(default_factory=list)
    broken: bool = False

    async def write(self, table: RouteTable) -> None:
        names = ",".join(endpoint.server for endpoint in table.any)
        self.log.append(f"routes {names}")
        if self.broken:
            raise ServerError("the proxy does not answer")
        self.tables.append(table)


@dataclass
class FakeRecorder:
    """A journal in memory."""

    ticks: list[TickRecord] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    servers: dict[str, Server] = field(default_factory=dict)

    def record_tick(self, record: TickRecord) -> None:
        self.ticks.append(record)

    def record_outcome(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def save_server(self, server: Server) -> None:
        self.servers[server.name] = replace(server, models=dict(server.models))

    def forget_server(self, name: str) -> None:
        self.servers.pop(name, None)

    def load_servers(self) -> tuple[Server, ...]:
        return tuple(self.servers[name] for name in sorted(self.servers))


class Bench:
    """All fakes with an executor and a supervisor on top; `log` holds what they were asked, in order."""

    def __init__(self, *servers: Server, launcher: bool = True, models: tuple[str, ...] = STAGES) -> None:
        self.log: list[str] = []
        self.clock = FakeClock()
        self.observer = FakeObserver(self.clock)
        self.launcher = FakeLauncher(self.log, alive={s.name for s in servers})
        self.control = FakeControl(self.log, alive=self.launcher.alive)
        self.routes = FakeRoutes(self.log)
        self.recorder = FakeRecorder()
        port = self.launcher if launcher else None
        self.fleet = Fleet(self.recorder)
        for server in servers:
            self.fleet.put(server)
        actuators = Actuators(self.control, self.routes, port, self.recorder, self.clock)
        self.executor = Executor(actuators, self.fleet, Backoff(2.0, 60.0), models)
        self.supervisor = Supervisor(self.executor, self.control, port, models, self.clock)
        self.world = World(self.observer, self.executor, self.supervisor, self.recorder, self.clock)

    @property
    def routed(self) -> tuple[str, ...]:
        """Servers in the last table that was taken up."""
        return tuple(endpoint.server for endpoint in self.routes.tables[-1].any)

    async def turns(self, count: int = 20) -> None:
        """Let tasks go on that wait for nothing."""
        for _ in range(count):
            await asyncio.sleep(0)

    async def settled(self) -> tuple[Outcome, ...]:
        """Outcomes once nothing is under way."""
        for _ in range(TURNS):
            if not self.executor.busy and (self.executor.routes.unwritten is None or self.routes.broken):
                return self.executor.collect()
            await asyncio.sleep(0)
        raise AssertionError(f"still busy: {sorted(self.executor.busy)}")
