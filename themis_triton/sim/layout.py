"""The layout of a simulated world, and the arrays of a simulation's state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from themis_triton.core.estimate import RequestSize
from themis_triton.sim import state as columns
from themis_triton.sim.state import NONE, Engine
from themis_triton.sim.world import Dispatcher, ServiceNoise, Sharing, SimWorld
from themis_triton.solver.surface import FloatArray, IntArray

BOUNDS_MS: tuple[float, ...] = (*(float(bound) for bound in 10.0 ** np.linspace(0.0, 5.0, 121)), float("inf"))
"""Bounds of the latency histograms; successive bounds differ by a tenth."""
Arrays = dict[str, npt.NDArray[Any]]
_NOISES = {
    ServiceNoise.NONE: columns.STEADY,
    ServiceNoise.LOGNORMAL: columns.LOGNORMAL,
    ServiceNoise.EXPONENTIAL: columns.EXPONENTIAL,
}


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What can exist. `surfaces_ms[m]` is `l(b, k)` as [batch, k], all of one shape; `chains[p]` are model indexes.

    `devices[s]` is the device index of row s, which a server may use; `max_running` bounds the running batches of one device.
    `follows[p]`: the stages of pipeline p that wait for each other, as (earlier, later); None, or all empty: each for the one before it.
    `per_request[p]` and `sequential[p]`: how many requests of each stage a request makes, and whether in turn; empty: one each.
    `max_per_request[p]`: the most that one makes, where they differ; empty: as many as in the mean.
    `sizes[m]`: those of its requests, of which `surfaces_ms` has batches; empty: each has one row.
    `deprioritize_after_s[m]`: a request that waited longer for model m is served after all others; empty: disabled.
    """

    surfaces_ms: FloatArray
    chains: tuple[tuple[int, ...], ...]
    devices: tuple[int, ...]
    max_running: int
    deprioritize_after_s: tuple[float, ...] = ()
    follows: tuple[tuple[tuple[int, int], ...] | None, ...] = ()
    per_request: tuple[tuple[float, ...], ...] = ()
    sequential: tuple[tuple[bool, ...], ...] = ()
    max_per_request: tuple[tuple[float, ...], ...] = ()
    sizes: tuple[RequestSize, ...] = ()


def build_engine(layout: Layout, world: SimWorld, arrival_s: FloatArray, pipeline: IntArray, seed: int) -> Engine:
    """The state at the start: no server, no request."""
    requests = _requests(layout, arrival_s, pipeline)
    return Engine(
        service_s=np.ascontiguousarray(layout.surfaces_ms * (world.service_factor / 1000.0)),
        chains=_padded(layout.chains, NONE),
        per_request=_padded(_per_request(layout), 1.0).astype(np.float64),
        most_calls=np.rint(_padded(_most(layout), 1.0)).astype(np.int64),
        sequential=_padded(_sequential(layout), 0).astype(np.int64),
        bounds_s=np.array(BOUNDS_MS) / 1000.0,
        seed=np.random.SeedSequence(seed).generate_state(1, dtype=np.uint64) | np.uint64(1),
        **requests,
        **_rows(layout),
        **_queues(layout, world),
        **_batches(layout),
        **_scalars(layout, world, len(requests["rows"]) - max_calls(layout, pipeline)),
    )


def _padded(rows: Sequence[Sequence[float]], end: float) -> npt.NDArray[Any]:
    """The rows as one array; after the last stage of each, one `end` at least."""
    longest = max(len(row) for row in rows) + 1
    return np.array([[*row, *[end] * (longest - len(row))] for row in rows])


def _per_request(layout: Layout) -> Sequence[Sequence[float]]:
    return layout.per_request or [[1.0] * len(chain) for chain in layout.chains]


def _most(layout: Layout) -> Sequence[Sequence[float]]:
    return layout.max_per_request or _per_request(layout)


def _sequential(layout: Layout) -> Sequence[Sequence[bool]]:
    return layout.sequential or [[False] * len(chain) for chain in layout.chains]


def max_calls(layout: Layout, pipeline: IntArray) -> int:
    """The most calls at once that the requests of these pipelines make, all stages together."""
    at_once = [
        sum(math.ceil(calls) for calls, turns in zip(*rows, strict=True) if calls > 1.0 and not turns)
        for rows in zip(_most(layout), _sequential(layout), strict=True)
    ]
    return int(np.array(at_once, dtype=np.int64)[pipeline].sum())


