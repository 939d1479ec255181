"""The compiled simulation behind an object: built from a layout, moved on, changed and read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from themis_triton.core.fleet import ModelState
from themis_triton.core.observation import LatencyHistogram, ModelCounters
from themis_triton.sim import kernels
from themis_triton.sim import state as columns
from themis_triton.sim.state import NONE, Engine
from themis_triton.sim.world import Dispatcher, ServiceNoise, Sharing, SimWorld
from themis_triton.solver.surface import FloatArray, IntArray

BOUNDS_MS: tuple[float, ...] = (*(float(bound) for bound in 10.0 ** np.linspace(0.0, 5.0, 121)), float("inf"))
"""Bounds of the latency histograms, a tenth apart."""
_NOISES = {
    ServiceNoise.NONE: columns.STEADY,
    ServiceNoise.LOGNORMAL: columns.LOGNORMAL,
    ServiceNoise.EXPONENTIAL: columns.EXPONENTIAL,
}


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What there can be. `surfaces_ms[m]` is `l(b, k)` as [batch, k], all of one shape; `chains[p]` are model indexes.

    `devices[s]` is the device index of the place s for a server; `most_running` bounds the batches under way on one device.
    """

    surfaces_ms: FloatArray
    chains: tuple[tuple[int, ...], ...]
    devices: tuple[int, ...]
    most_running: int


class Simulation:
    """Requests through servers and stages. `arrival_s` is ascending; `pipeline[r]` is the chain of request r."""

    def __init__(self, layout: Layout, world: SimWorld, arrival_s: FloatArray, pipeline: IntArray, seed: int) -> None:
        self.models = layout.surfaces_ms.shape[0]
        self._world = world
        self.engine = _built(layout, world, arrival_s, pipeline, seed)

    def advance(self, until_s: float) -> None:
        """Let everything happen that is due until then."""
        kernels.advance(self.engine, until_s)

    def configure(self, server: int, model: int, state: ModelState) -> None:
        """Change what a server runs for a model, now."""
        central = self._world.dispatcher is Dispatcher.CENTRAL
        delay_s = self._world.central_delay_s if central else state.max_queue_delay_us / 1e6
        kernels.configure(self.engine, server, model, state.instances, state.max_batch, delay_s)

    def route(self, model: int, servers: tuple[int, ...]) -> None:
        """Send a model's requests to these servers from now on; what waits at others is served there."""
        self.engine.routed[:, model] = 0
        self.engine.routed[list(servers), model] = 1
        if self._world.dispatcher is Dispatcher.CENTRAL:
            kernels.offer(self.engine, model, self.engine.floats[columns.NOW_S])

    def evict(self, server: int) -> None:
        """The server is gone at once; what it held goes to others of the routes, or fails."""
        self.engine.routed[server] = 0
        kernels.evict(self.engine, server)

    def inside(self, server: int) -> int:
        """Requests that wait and batches under way on a server; 0 when it is idle."""
        models = range(self.models)
        queued = (
            0 if self._world.dispatcher is Dispatcher.CENTRAL else sum(int(self.engine.length[server * self.models + m]) for m in models)
        )
        return queued + int(self.engine.busy[server].sum())

    def counters(self, server: int, model: int) -> ModelCounters:
        """As Triton counts. What waits centrally is shown by the first routed server."""
        served = self.engine.served[server, model]
        return ModelCounters(
            success=float(served[columns.SUCCESS]),
            inferences=float(served[columns.INFERENCES]),
            executions=float(served[columns.EXECUTIONS]),
            request_us=float(served[columns.QUEUE_US] + served[columns.COMPUTE_US]),
            queue_us=float(served[columns.QUEUE_US]),
            compute_infer_us=float(served[columns.COMPUTE_US]),
            pending=float(self._pending(server, model)),
        )

    def _pending(self, server: int, model: int) -> int:
        if self._world.dispatcher is Dispatcher.PER_SERVER:
            return int(self.engine.length[server * self.models + model])
        routed = np.flatnonzero(self.engine.routed[:, model])
        return int(self.engine.length[model]) if routed.size and routed[0] == server else 0

    def route_counts(self, model: int) -> tuple[int, int, int]:
        """As Envoy counts: arrivals ever, in flight, failures ever."""
        row = self.engine.routes[model]
        return int(row[columns.ARRIVALS]), int(row[columns.IN_FLIGHT]), int(row[columns.FAILURES])

    def latency(self, model: int) -> LatencyHistogram:
        """Cumulative, of all answers of a model ever."""
        counts = np.cumsum(self.engine.histogram[model])
        return LatencyHistogram(BOUNDS_MS, tuple(float(count) for count in counts))

    @property
    def events(self) -> int:
        """Arrivals, crossings, ends of batches and expired delays so far."""
        return int(self.engine.ints[columns.EVENTS])

    @property
    def unfinished(self) -> int:
        """Requests that have not ended, those that have not arrived included."""
        return int(np.count_nonzero(np.isinf(self.engine.ended_s)))


