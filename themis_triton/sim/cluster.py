"""The virtual cluster: servers by name in the simulation's places, and the virtual duration of operations on them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from themis_triton.core.config import ModelConfig, ThemisConfig
from themis_triton.core.errors import ChangeRefusedError, LaunchFailedError, ServerError
from themis_triton.core.fleet import ModelState
from themis_triton.core.price import running_price
from themis_triton.core.routes import ModelRoute, RouteTable
from themis_triton.sim.engine import Simulation
from themis_triton.sim.world import Dispatcher, Sharing, SimWorld

DRAIN_POLL_S = 0.05
IDLE_POLL_S = 0.02
PROCESS_S = 0.05
"""Time to write a new server's files and to start its process."""


@dataclass(slots=True)
class SimServer:
    """A process in the cluster: its place in the simulation and its models."""

    name: str
    place: int
    models: dict[str, ModelState]
    alive: bool = True
    locks: dict[str, asyncio.Lock] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Servers and instances from `at_s` until the next entry, and their cost per second."""

    at_s: float
    servers: int
    instances: int
    cost: float


class Cluster:
    """Changes take the profiles' times (or the world's); those of one model on one server queue behind each other, as Triton's do.

    A change of counts ends, as Triton's, only once an instance has found nothing to take; added instances
    serve one initialisation after the call, and removed ones until then.
    """

    def __init__(self, config: ThemisConfig, world: SimWorld, simulation: Simulation, seed: int) -> None:
        self.config = config
        self.usage: list[Usage] = []
        self._world = world
        self._simulation = simulation
        self._index = {model: number for number, model in enumerate(config.models)}
        self._servers: dict[str, SimServer] = {}
        self._free = list(range(simulation.engine.device.size))[::-1]
        self._adopted = len(config.servers)
        self._rng = np.random.default_rng((seed, 1))
        self._table = RouteTable({}, ())
        self._starting = 0

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

    def start(self, name: str, place: int, models: dict[str, ModelState]) -> None:
        """Start a process; it has a cost from now on, and serves after `hold`."""
        if place not in self._free:
            raise LaunchFailedError(f"server {name}: another server uses its slot; stop that one first")
        self._free.remove(place)
        self._servers[name] = SimServer(name, place, dict(models))
        self._record_usage()

    def hold(self, name: str) -> None:
        """Load the server's models."""
        server, simulation = self.find(name), self.sync()
        for model, state in server.models.items():
            simulation.configure(server.place, self._index[model], state)

    async def change(self, name: str, model: str, state: ModelState) -> ModelState:
        """One load of a model: a reload if batching changes (not with a central queue), a growth, or a shrink one instance at a time."""
        server = self.find(name)
        async with server.locks.setdefault(model, asyncio.Lock()):
            await asyncio.sleep(self._world.control_s)
            if model not in self.find(name).models:
                raise ChangeRefusedError(f"server {name} does not serve model {model}")
            before = self.find(name).models[model]
            self._maybe_refuse(name, model)
            if self._world.dispatcher is Dispatcher.CENTRAL:
                before = self._rebatch_queue(server, model, before, state)
            if state == before:
                return state
            if self._world.dispatcher is not Dispatcher.CENTRAL and _batching(state) != _batching(before):
                await self._after(self.reload_s(model), server, model, state)
            elif state.instances > before.instances:
                await self._grow(server, model, state, state.instances - before.instances)
            else:
                await self._shrink(server, model, before, state)
            return self.find(name).models[model]

    def _rebatch_queue(self, server: SimServer, model: str, before: ModelState, state: ModelState) -> ModelState:
        """A central queue forms batches, so their limit changes at once; a larger one together with the cores that it was planned for."""
        batch = min(before.max_batch, state.max_batch) if state.instances > before.instances else state.max_batch
        now = ModelState(before.instances, batch, state.max_queue_delay_us)
        if now != before:
            self._set(server, model, now)
        return now

    def _maybe_refuse(self, name: str, model: str) -> None:
        if self._world.refuse_share > 0.0 and self._rng.random() < self._world.refuse_share:
            raise ChangeRefusedError(f"{model} on {name}: an instance failed to initialise (injected)")

    async def _grow(self, server: SimServer, model: str, state: ModelState, added: int) -> None:
        self._starting += added
        try:
            late_s = (self._starting - 1) * self._world.init_work_s / self._world.host_cores
            await self._after(self.grow_s(model) + late_s, server, model, state)
        finally:
            self._starting -= added
        await self._queue_empty(server, model)

    async def _queue_empty(self, server: SimServer, model: str) -> None:
        """Wait until an instance has found nothing to take. A central queue is not the server's."""
        since_s = self.now_s()
        while self._world.dispatcher is Dispatcher.PER_SERVER:
            place = self.find(server.name).place
            if self.sync().was_idle_since(place, self._index[model], since_s):
                return
            await asyncio.sleep(IDLE_POLL_S)

    async def _shrink(self, server: SimServer, model: str, before: ModelState, state: ModelState) -> None:
        """An instance takes no more work once its teardown begins; cores are removed all at once."""
        profile = self.config.models[model].profile
        stop_s = profile.instance_stop_s if self._world.shrink_s is None else self._world.shrink_s
        if self._world.sharing is Sharing.CORES:
            await self._after(stop_s, server, model, state)
            return
        for count in range(before.instances - 1, state.instances - 1, -1):
            await self._queue_empty(server, model)
            self._set(self.find(server.name), model, ModelState(count, state.max_batch, state.max_queue_delay_us))
            await asyncio.sleep(stop_s)

    async def _after(self, seconds: float, server: SimServer, model: str, state: ModelState) -> None:
        await asyncio.sleep(seconds)
        self._set(self.find(server.name), model, state)

    def _set(self, server: SimServer, model: str, state: ModelState) -> None:
        server.models[model] = state
        self.sync().configure(server.place, self._index[model], state)
        self._record_usage()

    def grow_s(self, model: str) -> float:
        """Duration of a growth: new instances initialise at the same time."""
        return self.config.models[model].profile.instance_init_s if self._world.grow_s is None else self._world.grow_s

    def reload_s(self, model: str) -> float:
        """Duration of a reload: all instances of the new version initialise, then the versions swap."""
        return self.grow_s(model) if self._world.reload_s is None else self._world.reload_s

    def launch_s(self, models: Iterable[str]) -> float:
        """Duration from the launch until the models are loaded: that of the slowest, its instances included."""
        if self._world.cold_start_s is not None:
            return max(0.0, self._world.cold_start_s - PROCESS_S)
        profiles = [self.config.models[model].profile for model in models]
        return max(profile.server_launch_s + profile.instance_init_s for profile in profiles)

    def warm_up_s(self, models: dict[str, ModelState]) -> float:
        """Duration of the warm-up: rounds at batch sizes 1, 2, 4 … on all instances at once, for all models in parallel."""
        if self._world.cold_start_s is not None or self.config.launch is None:
            return 0.0
        rounds = self.config.launch.warmup_requests
        return rounds * max((self._rounds_s(self.config.models[name], state) for name, state in models.items()), default=0.0)

    def _rounds_s(self, model: ModelConfig, state: ModelState) -> float:
        service_s = self._simulation.engine.service_s[self._index[model.name]]
        batches = {*(2**exponent for exponent in range(state.max_batch.bit_length())), state.max_batch}
        column = min(state.instances, service_s.shape[1]) - 1
        return sum(float(service_s[batch - 1, column]) for batch in batches if batch <= state.max_batch)

    def write_routes(self, table: RouteTable) -> None:
        """Route requests by this table from now on."""
        self._table = table
        self._reroute()

    def _reroute(self) -> None:
        simulation = self.sync()
        for model, index in self._index.items():
            simulation.route(index, tuple(self._servers[name].place for name in self.targets(model)))

    def targets(self, model: str) -> tuple[str, ...]:
        """Live servers in the model's routes."""
        return tuple(e.server for e in self._table.models.get(model, ModelRoute()).targets if self.is_alive(e.server))

    async def wait_idle(self, name: str, timeout_s: float) -> bool:
        """Wait until the server has been idle for `drain_quiet_s`; False after the time-out."""
        deadline_s, idle_since_s = self.now_s() + timeout_s, self.now_s()
        while self.now_s() < deadline_s:
            if not self.is_alive(name):
                return True
            if self.sync().inside(self.find(name).place):
                idle_since_s = self.now_s()
            elif self.now_s() - idle_since_s >= self._world.drain_quiet_s:
                return True
            await asyncio.sleep(DRAIN_POLL_S)
        return False

    def kill(self, name: str) -> None:
        """Kill the process; its requests are retried on others of the routes."""
        server = self.find(name)
        server.alive = False
        self._reroute()
        self.sync().evict(server.place)
        self._record_usage()

    async def stop(self, name: str) -> None:
        """End the process and free its place."""
        if self.is_alive(name):
            await asyncio.sleep(self._world.stop_s)
        if self.is_alive(name):
            self.kill(name)
        server = self._servers.pop(name, None)
        if server is not None:
            self._free.append(server.place)

    def _record_usage(self) -> None:
        live = [server.models for server in self._servers.values() if server.alive]
        instances = sum(state.instances for models in live for state in models.values())
        self.usage.append(Usage(self.now_s(), len(live), instances, running_price(live, self.config)))


def _batching(state: ModelState) -> tuple[int, int]:
    return state.max_batch, state.max_queue_delay_us
