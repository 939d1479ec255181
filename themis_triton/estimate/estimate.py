"""The estimate stage: `estimate(history, snapshot, config) -> (history, Estimate)`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from heapq import nlargest
from operator import attrgetter

from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.estimate import ONE_ROW, PROXY, WORK_WINDOW_S, Estimate, ModelEstimate, PipelineEstimate
from themis_triton.core.fleet import Phase
from themis_triton.core.observation import Snapshot
from themis_triton.core.policy import DemandConfig, ForecastName, PolicyConfig
from themis_triton.core.recurring import RecurringRise
from themis_triton.core.replacing import replaced
from themis_triton.estimate.attainment import Since, count_ended
from themis_triton.estimate.calls import SAMPLE_S, CallHistory, Calls, observe_calls
from themis_triton.estimate.counters import RateWindows
from themis_triton.estimate.done import FleetWork, ModelWork, ServerWork, work_of_fleet, work_of_model, work_of_servers
from themis_triton.estimate.drift import UNKNOWN, Drift, DriftHistory, compared
from themis_triton.estimate.executing import with_executing
from themis_triton.estimate.failures import find_failures
from themis_triton.estimate.learning import LearningHistory, knowledge_of, observe_batches
from themis_triton.estimate.routed import ARRIVALS, NO_ROUTES, NOT_ROUTED, RoutedSeries, RouteRates
from themis_triton.estimate.served import ENDED, NO_SERVER, NOTHING, ServedSeries
from themis_triton.estimate.shared import Callers, Relations, Sharing, Windows, callers_of, relations_of, with_others

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
    `work`: what servers did of each model of the settings. `done`: what each of many servers did when it was read last.
    `relations`, `callers`: of the pipelines, kept while these and their calls stay the same.
    """

    routed: RoutedSeries = NO_ROUTES
    served: dict[str, ServedSeries] = field(default_factory=dict)
    calls: dict[str, CallHistory] = field(default_factory=dict)
    drift: DriftHistory = field(default_factory=DriftHistory)
    learning: LearningHistory = field(default_factory=LearningHistory)
    seen: Snapshot = field(default_factory=lambda: Snapshot(0.0, ()))
    counted: Since = field(default_factory=dict)
    recurring: Mapping[str, tuple[RecurringRise, ...]] = field(default_factory=dict)
    work: dict[str, ModelWork] = field(default_factory=dict)
    done: Mapping[str, ServerWork] = field(default_factory=dict)
    relations: Relations | None = None
    callers: Callers | None = None


def estimate(
    history: History, snapshot: Snapshot, config: ThemisConfig, *, per_second: bool = False, work_window_s: float = WORK_WINDOW_S
) -> tuple[History, Estimate]:
    """The new history and the estimate of a snapshot.

    `per_second`: pipelines' estimates hold a minute of arrivals by second. `work_window_s`: the window of queue and compute times.
    """
    history = _observe(history, snapshot, max(SERVED_KEEP_S, work_window_s))
    snapshot = with_executing(snapshot, history.served, config)
    drift, drifts, events = compared(history.drift, snapshot, config)
    demand, now_s = config.policy.demand, snapshot.at_s
    rates = _rates(history, demand)
    servers = work_of_servers(history.done, history.served, now_s, (work_window_s, demand.rate_window_s))
    fleet = work_of_fleet(servers)

    def work_of(name: str) -> ModelWork:
        return work_of_model(history.work.get(name), fleet.done.get(name, NOTHING), work_window_s, config.models.get(name))

    def estimated(name: str, work: ModelWork) -> ModelEstimate:
        return _model(name, history.routed, rates.get(name, NOT_ROUTED), work, fleet, drifts.get(name, UNKNOWN), now_s)

    works = {name: work_of(name) for name in config.models}
    models = {name: estimated(name, work) for name, work in works.items()}
    fronts = {p.front: estimated(p.front, work_of(p.front)) for p in config.pipelines if p.front not in models}
    called = models | fronts
    relations = relations_of(history.relations, config.pipelines)
    history = replaced(history, relations=relations, calls=_calls(history, relations, called, config, now_s))
    alone = {
        p.name: _pipeline(p, history, called, rates.get(p.front, NOT_ROUTED), config, now_s, per_second=per_second)
        for p in config.pipelines
    }
    history, sharing = _sharing(history, config)
    reached = sharing.pipelines_with_others()
    pipelines = alone | {p.name: with_others(alone[p.name], p, sharing) for p in config.pipelines if p.name in reached}
    stale = dict(_stale(history, snapshot, config.policy))
    failing = any(each.has_failures for each in servers.values())
    failures = find_failures(history.served, snapshot.servers) if failing else ()
    learning = observe_batches(history.learning, snapshot, config)
    knowledge = knowledge_of(learning, config, models, pipelines)
    counted, ended = count_ended(history.counted, snapshot, config.pipelines)
    span_s = history.routed.counters.span_s
    result = Estimate(now_s, models, pipelines, stale, span_s, events, failures, knowledge, dict(ended))
    done = servers if len(servers) > MANY_SERVERS else {}
    return replaced(history, drift=drift, learning=learning, seen=snapshot, counted=counted, work=works, done=done), result


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


