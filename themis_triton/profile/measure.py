"""Measurement of one point: all instances are busy until the percentile is precise enough."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any

from themis_triton.core.errors import ChangeRefusedError, ServerError
from themis_triton.profile.bench import Bench
from themis_triton.profile.drive import ClosedLoop, closed_loop
from themis_triton.profile.grid import Point
from themis_triton.profile.inputs import InputOptions, build_request
from themis_triton.profile.statistics import samples_needed, summarise
from themis_triton.profile.trace import BUFFERED, without_overhead
from themis_triton.settings.measured import PointSettings

_GROWTH = 1.5
_EDGES = 2
_TRACED_CLIENTS = 2
"""Clients per instance where service times come from the trace: one more than can be served, so that no instance idles between requests."""
_SETTLE_SHARE = 0.25
_POOR = 0.1
"""Half-width of the 95 % interval, as a share, beyond which a point is measured again and its upper end is used."""
_COMPUTE = ("compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The end of a point's measurement: its 95 % interval is within ± `precision`, or a bound is reached."""

    percentile: float = 99.0
    precision: float = 0.03
    max_samples: int = 2000
    max_seconds: float = 60.0
    timeout_s: float = 60.0

    @property
    def sample_limit(self) -> int:
        """The maximum number of samples: at least twice those that close a high percentile's interval."""
        return max(self.max_samples, 2 * samples_needed(self.percentile / 100.0))

    def misses(self, point: PointSettings) -> bool:
        """Whether a point's interval is open, or wider than `precision`."""
        if point.low_ms is None or point.high_ms is None:
            return True
        return max(point.high_ms - point.service_ms, point.service_ms - point.low_ms) > self.precision * point.service_ms


@dataclass(slots=True)
class Samples:
    """Samples of one point: times of single requests in ms, and sums of Triton's statistics."""

    service_ms: list[float] = field(default_factory=list)
    client_ms: list[float] = field(default_factory=list)
    compute_ns: int = 0
    queue_ns: int = 0
    ended: int = 0
    inferences: int = 0
    executions: int = 0

    def add_statistics(self, before: Any, after: Any) -> None:  # noqa: ANN401 - protobuf has no types
        """Add the difference of two readings."""
        old, new = before.inference_stats, after.inference_stats
        self.compute_ns += sum(getattr(new, part).ns - getattr(old, part).ns for part in _COMPUTE)
        self.queue_ns += new.queue.ns - old.queue.ns
        self.ended += new.success.count - old.success.count
        self.inferences += after.inference_count - before.inference_count
        self.executions += after.execution_count - before.execution_count

    @property
    def compute_ms(self) -> float:
        """Mean compute time of a request."""
        return self.compute_ns / max(1, self.ended) / 1e6

    def are_of(self, batch: int, instances: int) -> bool:
        """Whether all executions had this batch size.

        Triton updates its two counters one after the other, so at each reading they may differ by an execution of each instance.
        """
        return abs(self.inferences - batch * self.executions) <= 2 * batch * instances and self.inferences > 0

    def times_ms(self, *, traced: bool) -> list[float]:
        """Service times, from the trace or from the client's times."""
        return self.service_ms if traced else without_overhead(self.client_ms, self.compute_ms) if self.client_ms else []


async def measure_point(bench: Bench, point: Point, inputs: InputOptions, accuracy: Accuracy) -> PointSettings:
    """The service times at one point, with all instances busy with batches of that size.

    Raises:
        ServerError: a request failed or its response is wrong, or the server ended.
        SettingsError: no input can be made up.
    """
    batch, instances = point
    await run_instances(bench, instances)
    request = build_request(bench.spec, batch, inputs, batched=bench.batched)
    # The client's times must not contain a wait in the model's queue, the trace's never do.
    per_instance = _TRACED_CLIENTS if bench.tracer is not None else 1
    async with closed_loop(bench.stub, request, instances, accuracy.timeout_s, per_instance) as loop:
        await loop.settle(accuracy.max_seconds * _SETTLE_SHARE)
        samples = await _sampled(bench, loop, accuracy)
    if bench.batched and not samples.are_of(batch, instances):
        executed = samples.inferences / max(1, samples.executions)
        raise ServerError(
            f"model {bench.model}: requests of {batch} ran in batches of {executed:g}: expected {batch}. "
            "Fix: stop other traffic to the server"
        )
    summary = summarise(samples.times_ms(traced=bench.tracer is not None), accuracy.percentile)
    client = summarise(samples.client_ms, accuracy.percentile)
    return PointSettings(
        batch=batch,
        instances=instances,
        samples=summary.samples,
        service_ms=round(summary.percentile, 4),
        low_ms=_rounded(summary.low),
        high_ms=_rounded(summary.high),
        mean_ms=round(summary.mean, 4),
        median_ms=round(summary.median, 4),
        statistics_ms=round(samples.compute_ms, 4),
        queue_ms=round(samples.queue_ns / max(1, samples.ended) / 1e6, 4),
        client_ms=round(client.percentile, 4),
        outliers=summary.outliers,
    )


