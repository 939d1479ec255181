"""The compiled simulation as an object: built from a layout, advanced, changed and read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from themis_triton.core.estimate import ONE_ROW, RequestSize
from themis_triton.core.fleet import ModelState
from themis_triton.core.observation import BatchCounters, LatencyHistogram, ModelCounters
from themis_triton.core.routes import RouteLimit
from themis_triton.sim import dispatch, kernels
from themis_triton.sim import state as columns
from themis_triton.sim.layout import BOUNDS_MS, Layout, build_engine
from themis_triton.sim.state import NONE
from themis_triton.sim.world import Dispatcher, Sharing, SimWorld
from themis_triton.solver.surface import FloatArray, IntArray


class Simulation:
    """Requests through servers and stages. `arrival_s` is ascending; `pipeline[r]` is the chain of request r."""

    def __init__(self, layout: Layout, world: SimWorld, arrival_s: FloatArray, pipeline: IntArray, seed: int) -> None:
        self.models = layout.surfaces_ms.shape[0]
        self._world, self._sizes = world, layout.sizes or (ONE_ROW,) * self.models
        self.engine = build_engine(layout, world, arrival_s, pipeline, seed)
        self._first_routed = [NONE] * self.models
        self._now_s = -1.0

    def advance(self, until_s: float) -> None:
        """Process all events until a time."""
        if until_s > self._now_s:
            kernels.advance(self.engine, until_s)
            self._now_s = until_s

    def rows(self, server: int) -> list[int]:
        """The rows of a server; it is known by the first."""
        rows = [server]
        while (row := int(self.engine.sibling[rows[-1]])) != NONE:
            rows.append(row)
        return rows

    def attach(self, server: int, row: int) -> None:
        """Give a server one more row, its last: instances there serve its queues. It has none until `configure`."""
        self.engine.sibling[self.rows(server)[-1]] = row
        self.engine.owner[row] = server

    def detach(self, server: int, row: int) -> None:
        """Take a row that is idle and has no instances from a server."""
        before = next(each for each in self.rows(server) if self.engine.sibling[each] == row)
        self.engine.sibling[before] = self.engine.sibling[row]
        self.engine.sibling[row], self.engine.owner[row] = NONE, row

    def configure(self, server: int, model: int, state: ModelState, counts: Sequence[int] | None = None) -> None:
        """Change a model's instances and batching on a server, now; `counts`: its instances on each row of a server that has several."""
        central = self._world.dispatcher is Dispatcher.CENTRAL
        delay_s = self._world.central_delay_s if central else state.max_queue_delay_us / 1e6
        instances = np.array([state.instances] if counts is None else counts, dtype=np.int64)
        kernels.configure(self.engine, server, model, instances, self._sizes[model].fitting(state.max_batch), delay_s)

    def slow_down(self, factor: float) -> None:
        """Multiply all service times by a factor from now on."""
        kernels.slow_down(self.engine, factor)

    def route(self, model: int, servers: Sequence[int], weights: Sequence[int] = ()) -> None:
        """Send a model's requests to these servers from now on, by their weights if any; what waits at others is served there."""
        self.engine.routed[:, model] = 0
        self.engine.routed[list(servers), model] = weights or 1
        self._first_routed[model] = min(servers, default=NONE)
        if self._world.dispatcher is Dispatcher.CENTRAL:
            dispatch.offer(self.engine, model, self.engine.floats[columns.NOW_S])

    def limit(self, model: int, limit: RouteLimit | None) -> None:
        """Admit so many requests of a model from now on; a changed limit begins with all of its tokens, as the proxy's does."""
        row = self.engine.limits[model]
        if limit is None:
            row[columns.LIMIT_RPS] = np.inf
        elif (limit.requests_per_s, limit.burst) != (row[columns.LIMIT_RPS], row[columns.MOST_TOKENS]):
            row[:] = limit.requests_per_s, limit.burst, limit.burst, self.engine.floats[columns.NOW_S]

    def evict(self, server: int) -> None:
        """End a server at once; its requests go to others of the routes, or fail."""
        self.engine.routed[server] = 0
        self._first_routed = [_first(self.engine.routed[:, model]) for model in range(self.models)]
        kernels.evict(self.engine, server)

    def inside(self, server: int) -> int:
        """Waiting requests and running batches of a server; 0 when it is idle."""
        models = range(self.models)
        queued = (
            0 if self._world.dispatcher is Dispatcher.CENTRAL else sum(int(self.engine.length[server * self.models + m]) for m in models)
        )
        return queued + sum(self.busy(row) for row in self.rows(server))

    def busy(self, row: int) -> int:
        """Running batches of a row."""
        return int(self.engine.busy[row].sum())

    def was_idle_since(self, server: int, model: int, at_s: float) -> bool:
        """Whether an instance has had nothing to take at some moment since then: it was free and the queue empty."""
        engine, queue = self.engine, server * self.models + model
        free = any(engine.busy[row, model] < engine.instances[row, model] for row in self.rows(server))
        return bool(engine.idle_s[server, model] >= at_s or (free and engine.length[queue] == 0))

    def counters(self, server: int, model: int) -> ModelCounters:
        """Counters as Triton's. The first routed server shows the central queue; replicas with cores have no counters by batch size."""
        served, size = self.engine.served[server, model].tolist(), self._sizes[model]
        return ModelCounters(
            success=served[columns.SUCCESS],
            inferences=size.rows * served[columns.INFERENCES],
            executions=served[columns.EXECUTIONS],
            request_us=served[columns.QUEUE_US] + served[columns.COMPUTE_US],
            queue_us=served[columns.QUEUE_US],
            compute_infer_us=served[columns.COMPUTE_US],
            pending=float(self._pending(server, model)),
            batches=() if self._world.sharing is Sharing.CORES else _by_size(served[columns.BY_SIZE :], size),
        )

    def _pending(self, server: int, model: int) -> int:
        if self._world.dispatcher is Dispatcher.PER_SERVER:
            return int(self.engine.length[server * self.models + model])
        return int(self.engine.length[model]) if server == self._first_routed[model] else 0

    def route_counts(self, model: int) -> tuple[int, int, int]:
        """Counters as the proxy's: total arrivals, requests in flight, total failures."""
        row = self.engine.routes[model]
        return int(row[columns.ARRIVALS]), int(row[columns.IN_FLIGHT]), int(row[columns.FAILURES])

    def refused(self, model: int) -> int:
        """Requests that the model's limit has refused."""
        return int(self.engine.routes[model, columns.REFUSALS])

    def latency(self, model: int) -> LatencyHistogram:
        """Cumulative histogram of all answers of a model."""
        return LatencyHistogram(BOUNDS_MS, tuple(np.cumsum(self.engine.histogram[model], dtype=np.float64).tolist()))

    @property
    def events(self) -> int:
        """The number of events so far: arrivals, crossings, ends of batches and expired delays."""
        return int(self.engine.ints[columns.EVENTS])

    @property
    def unfinished(self) -> int:
        """Requests that have not ended, future arrivals included."""
        return int(np.count_nonzero(np.isinf(self.engine.ended_s)))


def _by_size(values: list[float], size: RequestSize) -> tuple[BatchCounters, ...]:
    """Pairs of batches and their µs by requests in a batch, as counters by rows; what was never executed is omitted."""
    pairs = enumerate(zip(values[::2], values[1::2], strict=True), 1)
    return tuple(BatchCounters(size.rows_of(requests), executions, us) for requests, (executions, us) in pairs if executions)


def _first(routed: IntArray) -> int:
    return int(routed.argmax()) if routed.any() else NONE
