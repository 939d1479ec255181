"""The entry point of the decide stage: holds, each pipeline's proposal, the joint target of all pipelines, the guards."""

from __future__ import annotations

from collections.abc import Sequence

from themis_triton.core.config import DrainState, PipelineConfig
from themis_triton.core.decision import Decision, Reason, Stage
from themis_triton.core.estimate import PROXY
from themis_triton.core.prediction import PredictionScore, prediction_words
from themis_triton.core.replacing import replaced
from themis_triton.core.words import first_of
from themis_triton.decide import draining, leaving
from themis_triton.decide.admission import admit, with_limits
from themis_triton.decide.allocation import allocate
from themis_triton.decide.combined_target import PipelineProposal
from themis_triton.decide.correction import factors_of
from themis_triton.decide.devices import FreeDevices
from themis_triton.decide.emptying import queues_to_empty
from themis_triton.decide.guards import guard
from themis_triton.decide.kept_views import KeptViews
from themis_triton.decide.planner import Planner
from themis_triton.decide.policy import Policy
from themis_triton.decide.predictions import keep_what_serves, scored, scores_of
from themis_triton.decide.proposal import Proposal, explains, with_explains
from themis_triton.decide.resting import SMALL_FLEET, due, resting, with_rest
from themis_triton.decide.rules import Rules
from themis_triton.decide.sharing import SharedModels
from themis_triton.decide.slow_target import is_in_turn
from themis_triton.decide.state import PipelineState, PolicyInput, PolicyState
from themis_triton.decide.view import PipelineView, view_of

URGENCY = (
    Reason.INFEASIBLE,
    Reason.REPLACE,
    Reason.SCALE_OUT,
    Reason.SURGE,
    Reason.SCALE_IN,
    Reason.SETTLE,
    Reason.STEADY,
)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def decide(state: PolicyState, policy_input: PolicyInput, planner: Planner, policy: Policy) -> tuple[PolicyState, Decision]:
    """One tick's decision. Without data, with stale readings or a short history the fleet is held. Pure: no clock, no I/O."""
    rules = planner.rules
    hold = _hold(policy_input, rules)
    if hold is not None:
        return state.reset_windows(), hold
    devices, staying = FreeDevices(policy_input.snapshot, rules.config), draining.without(policy_input, rules.config.drains)
    in_large_fleet = policy.lets_rest and len(rules.config.pipelines) > SMALL_FLEET
    proposals = (_proposals_in_turn if in_large_fleet else _all_proposals)(state, staying, planner, policy, devices)
    allocation = allocate(state, proposals, staying, rules, devices)
    views = [each.view for each in proposals]
    routed = _routed_views(views, policy_input, planner, devices, state)
    predictions, scores = state.predictions, tuple[PredictionScore, ...]()
    if policy.holds_to_predictions:
        predictions = scored(predictions, policy_input, routed, [each.result.proposal.evidence for each in proposals])
        scores = scores_of(predictions, rules.config, staying.snapshot.at_s)
    target, kept = keep_what_serves(allocation.target, staying.snapshot, views, scores)
    target, clamps = guard(replaced(target, early_shrinks=policy.early_shrinks), staying.snapshot, rules.config)
    unrouted, emptied = queues_to_empty(proposals, target, staying)
    unrouted = (*unrouted, *leaving.pairs_left(views))
    drained = draining.drain(rules.config.drains, policy_input, proposals, routed)
    outputs = [entry.result.proposal for entry in draining.as_routed(proposals, routed)]
    limits, admissions = admit(state.limits, routed)
    lead = min(outputs, key=lambda p: URGENCY.index(p.reason))
    reason = Reason.REPLACE if lead.reason is Reason.SCALE_OUT and policy_input.snapshot.recently_crashed else lead.reason
    left, rest = leaving.left_by(views), _resting_servers(proposals)
    return replaced(allocation.state, left=left, limits=limits, predictions=predictions, resting_servers=rest), Decision(
        id=decision_id(policy_input.snapshot.at_s),
        at_s=policy_input.snapshot.at_s,
        policy=rules.config.policy.name.value,
        stage=lead.stage,
        reason=reason,
        target=drained.applied(replaced(target, unrouted=unrouted) if unrouted else target),
        evidence=tuple(
            with_explains(with_limits(output.evidence, view, limits), explains=explains(each.view, output))
            for output, view, each in zip(outputs, routed, proposals, strict=True)
        ),
        clamps=tuple(dict.fromkeys((*allocation.clamps, *kept, *clamps, *emptied, *leaving.reasons(views), *drained.clamps))),
        detail="; ".join(part for part in (*map(prediction_words, scores), _details(outputs)) if part),
        admissions=admissions,
        predictions=scores,
    )


def _all_proposals(
    state: PolicyState, policy_input: PolicyInput, planner: Planner, policy: Policy, devices: FreeDevices
) -> list[PipelineProposal]:
    """Every pipeline's proposal, each after those before it."""
    rules = planner.rules
    proposals, in_turn, shared = [], _in_turn(policy_input, rules), SharedModels(policy_input, rules.config)
    for pipeline in rules.config.pipelines:
        view = _view(pipeline, policy_input, planner, devices, state, shared, in_turn=pipeline.name in in_turn)
        result = policy.propose(state.pipelines.get(pipeline.name, PipelineState()), view)
        shared.request(result.proposal.launch, result.proposal.launch_models)
        proposals.append(PipelineProposal(view, result))
    return proposals


