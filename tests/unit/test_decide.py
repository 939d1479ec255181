from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.samples import CLASSIFIER, DETECTOR, MIB, NOW_S, STAGES, config, decided, estimate, model, route, server, snapshot, table
from themis_triton.core.config import PipelineConfig, Prices, ThemisConfig
from themis_triton.core.decision import Clamp, ClampKind, Decision, Reason, Stage, Target
from themis_triton.core.estimate import PROXY, Estimate
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import DeviceReading
from themis_triton.core.policy import (
    DemandConfig,
    HorizontalConfig,
    PolicyConfig,
    PolicyName,
    ScaleDownConfig,
    ScaleUpConfig,
    VerticalConfig,
)
from themis_triton.decide.demand import Demand, beyond_noise
from themis_triton.decide.devices import FreeDevices
from themis_triton.decide.guards import guard
from themis_triton.decide.plan_query import PlanQuery
from themis_triton.decide.planner import Planner
from themis_triton.decide.policies import URGENCY, decision_id
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.decide.view import view_of

# Counts below follow from the models' tables without the queue: an instance of the detector that forms no batches ends at most
# 1000/36 = 28 requests/s, eight of them together at most 8·1000/92 = 87.


def once(cfg: ThemisConfig, policy_input: PolicyInput) -> Decision:
    return decided(PolicyState(), policy_input, Planner(build_rules(cfg)))[1]


def over_time(cfg: ThemisConfig, servers: tuple[Server, ...], result: Estimate, seconds: int) -> list[Decision]:
    """A decision a second on a fleet that stays as it is."""
    planner, state, decisions = Planner(build_rules(cfg)), PolicyState(), []
    for second in range(seconds):
        at_s = NOW_S + second
        state, decision = decided(state, PolicyInput(snapshot(servers, at_s), replace(result, at_s=at_s)), planner)
        decisions.append(decision)
    return decisions


def target(decision: Decision) -> Target:
    assert decision.target is not None
    return decision.target


def kinds(decision: Decision) -> list[ClampKind]:
    return [clamp.kind for clamp in decision.clamps]


def policy(name: PolicyName) -> PolicyConfig:
    return PolicyConfig(name=name)


@pytest.mark.parametrize("name", PolicyName)
def test_without_a_server_and_without_a_way_to_launch_one_nothing_can_be_done(name: PolicyName) -> None:
    decision = once(config(policy(name), slots=0), PolicyInput(snapshot(), estimate(50.0)))
    assert (decision.reason, decision.stage, decision.target) == (Reason.HOLD_NO_SERVER, Stage.HOLD, None)
    assert "`launch`" in decision.detail


@pytest.mark.parametrize("name", PolicyName)
def test_the_first_server_is_launched_before_there_is_any_data(name: PolicyName) -> None:
    decision = once(config(policy(name)), PolicyInput(snapshot(), estimate(0.0, history_s=0.0)))
    launched = target(decision).launch
    assert "cpu:0" in launched
    for models in launched.values():
        assert set(models) == set(STAGES)
        assert all(state.instances >= 1 for state in models.values())


def test_a_first_server_on_its_way_is_waited_for() -> None:
    coming = snapshot([server("a", phase=Phase.WARMING, slot="cpu:0")])
    decision = once(config(), PolicyInput(coming, estimate(0.0, history_s=0.0)))
    assert decision.target is None or target(decision).launch == {}


@pytest.mark.parametrize("name", PolicyName)
def test_no_data_holds_what_is(name: PolicyName) -> None:
    decision = once(config(policy(name)), PolicyInput(snapshot([server("a", (4, 4))]), estimate(0.0, history_s=0.0)))
    assert decision.reason in (Reason.HOLD_NO_DATA, Reason.HOLD_WARMUP)
    assert (decision.stage, decision.target) == (Stage.HOLD, None)


@pytest.mark.parametrize("name", PolicyName)
def test_stale_readings_of_envoy_hold_what_is_and_say_why(name: PolicyName) -> None:
    stale = replace(estimate(500.0), stale={PROXY: "no statistics for 4.0 s: connection refused"})
    decision = once(config(policy(name)), PolicyInput(snapshot([server("a")]), stale))
    assert (decision.reason, decision.target) == (Reason.HOLD_STALE, None)
    assert "connection refused" in decision.detail


