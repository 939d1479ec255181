"""Admission of pipelines with `overload: shed`: at any time at most the rate that what serves then carries inside the SLO.

The limit stands all the time, so that an overload is refused from its first request on, and not only once it has been seen. It is a
token bucket: the rate is the largest that is feasible without headroom; its tokens are the requests that may come at once, so many that
the last of them still ends inside the SLO.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from themis_triton.core.config import ThroughputRule
from themis_triton.core.decision import Admission, PipelineEvidence
from themis_triton.core.routes import RouteLimit
from themis_triton.decide.state import StandingLimit
from themis_triton.decide.view import PipelineView

MIN_RPS = 1.0
"""A lower capacity means that hardly a lone request meets the SLO: then nothing is refused, as this would refuse nearly all."""
SMALL_CHANGE, LARGE_CHANGE = 0.03, 0.2
"""A limit changes when it is wrong by more than the first fraction, and at once when the capacity has fallen by more than the second."""
CALM_S = 2.0
"""Time between changes for any other reason: each fills the buckets of all pipelines, as the proxy then makes all its routes anew."""
BURST_TOKENS, BURST_SIGMAS = 8.0, 2.5
"""Random arrivals at nearly the rate need so many tokens: standard deviations of their number in one SLO, and at least the first number."""
REFUSING_DIVISOR, REFILL_FACTOR = 3.0, 1.5
MIN_FRACTION = 0.25
"""Of the feasible rate: what is admitted however much waits."""
DEADLINE_FRACTION = 0.5
"""Of the profile's time of a lone call: a shorter deadline cannot be met, even where the profile is pessimistic."""
SHARE_CHANGE = 0.15
"""Change of the part of the requests that come over REST which divides the limit anew."""


def admit(standing: Mapping[str, StandingLimit], views: Sequence[PipelineView]) -> tuple[dict[str, StandingLimit], tuple[Admission, ...]]:
    """The limits from now on by pipeline, and as part of the decision; those that hold, where they hardly differ.

    All change together. Nothing is refused by service times that are a guess.
    """
    shedding = [view for view in views if view.pipeline.sheds and view.rules.config.knows(view.pipeline)]
    limits = {view.pipeline.name: _next(standing.get(view.pipeline.name), view) for view in shedding}
    if not _apply(standing, limits):
        limits = dict(standing)
    known = {name: limit for name, limit in limits.items() if limit is not None}
    fronts = {view.pipeline.name: view.pipeline.front for view in views}
    return known, tuple(Admission(name, fronts[name], each.limit) for name, each in known.items())


def _apply(standing: Mapping[str, StandingLimit], desired: Mapping[str, StandingLimit | None]) -> bool:
    """Whether the desired limits take effect now: those that stand are old enough, or a pipeline is new, gone, or lost its servers."""
    if standing.keys() != {name for name, limit in desired.items() if limit is not None}:
        return True
    changed = [(standing[name], limit) for name, limit in desired.items() if limit is not None and limit is not standing[name]]
    if not changed:
        return False
    last_s = max(limit.since_s for limit in standing.values())
    return changed[0][1].since_s - last_s >= CALM_S or any(
        limit.capacity_rps < (1.0 - LARGE_CHANGE) * now.capacity_rps for now, limit in changed
    )


def with_limits(evidence: PipelineEvidence, view: PipelineView, standing: Mapping[str, StandingLimit]) -> PipelineEvidence:
    """The evidence of a pipeline with its limit and what was refused."""
    limit = standing.get(view.pipeline.name)
    if limit is None:
        return evidence
    return replace(evidence, limit_rps=limit.limit.requests_per_s, refused_rps=view.estimate.refused_rps)


def _next(now: StandingLimit | None, view: PipelineView) -> StandingLimit | None:
    if not view.serves:
        return now
    if view.capacity_rps < MIN_RPS:
        return None
    room = queue_room(view)
    rate_rps, burst = _rate_rps(view, room), _burst(view, room)
    if now is not None and not _differs(now, rate_rps, burst, view):
        return now
    fraction = view.estimate.rest_fraction
    if fraction is None:
        fraction = now.limit.rest_fraction if now is not None else 0.0
    classes = (view.pipeline.class_header, view.pipeline.classes)
    limit = RouteLimit(round(rate_rps, 2), burst, round(fraction, 1), _reason(view, rate_rps), _min_deadline_ms(view), *classes)
    return StandingLimit(limit, view.at_s, view.capacity_rps)


