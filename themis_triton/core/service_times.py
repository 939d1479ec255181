"""Service times of a model, fitted to Triton's counters of executed batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from themis_triton.core.observation import BatchCounters

ENOUGH_EXECUTIONS = 100
"""Executed batches of a model from which its service times are known well enough to act on."""
LEVEL_EXECUTIONS = 30
"""Executed batches with one number of busy instances from which their times count for that number."""
UNSEEN_GROWTH = 0.5
"""With twice the busy instances that were seen, batches take at least this much longer: plans count on no more than twice what was seen."""
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


Contention = tuple[tuple[int, float], ...]
"""By number of busy instances, ascending: how many times as long batches take as the fitted service times say, never falling."""


def learnt(levels: Mapping[int, Iterable[BatchCounters]]) -> tuple[ServiceTimes, Contention]:
    """Service times fitted to the batches by the number of busy instances that they met, and how these slow each other.

    The times are those of the number with the most batches, or of all batches where that one has too few.
    """
    known = {level: tuple(batches) for level, batches in sorted(levels.items()) if executions_of(batches) >= LEVEL_EXECUTIONS}
    base = max(known, key=lambda level: executions_of(known[level]), default=None)
    if base is None or executions_of(known[base]) < ENOUGH_EXECUTIONS:
        return fitted(merged(levels.values())), ()
    times, largest, contention = fitted(known[base]), 0.0, []
    for level, batches in known.items():
        expected_ms = sum(batch.executions * times.of(batch.size) for batch in batches)
        largest = max(largest, sum(batch.compute_us for batch in batches) / 1000.0 / expected_ms)
        contention.append((level, largest))
    return times, tuple(contention)


def slowdown(contention: Contention, busy: int) -> float:
    """How many times as long batches take with so many busy instances: linear between those that were seen.

    Beyond the last it grows on as between the last two, and at least by `UNSEEN_GROWTH` for each further time as many.
    """
    if not contention or busy <= contention[0][0]:
        return contention[0][1] if contention else 1.0 + UNSEEN_GROWTH * (busy - 1)
    for (low, low_factor), (high, high_factor) in pairwise(contention):
        if busy <= high:
            return low_factor + (high_factor - low_factor) * (busy - low) / (high - low)
    last, factor = contention[-1]
    before, factor_before = contention[-2] if len(contention) > 1 else (0, 0.0)
    growth = (factor / factor_before - 1.0) / (last / before - 1.0) if before else 0.0
    return factor * (1.0 + max(UNSEEN_GROWTH, growth) * (busy / last - 1.0))


def merged(parts: Iterable[Iterable[BatchCounters]]) -> tuple[BatchCounters, ...]:
    """The sums by batch size."""
    sums: dict[int, tuple[float, float]] = {}
    for batch in (each for part in parts for each in part):
        executions, compute_us = sums.get(batch.size, (0.0, 0.0))
        sums[batch.size] = executions + batch.executions, compute_us + batch.compute_us
    return tuple(BatchCounters(size, *sums[size]) for size in sorted(sums))
