"""Service times of a model, fitted to Triton's counters of executed batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from themis_triton.core.observation import BatchCounters

ENOUGH_EXECUTIONS = 100
"""Executed batches of a model from which its service times are known well enough to act on."""
GUESS_MS = 10.0
_LEAST_MS = 0.01


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """A batch of b takes `per_request_ms · b + per_batch_ms`."""

    per_request_ms: float = 0.0
    per_batch_ms: float = GUESS_MS

    def of(self, batch: int) -> float:
        """The service time of a batch in ms."""
        return self.per_request_ms * batch + self.per_batch_ms


def executions_of(batches: Iterable[BatchCounters]) -> float:
    """Executed batches of any size."""
    return sum(batch.executions for batch in batches)


def fitted(batches: Iterable[BatchCounters]) -> ServiceTimes:
    """By least squares over the executed batches; a guess where there are too few.

    With one size only, all of the time is charged to the requests: larger batches are then never underestimated.
    """
    rows = [(batch.size, batch.executions, batch.compute_us / batch.executions / 1000.0) for batch in batches if batch.executions]
    total = sum(weight for _, weight, _ in rows)
    if total < ENOUGH_EXECUTIONS:
        return ServiceTimes()
    mean_size = sum(weight * size for size, weight, _ in rows) / total
    mean_ms = sum(weight * ms for _, weight, ms in rows) / total
    spread = sum(weight * (size - mean_size) ** 2 for size, weight, _ in rows)
    slope = sum(weight * (size - mean_size) * (ms - mean_ms) for size, weight, ms in rows) / spread if spread > 0 else mean_ms / mean_size
    beta_ms = min(max(0.0, slope), mean_ms / mean_size)
    return ServiceTimes(beta_ms, max(_LEAST_MS, mean_ms - beta_ms * mean_size))