def test_a_silent_server_alone_does_not_blind_the_policy() -> None:
    stale = replace(estimate(40.0), stale={"a": "no metrics for 4.0 s: timed out"})
    assert once(config(), PolicyInput(snapshot([server("a", max_batch=1)]), stale)).target is not None


def test_calm_is_steady_and_changes_nothing() -> None:
    decision = once(config(), PolicyInput(snapshot([server("a")]), estimate(5.0)))
    assert decision.reason is Reason.STEADY
    assert target(decision) == Target({"a": dict(server("a").models)}, early_shrinks=True)


def test_a_surge_grows_instances_at_once() -> None:
    now = server("a", max_batch=1)
    decision = once(config(), PolicyInput(snapshot([now]), estimate(40.0)))
    assert (decision.reason, decision.stage) == (Reason.SURGE, Stage.ABSORB)
    desired = target(decision)
    assert desired.servers["a"][DETECTOR].instances >= 2
    assert desired.servers["a"][CLASSIFIER].instances >= 1
    assert (desired.launch, desired.retire) == ({}, ())
    assert {state.max_batch for state in desired.servers["a"].values()} == {1}


def test_what_waits_must_be_carried_too() -> None:
    calm, waiting = estimate(10.0), estimate(10.0)
    video = replace(waiting.pipelines["video"], backlog=15.0)
    now = PolicyInput(snapshot([server("a", max_batch=1)]), calm)
    without = once(config(), now)
    with_backlog = once(config(), replace(now, estimate=replace(waiting, pipelines={"video": video})))
    assert with_backlog.evidence[0].demand_fast_rps > without.evidence[0].demand_fast_rps
    assert target(with_backlog).servers["a"][DETECTOR].instances > target(without).servers["a"][DETECTOR].instances


def test_the_demand_grows_for_as_long_as_its_counters_are_old_besides_the_change_itself() -> None:
    result = estimate(40.0)
    rising = replace(result, pipelines={"video": replace(result.pipelines["video"], growth_rps_per_s=30.0)})
    now = snapshot([server("a", max_batch=1)])

    def demand_rps(age_s: float) -> float:
        seen = replace(now, routes=(route(DETECTOR, NOW_S - age_s, 1000.0), route(CLASSIFIER, NOW_S, 1000.0)))
        return once(config(), PolicyInput(seen, rising)).evidence[0].demand_fast_rps

    assert demand_rps(0.2) == demand_rps(0.0)  # within a tick
    growth_rps = beyond_noise(30.0, 40.0, 2.0, 1.0)
    assert demand_rps(1.5) - demand_rps(0.0) == pytest.approx(1.5 * growth_rps)


@pytest.mark.parametrize("backlog", [50.0, 100.0, 500.0])
def test_a_large_backlog_never_makes_the_servers_smaller(backlog: float) -> None:
    calm = estimate(200.0)
    waiting = replace(calm, pipelines={"video": replace(calm.pipelines["video"], backlog=backlog)})
    small, large = (target(once(config(), PolicyInput(snapshot((server("a"),)), result))) for result in (calm, waiting))
    assert large.servers["a"] == small.servers["a"]
    assert large.servers["a"][DETECTOR].instances > 4


def test_what_instances_cannot_carry_is_launched_at_once() -> None:
    decision = once(config(), PolicyInput(snapshot([server("a", max_batch=1, slot="cpu:0")]), estimate(120.0)))
    desired = target(decision)
    assert decision.reason is Reason.SCALE_OUT
    assert decision.stage is Stage.ABSORB
    assert desired.launch
    assert "cpu:0" not in desired.launch
    assert desired.servers["a"][DETECTOR].instances > 1
    (evidence,) = decision.evidence
    assert evidence.servers_now == 1
    assert evidence.servers_desired > 1
    assert evidence.capacity_rps < evidence.demand_fast_rps


