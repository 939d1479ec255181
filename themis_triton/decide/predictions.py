"""Predictions against what was observed afterwards, and the guard that takes nothing away on predictions that do not hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from themis_triton.core.attainment import EndedRequests
from themis_triton.core.config import ThemisConfig
from themis_triton.core.decision import Clamp, ClampKind, PipelineEvidence, Target
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import Snapshot
from themis_triton.core.policy import ScaleDownConfig
from themis_triton.core.prediction import PredictionScore
from themis_triton.core.replacing import replaced
from themis_triton.decide.demand import backlog_of
from themis_triton.decide.scores import MEMORY_S, SLICE_S, SLOW_LAUNCH_FACTOR, Launch, PipelineScores, Predictions, ScoreSlice
from themis_triton.decide.state import COMING, PolicyInput
from themis_triton.decide.view import PipelineView

SETTLE_S = 5.0
"""After a disturbance: the window of the measured p99, in which requests of the time before still end."""
DRAIN_S = 15.0
"""For so long after a surge its backlog may make requests late: policies plan to serve it within seconds (`demand.backlog_drain_s`)."""
MAX_TICK_S = 10.0
"""A longer time between two ticks was not observed."""
NOTHING_ENDED = EndedRequests()


def scored(
    before: Predictions, policy_input: PolicyInput, views: Sequence[PipelineView], evidence: Iterable[PipelineEvidence]
) -> Predictions:
    """With one more tick, before its decision takes effect."""
    predicted_ms = {each.pipeline: each.predicted_p99_ms for each in evidence}
    models = views[0].rules.config.models if views else {}
    guesses = frozenset(name for name, model in models.items() if model.profile.is_guess)
    pipelines = {
        view.pipeline.name: _scored(before.pipelines.get(view.pipeline.name, PipelineScores()), policy_input, view, predicted_ms, guesses)
        for view in views
    }
    return replaced(_with_launches(before, policy_input.snapshot, views), pipelines=pipelines)


def scores_of(predictions: Predictions, config: ThemisConfig, at_s: float) -> tuple[PredictionScore, ...]:
    """The score of each pipeline at a time."""
    launches = predictions.launches_of()
    return tuple([predictions.score(p.name, launches(p.stages), _allowed(p.percentile), at_s) for p in config.pipelines])


def keep_what_serves(
    target: Target, snapshot: Snapshot, views: Sequence[PipelineView], scores: Sequence[PredictionScore]
) -> tuple[Target, tuple[Clamp, ...]]:
    """No instance, batching or server is taken from a pipeline whose predictions fail, and no server where launches take too long.

    Growth stays, and so do the bounds and drains that an operator has set.
    """
    by_name = {view.pipeline.name: view for view in views}
    kept, servers, retire, clamps = set[str](), dict(target.servers), list(target.retire), []
    for score in scores:
        if score.holds and not score.launches_late:
            continue
        view, stays = by_name[score.pipeline], list[str]()
        bounded = view.pipeline.max_servers is not None and max(view.ready, default=0) > view.max_places
        for server in snapshot.servers:
            held = [stage for stage in view.pipeline.stages if stage in server.models]
            if held and server.name in retire and not bounded:
                retire.remove(server.name)
                stays.append(server.name)
            if score.holds or server.name not in servers or server.name in retire:
                continue
            models = servers[server.name]
            whole = {name: now.plus(models[name].added(now)) for name in held if (now := server.models[name]) and name in models}
            if any(models[name] != state for name, state in whole.items()):
                servers[server.name] = models | whole
                stays.append(server.name)
        if stays:
            names = ", ".join(dict.fromkeys(stays))
            clamps.append(Clamp(ClampKind.PREDICTION, f"{names} keeps what serves {score.pipeline}: {_why(score)}"))
            kept.update(stays)
    return (replaced(target, servers=servers, retire=tuple(retire)) if kept else target), tuple(clamps)


def _why(score: PredictionScore) -> str:
    return "its predictions do not hold" if not score.holds else "launches take longer than predicted"


def _allowed(percentile: float) -> float:
    return round(1.0 - percentile / 100.0, 9)


def _scored(
    before: PipelineScores,
    policy_input: PolicyInput,
    view: PipelineView,
    predicted_ms: Mapping[str, float | None],
    guesses: frozenset[str],
) -> PipelineScores:
    """`guesses`: the models whose service times are not known."""
    at_s, estimate, policy = policy_input.snapshot.at_s, view.estimate, view.rules.config.policy
    corrections = tuple([view.models[stage].correction if stage in view.models else 1.0 for stage in view.pipeline.stages])
    known = before.without_old(at_s)
    scores = PipelineScores(known.slices, known.current, at_s, known.quiet_from_s, known.exceeded_s, corrections, known.failing_since_s)
    if corrections != before.corrections and any(now > old for now, old in zip(corrections, before.corrections, strict=False)):
        # The predictions so far were made with times that are known to be too short, and are corrected now.
        scores = replaced(scores, slices=(), current=None, quiet_from_s=at_s + SETTLE_S)
    if estimate.stable_rps > view.capacity_rps:
        scores = replaced(scores, exceeded_s=at_s)
    elif scores.exceeded_s is not None and (backlog_of(estimate, policy) == 0.0 or at_s - scores.exceeded_s > DRAIN_S):
        scores = replaced(scores, exceeded_s=None)
    elapsed_s = at_s - before.last_s if before.last_s is not None else math.inf
    if scores.exceeded_s is not None or not 0.0 < elapsed_s <= MAX_TICK_S or _is_disturbed(policy_input.snapshot, view, guesses):
        return replaced(scores, current=None, quiet_from_s=at_s + SETTLE_S)
    if at_s < scores.quiet_from_s:
        return replaced(scores, current=None)
    ended, name = policy_input.estimate.ended, view.pipeline.name
    p99_ms = predicted_ms.get(name)
    ratio = estimate.p99_ms / p99_ms if estimate.p99_ms is not None and p99_ms and math.isfinite(p99_ms) else None
    slice_ = (scores.current or ScoreSlice(at_s)).plus(
        elapsed_s, ended.get(name, NOTHING_ENDED), estimate.stable_rps, view.capacity_rps, ratio
    )
    if at_s - slice_.start_s < SLICE_S:
        return PipelineScores(scores.slices, slice_, at_s, scores.quiet_from_s, scores.exceeded_s, corrections, scores.failing_since_s)
    return scores.with_slice(slice_, at_s, _allowed(view.pipeline.percentile))


def _is_disturbed(snapshot: Snapshot, view: PipelineView, guesses: frozenset[str]) -> bool:
    """Whether requests may be late for a reason that no prediction is about: a lost or faulty server, or unknown service times."""
    guessed = not guesses.isdisjoint(view.pipeline.stages)
    return not view.serves or guessed or bool(snapshot.incidents or snapshot.faults or snapshot.recently_crashed or view.crowded)


def _with_launches(before: Predictions, snapshot: Snapshot, views: Sequence[PipelineView]) -> Predictions:
    """With the launches that begin and end in this tick. Those that fail have a back-off of their own."""
    launching, launches = dict[str, float](), list(before.launches)
    for server in snapshot.servers:
        since_s = before.launching.get(server.name)
        if server.launched and server.phase in COMING:
            launching[server.name] = snapshot.at_s if since_s is None else since_s
        elif since_s is not None and server.phase is Phase.SERVING:
            holding = [view for view in views if server.models.keys() & set(view.pipeline.stages)]
            predicted_s = max((view.rules.launch_s(view.pipeline) + view.rules.init_s(view.pipeline) for view in holding), default=0.0)
            if predicted_s > 0.0:
                launches.append(_launch(server, predicted_s, since_s, snapshot.at_s, holding[0].rules.config.policy.scale_down))
    return replaced(before, launching=launching, launches=tuple(each for each in launches if snapshot.at_s - each.at_s <= MEMORY_S))


def _launch(server: Server, predicted_s: float, since_s: float, at_s: float, rules: ScaleDownConfig) -> Launch:
    """A launch that has ended; a late one counts for as long as a scale-in would wait, had it been predicted."""
    observed_s = at_s - since_s
    late = observed_s > max(SLOW_LAUNCH_FACTOR * predicted_s, rules.scale_in_stabilization_s)
    keeps_s = rules.scale_in_launch_multiple * observed_s if late else -1.0
    return Launch(at_s, frozenset(server.models), predicted_s, observed_s, at_s + keeps_s)
