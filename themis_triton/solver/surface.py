"""Latency surfaces as arrays: measured tables, the contention form of instances that share a device, and the paper's form of cores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from themis_triton.core.config import LatencyTable
from themis_triton.core.errors import SolverError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """Service time in ms at the SLO's percentile: `latency_ms[b - 1, k - 1]`, float64, C-contiguous, read-only.

    `b` is the batch size. `k` is the number of instances busy in total on the device, or with the paper's rule the cores of the replica.
    """

    latency_ms: FloatArray

    def __post_init__(self) -> None:
        """Reject what no solver could use. SolverError when the array is empty, not two-dimensional, not finite or not positive."""
        array = np.array(self.latency_ms, dtype=np.float64, order="C", copy=True)
        if array.ndim != 2 or array.size == 0:
            raise SolverError(f"a latency surface needs a shape of (batches, instances), both at least 1; found {array.shape}")
        if not np.all(np.isfinite(array)) or not np.all(array > 0):
            raise SolverError("a latency surface needs finite service times above 0 ms in every cell; measure the model again")
        array.setflags(write=False)
        object.__setattr__(self, "latency_ms", array)

    @property
    def max_batch(self) -> int:
        """Largest batch size that the surface covers."""
        return int(self.latency_ms.shape[0])

    @property
    def max_busy(self) -> int:
        """Largest number of busy instances (or cores) that the surface covers."""
        return int(self.latency_ms.shape[1])

    def extended(self, max_batch: int, max_busy: int) -> FloatArray:
        """The array for at least these sizes: beyond the table, linear from the last two points and never below the last."""
        batches = _extend(self.latency_ms, max(0, max_batch - self.max_batch))
        return np.ascontiguousarray(_extend(batches.T, max(0, max_busy - self.max_busy)).T)

    def of_groups(self, rows: float, groups: int) -> Surface:
        """The surface whose batch sizes 1..groups have this many rows each: linear between rows, beyond the last as `extended`."""
        places = np.arange(1, groups + 1) * rows - 1.0
        array = self.extended(math.ceil(places[-1]) + 1, self.max_busy)
        low = np.floor(places).astype(np.int64)
        share = (places - low)[:, None]
        return Surface(array[low] + share * (array[np.minimum(low + 1, len(array) - 1)] - array[low]))


def surface_from_table(table: LatencyTable, max_batch: int, max_busy: int, *, monotone: bool = True) -> Surface:
    """Interpolate a measured table linearly to all batches 1..max_batch and 1..max_busy busy instances.

    Below the first measured point the first value holds (never less than measured). Where noise made a larger batch or more
    busy instances look faster, the value is raised to the largest before it; not so where `monotone` is false, as for cores, which
    do make a batch faster. SolverError when the table's shape is wrong.
    """
    batches, busy = np.asarray(table.batches, dtype=np.float64), np.asarray(table.instances, dtype=np.float64)
    values = np.asarray(table.latency_ms, dtype=np.float64)
    if values.shape != (batches.size, busy.size) or values.size == 0:
        raise SolverError(f"a latency table needs {batches.size} × {busy.size} values (batches × instances); found shape {values.shape}")
    if np.any(np.diff(batches) <= 0) or np.any(np.diff(busy) <= 0) or batches[0] < 1 or busy[0] < 1:
        raise SolverError("a latency table's batches and instances must rise strictly from at least 1")
    over_busy = _resample(values.T, busy, max_busy).T
    full = _resample(over_busy, batches, max_batch)
    return Surface(np.maximum.accumulate(np.maximum.accumulate(full, axis=0), axis=1) if monotone else full)


def contention_surface(alpha: float, beta: float, gamma: float, zeta: float, max_batch: int, max_busy: int) -> Surface:
    """Instances that share a device: `l(b, k) = α·b·k + β·b + γ·k + ζ` ms."""
    b, k = _grid(max_batch, max_busy)
    return Surface(alpha * b * k + beta * b + gamma * k + zeta)


def paper_surface(
    alpha: float, beta: float, gamma: float, zeta: float, *, m: float = 1.0, m_b: float = 1.0, max_batch: int = 4, max_cores: int = 4
) -> Surface:
    """The paper's surface of one replica on `c` cores, whole ms; see `paper_latency_ms`."""
    b, c = _grid(max_batch, max_cores)
    return Surface(np.asarray(paper_latency_ms(alpha, beta, gamma, zeta, m=m, m_b=m_b, batch=b, cores=c)))


def paper_latency_ms(
    alpha: float, beta: float, gamma: float, zeta: float, *, m: float, m_b: float, batch: FloatArray | float, cores: FloatArray | float
) -> FloatArray | np.float64:
    """The paper's latency of a batch of `b` on `c` cores, whole ms, for numbers or arrays.

    `l(b, c) = ⌈m·(α·b/c + m_b·β·b + γ/c + ⌈ζ'⌉)⌉` with `ζ' = ζ + (α + β + γ + ζ)/10`.
    """
    constant = math.ceil(zeta + (alpha + beta + gamma + zeta) / 10)
    latency: FloatArray | np.float64 = np.ceil(m * (alpha * batch / cores + m_b * beta * batch + gamma / cores + constant))
    return latency


def _grid(rows: int, columns: int) -> tuple[FloatArray, FloatArray]:
    return np.arange(1, rows + 1, dtype=np.float64)[:, None], np.arange(1, columns + 1, dtype=np.float64)[None, :]


def _extend(values: FloatArray, extra: int) -> FloatArray:
    if extra == 0:
        return values
    slope = np.maximum(values[-1] - values[-2], 0.0) if values.shape[0] > 1 else np.zeros_like(values[-1])
    steps = np.arange(1, extra + 1, dtype=np.float64)[:, None]
    return np.concatenate([values, values[-1][None, :] + steps * slope[None, :]])


def _resample(values: FloatArray, at: FloatArray, upto: int) -> FloatArray:
    """Rows of `values` stand at `at`; the result has rows 1..upto."""
    wanted = np.arange(1, upto + 1, dtype=np.float64)
    inside = np.stack([np.interp(wanted, at, values[:, column]) for column in range(values.shape[1])], axis=1)
    beyond = wanted > at[-1]
    if at.size > 1 and np.any(beyond):
        slope = np.maximum(values[-1] - values[-2], 0.0) / (at[-1] - at[-2])
        inside[beyond] = values[-1] + (wanted[beyond] - at[-1])[:, None] * slope
    return np.asarray(inside, dtype=np.float64)