def test_servers_are_kept_so_that_instances_alone_could_carry_a_surge() -> None:
    seen = PolicyInput(snapshot((server("a", (4, 2)),)), estimate(35.0))
    desired = [once(config(burst_headroom_factor=factor), seen).evidence[0].servers_desired for factor in (1.0, 2.0, 4.0)]
    assert desired[0] == 1
    assert desired[0] < desired[1] < desired[2]


@pytest.mark.parametrize("rps", [40.0, 100.0, 200.0, 2000.0])
def test_an_objective_that_nothing_can_meet_is_no_reason_to_run_less_than_the_demand_needs(rps: float) -> None:
    hopeless = replace(config(), pipelines=(PipelineConfig("video", STAGES, slo_ms=40.0),))
    servers = tuple(server(f"s{number}", (4, 4), slot=f"cpu:{number}") for number in range(4))
    last = over_time(hopeless, servers, estimate(rps), 60)[-1]
    assert (last.reason, last.evidence[0].capacity_rps) == (Reason.INFEASIBLE, 0.0)

    def throughput_rps(models: dict[str, ModelState]) -> float:
        """Of full batches with everything busy, by the detector's and the classifier's tables."""
        detectors, classifiers = models[DETECTOR].instances, models[CLASSIFIER].instances
        busy = detectors + classifiers
        return min(8000.0 * detectors / (36.0 * busy + 84.0), 8000.0 * classifiers / (18.0 * busy + 42.0))

    desired = target(last).servers.values()
    assert sum(map(throughput_rps, desired)) >= min(rps, 400.0)
    if rps > 400.0:
        assert all(models[DETECTOR].instances > 4 for models in desired)


def test_without_the_guard_against_chance_a_mild_trend_would_start_a_server() -> None:
    rising = estimate(30.0)
    video = replace(rising.pipelines["video"], trend_rps_per_s=3.0, trend_base_rps=30.0)
    result = replace(rising, pipelines={"video": video})
    decision = once(
        config(PolicyConfig(demand=DemandConfig(trend_sigmas=0.0))), PolicyInput(snapshot([server("a", (3, 2), slot="cpu:0")]), result)
    )
    assert target(decision).launch


@pytest.mark.parametrize(("trend_rps_per_s", "launches"), [(0.0, False), (3.0, False), (12.0, True)])
def test_servers_are_started_for_where_a_trend_leads_meanwhile_but_not_for_what_chance_makes(
    trend_rps_per_s: float, launches: bool
) -> None:
    rising = estimate(30.0)
    video = replace(rising.pipelines["video"], trend_rps_per_s=trend_rps_per_s, trend_base_rps=30.0)
    result = replace(rising, pipelines={"video": video})
    decision = once(config(), PolicyInput(snapshot([server("a", (3, 2), slot="cpu:0")]), result))
    assert bool(target(decision).launch) is launches


def test_servers_on_their_way_are_counted() -> None:
    ready = server("a", max_batch=1, slot="cpu:0")
    first = target(once(config(), PolicyInput(snapshot([ready]), estimate(120.0))))
    coming = [server(f"new-{slot}", phase=Phase.LAUNCHING, slot=slot) for slot in first.launch]
    second = target(once(config(), PolicyInput(snapshot([ready, *coming]), estimate(120.0))))
    assert second.launch == {}


def test_more_servers_than_free_slots_is_clamped_and_said() -> None:
    seen = replace(snapshot([server("a", max_batch=1, slot="cpu:0")]), backing_off={"cpu:1": NOW_S + 9}, busy=frozenset({"cpu:2"}))
    decision = once(config(), PolicyInput(seen, estimate(1000.0)))
    assert set(target(decision).launch) == {"cpu:3"}
    assert ClampKind.DEVICES in kinds(decision)
    (message,) = [clamp.sentence for clamp in decision.clamps if clamp.kind is ClampKind.DEVICES]
    assert "free slots" in message


def test_demand_beyond_all_servers_is_infeasible_and_all_of_them_run_as_much_as_helps() -> None:
    fleet = [server(f"s{number}", max_batch=1, slot=f"cpu:{number}") for number in range(2)]
    decision = once(config(slots=2), PolicyInput(snapshot(fleet), estimate(1000.0)))
    assert decision.reason is Reason.INFEASIBLE
    assert target(decision).launch == {}
    assert all(target(decision).servers[name][DETECTOR].instances > 1 for name in ("s0", "s1"))
    assert decision.evidence[0].servers_missing >= 1


