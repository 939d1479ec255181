"""The estimate stage: `estimate(history, snapshot, config) -> (history, Estimate)`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from operator import itemgetter

from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.estimate import PROXY, WORK_WINDOW_S, Estimate, ModelEstimate, PipelineEstimate
from themis_triton.core.fleet import Phase
from themis_triton.core.observation import LatencyHistogram, ModelCounters, RouteReading, ServerReading, Snapshot
from themis_triton.core.policy import ForecastName, PolicyConfig
from themis_triton.estimate.attainment import Since, count_ended
from themis_triton.estimate.axis import Axes
from themis_triton.estimate.calls import CallHistory, Calls, observe_calls, own_models
from themis_triton.estimate.drift import UNKNOWN, Drift, DriftHistory, compared
from themis_triton.estimate.executing import with_executing
from themis_triton.estimate.failures import find_failures
from themis_triton.estimate.latency import difference, percentile
from themis_triton.estimate.learning import LearningHistory, knowledge_of, observe_batches
from themis_triton.estimate.series import EMPTY, CounterSeries
from themis_triton.estimate.served import NOTHING, Served, ServedSeries
from themis_triton.estimate.shared import Sharing, Windows, other_calls, sharing_of, with_others

SERVED_KEEP_S = 10.0
FAILURES_KEEP_S = 60.0
FORECAST_S = 60
# A forecast's minute, with a margin for ticks that are far apart.
ARRIVALS_KEEP_S = 65.0
NEWEST_WINDOW_S = 0.5
LATENCY_WINDOW_S = 5.0
DISPERSION_WINDOW_S = 0.5
DISPERSION_OVER_S = 15.0
_TIME = itemgetter(0)
HOLDING = frozenset({Phase.SERVING, Phase.DRAINING, Phase.UNREACHABLE, Phase.UNRESPONSIVE})


@dataclass(frozen=True, slots=True)
class RouteSeries:
    """The proxy's counters of one model as series, and its latency histograms with their times."""

    arrivals: CounterSeries = EMPTY
    failures: CounterSeries = EMPTY
    refused: CounterSeries = EMPTY
    rest_arrivals: CounterSeries = EMPTY
    histograms: tuple[tuple[float, LatencyHistogram], ...] = ()
    in_flight: float = 0.0

    def append(self, reading: RouteReading, axes: Axes) -> RouteSeries:
        """With one more reading; `axes` are those of the tick."""
        at_s, histograms = reading.at_s, self.histograms
        old = bisect_right(histograms, at_s - 2 * LATENCY_WINDOW_S, key=_TIME)
        same = bool(histograms) and histograms[-1][1] == reading.latency
        return RouteSeries(
            arrivals=self.arrivals.append(at_s, reading.arrivals, ARRIVALS_KEEP_S, axes),
            failures=self.failures.append(at_s, reading.failures, FAILURES_KEEP_S, axes),
            refused=self.refused.append(at_s, reading.refused, SERVED_KEEP_S, axes),
            rest_arrivals=self.rest_arrivals.append(at_s, reading.rest_arrivals, SERVED_KEEP_S, axes),
            histograms=(*histograms[old:], (at_s, histograms[-1][1] if same else reading.latency)),
            in_flight=reading.in_flight,
        )

    def percentiles_ms(self, *percents: float) -> tuple[float | None, ...]:
        """Percentiles over the latency window that ends with the last reading."""
        if len(self.histograms) < 2:
            return (None,) * len(percents)
        newest_s, newest = self.histograms[-1]
        index = bisect_right(self.histograms, newest_s - LATENCY_WINDOW_S, key=_TIME)
        oldest = self.histograms[max(0, index - 1)][1]
        if newest is oldest:  # nothing has ended since
            return (None,) * len(percents)
        window = difference(newest, oldest)
        return tuple(percentile(window, percent) for percent in percents)


NO_ROUTE = RouteSeries()
NO_SERVER = ServedSeries()