def _built(layout: Layout, world: SimWorld, arrival_s: FloatArray, pipeline: IntArray, seed: int) -> Engine:
    models, places, requests = layout.surfaces_ms.shape[0], len(layout.devices), arrival_s.size
    devices = max(layout.devices) + 1
    batches = devices * layout.most_running
    queues = models if world.dispatcher is Dispatcher.CENTRAL else places * models
    longest = max(len(chain) for chain in layout.chains) + 1
    chains = np.array([[*chain, *[NONE] * (longest - len(chain))] for chain in layout.chains], dtype=np.int64)
    cells = (places, models)
    ints = np.zeros(9, dtype=np.int64)
    ints[columns.FREE] = batches
    ints[[columns.CROSSING_HEAD, columns.CROSSING_TAIL]] = NONE
    ints[columns.CENTRAL] = world.dispatcher is Dispatcher.CENTRAL
    ints[columns.CORES] = world.sharing is Sharing.CORES
    ints[columns.NOISE] = _NOISES[world.noise]
    floats = np.array([0.0, world.hop_s, world.noise_cv, np.inf])
    return Engine(
        service_s=np.ascontiguousarray(layout.surfaces_ms / 1000.0),
        chains=chains,
        arrival_s=np.ascontiguousarray(arrival_s, dtype=np.float64),
        pipeline=np.ascontiguousarray(pipeline, dtype=np.int64),
        stage=_ints(requests),
        following=_ints(requests),
        entered_s=np.zeros(requests),
        ended_s=np.full(requests, np.inf),
        failed=_ints(requests),
        device=np.array(layout.devices, dtype=np.int64),
        routed=_ints(*cells),
        instances=_ints(*cells),
        max_batch=np.ones(cells, dtype=np.int64),
        delay_s=np.zeros(cells),
        busy=_ints(*cells),
        outstanding=_ints(*cells),
        head=_ints(queues),
        tail=_ints(queues),
        length=_ints(queues),
        timer_s=np.full(queues, np.inf),
        batch_place=_ints(batches, 2),
        batch_head=_ints(batches),
        batch_size=_ints(batches),
        batch_left=np.zeros(batches),
        batch_whole_s=np.ones(batches),
        batch_factor=np.ones(batches),
        batch_start_s=np.zeros(batches),
        free=np.arange(batches, dtype=np.int64)[::-1].copy(),
        running=_ints(devices, layout.most_running),
        under_way=_ints(devices),
        settled_s=np.zeros(devices),
        end_s=np.full(devices, np.inf),
        first=_ints(devices),
        served=np.zeros((*cells, 5)),
        routes=_ints(models, 4),
        bounds_s=np.array(BOUNDS_MS) / 1000.0,
        histogram=_ints(models, len(BOUNDS_MS)),
        ints=ints,
        floats=floats,
        seed=np.random.SeedSequence(seed).generate_state(1, dtype=np.uint64) | np.uint64(1),
    )


def _ints(*shape: int) -> IntArray:
    return np.zeros(shape, dtype=np.int64)