def test_a_lost_server_is_replaced_and_called_so() -> None:
    left = snapshot([server("a", (8, 5), max_batch=1, slot="cpu:0")])
    assert once(config(), PolicyInput(left, estimate(120.0))).reason is Reason.SCALE_OUT
    decision = once(config(), PolicyInput(replace(left, recently_crashed=1), estimate(120.0)))
    assert decision.reason is Reason.REPLACE
    assert target(decision).launch
    assert once(config(), PolicyInput(replace(left, recently_crashed=1), estimate(5.0))).reason is not Reason.REPLACE


TWO = (server("a", slot="cpu:0"), server("b", slot="cpu:1"))


@pytest.mark.parametrize(("price", "held_s"), [(1.0, 5), (0.028, 11), (0.0, 60)])
def test_an_idle_instance_stays_loaded_until_it_has_cost_what_its_removal_and_return_may_lose(price: float, held_s: int) -> None:
    """0.3 by default; a free one stays for the plan's horizon."""
    cfg = replace(config(), prices=Prices(instance=price))
    fleet = (replace(server("a"), models={name: ModelState(4, 8) for name in STAGES}),)
    counts = [target(decision).servers["a"][DETECTOR].instances for decision in over_time(cfg, fleet, estimate(5.0), held_s + 1)]
    assert counts[:held_s] == [4] * held_s
    assert counts[held_s] < 4


@pytest.mark.parametrize(("stabilization_s", "launch_multiple"), [(6.0, 0.0), (0.0, 1.2)])
def test_a_server_leaves_only_after_the_hold_which_lasts_longer_than_a_launch(stabilization_s: float, launch_multiple: float) -> None:
    cfg = config(
        PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=stabilization_s, scale_in_launch_multiple=launch_multiple))
    )
    assert build_rules(cfg).launch_s(cfg.pipelines[0]) == 5.0
    leaving = [target(decision).retire for decision in over_time(cfg, TWO, estimate(5.0), 12)]
    assert leaving[:6] == [()] * 6
    assert set(leaving[6:]) == {("b",)}
    decision = over_time(cfg, TWO, estimate(5.0), 7)[-1]
    assert decision.reason is Reason.SCALE_IN


def test_nobody_leaves_while_a_server_is_on_its_way() -> None:
    coming = (*TWO, server("c", phase=Phase.WARMING, slot="cpu:2"))
    cfg = config(PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=3.0)))
    for decision in over_time(cfg, coming, estimate(5.0), 8):
        assert target(decision).retire == ()
        assert "suffice" not in decision.detail, "what a server less would save is no matter while one comes"


def test_a_server_leaves_only_when_the_survivors_carry_the_recent_peak() -> None:
    cfg = config(PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=3.0)))
    single = tuple(replace(each, models={name: ModelState(1, 1) for name in STAGES}) for each in TWO)
    for decision in over_time(cfg, single, estimate(5.0, burst_rps=100.0), 8):
        assert target(decision).retire == ()


def test_the_survivors_of_a_scale_in_grow_to_carry_it() -> None:
    cfg = config(PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=3.0, scale_in_launch_multiple=0.0)))
    single = tuple(replace(each, models={name: ModelState(1, 1) for name in STAGES}) for each in TWO)
    rate = estimate(30.0)
    retiring = [decision for decision in over_time(cfg, single, rate, 10) if target(decision).retire]
    for decision in retiring:
        (survivor,) = {"a", "b"} - set(target(decision).retire)
        assert target(decision).servers[survivor][DETECTOR].instances >= 2
    assert retiring


def test_a_moment_of_demand_starts_the_hold_afresh() -> None:
    cfg = config(PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=6.0)))
    planner, state = Planner(build_rules(cfg)), PolicyState()
    for second, rate in enumerate([5.0] * 5 + [150.0] + [5.0] * 5):
        at_s = NOW_S + second
        state, decision = decided(state, PolicyInput(snapshot(TWO, at_s), estimate(rate, at_s)), planner)
        assert target(decision).retire == ()