@dataclass(frozen=True, slots=True)
class History:
    """The estimate stage's state: series by model at the proxy and by (server, model) at the servers, calls, drift and learning.

    `seen`: the last snapshot, with the instances that its servers execute. `counted`: the readings up to which requests were counted.
    """

    routes: dict[str, RouteSeries] = field(default_factory=dict)
    served: dict[tuple[str, str], ServedSeries] = field(default_factory=dict)
    server_read_at_s: dict[str, float] = field(default_factory=dict)
    calls: dict[str, CallHistory] = field(default_factory=dict)
    drift: DriftHistory = field(default_factory=DriftHistory)
    learning: LearningHistory = field(default_factory=LearningHistory)
    seen: Snapshot = field(default_factory=lambda: Snapshot(0.0, ()))
    counted: Since = field(default_factory=dict)


def estimate(
    history: History, snapshot: Snapshot, config: ThemisConfig, *, per_second: bool = False, work_window_s: float = WORK_WINDOW_S
) -> tuple[History, Estimate]:
    """The new history and the estimate of a snapshot.

    `per_second`: pipelines' estimates hold a minute of arrivals by second. `work_window_s`: the window of queue and compute times.
    """
    history = _observe(history, snapshot, max(SERVED_KEEP_S, work_window_s))
    snapshot = with_executing(snapshot, history.served, config)
    served = _by_model(history)

    drift, drifts, events = compared(history.drift, snapshot, config)

    def estimated(name: str) -> ModelEstimate:
        drifting = drifts.get(name, UNKNOWN)
        return _model(name, history, served.get(name, ()), drifting, (snapshot.at_s, work_window_s), config.policy)

    models = {name: estimated(name) for name in config.models}
    fronts = {p.front: estimated(p.front) for p in config.pipelines if p.front not in models}
    called, own = models | fronts, own_models(config.pipelines)
    history = replace(history, calls={p.name: _calls(p, history, called, own, config, snapshot.at_s) for p in config.pipelines})
    alone = {p.name: _pipeline(p, history, called, config.policy, per_second=per_second) for p in config.pipelines}
    sharing = _sharing(history, config)
    pipelines = {p.name: with_others(alone[p.name], p, sharing) for p in config.pipelines}
    span_s = max((series.arrivals.span_s for series in history.routes.values()), default=0.0)
    stale = dict(_stale(history, snapshot, config.policy))
    failures = find_failures(history.served, snapshot.servers)
    learning = observe_batches(history.learning, snapshot, config)
    knowledge = knowledge_of(learning, config, models, pipelines)
    counted, ended = count_ended(history.counted, snapshot, config.pipelines)
    result = Estimate(snapshot.at_s, models, pipelines, stale, span_s, events, failures, knowledge, dict(ended))
    return replace(history, drift=drift, learning=learning, seen=snapshot, counted=counted), result


def _observe(history: History, snapshot: Snapshot, keep_s: float) -> History:
    routes, axes = dict(history.routes), Axes()
    for reading in snapshot.routes:
        routes[reading.model] = routes.get(reading.model, NO_ROUTE).append(reading, axes)
    known = {server.name for server in snapshot.servers}
    served = {key: series for key, series in history.served.items() if key[0] in known}
    read_at_s = {name: at_s for name, at_s in history.server_read_at_s.items() if name in known}
    fresh: dict[tuple[str, str], ServedSeries] = {}
    for server in snapshot.readings:
        if server.error is None:
            read_at_s[server.server] = server.at_s
            fresh |= {key: served.get(key, NO_SERVER).append(server.at_s, c, keep_s, axes) for key, c in _keyed(server)}
    # A gauge that is no longer read must not count; the counters' history stays valid.
    served |= {key: replace(series, pending=0.0) for key, series in served.items() if key not in fresh and series.pending} | fresh
    return replace(history, routes=routes, served=served, server_read_at_s=read_at_s)


def _keyed(reading: ServerReading) -> Iterable[tuple[tuple[str, str], ModelCounters]]:
    return (((reading.server, model), counters) for model, counters in reading.models.items())