def _requests(layout: Layout, arrival_s: FloatArray, pipeline: IntArray) -> Arrays:
    count, follows = arrival_s.size, _follows(layout)
    # A request of a graph has a row for each stage behind those of all requests.
    pairs = layout.follows or (None,) * len(layout.chains)
    stages = np.array([0 if own is None else len(chain) for chain, own in zip(layout.chains, pairs, strict=True)], dtype=np.int64)
    more = stages[pipeline]
    request = np.concatenate([np.arange(count), np.repeat(np.arange(count), more)])
    rows = _ints(request.size, 7)
    rows[:, columns.REQUEST] = request
    rows[:, columns.CALLER] = NONE
    rows[:count, columns.FIRST_ROW] = np.where(more > 0, count + np.cumsum(more) - more, NONE)
    rows[count:, columns.STAGE] = np.arange(count, request.size) - rows[request[count:], columns.FIRST_ROW]
    rows[:, columns.AWAITED] = follows.sum(axis=1)[pipeline[request], rows[:, columns.STAGE]]
    rows[:count, columns.LEFT] = more
    rows = np.concatenate([rows, _ints(max_calls(layout, pipeline), 7)])
    return {
        "arrival_s": np.ascontiguousarray(arrival_s, dtype=np.float64),
        "pipeline": np.ascontiguousarray(pipeline, dtype=np.int64),
        "rows": rows,
        "following": _ints(len(rows)),
        "entered_s": np.zeros(len(rows)),
        "ended_s": np.full(count, np.inf),
        "failed": _ints(count),
        "follows": follows,
    }


def _follows(layout: Layout) -> IntArray:
    longest = max(len(chain) for chain in layout.chains)
    follows = _ints(len(layout.chains), longest, longest)
    for p, pairs in enumerate(layout.follows):
        for earlier, later in pairs or ():
            follows[p, earlier, later] = 1
    return follows


def _rows(layout: Layout) -> Arrays:
    models, batch, _ = layout.surfaces_ms.shape
    cells = (len(layout.devices), models)
    return {
        "device": np.array(layout.devices, dtype=np.int64),
        "owner": np.arange(len(layout.devices), dtype=np.int64),
        "sibling": np.full(len(layout.devices), NONE, dtype=np.int64),
        "routed": _ints(*cells),
        "instances": _ints(*cells),
        "max_batch": np.ones(cells, dtype=np.int64),
        "delay_s": np.zeros(cells),
        "busy": _ints(*cells),
        "outstanding": _ints(*cells),
        "idle_s": np.full(cells, -np.inf),
        "served": np.zeros((*cells, columns.BY_SIZE + 2 * batch)),
        "routes": _ints(models, 5),
        "limits": np.full((models, 4), np.inf),
        "histogram": _ints(models, len(BOUNDS_MS)),
    }


def _queues(layout: Layout, world: SimWorld) -> Arrays:
    models = layout.surfaces_ms.shape[0]
    count = models if world.dispatcher is Dispatcher.CENTRAL else len(layout.devices) * models
    chains = {name: _ints(count) for name in ("head", "tail", "length", "deprioritized_head", "deprioritized_tail", "deprioritized")}
    deprioritize_after_s = np.array(layout.deprioritize_after_s or [np.inf] * models, dtype=np.float64)
    return {**chains, "timer_s": np.full(count, np.inf), "deprioritize_after_s": deprioritize_after_s}


def _batches(layout: Layout) -> Arrays:
    devices = max(layout.devices) + 1
    count = devices * layout.max_running
    return {
        "batch_row": _ints(count, 2),
        "batch_head": _ints(count),
        "batch_size": _ints(count),
        "batch_left": np.zeros(count),
        "batch_whole_s": np.ones(count),
        "batch_factor": np.ones(count),
        "batch_start_s": np.zeros(count),
        "free": np.arange(count, dtype=np.int64)[::-1].copy(),
        "running": _ints(devices, layout.max_running),
        "under_way": _ints(devices),
        "settled_s": np.zeros(devices),
        "end_s": np.full(devices, np.inf),
        "first": _ints(devices),
    }


def _scalars(layout: Layout, world: SimWorld, first_call: int) -> Arrays:
    ints = np.zeros(10, dtype=np.int64)
    ints[columns.FREE] = (max(layout.devices) + 1) * layout.max_running
    ints[[columns.CROSSING_HEAD, columns.CROSSING_TAIL]] = NONE
    ints[columns.NEXT_CALL] = first_call
    ints[columns.CENTRAL] = world.dispatcher is Dispatcher.CENTRAL
    ints[columns.CORES] = world.sharing is Sharing.CORES
    ints[columns.NOISE] = _NOISES[world.noise]
    return {"ints": ints, "floats": np.array([0.0, world.hop_s, world.noise_cv, np.inf, 1.0])}


def _ints(*shape: int) -> IntArray:
    return np.zeros(shape, dtype=np.int64)