@pytest.mark.parametrize("name", PolicyName)
def test_servers_of_others_never_leave(name: PolicyName) -> None:
    cfg = config(PolicyConfig(name=name, scale_down=ScaleDownConfig(scale_in_stabilization_s=2.0)))
    adopted = tuple(replace(each, launched=False) for each in TWO)
    assert all(target(decision).retire == () for decision in over_time(cfg, adopted, estimate(5.0), 6))


def test_a_server_that_another_pipeline_needs_stays() -> None:
    cfg = config(PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=2.0)), slots=2)
    lone = PipelineConfig("lone", (CLASSIFIER,), slo_ms=300.0)
    cfg = replace(cfg, pipelines=(*cfg.pipelines, lone))
    quiet = estimate(5.0)
    busy = replace(quiet.pipelines["video"], pipeline="lone", recent_rps=110.0, burst_rps=110.0, stable_rps=110.0)
    both = replace(quiet, pipelines={**quiet.pipelines, "lone": busy})
    assert all(target(decision).retire == () for decision in over_time(cfg, TWO, both, 6))


def test_instances_are_given_up_only_after_the_calm_has_lasted() -> None:
    cfg = config(PolicyConfig(scale_down=ScaleDownConfig(shrink_stabilization_s=5.0)))
    counts = [target(d).servers["a"][DETECTOR].instances for d in over_time(cfg, (server("a", (6, 3)),), estimate(5.0), 12)]
    assert counts[:4] == [6] * 4
    assert counts[-1] < 6
    assert all(later <= earlier for earlier, later in pairwise(counts))


def test_instances_are_given_up_while_a_server_is_on_its_way_but_not_while_requests_wait() -> None:
    cfg = config(PolicyConfig(scale_down=ScaleDownConfig(shrink_stabilization_s=5.0)))
    alone, calm = server("a", (6, 3)), estimate(5.0)
    waiting = replace(calm, pipelines={"video": replace(calm.pipelines["video"], backlog=20.0)})
    held = [target(decision).servers["a"][DETECTOR].instances for decision in over_time(cfg, (alone,), waiting, 12)]
    assert held == [6] * 12
    last = over_time(cfg, (alone, server("b", phase=Phase.LAUNCHING, slot="cpu:1")), calm, 12)[-1]
    assert target(last).servers["a"][DETECTOR].instances < 6
    assert target(last).early_shrinks


def test_a_batch_cap_is_never_lowered() -> None:
    wide = replace(server("a"), models={name: ModelState(1, 32) for name in STAGES})
    for decision in over_time(config(), (wide,), estimate(5.0), 3):
        assert {state.max_batch for state in target(decision).servers["a"].values()} == {32}


def test_vertical_keeps_its_number_of_servers_and_moves_instances() -> None:
    cfg = config(PolicyConfig(name=PolicyName.VERTICAL, vertical=VerticalConfig(servers=2)))
    alone = PolicyInput(snapshot([server("a", max_batch=1, slot="cpu:0")]), estimate(40.0))
    decision = once(cfg, alone)
    assert len(target(decision).launch) == 1
    assert target(decision).servers["a"][DETECTOR].instances >= 2
    for rate in (1.0, 40.0, 500.0):
        full = once(cfg, PolicyInput(snapshot(TWO), estimate(rate)))
        assert (target(full).launch, target(full).retire) == ({}, ())


def test_horizontal_keeps_its_counts_and_moves_servers() -> None:
    cfg = config(PolicyConfig(name=PolicyName.HORIZONTAL, horizontal=HorizontalConfig(instances=2, scale_in_stabilization_s=3.0)))
    low = once(cfg, PolicyInput(snapshot([server("a", (2, 2), slot="cpu:0")]), estimate(5.0)))
    high = once(cfg, PolicyInput(snapshot([server("a", (2, 2), slot="cpu:0")]), estimate(300.0)))
    for decision in (low, high):
        models = [*target(decision).servers.values(), *target(decision).launch.values()]
        assert {state.instances for each in models for state in each.values()} == {2}
    assert target(low).launch == {}
    assert (high.reason, len(target(high).launch)) == (Reason.SCALE_OUT, 3)
    pair = tuple(replace(each, models={name: ModelState(2, 8) for name in STAGES}) for each in TWO)
    retired = [target(decision).retire for decision in over_time(cfg, pair, estimate(5.0), 5)]
    assert retired[:3] == [()] * 3
    assert any(retired)


