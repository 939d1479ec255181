"""The estimate stage: `estimate(history, snapshot, config) -> (history, Estimate)`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from heapq import nlargest
from operator import attrgetter

from themis_triton.core.config import ModelConfig, PipelineConfig, ThemisConfig
from themis_triton.core.construction import quick_init
from themis_triton.core.estimate import ONE_ROW, PROXY, WORK_WINDOW_S, Estimate, ModelEstimate, PipelineEstimate, RequestSize
from themis_triton.core.fleet import Phase
from themis_triton.core.observation import Snapshot
from themis_triton.core.policy import DemandConfig, ForecastName, PolicyConfig
from themis_triton.core.recurring import RecurringRise
from themis_triton.core.replacing import replaced
from themis_triton.estimate.attainment import Since, count_ended
from themis_triton.estimate.calls import SAMPLE_S, CallHistory, Calls, observe_calls, own_models
from themis_triton.estimate.counter_kernels import RATE, RECENT, STABLE
from themis_triton.estimate.counters import RateWindows
from themis_triton.estimate.drift import UNKNOWN, Drift, DriftHistory, compared
from themis_triton.estimate.executing import with_executing
from themis_triton.estimate.failures import find_failures
from themis_triton.estimate.learning import LearningHistory, knowledge_of, observe_batches
from themis_triton.estimate.routed import ARRIVALS, NO_ROUTES, NOT_ROUTED, RoutedSeries, RouteRates
from themis_triton.estimate.served import ENDED, NO_SERVER, NOTHING, Served, ServedSeries
from themis_triton.estimate.shared import Sharing, Windows, other_calls, sharing_of, with_others
from themis_triton.estimate.sizes import measured_size

SERVED_KEEP_S = 10.0
FORECAST_S = 60
NEWEST_WINDOW_S = 0.5
WARM_UP_S = 2.0
"""A launched server is in the routes so long after its launch at the latest."""
DISPERSION_WINDOW_S = 0.5
DISPERSION_OVER_S = 15.0
MANY_SERVERS = 100
"""Of more servers, those that rest are read in turn, and what they did is not counted anew meanwhile."""
MANY_PIPELINES = 100
"""Of more pipelines, the calls of an eighth are looked at in a tick."""
HOLDING = frozenset({Phase.SERVING, Phase.DRAINING, Phase.UNREACHABLE, Phase.UNRESPONSIVE})


@dataclass(frozen=True, slots=True)
class History:
    """The estimate stage's state: the proxy's series, those of each server by its name, calls, drift and learning.

    `seen`: the last snapshot, with the instances that its servers execute. `counted`: the readings up to which requests were counted.
    `recurring`: the rises that recur, by pipeline; whoever learns them puts them here.
    `sizes`: by model, as plans count its requests. `done`: what each of many servers did when it was read last.
    """

    routed: RoutedSeries = NO_ROUTES
    served: dict[str, ServedSeries] = field(default_factory=dict)
    calls: dict[str, CallHistory] = field(default_factory=dict)
    drift: DriftHistory = field(default_factory=DriftHistory)
    learning: LearningHistory = field(default_factory=LearningHistory)
    seen: Snapshot = field(default_factory=lambda: Snapshot(0.0, ()))
    counted: Since = field(default_factory=dict)
    recurring: Mapping[str, tuple[RecurringRise, ...]] = field(default_factory=dict)
    sizes: dict[str, RequestSize] = field(default_factory=dict)
    done: Mapping[str, _Done] = field(default_factory=dict)


@quick_init
@dataclass(frozen=True, slots=True)
class _Done:
    """What a server did by its series: its work of the window, and answered requests/s, by model."""

    series: ServedSeries
    increases: Mapping[str, Served]
    completion_rps: Mapping[str, float]


@quick_init
@dataclass(frozen=True, slots=True)
class _Work:
    """What all servers did, by model: work of the window, waiting requests, and answered requests/s."""

    window_s: float
    done: Mapping[str, Served]
    pending: Mapping[str, float]
    completion_rps: Mapping[str, float]


def estimate(
    history: History, snapshot: Snapshot, config: ThemisConfig, *, per_second: bool = False, work_window_s: float = WORK_WINDOW_S
) -> tuple[History, Estimate]:
    """The new history and the estimate of a snapshot.

    `per_second`: pipelines' estimates hold a minute of arrivals by second. `work_window_s`: the window of queue and compute times.
    """
    history = _observe(history, snapshot, max(SERVED_KEEP_S, work_window_s))
    snapshot = with_executing(snapshot, history.served, config)
    drift, drifts, events = compared(history.drift, snapshot, config)
    rates = _rates(history, config.policy.demand)
    work, done = _work(history, snapshot.at_s, work_window_s, config.policy.demand)

    sizes = {name: _size(name, history, work, model) for name, model in config.models.items()}

    def estimated(name: str) -> ModelEstimate:
        return _model(name, history, rates, work, drifts.get(name, UNKNOWN), snapshot.at_s, sizes.get(name, ONE_ROW))

    models = {name: estimated(name) for name in config.models}
    fronts = {p.front: estimated(p.front) for p in config.pipelines if p.front not in models}
    called = models | fronts
    history = replaced(history, calls=_calls(history, called, config, snapshot.at_s))
    alone = {
        p.name: replaced(
            _pipeline(p, history, called, rates, config.policy, per_second=per_second),
            due_rise=_due_rise(p, history.recurring.get(p.name, ()), config, snapshot.at_s),
            due_jump_rps=_due_jump_rps(p, history.recurring.get(p.name, ()), config, snapshot.at_s),
        )
        for p in config.pipelines
    }
    sharing = _sharing(history, rates, config)
    pipelines = {p.name: with_others(alone[p.name], p, sharing) for p in config.pipelines}
    stale = dict(_stale(history, snapshot, config.policy))
    failures = find_failures(history.served, snapshot.servers)
    learning = observe_batches(history.learning, snapshot, config)
    knowledge = knowledge_of(learning, config, models, pipelines)
    counted, ended = count_ended(history.counted, snapshot, config.pipelines)
    span_s = history.routed.counters.span_s
    result = Estimate(snapshot.at_s, models, pipelines, stale, span_s, events, failures, knowledge, dict(ended))
    return replaced(history, drift=drift, learning=learning, seen=snapshot, counted=counted, sizes=sizes, done=done), result


def _observe(history: History, snapshot: Snapshot, keep_s: float) -> History:
    present = {server.name for server in snapshot.servers}
    served = {name: series for name, series in history.served.items() if name in present}
    for reading in snapshot.readings:
        known = served.get(reading.server, NO_SERVER)
        served[reading.server] = known.append(reading, keep_s) if reading.error is None else known.unread()
    for name in served.keys() - {reading.server for reading in snapshot.readings}:
        served[name] = served[name].unread()
    return replaced(history, routed=history.routed.append(snapshot.routes), served=served)


def _rates(history: History, demand: DemandConfig) -> dict[str, RouteRates]:
    windows = RateWindows(
        rate_s=demand.rate_window_s,
        stable_s=demand.stable_window_s,
        burst_s=demand.burst_window_s,
        newest_s=NEWEST_WINDOW_S,
        growth_s=demand.growth_window_s,
        trend_s=demand.trend_window_s,
        dispersion_s=DISPERSION_WINDOW_S,
        dispersion_over_s=DISPERSION_OVER_S,
    )
    return history.routed.rates(windows)


def _work(history: History, now_s: float, window_s: float, demand: DemandConfig) -> tuple[_Work, dict[str, _Done]]:
    """Increases of all servers are added up before anything is divided, so that idle servers and models do not dilute a mean.

    And what each server did: of many, it stays as it is until the server is read again.
    """
    each, done = dict[str, _Done](), dict[str, Served]()
    pending, completion_rps = dict[str, float](), dict[str, float]()
    for name, series in history.served.items():
        known = history.done.get(name)
        if known is None or known.series is not series:
            known = _Done(series, series.increases(now_s - window_s, now_s), series.completion_rps(demand.rate_window_s))
        each[name] = known
        for model, work in known.increases.items():
            done[model] = Served(*map(sum, zip(done[model], work, strict=True))) if model in done else work
        for model, waiting in series.pending.items():
            pending[model] = pending.get(model, 0.0) + waiting
        for model, rps in known.completion_rps.items():
            completion_rps[model] = completion_rps.get(model, 0.0) + rps
    return _Work(window_s, done, pending, completion_rps), each if len(each) > MANY_SERVERS else {}


def _size(name: str, history: History, work: _Work, model: ModelConfig) -> RequestSize:
    return measured_size(history.sizes.get(name) or RequestSize(model.rows_per_request), work.done.get(name, NOTHING))


def _model(
    name: str, history: History, rates: Mapping[str, RouteRates], work: _Work, drift: Drift, now_s: float, size: RequestSize
) -> ModelEstimate:
    done, routed = work.done.get(name, NOTHING), rates.get(name, NOT_ROUTED)
    p50_ms, p99_ms = history.routed.tails_ms.get(name, (None, None))
    executed = done.executed
    return ModelEstimate(
        model=name,
        arrival_rps=routed.rate,
        burst_rps=routed.burst,
        stable_rps=routed.stable,
        in_flight=history.routed.in_flight.get(name, 0.0),
        pending=work.pending.get(name, 0.0),
        completion_rps=work.completion_rps.get(name, 0.0),
        failure_rps=routed.failures,
        mean_batch=done.inferences / done.executions if done.executions else None,
        queue_ms=done.queue_us / executed / 1000.0 if executed else None,
        compute_ms=done.compute_us / executed / 1000.0 if executed else None,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        age_s=now_s - routed.last_s,
        drift_ratio=drift.ratio,
        drifting=drift.state.drifting,
        correction=drift.state.correction,
        waiting=done.queue_us / 1e6 / work.window_s,
        batch_rps=done.executions / work.window_s,
        size=size,
    )


def _calls(history: History, models: Mapping[str, ModelEstimate], config: ThemisConfig, now_s: float) -> dict[str, CallHistory]:
    """What each pipeline's requests call; pipelines count the same times."""
    own, others = own_models(config.pipelines), other_calls(config.pipelines)

    @cache
    def arrivals(start_s: float, end_s: float) -> Mapping[str, float]:
        return history.routed.counters.increases(ARRIVALS, start_s, end_s)

    @cache
    def ended(start_s: float, end_s: float) -> Mapping[str, float]:
        total = dict[str, float]()
        for series in history.served.values():
            for model, count in series.counters.increases(ENDED, start_s, end_s).items():
                total[model] = total.get(model, 0.0) + count
        return total

    def counted(pipeline: PipelineConfig, model: str, start_s: float, end_s: float) -> float:
        arrived = arrivals(start_s, end_s)
        if model not in pipeline.client_calls:  # the server's own calls pass no proxy
            return max(0.0, ended(start_s, end_s).get(model, 0.0) - arrived.get(model, 0.0))
        callers = others.get(model, ()) if model == pipeline.front else ()
        called = sum(_per_request(other, history)[stage] * arrived.get(other.front, 0.0) for other, stage in callers)
        return max(0.0, arrived.get(model, 0.0) - called)

    def calls_of(pipeline: PipelineConfig) -> Calls:
        return Calls(pipeline, own, partial(counted, pipeline), lambda model: models[model].in_flight)

    due = _counted_now(history.calls, config.pipelines, now_s)
    return {
        p.name: observe_calls(history.calls.get(p.name), calls_of(p), now_s) if p.name in due else history.calls[p.name]
        for p in config.pipelines
    }