def is_poor(point: PointSettings) -> bool:
    """Whether the 95 % interval of a point reaches more than 10 % to either side. An open interval is not poor: samples are few."""
    if point.low_ms is None or point.high_ms is None:
        return False
    return max(point.high_ms - point.service_ms, point.service_ms - point.low_ms) > _POOR * point.service_ms


def better_point(first: PointSettings, second: PointSettings) -> PointSettings:
    """The one of two measurements of a point with the narrower interval."""
    return second if not is_poor(second) or _width(second) < _width(first) else first


def _width(point: PointSettings) -> float:
    if point.low_ms is None or point.high_ms is None:
        return math.inf
    return (point.high_ms - point.low_ms) / point.service_ms


def planned_ms(point: PointSettings) -> float:
    """The service time that the table holds: the measured one, or the upper end of its interval for a poor point."""
    return point.high_ms if is_poor(point) and point.high_ms is not None else point.service_ms


async def run_instances(bench: Bench, count: int) -> float:
    """The duration in s of a change of the instance count. Raises ServerError with the fix if the server refuses."""
    try:
        return await bench.set_instances(count)
    except ChangeRefusedError as error:
        words = " ".join(str(error).split())
        raise ServerError(f"{words}. Fix: if {count} instances are too many for the device, measure fewer with --max-instances") from error


async def _sampled(bench: Bench, loop: ClosedLoop, accuracy: Accuracy) -> Samples:
    """Samples up to the required precision or a bound."""
    clock = asyncio.get_running_loop()
    deadline_s = clock.time() + accuracy.max_seconds
    samples = Samples()
    required = samples_needed(accuracy.percentile / 100.0)
    while True:
        available = len(samples.times_ms(traced=bench.tracer is not None))
        reached = await _window(bench, loop, max(1, required - available), samples, deadline_s - clock.time())
        values = samples.times_ms(traced=bench.tracer is not None)
        precise = bool(values) and summarise(values, accuracy.percentile).relative_halfwidth <= accuracy.precision
        if values and (precise or not reached or len(values) >= accuracy.sample_limit):
            return samples
        required = min(accuracy.sample_limit, math.ceil(_GROWTH * max(len(values), required)))


async def _window(bench: Bench, loop: ClosedLoop, chunk: int, samples: Samples, left_s: float) -> bool:
    """Sample `chunk` more requests; False if the time ran out before.

    The trace misses the requests in flight at the start. When as many are answered, at most one per instance still runs, because the
    model's queue is served in order. It may also miss each instance's last one, whose response precedes the instance's release.
    The server pauses while tracing is switched, so the statistics are read after those requests.
    """
    edges = _EDGES * loop.instances
    if bench.tracer is not None:
        await bench.tracer.start()
        await loop.answered(len(loop.latencies_ms) + loop.clients)
    start = len(loop.latencies_ms)
    before = await bench.statistics()
    reached = True
    try:
        async with asyncio.timeout(max(0.0, left_s)):
            await loop.answered(start + chunk + edges)
    except TimeoutError:
        reached = False
        # At least one sample, besides those that the server may keep in its buffer.
        min_count = 1 if samples.times_ms(traced=bench.tracer is not None) else 1 + BUFFERED
        await loop.answered(start + min_count + edges)
    samples.client_ms += loop.latencies_ms[start:]
    samples.add_statistics(before, await bench.statistics())
    if bench.tracer is not None:
        samples.service_ms += await bench.tracer.stop(len(loop.latencies_ms) - start - edges)
    return reached


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