def test_horizontal_fixes_the_same_economical_counts_at_every_rate() -> None:
    cfg = config(PolicyConfig(name=PolicyName.HORIZONTAL))
    result = [target(once(cfg, PolicyInput(snapshot(), estimate(rate)))).launch for rate in (5.0, 60.0)]
    assert result[0]["cpu:0"] == result[1]["cpu:0"]


def free_memory(mib: int, total_mib: int = 1000) -> DeviceReading:
    return DeviceReading("cpu:0", NOW_S, memory_total_bytes=total_mib * MIB, memory_free_bytes=mib * MIB)


def test_growth_that_does_not_fit_into_the_free_memory_less_the_margin_is_not_asked_for() -> None:
    cfg = config(memory_bytes=100 * MIB)
    surge = estimate(40.0)
    tight = replace(snapshot([server("a", max_batch=1)]), devices=(free_memory(150),))
    decision = once(cfg, PolicyInput(tight, surge))
    assert target(decision).servers["a"] == dict(server("a", max_batch=1).models)
    assert ClampKind.MEMORY in kinds(decision)
    roomy = replace(tight, devices=(free_memory(5000, 6000),))
    assert ClampKind.MEMORY not in kinds(once(cfg, PolicyInput(roomy, surge)))


def test_an_unreadable_device_does_not_forbid_growth() -> None:
    unreadable = replace(snapshot([server("a", max_batch=1)]), devices=(DeviceReading("cpu:0", NOW_S, error="no driver"),))
    decision = once(config(memory_bytes=100 * MIB), PolicyInput(unreadable, estimate(40.0)))
    assert target(decision).servers["a"][DETECTOR].instances >= 2


def test_a_server_that_does_not_fit_on_its_slot_is_not_launched() -> None:
    cfg = config(memory_bytes=100 * MIB, slot_memory_bytes=150 * MIB)
    decision = once(cfg, PolicyInput(snapshot(), estimate(5.0)))
    assert target(decision).launch == {}
    assert ClampKind.MEMORY in kinds(decision)


def test_growth_is_spread_over_the_servers_at_a_pace_and_nobody_leaves_meanwhile() -> None:
    cfg = config(PolicyConfig(scale_up=ScaleUpConfig(max_added_instances=5)))
    servers = (server("a"), server("b"), server("c"))
    desired = {name: {stage: ModelState(4, 8) for stage in STAGES} for name in ("a", "b")}
    held, clamps = guard(Target(desired, {}, ("c",)), snapshot(servers), cfg)
    added = [state.instances - 1 for models in held.servers.values() for state in models.values()]
    assert sum(added) == 5
    assert max(added) - min(added) <= 1
    assert held.retire == ()
    assert [clamp.kind for clamp in clamps] == [ClampKind.PACE, ClampKind.SURVIVORS]
    assert clamps[-1].sentence == "c stays until a, b may have the instances that its load needs"
    roomy = config(PolicyConfig(scale_up=ScaleUpConfig(max_added_instances=12)))
    assert guard(Target(desired, {}, ("c",)), snapshot(servers), roomy)[0].retire == ("c",)


def test_nobody_leaves_while_a_survivor_may_not_grow() -> None:
    cfg = config(
        PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=3.0, scale_in_launch_multiple=0.0)), memory_bytes=100 * MIB
    )
    single = tuple(replace(each, models={name: ModelState(1, 1) for name in STAGES}) for each in TWO)
    planner, state = Planner(build_rules(cfg)), PolicyState()
    held = []
    for second in range(8):
        at_s = NOW_S + second
        seen = replace(snapshot(single, at_s), devices=tuple(replace(free_memory(120), device=f"cpu:{n}") for n in range(2)))
        state, decision = decided(state, PolicyInput(seen, replace(estimate(30.0), at_s=at_s)), planner)
        assert target(decision).retire == ()
        held.append(ClampKind.SURVIVORS in kinds(decision))
    assert any(held)