def _by_model(history: History) -> dict[str, list[ServedSeries]]:
    """What each server counts, by model."""
    series: dict[str, list[ServedSeries]] = {}
    for (_, model), counted in history.served.items():
        series.setdefault(model, []).append(counted)
    return series


def _model(
    name: str,
    history: History,
    served: Sequence[ServedSeries],
    drift: Drift,
    now_and_window_s: tuple[float, float],
    policy: PolicyConfig,
) -> ModelEstimate:
    """Per-server deltas are summed before anything is divided, so that idle servers and models do not dilute a mean."""
    now_s, window_s = now_and_window_s
    route = history.routes.get(name, NO_ROUTE)
    increases = [series.increase(now_s - window_s, now_s) for series in served]
    work = increases[0] if len(increases) == 1 else Served(*map(sum, zip(NOTHING, *increases, strict=True)))
    p50_ms, p99_ms = route.percentiles_ms(50.0, 99.0)
    last_s = route.arrivals.times_s[-1] if route.arrivals.times_s else float("-inf")
    return ModelEstimate(
        model=name,
        arrival_rps=route.arrivals.rate(policy.demand.rate_window_s),
        burst_rps=route.arrivals.peak_rate(policy.demand.rate_window_s, policy.demand.burst_window_s),
        stable_rps=route.arrivals.rate(policy.demand.stable_window_s),
        in_flight=route.in_flight,
        pending=sum(s.pending for s in served),
        completion_rps=sum(s.completion_rps(policy.demand.rate_window_s) for s in served),
        failure_rps=route.failures.rate(policy.demand.rate_window_s),
        mean_batch=work.inferences / work.executions if work.executions else None,
        queue_ms=work.queue_us / work.succeeded / 1000.0 if work.succeeded else None,
        compute_ms=work.compute_us / work.succeeded / 1000.0 if work.succeeded else None,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        age_s=now_s - last_s,
        drift_ratio=drift.ratio,
        drifting=drift.state.drifting,
        correction=drift.state.correction,
        waiting=work.queue_us / 1e6 / window_s,
        batch_rps=work.executions / window_s,
    )


def _calls(
    pipeline: PipelineConfig,
    history: History,
    models: dict[str, ModelEstimate],
    own: frozenset[str],
    config: ThemisConfig,
    now_s: float,
) -> CallHistory:
    def arrivals(model: str, start_s: float, end_s: float) -> float:
        return history.routes.get(model, NO_ROUTE).arrivals.increase(start_s, end_s)

    def count(model: str, start_s: float, end_s: float) -> float:
        if model not in pipeline.client_calls:  # the server's own calls pass no proxy
            ended = sum(series.increase(start_s, end_s).ended for (_, name), series in history.served.items() if name == model)
            return max(0.0, ended - arrivals(model, start_s, end_s))
        others = other_calls(config.pipelines, pipeline.front) if model == pipeline.front else ()
        called = sum(_per_request(other, history)[stage] * arrivals(other.front, start_s, end_s) for other, stage in others)
        return max(0.0, arrivals(model, start_s, end_s) - called)

    calls = Calls(pipeline, own, count, lambda model: models[model].in_flight)
    return observe_calls(history.calls.get(pipeline.name), calls, now_s)


def _per_request(pipeline: PipelineConfig, history: History) -> tuple[float, ...]:
    known = history.calls.get(pipeline.name)
    return pipeline.per_request if known is None else known.per_request


def _sharing(history: History, config: ThemisConfig) -> Sharing:
    demand = config.policy.demand
    history_s = max((series.arrivals.span_s for series in history.routes.values()), default=0.0)
    windows = Windows((demand.rate_window_s, 2 * demand.rate_window_s), demand.stable_window_s, history_s)

    @cache
    def arrivals(model: str, window_s: float) -> float:
        return history.routes.get(model, NO_ROUTE).arrivals.rate(window_s)

    per_request = {p.name: _per_request(p, history) for p in config.pipelines}
    inside = {p.name: history.calls[p.name].most_inside for p in config.pipelines}
    return sharing_of(config.pipelines, per_request, inside, arrivals, windows)


