"""The result of a simulated run: every request, the fleet over time, and the tick records."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from themis_triton.core.action import Outcome
from themis_triton.core.record import TickRecord, describe
from themis_triton.core.server_kind import kind_seconds
from themis_triton.report.series import EventKind, RunEvent, RunSeries
from themis_triton.sim.cluster import Kinds, Usage
from themis_triton.solver.surface import BoolArray, FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class PipelineRun:
    """Requests of one pipeline in the order of arrival. `latency_ms` is infinite without an end; failed ones violate the SLO.

    `refused`: those of the failed ones that an admission limit refused.
    """

    name: str
    slo_ms: float
    arrival_s: FloatArray
    latency_ms: FloatArray
    failed: BoolArray
    refused: BoolArray

    @property
    def answered(self) -> BoolArray:
        """Which requests were answered: neither refused nor unfinished."""
        answered: BoolArray = ~self.failed & np.isfinite(self.latency_ms)
        return answered

    @property
    def violated(self) -> BoolArray:
        """Which requests were not answered inside the SLO."""
        outside: BoolArray = self.failed | (self.latency_ms > self.slo_ms)
        return outside

    def percentile_ms(self, percent: float) -> float | None:
        """Percentile of the answered requests; None when there are none."""
        answered = self.latency_ms[self.answered]
        return float(np.percentile(answered, percent)) if answered.size else None


@dataclass(frozen=True, slots=True, eq=False)
class SimResult:
    """One run. Times of all but the requests count from the loop's start, `start_s` before the first arrival's second."""

    policy: str
    seed: int
    duration_s: float
    start_s: float
    pipelines: tuple[PipelineRun, ...]
    usage: tuple[Usage, ...]
    actions: dict[str, int] = field(default_factory=dict)
    failed_actions: dict[str, int] = field(default_factory=dict)
    ticks: tuple[TickRecord, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    counted: str = "Model instances"
    kinds: tuple[Kinds, ...] = ()

    @property
    def requests(self) -> int:
        """Number of requests."""
        return sum(run.arrival_s.size for run in self.pipelines)

    @property
    def failed(self) -> int:
        """Requests that failed or never ended."""
        return sum(int(np.count_nonzero(~run.answered)) for run in self.pipelines)

    @property
    def refused(self) -> int:
        """Requests that an admission limit refused; they count as failed too."""
        return sum(int(np.count_nonzero(run.refused)) for run in self.pipelines)

    @property
    def violations(self) -> float:
        """The fraction of all requests that were not answered within their SLO."""
        return sum(int(np.count_nonzero(run.violated)) for run in self.pipelines) / max(1, self.requests)

    @property
    def server_seconds(self) -> float:
        """Integral of servers over time, from each launch until the process has ended."""
        return float(sum(use.servers * seconds for use, seconds in self._spans()))

    @property
    def server_seconds_by_kind(self) -> dict[str, float]:
        """The same by what the servers were there for: adopted, launched, starting (until they are in the routes), draining."""
        start_s, end_s = self.start_s, self.start_s + self.duration_s
        ends = [*(at_s for at_s, _ in self.kinds[1:]), end_s]
        spans = [(kinds, min(until_s, end_s) - max(at_s, start_s)) for (at_s, kinds), until_s in zip(self.kinds, ends, strict=True)]
        return kind_seconds((kinds, seconds) for kinds, seconds in spans if seconds > 0.0)

    @property
    def instance_seconds(self) -> float:
        """Integral of their model instances over time."""
        return float(sum(use.instances * seconds for use, seconds in self._spans()))

    @property
    def cost(self) -> float:
        """Integral of the fleet's price over time, of each server from the start of its launch."""
        return sum(use.cost * seconds for use, seconds in self._spans())

    @property
    def mean_cost(self) -> float:
        """The mean cost per second."""
        return self.cost / self.duration_s

    @property
    def max_servers(self) -> int:
        """The maximum number of servers at one time."""
        return max(use.servers for use in self.usage)

    def _spans(self) -> list[tuple[Usage, float]]:
        ends = [*(use.at_s for use in self.usage[1:]), self.start_s + self.duration_s]
        return [(use, end_s - use.at_s) for use, end_s in zip(self.usage, ends, strict=True)]

    def digest(self) -> str:
        """SHA-256 over all latencies and changes: equal exactly for equal runs."""
        digest = hashlib.sha256()
        for run in self.pipelines:
            digest.update(run.latency_ms.tobytes())
            digest.update(run.failed.tobytes())
        digest.update(repr((self.usage, self.outcomes)).encode())
        return digest.hexdigest()

    def series(self, pipeline: int = 0) -> RunSeries:
        """The run by the second, for figures: rates and latencies of one pipeline, servers and instances of all."""
        run, seconds = self.pipelines[pipeline], int(np.ceil(self.duration_s))
        second = np.minimum(run.arrival_s.astype(np.int64), seconds - 1)
        inside, latency_ms = second[run.answered], run.latency_ms[run.answered]
        per_second = np.split(latency_ms, np.searchsorted(inside, np.arange(1, seconds)))
        at_s = self.start_s + np.arange(seconds)
        use = [self.usage[max(0, int(np.searchsorted([u.at_s for u in self.usage], t, side="right")) - 1)] for t in at_s]
        return RunSeries(
            label=self.policy,
            rate_rps=np.bincount(second, minlength=seconds),
            capacity_rps=self._capacity(pipeline, at_s),
            p99_ms=[float(np.percentile(values, 99, method="higher")) if values.size else None for values in per_second],
            servers=[each.servers for each in use],
            instances=[each.instances for each in use],
            failed=np.bincount(second, weights=~run.answered, minlength=seconds),
            violations=np.bincount(second, weights=run.violated, minlength=seconds),
            events=tuple(self._events()),
            counted=self.counted,
        )

    def _capacity(self, pipeline: int, at_s: npt.NDArray[np.float64]) -> list[float | None]:
        """A value of the last tick before each second, if the ticks were kept."""
        if not self.ticks:
            return [None] * at_s.size
        ticks = [record.snapshot.at_s for record in self.ticks]
        rows: list[float | None] = []
        for t in at_s:
            evidence = self.ticks[max(0, int(np.searchsorted(ticks, t, side="right")) - 1)].decision.evidence
            rows.append(evidence[pipeline].capacity_rps if evidence else None)
        return rows

    def _events(self) -> list[RunEvent]:
        spans = [(outcome.ended_at_s - self.start_s, outcome.action) for outcome in self.outcomes]
        return [RunEvent(at_s, EventKind(action.kind.value), describe(action)) for at_s, action in spans if 0 <= at_s < self.duration_s]


def used_between(usage: Sequence[Usage], start_s: float, end_s: float) -> tuple[Usage, ...]:
    """The usage inside an interval; the first entry is that at its start."""
    before = [use for use in usage if use.at_s <= start_s]
    first = before[-1] if before else Usage(start_s, 0, 0, 0.0)
    inside = [use for use in usage if start_s < use.at_s < end_s]
    return (replace(first, at_s=start_s), *inside)