def _min_deadline_ms(view: PipelineView) -> float:
    """Half of the time of a lone call by the profile, as no answer comes faster than that."""
    surfaces = [stage.mean_surface or stage.surface for stage in view.problem.stages]
    lone_ms = [float(surface.latency_ms[0].min()) for surface in surfaces]
    own_ms = lone_ms[0] if view.pipeline.entry is None else view.problem.total_ms(lone_ms)
    return round(DEADLINE_FRACTION * own_ms, 1)


def _rate_rps(view: PipelineView, room: float) -> float:
    """What serves now carries; less while more waits than the bucket lets in, which service times above the profile's cause."""
    excess = view.estimate.backlog - room
    drained_rps = max(0.0, excess) / view.rules.config.policy.demand.backlog_drain_s
    return max(MIN_FRACTION * view.capacity_rps, view.capacity_rps - drained_rps)


def _burst(view: PipelineView, room: float) -> int:
    """The tokens: what the queue has room for, but no more than what random arrivals at the rate need.

    While requests are refused the bucket is empty, and a changed limit begins with a full one on top of the load: then fewer.
    """
    usual = BURST_SIGMAS * math.sqrt(view.capacity_rps * view.problem.slo_ms / 1000.0)
    tokens = min(room, max(BURST_TOKENS, usual))
    return max(1, int(tokens / REFUSING_DIVISOR if _refuses(view) else tokens))


def _refuses(view: PipelineView) -> bool:
    return view.estimate.refused_rps > SMALL_CHANGE * view.capacity_rps


def _differs(now: StandingLimit, rate_rps: float, burst: int, view: PipelineView) -> bool:
    fraction = view.estimate.rest_fraction
    other = fraction is not None and abs(fraction - now.limit.rest_fraction) > SHARE_CHANGE
    return other or abs(rate_rps / now.limit.requests_per_s - 1.0) > SMALL_CHANGE or burst > REFILL_FACTOR * now.limit.burst


def _reason(view: PipelineView, rate_rps: float) -> str:
    """What a refused client reads."""
    pipeline = view.pipeline
    return (
        f"Themis: pipeline {pipeline.name} is overloaded: it admits {rate_rps:.0f} requests/s, what its servers carry inside its SLO of "
        f"{pipeline.slo_ms:g} ms now; retry later"
    )


def queue_room(view: PipelineView) -> float:
    """How many requests may come at once, beside the feasible rate, so that the last one still ends inside the SLO."""
    largest = max(view.batch_caps)
    return max(_room(view, tuple(min(batch, cap) for cap in view.batch_caps)) for batch in range(1, largest + 1))


def _room(view: PipelineView, batches: tuple[int, ...]) -> float:
    """The same with batches of these sizes: those that start at once, and those that the slowest stage serves in the rest of the SLO."""
    times_ms, starts, rates_rps = [], [], []
    for s, (stage, batch) in enumerate(zip(view.problem.stages, batches, strict=True)):
        places = view.holders(s)
        counts = [place.models[stage.name].instances for place in places]
        cores = view.problem.throughput is ThroughputRule.CORES
        others = [sum(place.models[name].instances for name in view.pipeline.stages if name in place.models) for place in places]
        column = max(counts) if cores else max(others) + view.counted_elsewhere
        latency_ms = float(stage.surface.extended(batch, column)[batch - 1, column - 1])
        workers = (len(places) if cores else sum(counts)) / max(stage.demand_ratio, 1e-9)
        times_ms.append(stage.in_turn * latency_ms)
        starts.append(workers)
        rates_rps.append(1000.0 * workers * batch / latency_ms)
    slowest = min(range(len(rates_rps)), key=rates_rps.__getitem__)
    return starts[slowest] + rates_rps[slowest] * max(0.0, view.problem.slo_ms - view.problem.total_ms(times_ms)) / 1000.0