def _proposals_in_turn(
    state: PolicyState, policy_input: PolicyInput, planner: Planner, policy: Policy, devices: FreeDevices
) -> list[PipelineProposal]:
    """As `_all_proposals`, where steady pipelines rest."""
    rules, config = planner.rules, planner.rules.config
    in_turn, shared = _in_turn(policy_input, rules), SharedModels(policy_input, config)
    kept: KeptViews = planner.remembered("kept views", lambda: KeptViews(config))

    def viewed(pipeline: PipelineConfig) -> PipelineView:
        known = kept.again(pipeline, policy_input, devices, state.left, in_turn=pipeline.name in in_turn)
        if known is not None:
            return known
        view = _view(pipeline, policy_input, planner, devices, state, shared, in_turn=pipeline.name in in_turn)
        return kept.keep(view, policy_input)

    views = [viewed(pipeline) for pipeline in config.pipelines]
    states = [state.pipelines.get(pipeline.name, PipelineState()) for pipeline in config.pipelines]
    rests = list(map(resting, states, views))
    proposed, proposals = due(rests, config.policy.tick_s), []
    for number, (view, before, rest) in enumerate(zip(views, states, rests, strict=True)):
        if rest is not None and number not in proposed:
            proposals.append(PipelineProposal(view, rest.result, rests=view.alone))
            continue
        # What pipelines before it have asked for counts where they share models.
        now = viewed(view.pipeline) if any(view.estimate.others) else view
        result = with_rest(policy.propose(before, now), now)
        shared.request(result.proposal.launch, result.proposal.launch_models)
        proposals.append(PipelineProposal(now, result, rests=now.alone and rest is not None and result.state.resting is not None))
    return proposals


def _resting_servers(proposals: Sequence[PipelineProposal]) -> frozenset[str]:
    """The servers of pipelines that rest."""
    return frozenset(place.server.name for each in proposals if each.rests for group in each.view.groups for place in group.ready)


def _details(outputs: Sequence[Proposal]) -> str:
    """What the pipelines' proposals say, each sentence once; of several pipelines with the names of those that say it."""
    names: dict[str, list[str]] = {}
    for output in outputs:
        if output.detail:
            names.setdefault(output.detail, []).append(output.evidence.pipeline)
    if len(outputs) == 1:
        return "; ".join(names)
    return "; ".join(f"{first_of(pipelines, ', ', 'pipelines')}: {detail}" for detail, pipelines in names.items())


def _view(
    pipeline: PipelineConfig,
    policy_input: PolicyInput,
    planner: Planner,
    devices: FreeDevices,
    state: PolicyState,
    shared: SharedModels,
    *,
    in_turn: bool = True,
) -> PipelineView:
    groups = policy_input.groups(pipeline, planner.rules.config.planning.placement)
    # By pipeline: the answers for all others stay known while one model's times change.
    corrected = planner.corrected(factors_of(policy_input.estimate, pipeline.stages))
    called = corrected.called(pipeline.name, shared.per_request(pipeline, groups), policy_input.estimate.pipelines[pipeline.name].sizes)
    return view_of(pipeline, policy_input, called, devices, state.left.get(pipeline.name, ()), shared, in_turn=in_turn)


def _routed_views(
    views: Sequence[PipelineView], policy_input: PolicyInput, planner: Planner, devices: FreeDevices, state: PolicyState
) -> Sequence[PipelineView]:
    """The views with the servers that wait to be drained: what serves until then."""
    drains = planner.rules.config.drains
    if DrainState.WAITING not in drains.values():
        return views
    routed = draining.without(policy_input, (name for name, drain in drains.items() if drain is not DrainState.WAITING))
    shared = SharedModels(routed, planner.rules.config)
    return [_view(view.pipeline, routed, planner, devices, state, shared) for view in views]


def _in_turn(policy_input: PolicyInput, rules: Rules) -> frozenset[str]:
    """The pipelines that plan their servers in this tick: not all where there are many of them, or of the places that they may have."""
    pipelines, held = rules.config.pipelines, policy_input.servers_by_model
    places = sum([len(server.devices) for pipeline in pipelines for server in held.get(pipeline.stages[0], ())])
    ticks = round(policy_input.snapshot.at_s / rules.config.policy.tick_s)
    return frozenset(p.name for number, p in enumerate(pipelines) if is_in_turn(number, len(pipelines), places, ticks))


def decision_id(at_s: float) -> str:
    """An id that sorts by time: milliseconds since the epoch in base 36; unique for ticks at least a millisecond apart."""
    number, digits = int(at_s * 1000), ""
    while number:
        number, rest = divmod(number, 36)
        digits = DIGITS[rest] + digits
    return digits or "0"


def _hold(policy_input: PolicyInput, rules: Rules) -> Decision | None:
    estimate, policy = policy_input.estimate, rules.config.policy
    groups = (group for p in rules.config.pipelines for group in policy_input.groups(p, rules.config.planning.placement))
    if not any(group.ready or group.coming for group in groups):
        return (
            None
            if rules.config.launch is not None
            else _hold_decision(policy_input, rules, Reason.HOLD_NO_SERVER, "and there is no `launch` section")
        )
    if PROXY in estimate.stale:
        return _hold_decision(policy_input, rules, Reason.HOLD_STALE, f"proxy: {estimate.stale[PROXY]}")
    if estimate.history_s == 0.0:
        return _hold_decision(policy_input, rules, Reason.HOLD_NO_DATA, "the proxy has no statistics of any model yet")
    if estimate.history_s < 2 * policy.demand.rate_window_s:
        return _hold_decision(policy_input, rules, Reason.HOLD_WARMUP, f"{estimate.history_s:.1f} s of arrivals observed")
    return None


def _hold_decision(policy_input: PolicyInput, rules: Rules, reason: Reason, detail: str) -> Decision:
    at_s, clamps = policy_input.snapshot.at_s, draining.held(rules.config.drains, policy_input.snapshot, detail)
    return Decision(decision_id(at_s), at_s, rules.config.policy.name.value, Stage.HOLD, reason, None, detail=detail, clamps=clamps)
