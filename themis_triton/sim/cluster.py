"""The virtual cluster: servers by name, and the virtual duration of operations on them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import ChangeRefusedError, LaunchFailedError, ServerError
from themis_triton.core.fleet import Models, ModelState
from themis_triton.core.price import running_price
from themis_triton.core.routes import ModelRoute, RouteTable
from themis_triton.core.server_kind import ServerKind
from themis_triton.sim.durations import Durations
from themis_triton.sim.engine import Simulation
from themis_triton.sim.servers import Rows, SimServer, row_devices
from themis_triton.sim.world import Dispatcher, Sharing, SimWorld

DRAIN_POLL_S = 0.05
IDLE_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Usage:
    """Servers and instances from `at_s` until the next entry, and their cost per second."""

    at_s: float
    servers: int
    instances: int
    cost: float


Kinds = tuple[float, tuple[ServerKind, ...]]
"""A time, and the kinds of the servers from then until the next entry."""


class Cluster:
    """Changes take the profiles' times (or the world's); those of one model on one server queue behind each other, as Triton's do.

    A change of counts ends, as Triton's, only once an instance has found nothing to take; added instances
    serve one initialisation after the call, and removed ones until then. All servers share one host: instances that start can slow
    the batches of all (`SimWorld.start_slowdown`).
    """

    def __init__(self, config: ThemisConfig, world: SimWorld, simulation: Simulation, seed: int) -> None:
        self.config = config
        self.durations = Durations(config, world, simulation.engine.service_s)
        self.usage: list[Usage] = []
        self.kinds: list[Kinds] = []
        self._world = world
        self._simulation = simulation
        self._index = {model: number for number, model in enumerate(config.models)}
        self._servers: dict[str, SimServer] = {}
        self._rows = Rows(row_devices(config)[: simulation.engine.device.size])
        self._rng = np.random.default_rng((seed, 1))
        self._table = RouteTable({}, ())
        self._starting = 0
        self._initialising = 0
        self._slowness = 1.0

    def now_s(self) -> float:
        """Virtual seconds."""
        return asyncio.get_running_loop().time()

    def sync(self) -> Simulation:
        """The simulation, advanced to now."""
        self._simulation.advance(self.now_s())
        return self._simulation

    def model_index(self, model: str) -> int:
        """The index of a model in the simulation."""
        return self._index[model]

    def find(self, name: str) -> SimServer:
        """The live server of that name. ServerError when there is none."""
        server = self._servers.get(name)
        if server is None or not server.alive:
            raise ServerError(f"server {name} does not answer: its process is gone")
        return server

    def is_alive(self, name: str) -> bool:
        """Whether its process runs."""
        return name in self._servers and self._servers[name].alive

    def start(self, name: str, row: int, models: Models, reach: tuple[str, ...] = ()) -> None:
        """Start a process on a row, the number of its slot or adopted server; it has a cost from now on, and serves after `hold`.

        LaunchFailedError when its slot is in use, or its device by as many servers as may use it.
        """
        home = self._rows.device(row)
        if any(server.number == row for server in self._servers.values()):
            raise LaunchFailedError(f"server {name}: another server uses its slot; stop that one first")
        if self._rows.is_full(home):
            raise LaunchFailedError(f"server {name}: {self._full(home)}")
        server = SimServer(name, row, {home: self._rows.take(home, row)}, {}, reach)
        self._servers[name] = server
        for model, state in models.items():
            placed = server.placed(state)
            self._take_rows(server, placed)
            server.models[model] = placed
        self._record_usage(server)
        self._record_kinds()

    def _full(self, device: str) -> str:
        return f"{device} is in use by {self.config.places_on(device)} server(s), as many as may use it: the plan must remove a place first"

    def hold(self, name: str) -> None:
        """Load the server's models."""
        server, simulation = self.find(name), self.sync()
        for model, state in server.models.items():
            simulation.configure(server.row, self._index[model], state, list(server.counts(state).values()))

    async def load(self, models: Models) -> None:
        """Wait until a started server has loaded its models."""
        with self._initialise(sum(state.instances for state in models.values())):
            await asyncio.sleep(self.durations.launch_s(models))

    async def change(self, name: str, model: str, state: ModelState) -> ModelState:
        """One load of a model: a reload if batching changes (not with a central queue), a growth, or a shrink one instance at a time.

        ChangeRefusedError when a device that it adds is full: a real server would accept, so that the plan is at fault.
        """
        server = self.find(name)
        async with server.locks.setdefault(model, asyncio.Lock()):
            await asyncio.sleep(self._world.control_s)
            if model not in self.find(name).models:
                raise ChangeRefusedError(f"server {name} does not serve model {model}")
            before = self.find(name).models[model]
            self._maybe_refuse(name, model)
            state = server.placed(state)
            if self._world.dispatcher is Dispatcher.CENTRAL:
                before = self._rebatch_queue(server, model, before, state)
            if state == before:
                return state
            if self._world.dispatcher is not Dispatcher.CENTRAL and state.renews_all(before):
                with self._starts(server, state, state.instances):
                    await self._after(self.durations.reload_s(model), server, model, state)
            else:
                await self._adjust(server, model, before, state)
            await self._release_rows(server)
            return self.find(name).models[model]

    def _rebatch_queue(self, server: SimServer, model: str, before: ModelState, state: ModelState) -> ModelState:
        """A central queue forms batches, so their limit changes at once; a larger one together with the cores that it was planned for."""
        batch = min(before.max_batch, state.max_batch) if state.instances > before.instances else state.max_batch
        now = replace(before, max_batch=batch, max_queue_delay_us=state.max_queue_delay_us)
        if now != before:
            self._set(server, model, now)
        return now

    def _maybe_refuse(self, name: str, model: str) -> None:
        if self._world.refuse_share > 0.0 and self._rng.random() < self._world.refuse_share:
            raise ChangeRefusedError(f"{model} on {name}: an instance failed to initialise (injected)")

    async def _adjust(self, server: SimServer, model: str, before: ModelState, state: ModelState) -> None:
        """Add instances, on all devices at once, then remove those that are too many."""
        added = state.added(before)
        if added:
            grown = server.with_counts(state, server.counts(before) | {device or server.home: state.on(device) for device in added})
            await self._grow(server, model, grown, sum(added.values()))
            before = grown
        if state != before:
            await self._shrink(server, model, before, state)

    def _take_rows(self, server: SimServer, state: ModelState) -> None:
        """Give the server a row on each device of a state. ChangeRefusedError when one of them is full; then it gets none."""
        added = [device for device, _ in state.spread if device not in server.rows]
        for device in added:
            if self._rows.is_full(device):
                raise ChangeRefusedError(f"server {server.name}: {self._full(device)}")
        for device in added:
            server.rows[device] = self._rows.take(device)
            self.sync().attach(server.row, server.rows[device])

    async def _release_rows(self, server: SimServer) -> None:
        """Free the rows on devices where the server has no instances any more, once their last batches have ended."""
        for device in server.unused():
            while server.alive and device in server.unused():
                if not self.sync().busy(server.rows[device]):
                    self._give_back(server, device)
                    break
                await asyncio.sleep(IDLE_POLL_S)

    def _give_back(self, server: SimServer, device: str) -> None:
        row = server.rows.pop(device)
        self.sync().detach(server.row, row)
        self._rows.give_back([row])

    @contextmanager
    def _starts(self, server: SimServer, state: ModelState, count: int) -> Iterator[None]:
        """While a number of a state's instances start on the server's devices."""
        self._take_rows(server, state)
        server.growing.update(device for device, _ in state.spread)
        try:
            with self._initialise(count):
                yield
        finally:
            server.growing.subtract(device for device, _ in state.spread)

    @contextmanager
    def _initialise(self, count: int) -> Iterator[None]:
        """While instances initialise, which takes processor time from all batches."""
        self._initialising += count
        if self._world.start_slowdown > 0.0:
            self._slow_down()
        try:
            yield
        finally:
            self._initialising -= count
            if self._world.start_slowdown > 0.0:
                self._slow_down()

    def slow_down(self, factor: float) -> None:
        """Let all batches take so many times as long as the world's service times say, from now on."""
        self._slowness = factor
        self._slow_down()

    def _slow_down(self) -> None:
        self.sync().slow_down(self._slowness * (1.0 + self._world.start_slowdown * self._initialising))

    async def _grow(self, server: SimServer, model: str, state: ModelState, added: int) -> None:
        self._starting += added
        try:
            late_s = (self._starting - 1) * self._world.init_work_s / self._world.host_cores
            with self._starts(server, state, added):
                await self._after(self.durations.grow_s(model) + late_s, server, model, state)
        finally:
            self._starting -= added
        await self._queue_empty(server, model)

    async def _queue_empty(self, server: SimServer, model: str) -> None:
        """Wait until an instance has found nothing to take. A central queue is not the server's."""
        since_s = self.now_s()
        while self._world.dispatcher is Dispatcher.PER_SERVER:
            row = self.find(server.name).row
            if self.sync().was_idle_since(row, self._index[model], since_s):
                return
            await asyncio.sleep(IDLE_POLL_S)

    async def _shrink(self, server: SimServer, model: str, before: ModelState, state: ModelState) -> None:
        """An instance takes no more work once its teardown begins, those of the last device first; cores are removed all at once."""
        stop_s = self.durations.stop_s(model)
        if self._world.sharing is Sharing.CORES:
            await self._after(stop_s, server, model, state)
            return
        counts = server.counts(before)
        steps = [device for device, count in reversed(counts.items()) for _ in range(count - state.on(device))]
        for device in steps:
            await self._queue_empty(server, model)
            counts[device] -= 1
            self._set(self.find(server.name), model, server.with_counts(state, counts))
            await asyncio.sleep(stop_s)

    async def _after(self, seconds: float, server: SimServer, model: str, state: ModelState) -> None:
        await asyncio.sleep(seconds)
        self._set(self.find(server.name), model, state)

    def _set(self, server: SimServer, model: str, state: ModelState) -> None:
        server.models[model] = state
        self.sync().configure(server.row, self._index[model], state, list(server.counts(state).values()))
        self._record_usage(server)

    def write_routes(self, table: RouteTable) -> None:
        """Route requests by this table from now on."""
        self._table = table
        self._reroute()
        self._record_kinds()
        simulation = self.sync()
        for model, index in self._index.items():
            simulation.limit(index, table.models.get(model, ModelRoute()).limit)

    def _reroute(self) -> None:
        simulation = self.sync()
        for model, index in self._index.items():
            targets = self.targets(model)
            weights = self._table.models.get(model, ModelRoute()).weights
            simulation.route(index, [self._servers[name].row for name in targets], [weights.get(name, 1) for name in targets])

    def targets(self, model: str) -> tuple[str, ...]:
        """Live servers in the model's routes."""
        return tuple(e.server for e in self._table.models.get(model, ModelRoute()).targets if self.is_alive(e.server))

    async def wait_idle(self, name: str, timeout_s: float) -> bool:
        """Wait until the server has been idle for `drain_quiet_s`; False after the time-out."""
        deadline_s, idle_since_s = self.now_s() + timeout_s, self.now_s()
        while self.now_s() < deadline_s:
            if not self.is_alive(name):
                return True
            if self.sync().inside(self.find(name).row):
                idle_since_s = self.now_s()
            elif self.now_s() - idle_since_s >= self._world.drain_quiet_s:
                return True
            await asyncio.sleep(DRAIN_POLL_S)
        return False

    def kill(self, name: str) -> None:
        """Kill the process, on all its devices; its requests are retried on others of the routes."""
        server = self.find(name)
        server.alive = False
        self._reroute()
        self.sync().evict(server.row)
        for device in [device for device in server.rows if device != server.home]:
            self._give_back(server, device)
        self._record_usage(server)
        self._record_kinds()

    async def stop(self, name: str) -> None:
        """End the process and free its slot."""
        if self.is_alive(name):
            await asyncio.sleep(self._world.stop_s)
        if self.is_alive(name):
            self.kill(name)
        server = self._servers.pop(name, None)
        if server is not None:
            self._rows.give_back([server.row])

    def _record_usage(self, changed: SimServer) -> None:
        """Note what all live servers cost from now on; one of them has changed."""
        changed.instances = sum(state.instances for state in changed.models.values())
        changed.price = running_price([changed.models], self.config)
        live = [server for server in self._servers.values() if server.alive]
        instances, price = sum(server.instances for server in live), sum(server.price for server in live)
        self.usage.append(Usage(self.now_s(), len(live), instances, price))

    def _record_kinds(self) -> None:
        """Note what the live servers are there for; a launched one is draining once it has left the routes."""
        routed = {endpoint.server for endpoint in self._table.any}
        for server in self._servers.values():
            server.routed |= server.name in routed
        kinds = tuple(self._kind(server, routed) for server in self._servers.values() if server.alive)
        if not self.kinds or self.kinds[-1][1] != kinds:
            self.kinds.append((self.now_s(), kinds))

    def _kind(self, server: SimServer, routed: Collection[str]) -> ServerKind:
        if server.number < len(self.config.servers):
            return ServerKind.ADOPTED
        if server.name in routed:
            return ServerKind.LAUNCHED
        return ServerKind.DRAINING if server.routed else ServerKind.STARTING
