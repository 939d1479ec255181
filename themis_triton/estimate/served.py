"""The counters of one server's models over time, and what its queues hold, as an immutable value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from themis_triton.core.construction import quick_init
from themis_triton.core.observation import ModelCounters, ServerReading
from themis_triton.estimate.counters import NO_COUNTERS, Counters, CounterTable
from themis_triton.solver.surface import FloatArray


class Served(NamedTuple):
    """Totals, or their increase between two times. `ended`: all requests that ended; `failed`: those of them that the server failed.

    `cached`: those that a response cache answered; `inferences`: rows of those that were executed.
    """

    ended: float = 0.0
    inferences: float = 0.0
    executions: float = 0.0
    queue_us: float = 0.0
    compute_us: float = 0.0
    failed: float = 0.0
    refused: float = 0.0
    cached: float = 0.0

    @property
    def succeeded(self) -> float:
        """Requests that ended with an answer."""
        return self.ended - self.failed - self.refused

    @property
    def executed(self) -> float:
        """Requests that instances answered."""
        return self.succeeded - self.cached

    @property
    def batches_us(self) -> float:
        """Time of all batches; the counter charges a batch's time to each of its requests."""
        requests = self.executed if self.executed > 0.0 else self.inferences
        return self.compute_us * self.executions / requests if requests > 0.0 else 0.0


NOTHING = Served()
ENDED, FAILED = Served._fields.index("ended"), Served._fields.index("failed")


@quick_init
@dataclass(frozen=True, slots=True)
class ServedSeries:
    """What one server has counted of each model since its first reading, and `pending`, the requests that wait there for it.

    A gauge that the last reading lacks does not count; the counters' history stays valid.
    """

    counters: Counters = NO_COUNTERS
    pending: Mapping[str, float] = field(default_factory=dict)
    read_at_s: float = float("-inf")

    def append(self, reading: ServerReading, keep_s: float) -> ServedSeries:
        """With one more reading; counters older than `keep_s` are dropped, and those of a late reading are ignored."""
        if reading.at_s == self.read_at_s and not any(self.pending.keys() ^ reading.models.keys()):
            return self  # read before
        names, pending = tuple(reading.models), {name: model.pending for name, model in reading.models.items()}
        if not names:
            return ServedSeries(self.counters, pending, reading.at_s)
        raw = np.array(list(zip(*map(_counted, reading.models.values()), strict=True)), dtype=np.float64)
        return ServedSeries(self.counters.append(reading.at_s, names, raw, keep_s), pending, reading.at_s)

    def unread(self) -> ServedSeries:
        """As it is after a reading that failed."""
        return replace(self, pending={}) if self.pending else self

    def increases(self, start_s: float, end_s: float) -> dict[str, Served]:
        """By model, what ended between two times."""
        found: dict[str, Served] = {}
        for table in self.counters.tables:
            found |= _by_model(table, table.increases(start_s, end_s))
        return found

    def completion_rps(self, window_s: float) -> dict[str, float]:
        """By model, the rate of requests that were answered over the window up to the last reading, or a shorter history."""
        found: dict[str, float] = {}
        for table in self.counters.tables:
            start_s = max(table.last_s - window_s, float(table.times_s[0]))
            duration_s = table.last_s - start_s or 1.0
            ended = _by_model(table, table.increases(start_s, table.last_s))
            found |= {name: each.succeeded / duration_s for name, each in ended.items()}
        return found

    def mean_busy(self, models: Iterable[str], start_s: float, min_window_s: float) -> dict[str, float]:
        """By model, the mean number of busy instances from a time to the last reading, by Little's law.

        Models with readings over less than the least time are left out.
        """
        asked, found = frozenset(models), dict[str, float]()
        for table in self.counters.tables:
            since_s, own = max(start_s, float(table.times_s[0])), asked.intersection(table.names)
            if own and table.last_s - since_s >= min_window_s:
                work = _by_model(table, table.increases(since_s, table.last_s))
                found |= {name: work[name].batches_us / 1e6 / (table.last_s - since_s) for name in table.names if name in own}
        return found

    def span_s(self, model: str, start_s: float) -> tuple[float, float]:
        """The times from `start_s`, or the first reading of a model after it, to its last one. KeyError without any."""
        for table in self.counters.tables:
            if model in table.names:
                return max(start_s, float(table.times_s[0])), table.last_s
        raise KeyError(model)

    @property
    def has_failures(self) -> bool:
        """Whether a request of any model failed in the kept readings."""
        return any((table.totals[FAILED, :, -1] > table.totals[FAILED, :, 0]).any() for table in self.counters.tables)

    def readings(self, model: str) -> tuple[tuple[float, Served], ...]:
        """The times (s) and totals of one model's kept readings."""
        for table in self.counters.tables:
            if model in table.names:
                totals = table.totals[:, table.names.index(model)].T.tolist()
                return tuple(zip(table.times_s.tolist(), map(Served._make, totals), strict=True))
        return ()


NO_SERVER = ServedSeries()


def _counted(model: ModelCounters) -> tuple[float, ...]:
    """As `Served` has them."""
    ended = model.success + model.failure + model.refused
    compute_us = model.compute_input_us + model.compute_infer_us + model.compute_output_us
    return (ended, model.inferences, model.executions, model.queue_us, compute_us, model.failure, model.refused, model.cached)


def _by_model(table: CounterTable, each: FloatArray) -> dict[str, Served]:
    """Rows of a table's columns, by model."""
    return dict(zip(table.names, map(Served._make, each.tolist()), strict=True))
