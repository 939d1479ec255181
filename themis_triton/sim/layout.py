"""The layout of a simulated world, and the arrays of a simulation's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
    `deprioritize_after_s[m]`: a request that waited longer for model m is served after all others; empty: disabled.
    """

    surfaces_ms: FloatArray
    chains: tuple[tuple[int, ...], ...]
    devices: tuple[int, ...]
    max_running: int
    deprioritize_after_s: tuple[float, ...] = ()


def build_engine(layout: Layout, world: SimWorld, arrival_s: FloatArray, pipeline: IntArray, seed: int) -> Engine:
    """The state at the start: no server, no request."""
    return Engine(
        service_s=np.ascontiguousarray(layout.surfaces_ms * (world.service_factor / 1000.0)),
        chains=_chains(layout),
        bounds_s=np.array(BOUNDS_MS) / 1000.0,
        seed=np.random.SeedSequence(seed).generate_state(1, dtype=np.uint64) | np.uint64(1),
        **_requests(arrival_s, pipeline),
        **_rows(layout),
        **_queues(layout, world),
        **_batches(layout),
        **_scalars(layout, world),
    )


def _chains(layout: Layout) -> IntArray:
    longest = max(len(chain) for chain in layout.chains) + 1
    return np.array([[*chain, *[NONE] * (longest - len(chain))] for chain in layout.chains], dtype=np.int64)


def _requests(arrival_s: FloatArray, pipeline: IntArray) -> Arrays:
    count = arrival_s.size
    return {
        "arrival_s": np.ascontiguousarray(arrival_s, dtype=np.float64),
        "pipeline": np.ascontiguousarray(pipeline, dtype=np.int64),
        "stage": _ints(count),
        "following": _ints(count),
        "entered_s": np.zeros(count),
        "ended_s": np.full(count, np.inf),
        "failed": _ints(count),
    }


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
        "routes": _ints(models, 4),
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


def _scalars(layout: Layout, world: SimWorld) -> Arrays:
    ints = np.zeros(9, dtype=np.int64)
    ints[columns.FREE] = (max(layout.devices) + 1) * layout.max_running
    ints[[columns.CROSSING_HEAD, columns.CROSSING_TAIL]] = NONE
    ints[columns.CENTRAL] = world.dispatcher is Dispatcher.CENTRAL
    ints[columns.CORES] = world.sharing is Sharing.CORES
    ints[columns.NOISE] = _NOISES[world.noise]
    return {"ints": ints, "floats": np.array([0.0, world.hop_s, world.noise_cv, np.inf, 1.0])}


def _ints(*shape: int) -> IntArray:
    return np.zeros(shape, dtype=np.int64)