def test_a_time_in_which_nothing_was_seen_covers_no_hold() -> None:
    cfg = config(PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=20.0)))
    planner, state = Planner(build_rules(cfg)), PolicyState()
    blind = replace(estimate(5.0), stale={PROXY: "4 s old"})
    retired = []
    for second in [*range(3), *range(3, 60), *range(60, 90)]:
        at_s, result = NOW_S + second, blind if 3 <= second < 60 else estimate(5.0)
        state, decision = decided(state, PolicyInput(snapshot(TWO, at_s), replace(result, at_s=at_s)), planner)
        if decision.target is not None and decision.target.retire:
            retired.append(second)
    assert retired[0] == 80


def test_the_margin_of_the_memory_is_never_asked_for_and_what_starts_counts_already() -> None:
    cfg = config(memory_bytes=100 * MIB)
    grown = {"a": {name: ModelState(2, 8) for name in STAGES}}
    # Two instances of 100 MiB fit into 299 less a margin of 100 only without that margin.
    for free_mib, fits in ((299, False), (301, True)):
        seen = replace(snapshot([server("a")]), devices=(free_memory(free_mib),))
        assert (guard(Target(grown), seen, cfg)[0].servers == grown) is fits
    launch = {"cpu:0": {name: ModelState(1, 8) for name in STAGES}}
    coming = server("new", phase=Phase.LAUNCHING)
    for servers, fits in (((), True), ((coming,), False)):
        seen = replace(snapshot(servers), devices=(free_memory(400),))
        assert (guard(Target({}, launch), seen, cfg)[0].launch == launch) is fits
    two = {name: {stage: ModelState(2, 8) for stage in STAGES} for name in ("a", "b")}
    both = replace(snapshot([server("a"), server("b")]), devices=(free_memory(400),))
    assert [clamp.sentence.split()[0] for clamp in guard(Target(two), both, cfg)[1]] == ["b"]


def test_a_lever_in_backoff_is_named_with_how_long() -> None:
    held = replace(snapshot([server("a", max_batch=1)]), backing_off={f"a/{DETECTOR}": NOW_S + 7.0})
    decision = once(config(), PolicyInput(held, estimate(40.0)))
    (clamp,) = [clamp for clamp in decision.clamps if clamp.kind is ClampKind.BACKOFF]
    assert f"a/{DETECTOR}" in clamp.sentence
    assert "7 s" in clamp.sentence


def test_bounds_hold_whatever_a_policy_says() -> None:
    wild = Target({"a": {DETECTOR: ModelState(99, 8)}}, {"cpu:1": {CLASSIFIER: ModelState(0, 8)}})
    bounded, clamps = guard(wild, snapshot([server("a")]), config())
    assert bounded.servers["a"][DETECTOR] == ModelState(8, 8)
    assert bounded.launch["cpu:1"][CLASSIFIER] == ModelState(1, 8)
    assert [clamp.kind for clamp in clamps] == [ClampKind.BOUNDS, ClampKind.BOUNDS]
    assert all(isinstance(clamp, Clamp) and clamp.sentence for clamp in clamps)


@pytest.mark.parametrize("name", PolicyName)
def test_the_same_input_gives_the_same_decision_and_names_its_policy(name: PolicyName) -> None:
    cfg, policy_input = config(policy(name)), PolicyInput(snapshot(TWO), estimate(70.0))
    first, second = once(cfg, policy_input), once(cfg, policy_input)
    assert first == second
    assert (first.policy, first.id, first.at_s) == (name.value, decision_id(NOW_S), NOW_S)


@given(st.integers(10**12, 2 * 10**12), st.integers(1, 10**9))
def test_decision_ids_sort_by_time_and_tell_ticks_apart(start_ms: int, later_ms: int) -> None:
    # half a millisecond keeps the float away from the edge of its millisecond
    earlier, later = (decision_id((ms + 0.5) / 1000.0) for ms in (start_ms, start_ms + later_ms))
    assert earlier < later