def _model(
    name: str, routed: RoutedSeries, rates: RouteRates, work: ModelWork, fleet: FleetWork, drift: Drift, now_s: float
) -> ModelEstimate:
    p50_ms, p99_ms = routed.tails_ms.get(name, (None, None))
    return ModelEstimate(
        model=name,
        arrival_rps=rates.rate,
        burst_rps=rates.burst,
        stable_rps=rates.stable,
        in_flight=routed.in_flight.get(name, 0.0),
        pending=fleet.pending.get(name, 0.0),
        completion_rps=fleet.completion_rps.get(name, 0.0),
        failure_rps=rates.failures,
        mean_batch=work.mean_batch,
        queue_ms=work.queue_ms,
        compute_ms=work.compute_ms,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        age_s=now_s - rates.last_s,
        drift_ratio=drift.ratio,
        drifting=drift.state.drifting,
        correction=drift.state.correction,
        waiting=work.waiting,
        batch_rps=work.batch_rps,
        size=work.size,
    )


def _calls(
    history: History, relations: Relations, models: Mapping[str, ModelEstimate], config: ThemisConfig, now_s: float
) -> dict[str, CallHistory]:
    """What each pipeline's requests call; pipelines count the same times."""

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
        callers = relations.others.get(model, ()) if model == pipeline.front else ()
        called = sum(_per_request(other, history)[stage] * arrived.get(other.front, 0.0) for other, stage in callers)
        return max(0.0, arrived.get(model, 0.0) - called)

    def calls_of(pipeline: PipelineConfig) -> Calls:
        return Calls(pipeline, relations.own, partial(counted, pipeline), lambda model: models[model].in_flight)

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


def _sharing(history: History, config: ThemisConfig) -> tuple[History, Sharing]:
    """What reaches the pipelines' models besides, and the history with who calls them."""
    demand, counters = config.policy.demand, history.routed.counters
    windows = Windows((demand.rate_window_s, 2 * demand.rate_window_s), demand.stable_window_s, counters.span_s)
    callers = callers_of(history.callers, config.pipelines, tuple([history.calls[p.name].per_request for p in config.pipelines]))

    @cache
    def arrivals(window_s: float) -> Mapping[str, float]:
        return counters.rates(ARRIVALS, window_s)

    def inside(pipeline: str) -> float:
        return history.calls[pipeline].most_inside

    return replaced(history, callers=callers), Sharing(callers, inside, arrivals, windows)


def _pipeline(
    pipeline: PipelineConfig,
    history: History,
    models: Mapping[str, ModelEstimate],
    rates: RouteRates,
    config: ThemisConfig,
    now_s: float,
    *,
    per_second: bool,
) -> PipelineEstimate:
    """A pipeline's demand is its first stage's arrivals; later stages see only what the earlier ones let through."""
    front, first, rises = pipeline.front, models[pipeline.front], history.recurring.get(pipeline.name, ())
    each_second = per_second or config.policy.demand.forecast is not ForecastName.NONE
    per_request, sizes = history.calls[pipeline.name].per_request, tuple([models[stage].size for stage in pipeline.stages])
    called = zip(pipeline.stages, per_request, pipeline.sequential, strict=True)
    if pipeline.entry is not None:
        called = zip((pipeline.entry,), (1.0,), (False,), strict=True)
    p99s = [_stage_p99_ms(models[stage], history, calls, sequential=sequential) for stage, calls, sequential in called]
    known = [p99 for p99 in p99s if p99 is not None]
    total_ms = sum(known) if pipeline.entry is not None or len(known) < len(p99s) else pipeline.total_ms(known)
    return PipelineEstimate(
        pipeline=pipeline.name,
        recent_rps=max(first.arrival_rps, rates.recent),
        newest_rps=rates.newest,
        burst_rps=first.burst_rps,
        stable_rps=first.stable_rps,
        growth_rps_per_s=rates.growth,
        # The calls of one request that wait at once are one request that waits.
        backlog=sum(models[stage].pending / max(1.0, calls) for stage, calls in zip(pipeline.stages, per_request, strict=True)),
        p99_ms=total_ms if len(known) == len(p99s) else None,
        dispersion=rates.dispersion,
        trend_rps_per_s=rates.trend,
        trend_base_rps=rates.trend_base,
        per_second=history.routed.per_second(front, FORECAST_S) if each_second else (),
        per_request=per_request,
        sizes=sizes if any(size != ONE_ROW for size in sizes) else (),
        refused_rps=rates.refused,
        rest_fraction=min(1.0, rates.rest / first.arrival_rps) if pipeline.sheds and first.arrival_rps > 0.0 else None,
        due_rise=_due_rise(pipeline, rises, config, now_s),
        due_jump_rps=_due_jump_rps(pipeline, rises, config, now_s),
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