def _counted_now(calls: Mapping[str, CallHistory], pipelines: Sequence[PipelineConfig], now_s: float) -> Collection[str]:
    """The pipelines whose calls are looked at: of many, those with the oldest samples, so that not all are due in one tick."""
    names = [pipeline.name for pipeline in pipelines]
    if len(names) <= MANY_PIPELINES:
        return names
    ages_s = {name: now_s - calls[name].since_s for name in names if name in calls}
    due = {name: age_s for name, age_s in ages_s.items() if age_s >= SAMPLE_S}
    oldest = nlargest(max(MANY_PIPELINES // 2, len(names) // 8), due, key=due.__getitem__)
    return {*oldest, *(name for name in names if name not in calls)}


def _per_request(pipeline: PipelineConfig, history: History) -> tuple[float, ...]:
    known = history.calls.get(pipeline.name)
    return pipeline.per_request if known is None else known.per_request


def _sharing(history: History, rates: Mapping[str, RouteRates], config: ThemisConfig) -> Sharing:
    demand, counters = config.policy.demand, history.routed.counters
    windows = Windows((demand.rate_window_s, 2 * demand.rate_window_s), demand.stable_window_s, counters.span_s)
    known = {demand.rate_window_s: RATE, 2 * demand.rate_window_s: RECENT, demand.stable_window_s: STABLE}
    by_window = dict[float, dict[str, float]]()

    def arrivals(model: str, window_s: float) -> float:
        if window_s in known:
            return rates.get(model, NOT_ROUTED)[known[window_s]]
        if window_s not in by_window:
            by_window[window_s] = counters.rates(ARRIVALS, window_s)
        return by_window[window_s].get(model, 0.0)

    per_request = {p.name: _per_request(p, history) for p in config.pipelines}
    inside = {p.name: history.calls[p.name].most_inside for p in config.pipelines}
    return sharing_of(config.pipelines, per_request, inside, arrivals, windows)


def _pipeline(
    pipeline: PipelineConfig,
    history: History,
    models: Mapping[str, ModelEstimate],
    rates: Mapping[str, RouteRates],
    policy: PolicyConfig,
    *,
    per_second: bool,
) -> PipelineEstimate:
    """A pipeline's demand is its first stage's arrivals; later stages see only what the earlier ones let through."""
    front, first = pipeline.front, models[pipeline.front]
    routed = rates.get(front, NOT_ROUTED)
    each_second = per_second or policy.demand.forecast is not ForecastName.NONE
    per_request, sizes = history.calls[pipeline.name].per_request, tuple([models[stage].size for stage in pipeline.stages])
    called = zip(pipeline.stages, per_request, pipeline.sequential, strict=True)
    if pipeline.entry is not None:
        called = zip((pipeline.entry,), (1.0,), (False,), strict=True)
    p99s = [_stage_p99_ms(models[stage], history, calls, sequential=sequential) for stage, calls, sequential in called]
    known = [p99 for p99 in p99s if p99 is not None]
    total_ms = sum(known) if pipeline.entry is not None or len(known) < len(p99s) else pipeline.total_ms(known)
    return PipelineEstimate(
        pipeline=pipeline.name,
        recent_rps=max(first.arrival_rps, routed.recent),
        newest_rps=routed.newest,
        burst_rps=first.burst_rps,
        stable_rps=first.stable_rps,
        growth_rps_per_s=routed.growth,
        # The calls of one request that wait at once are one request that waits.
        backlog=sum(models[stage].pending / max(1.0, calls) for stage, calls in zip(pipeline.stages, per_request, strict=True)),
        p99_ms=total_ms if len(known) == len(p99s) else None,
        dispersion=routed.dispersion,
        trend_rps_per_s=routed.trend,
        trend_base_rps=routed.trend_base,
        per_second=history.routed.per_second(front, FORECAST_S) if each_second else (),
        per_request=per_request,
        sizes=sizes if any(size != ONE_ROW for size in sizes) else (),
        refused_rps=routed.refused,
        rest_fraction=min(1.0, routed.rest / first.arrival_rps) if pipeline.sheds and first.arrival_rps > 0.0 else None,
    )


def _due_rise(pipeline: PipelineConfig, rises: Iterable[RecurringRise], config: ThemisConfig, at_s: float) -> RecurringRise | None:
    """The largest of the recurring rises that may begin before a server that is launched now serves."""
    if not rises or not config.policy.demand.recurring_rises:
        return None
    lead_s = max(config.models[stage].profile.server_launch_s for stage in pipeline.stages) + WARM_UP_S
    return max((rise for rise in rises if rise.due(at_s, at_s + lead_s)), key=attrgetter("peak_rps"), default=None)


def _due_jump_rps(pipeline: PipelineConfig, rises: Iterable[RecurringRise], config: ThemisConfig, at_s: float) -> float:
    """The largest jump of the recurring rises that may begin before an instance that is added now serves."""
    if not rises or not config.policy.demand.recurring_rises:
        return 0.0
    lead_s = max(config.models[stage].profile.instance_init_s for stage in pipeline.stages) + WARM_UP_S
    return max((rise.jump_rps for rise in rises if rise.due(at_s, at_s + lead_s)), default=0.0)


def _stage_p99_ms(model: ModelEstimate, history: History, calls: float, *, sequential: bool) -> float | None:
    """The time of a request in a stage: that of its last call, where it makes several at once, or of all its calls in turn."""
    if calls <= 1.0 or model.p99_ms is None:
        return model.p99_ms
    return calls * model.p99_ms if sequential else history.routed.percentile_ms(model.model, 100.0 - 1.0 / calls)


def _stale(history: History, snapshot: Snapshot, policy: PolicyConfig) -> Iterable[tuple[str, str]]:
    if snapshot.routes_error is not None:
        ages = [snapshot.at_s - table.last_s for table in history.routed.counters.tables]
        age_s = min(ages, default=float("inf"))
        if age_s > policy.max_stale_s:
            yield PROXY, f"no statistics for {age_s:.1f} s: {snapshot.routes_error}"
    errors = {reading.server: reading.error for reading in snapshot.readings if reading.error is not None}
    for server in snapshot.servers:
        if server.phase not in HOLDING or server.name not in errors:
            continue
        age_s = snapshot.at_s - history.served.get(server.name, NO_SERVER).read_at_s
        if age_s > policy.max_stale_s:
            yield server.name, f"no metrics for {age_s:.1f} s: {errors[server.name]}"
    for reading in snapshot.readings:
        if reading.error is None and reading.batches_error is not None:
            yield f"{reading.server} batches", f"drift is unknown: {reading.batches_error}"
