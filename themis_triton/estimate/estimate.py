"""The estimate stage: `estimate(history, snapshot, config) -> (history, Estimate)`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.estimate import PROXY, Estimate, ModelEstimate, PipelineEstimate
from themis_triton.core.fleet import Phase
from themis_triton.core.observation import LatencyHistogram, ModelCounters, RouteReading, ServerReading, Snapshot
from themis_triton.core.policy import ForecastName, PolicyConfig
from themis_triton.estimate.drift import DriftHistory, compared
from themis_triton.estimate.executing import with_executing
from themis_triton.estimate.latency import difference, percentile
from themis_triton.estimate.series import EMPTY, CounterSeries
from themis_triton.estimate.served import Served, ServedSeries

SERVED_KEEP_S = 10.0
FAILURES_KEEP_S = 60.0
FORECAST_S = 60
# A forecast's minute, with a margin for ticks that are far apart.
ARRIVALS_KEEP_S = 65.0
NEWEST_WINDOW_S = 0.5
LATENCY_WINDOW_S = 5.0
COMPUTE_WINDOW_S = 5.0
DISPERSION_WINDOW_S = 0.5
DISPERSION_OVER_S = 15.0
HOLDING = frozenset({Phase.SERVING, Phase.DRAINING, Phase.UNREACHABLE})


@dataclass(frozen=True, slots=True)
class RouteSeries:
    """The proxy's counters of one model as series, and its latency histograms with their times."""

    arrivals: CounterSeries = EMPTY
    failures: CounterSeries = EMPTY
    histograms: tuple[tuple[float, LatencyHistogram], ...] = ()
    in_flight: float = 0.0

    def append(self, reading: RouteReading) -> RouteSeries:
        """With one more reading."""
        kept = tuple(entry for entry in self.histograms if entry[0] > reading.at_s - 2 * LATENCY_WINDOW_S)
        return RouteSeries(
            arrivals=self.arrivals.append(reading.at_s, reading.arrivals, ARRIVALS_KEEP_S),
            failures=self.failures.append(reading.at_s, reading.failures, FAILURES_KEEP_S),
            histograms=(*kept, (reading.at_s, reading.latency)),
            in_flight=reading.in_flight,
        )

    def percentiles_ms(self, *percents: float) -> tuple[float | None, ...]:
        """Percentiles over the latency window that ends with the last reading."""
        if len(self.histograms) < 2:
            return (None,) * len(percents)
        newest_s, newest = self.histograms[-1]
        older = (h for at_s, h in reversed(self.histograms) if at_s <= newest_s - LATENCY_WINDOW_S)
        window = difference(newest, next(older, self.histograms[0][1]))
        return tuple(percentile(window, percent) for percent in percents)


@dataclass(frozen=True, slots=True)
class History:
    """The estimate stage's state: series by model at the proxy and by (server, model) at the servers, and the state of drift."""

    routes: dict[str, RouteSeries] = field(default_factory=dict)
    served: dict[tuple[str, str], ServedSeries] = field(default_factory=dict)
    server_read_at_s: dict[str, float] = field(default_factory=dict)
    drift: DriftHistory = field(default_factory=DriftHistory)


def estimate(history: History, snapshot: Snapshot, config: ThemisConfig, *, per_second: bool = False) -> tuple[History, Estimate]:
    """The new history and the estimate of a snapshot. `per_second`: pipelines' estimates hold a minute of arrivals by second."""
    history = _observe(history, snapshot)
    snapshot = with_executing(snapshot, history.served, config)
    models = {name: _model(name, history, snapshot.at_s, config.policy) for name in config.models}
    drift, models, events = compared(history.drift, models, snapshot, config)
    pipelines = {p.name: _pipeline(p, history, models, config.policy, per_second=per_second) for p in config.pipelines}
    span_s = max((series.arrivals.span_s for series in history.routes.values()), default=0.0)
    stale = dict(_stale(history, snapshot, config.policy))
    return replace(history, drift=drift), Estimate(snapshot.at_s, models, pipelines, stale, span_s, events)


def _observe(history: History, snapshot: Snapshot) -> History:
    routes = dict(history.routes)
    for reading in snapshot.routes:
        routes[reading.model] = routes.get(reading.model, RouteSeries()).append(reading)
    known = {server.name for server in snapshot.servers}
    served = {key: series for key, series in history.served.items() if key[0] in known}
    read_at_s = {name: at_s for name, at_s in history.server_read_at_s.items() if name in known}
    fresh: dict[tuple[str, str], ServedSeries] = {}
    for server in snapshot.readings:
        if server.error is None:
            read_at_s[server.server] = server.at_s
            fresh |= {key: served.get(key, ServedSeries()).append(server.at_s, c, SERVED_KEEP_S) for key, c in _keyed(server)}
    # A gauge that is no longer read must not count; the counters' history stays valid.
    served |= {key: replace(series, pending=0.0) for key, series in served.items() if key not in fresh and series.pending} | fresh
    return replace(history, routes=routes, served=served, server_read_at_s=read_at_s)


def _keyed(reading: ServerReading) -> Iterable[tuple[tuple[str, str], ModelCounters]]:
    return (((reading.server, model), counters) for model, counters in reading.models.items())


def _model(name: str, history: History, now_s: float, policy: PolicyConfig) -> ModelEstimate:
    """Per-server deltas are summed before anything is divided, so that idle servers and models do not dilute a mean."""
    route = history.routes.get(name, RouteSeries())
    served = [series for (_, model), series in history.served.items() if model == name]
    work = Served(*(sum(column) for column in zip(Served(), *(s.increase(now_s - COMPUTE_WINDOW_S, now_s) for s in served), strict=True)))
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
        queue_ms=work.queue_us / work.ended / 1000.0 if work.ended else None,
        compute_ms=work.compute_us / work.ended / 1000.0 if work.ended else None,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        age_s=now_s - last_s,
    )


def _pipeline(
    pipeline: PipelineConfig, history: History, models: dict[str, ModelEstimate], policy: PolicyConfig, *, per_second: bool
) -> PipelineEstimate:
    """A pipeline's demand is its first stage's arrivals; later stages see only what the earlier ones let through."""
    first = models[pipeline.stages[0]]
    arrivals = history.routes.get(pipeline.stages[0], RouteSeries()).arrivals
    p99s = [models[stage].p99_ms for stage in pipeline.stages]
    known = [p99 for p99 in p99s if p99 is not None]
    return PipelineEstimate(
        pipeline=pipeline.name,
        recent_rps=max(first.arrival_rps, arrivals.rate(2 * policy.demand.rate_window_s)),
        newest_rps=arrivals.newest_rate(NEWEST_WINDOW_S),
        burst_rps=first.burst_rps,
        stable_rps=first.stable_rps,
        growth_rps_per_s=arrivals.growth(policy.demand.growth_window_s),
        backlog=sum(models[stage].pending for stage in pipeline.stages),
        p99_ms=sum(known) if len(known) == len(p99s) else None,
        dispersion=arrivals.dispersion(DISPERSION_WINDOW_S, DISPERSION_OVER_S),
        trend_rps_per_s=arrivals.growth(policy.demand.trend_window_s),
        trend_base_rps=arrivals.rate(policy.demand.trend_window_s),
        per_second=arrivals.per_second(FORECAST_S) if per_second or policy.demand.forecast is not ForecastName.NONE else (),
    )


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
