"""Measuring one point: all instances busy at once, until the percentile is known well enough."""

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
_SAME_BATCH = 1e-9
_COMPUTE = ("compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """When a point is measured well enough: its 95 % interval is within `precision` either side, or a bound is reached."""

    percentile: float = 99.0
    precision: float = 0.03
    max_samples: int = 2000
    max_seconds: float = 60.0
    timeout_s: float = 60.0

    @property
    def most_samples(self) -> int:
        """At least twice as many as close a high percentile's interval."""
        return max(self.max_samples, 2 * samples_needed(self.percentile / 100.0))

    def misses(self, point: PointSettings) -> bool:
        """Whether a point's interval is open, or wider than was aimed at."""
        if point.low_ms is None or point.high_ms is None:
            return True
        return max(point.high_ms - point.service_ms, point.service_ms - point.low_ms) > self.precision * point.service_ms


@dataclass(slots=True)
class _Samples:
    """What the windows of one point gave: times of single requests in ms, and sums of Triton's statistics."""

    service_ms: list[float] = field(default_factory=list)
    client_ms: list[float] = field(default_factory=list)
    compute_ns: int = 0
    queue_ns: int = 0
    ended: int = 0
    inferences: int = 0
    executions: int = 0

    def add_statistics(self, before: Any, after: Any) -> None:  # noqa: ANN401 - protobuf has no types
        """Take in what happened between two readings."""
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

    def times_ms(self, *, traced: bool) -> list[float]:
        """Service times, by the trace or from the client's."""
        return self.service_ms if traced else without_overhead(self.client_ms, self.compute_ms) if self.client_ms else []


async def measure_point(bench: Bench, point: Point, inputs: InputOptions, accuracy: Accuracy) -> PointSettings:
    """Change the count if need be, load all instances with batches of the size, and summarise.

    Raises:
        ServerError: a request failed or was answered wrongly, or the server is gone.
        SettingsError: no input can be made.
    """
    batch, instances = point
    await run_instances(bench, instances)
    request = build_request(bench.spec, batch, inputs, batched=bench.batched)
    async with closed_loop(bench.stub, request, instances, accuracy.timeout_s) as loop:
        samples = await _sampled(bench, loop, accuracy)
    executed = samples.inferences / max(1, samples.executions)
    if bench.batched and abs(executed - batch) > _SAME_BATCH:
        raise ServerError(f"model {bench.model}: requests of {batch} were executed in batches of {executed:g}; is there other traffic?")
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


async def run_instances(bench: Bench, count: int) -> float:
    """Change the count; returns how long that took, in s. ServerError with the remedy where the server refuses."""
    try:
        return await bench.set_instances(count)
    except ChangeRefusedError as error:
        words = " ".join(str(error).split())
        raise ServerError(f"{words}; where {count} instances are too many for the device, measure fewer with --max-instances") from error


async def _sampled(bench: Bench, loop: ClosedLoop, accuracy: Accuracy) -> _Samples:
    """Samples until the percentile is precise enough, or a bound is reached."""
    clock = asyncio.get_running_loop()
    deadline_s = clock.time() + accuracy.max_seconds
    samples = _Samples()
    wanted = samples_needed(accuracy.percentile / 100.0)
    while True:
        have = len(samples.times_ms(traced=bench.tracer is not None))
        reached = await _window(bench, loop, max(1, wanted - have), samples, deadline_s - clock.time())
        values = samples.times_ms(traced=bench.tracer is not None)
        precise = bool(values) and summarise(values, accuracy.percentile).relative_halfwidth <= accuracy.precision
        if values and (precise or not reached or len(values) >= accuracy.most_samples):
            return samples
        wanted = min(accuracy.most_samples, math.ceil(_GROWTH * max(len(values), wanted)))


async def _window(bench: Bench, loop: ClosedLoop, chunk: int, samples: _Samples, left_s: float) -> bool:
    """Let some more requests pass; False when the time ran out first.

    Of each client the request under way at the start is in no trace, nor perhaps its last: the answer leaves before the instance is free.
    The server pauses while tracing is switched, so the statistics are read once those requests have passed.
    """
    if bench.tracer is not None:
        await bench.tracer.start()
        await loop.answered(len(loop.latencies_ms) + loop.clients)
    start = len(loop.latencies_ms)
    before = await bench.statistics()
    reached = True
    try:
        async with asyncio.timeout(max(0.0, left_s)):
            await loop.answered(start + chunk + _EDGES * loop.clients)
    except TimeoutError:
        reached = False
        # Never without a sample: as many as the server may keep unwritten, and one.
        least = 1 if samples.times_ms(traced=bench.tracer is not None) else 1 + BUFFERED
        await loop.answered(start + least + _EDGES * loop.clients)
    samples.client_ms += loop.latencies_ms[start:]
    samples.add_statistics(before, await bench.statistics())
    if bench.tracer is not None:
        samples.service_ms += await bench.tracer.stop(len(loop.latencies_ms) - start - _EDGES * loop.clients)
    return reached


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