def test_the_margin_on_the_recent_peak_keeps_servers_that_it_needs() -> None:
    """24/s with half as much again need what 36/s do; without a margin one server is enough."""
    single = tuple(replace(each, models={name: ModelState(1, 1) for name in STAGES}) for each in TWO)

    def retired(rate_rps: float, margin: float) -> set[str]:
        scale_down = ScaleDownConfig(scale_in_stabilization_s=3.0, scale_in_launch_multiple=0.0, survivor_margin_fraction=margin)
        cfg = config(PolicyConfig(scale_down=scale_down))
        return {name for decision in over_time(cfg, single, estimate(rate_rps), 8) for name in target(decision).retire}

    assert retired(24.0, 0.0) == {"b"}
    assert retired(24.0, 1.5) == retired(60.0, 0.0) == set()


def test_instances_of_other_pipelines_on_a_server_count_as_busy() -> None:
    cfg = config()
    cfg = replace(cfg, models=cfg.models | {"other": replace(cfg.models[CLASSIFIER], name="other")})
    alone = server("a", (2, 2))
    shared = replace(alone, models=alone.models | {"other": ModelState(5, 8)})
    planner, pipeline = Planner(build_rules(cfg)), cfg.pipelines[0]
    seen = [snapshot([each]) for each in (alone, shared)]
    views = [view_of(pipeline, PolicyInput(one, estimate(20.0)), planner, FreeDevices(one, cfg)) for one in seen]
    assert [view.busy_elsewhere for view in views] == [0, 5]
    assert views[1].capacity_rps < views[0].capacity_rps


def test_one_pipeline_s_reason_leads_the_most_urgent_one_first() -> None:
    assert URGENCY == (
        Reason.INFEASIBLE,
        Reason.REPLACE,
        Reason.SCALE_OUT,
        Reason.SURGE,
        Reason.SCALE_IN,
        Reason.SETTLE,
        Reason.STEADY,
    )
    cfg = config(slots=0)
    names = {"calm": STAGES, "busy": ("late-detector", "late-classifier")}
    models = {name: replace(cfg.models[old], name=name) for stages in names.values() for name, old in zip(stages, STAGES, strict=True)}
    cfg = replace(cfg, models=models, pipelines=tuple(PipelineConfig(name, stages, 300.0) for name, stages in names.items()))
    servers = [replace(server("a"), models=dict.fromkeys(names["calm"], ModelState(1, 8)))]
    servers.append(replace(server("b"), models=dict.fromkeys(names["busy"], ModelState(1, 8))))

    def reason(calm_rps: float, busy_rps: float) -> Reason:
        rates = {"calm": calm_rps, "busy": busy_rps}
        pipelines = {name: replace(estimate(rps).pipelines["video"], pipeline=name) for name, rps in rates.items()}
        return once(cfg, PolicyInput(snapshot(servers), replace(estimate(0.0), pipelines=pipelines))).reason

    assert reason(5.0, 5.0) is Reason.STEADY
    assert reason(5.0, 40.0) is reason(40.0, 5.0) is Reason.SURGE
    assert reason(40.0, 1000.0) is reason(1000.0, 40.0) is Reason.INFEASIBLE


@pytest.mark.parametrize(
    ("contention_ms", "service_ms", "slo_ms", "carried_rps"),
    [(50.0, 500.0, 1500.0, 2.75), (150.0, 500.0, 700.0, 0.0), (250.0, 500.0, 1500.0, 0.375)],
)
def test_a_fraction_of_a_request_per_second_is_worth_an_instance_in_an_overload(
    contention_ms: float, service_ms: float, slo_ms: float, carried_rps: float
) -> None:
    heavy = replace(model("heavy", table(0.0, 0.0, contention_ms, service_ms)), max_batch=1, max_instances=4)
    settings = replace(config(), models={"heavy": heavy}, pipelines=(PipelineConfig("pages", ("heavy",), slo_ms),))
    answer = Planner(build_rules(settings)).vertical(PlanQuery("pages", Demand(9.0, 0.0, 1.0, 1.0), None), (1,))
    assert (answer.feasible, answer.largest_demand_rps) == (False, carried_rps)
    assert [stage.instances for stage in answer.plan.stages] == [4]