def _pipeline(
    pipeline: PipelineConfig, history: History, models: dict[str, ModelEstimate], policy: PolicyConfig, *, per_second: bool
) -> PipelineEstimate:
    """A pipeline's demand is its first stage's arrivals; later stages see only what the earlier ones let through."""
    first = models[pipeline.front]
    route = history.routes.get(pipeline.front, NO_ROUTE)
    arrivals, rest_rps = route.arrivals, route.rest_arrivals.rate(policy.demand.rate_window_s)
    per_request = history.calls[pipeline.name].per_request
    called = zip(pipeline.stages, per_request, pipeline.sequential, strict=True)
    if pipeline.entry is not None:
        called = zip((pipeline.entry,), (1.0,), (False,), strict=True)
    p99s = [_stage_p99_ms(models[stage], history, calls, sequential=sequential) for stage, calls, sequential in called]
    known = [p99 for p99 in p99s if p99 is not None]
    total_ms = sum(known) if pipeline.entry is not None or len(known) < len(p99s) else pipeline.total_ms(known)
    return PipelineEstimate(
        pipeline=pipeline.name,
        recent_rps=max(first.arrival_rps, arrivals.rate(2 * policy.demand.rate_window_s)),
        newest_rps=arrivals.newest_rate(NEWEST_WINDOW_S),
        burst_rps=first.burst_rps,
        stable_rps=first.stable_rps,
        growth_rps_per_s=arrivals.growth(policy.demand.growth_window_s),
        # The calls of one request that wait at once are one request that waits.
        backlog=sum(models[stage].pending / max(1.0, calls) for stage, calls in zip(pipeline.stages, per_request, strict=True)),
        p99_ms=total_ms if len(known) == len(p99s) else None,
        dispersion=arrivals.dispersion(DISPERSION_WINDOW_S, DISPERSION_OVER_S),
        trend_rps_per_s=arrivals.growth(policy.demand.trend_window_s),
        trend_base_rps=arrivals.rate(policy.demand.trend_window_s),
        per_second=arrivals.per_second(FORECAST_S) if per_second or policy.demand.forecast is not ForecastName.NONE else (),
        per_request=per_request,
        refused_rps=route.refused.rate(policy.demand.rate_window_s),
        rest_fraction=min(1.0, rest_rps / first.arrival_rps) if pipeline.sheds and first.arrival_rps > 0.0 else None,
    )


def _stage_p99_ms(model: ModelEstimate, history: History, calls: float, *, sequential: bool) -> float | None:
    """The time of a request in a stage: that of its last call, where it makes several at once, or of all its calls in turn."""
    if calls <= 1.0 or model.p99_ms is None:
        return model.p99_ms
    return calls * model.p99_ms if sequential else history.routes[model.model].percentiles_ms(100.0 - 1.0 / calls)[0]


def _stale(history: History, snapshot: Snapshot, policy: PolicyConfig) -> Iterable[tuple[str, str]]:
    if snapshot.routes_error is not None:
        ages = [snapshot.at_s - s.arrivals.times_s[-1] for s in history.routes.values() if s.arrivals.times_s]
        age_s = min(ages, default=float("inf"))
        if age_s > policy.max_stale_s:
            yield PROXY, f"no statistics for {age_s:.1f} s: {snapshot.routes_error}"
    errors = {reading.server: reading.error for reading in snapshot.readings if reading.error is not None}
    for server in snapshot.servers:
        if server.phase not in HOLDING or server.name not in errors:
            continue
        age_s = snapshot.at_s - history.server_read_at_s.get(server.name, float("-inf"))
        if age_s > policy.max_stale_s:
            yield server.name, f"no metrics for {age_s:.1f} s: {errors[server.name]}"
    for reading in snapshot.readings:
        if reading.error is None and reading.batches_error is not None:
            yield f"{reading.server} batches", f"drift is unknown: {reading.batches_error}"
