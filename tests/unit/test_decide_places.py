"""Places in the policy, the guards and the ordering rules: further devices of running servers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, MIB, NOW_S, STAGES, config, decided, estimate, server, snapshot
from themis_triton.core.action import ActionKind
from themis_triton.core.address import Address
from themis_triton.core.config import AdoptedServer, DeviceSlot, Isolation, LocalLaunchConfig, PipelineConfig, ThemisConfig
from themis_triton.core.decision import ClampKind, Decision, Reason, Target
from themis_triton.core.fleet import Models, ModelState, Phase, Server, places_of, with_place
from themis_triton.core.observation import DeviceReading, OpenCall, Snapshot
from themis_triton.core.record import TickRecord, describe, sentence
from themis_triton.core.recurring import RecurringRise
from themis_triton.decide.devices import FreeDevices
from themis_triton.decide.guards import guard
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.decide.view import view_of
from themis_triton.plan.steps import plan
from themis_triton.solver.solve import evaluate

DEVICES = ("cpu:1", "cpu:2", "cpu:3")


def wide(isolation: Isolation = Isolation.NONE, memory_bytes: int = 0) -> ThemisConfig:
    """The video pipeline on a server of `cpu:0` that reaches three more devices, on which servers may be launched too."""
    base = config(slots=1, memory_bytes=memory_bytes)
    assert base.launch is not None
    named = tuple(DeviceSlot(name, name) for name in DEVICES)
    return replace(base, launch=LocalLaunchConfig(named, base.launch.model_repository, reach=DEVICES, isolation=isolation))


def first(*counts: tuple[int, int]) -> Server:
    """An adopted server with counts of both models on `cpu:0` and the devices that follow."""
    devices = ("cpu:0", *DEVICES)
    bare = replace(server("first", launched=False), reach=DEVICES)
    models = {
        stage: bare.models[stage].spread_over({device: count[s] for device, count in zip(devices, counts, strict=False)})
        for s, stage in enumerate(STAGES)
    }
    return replace(bare, models=models)


def at_rate(cfg: ThemisConfig, seen: Snapshot, rps: float) -> Decision:
    return decided(PolicyState(), PolicyInput(seen, estimate(rps)), Planner(build_rules(cfg)))[1]


def devices_of(models: Models) -> list[list[str]]:
    return [[device for device, _ in models[stage].spread] for stage in STAGES]


def target(decision: Decision) -> Target:
    assert decision.target is not None
    return decision.target


def test_demand_beyond_one_device_takes_further_devices_of_the_running_server_and_no_new_server() -> None:
    decision = at_rate(wide(), snapshot([first((2, 2))]), 120.0)
    models = target(decision).servers["first"]
    assert decision.reason is Reason.SURGE
    assert len(devices_of(models)[0]) > 2
    assert devices_of(models)[0] == devices_of(models)[1]
    assert target(decision).launch == {}
    grown = [action for action in plan(decision, snapshot([first((2, 2))]), wide()).actions if action.kind is ActionKind.GROW]
    assert {action.model for action in grown} == set(STAGES)


@pytest.mark.parametrize(("factor", "rate_rps", "devices"), [(1.0, 44.0, 1), (1.25, 44.0, 2), (1.25, 30.0, 1), (3.0, 30.0, 2)])
def test_devices_in_use_carry_the_standby_multiple_of_the_rate_although_others_are_in_reach(
    factor: float, rate_rps: float, devices: int
) -> None:
    cfg = wide()
    scale_up = replace(cfg.policy.scale_up, standby_headroom_factor=factor)
    decision = at_rate(replace(cfg, policy=replace(cfg.policy, scale_up=scale_up)), snapshot([first((2, 2))]), rate_rps)
    assert [len(on) for on in devices_of(target(decision).servers["first"])] == [devices, devices]
    assert target(decision).launch == {}


@pytest.mark.parametrize(("tick_s", "devices"), [(0.25, 2), (5.0, 1)])
def test_a_recurring_rise_finds_devices_and_instances_for_its_jump_unless_a_growth_shows_within_a_tick(tick_s: float, devices: int) -> None:
    cfg, seen = wide(), snapshot([first((2, 2))])
    cfg = replace(cfg, policy=replace(cfg.policy, tick_s=tick_s))
    rise = RecurringRise(1800, 1890, 120.0, 0.6, 9, 14, 99, 336, jump_rps=90.0)
    calm = estimate(20.0)
    expecting = replace(calm, pipelines={name: replace(each, due_rise=rise, due_jump_rps=90.0) for name, each in calm.pipelines.items()})
    planner = Planner(build_rules(cfg))
    now, then = (decided(PolicyState(), PolicyInput(seen, demand), planner)[1] for demand in (calm, expecting))
    assert [len(on) for on in devices_of(target(now).servers["first"])] == [1, 1]
    assert [len(on) for on in devices_of(target(then).servers["first"])] == [devices, devices]
    if devices > 1:
        at_jump = at_rate(cfg, seen, 90.0)
        assert target(then).servers == target(at_jump).servers
        assert rise.sentence in then.detail


def test_while_a_growth_waits_for_its_queue_other_servers_are_launched() -> None:
    one = first((2, 2))
    call = OpenCall("first", DETECTOR, one.models[DETECTOR], one.models[DETECTOR].plus({"cpu:0": 1}), NOW_S - 10.0)
    decision = at_rate(wide(), replace(snapshot([one]), open_calls=(call,), busy=frozenset({f"first/{DETECTOR}"})), 120.0)
    assert devices_of(target(decision).servers["first"]) == [["cpu:0"], ["cpu:0"]]
    assert target(decision).launch


def test_a_place_that_is_being_added_counts_and_its_other_models_follow() -> None:
    one = first((2, 2))
    grown = one.models[DETECTOR].plus({"cpu:1": 2})
    call = OpenCall("first", DETECTOR, one.models[DETECTOR], grown, NOW_S)
    seen = replace(snapshot([one]), open_calls=(call,), busy=frozenset({f"first/{DETECTOR}"}))
    decision = at_rate(wide(), seen, 40.0)
    assert target(decision).servers["first"][CLASSIFIER].on("cpu:1") >= 1
    assert devices_of(target(decision).servers["first"])[1] == ["cpu:0", "cpu:1"]


def uneven(*detectors: int) -> Server:
    """An adopted server with detectors on several devices and one classifier at home, as after a change that did not complete."""
    return first(*((count, int(place == 0)) for place, count in enumerate(detectors)))


@pytest.mark.parametrize("free", [True, False])
def test_a_place_with_some_of_the_models_is_completed_also_where_no_device_is_free(free: bool) -> None:
    half = uneven(6, 6) if free else uneven(6, 6, 6, 6)
    decision = at_rate(wide(), snapshot([half]), 120.0)
    on_detectors, on_classifiers = devices_of(target(decision).servers["first"])
    assert set(on_classifiers) <= set(on_detectors)
    assert len(on_classifiers) > 2
    assert [clamp for clamp in decision.clamps if clamp.kind is ClampKind.DEVICES] == []


def test_nothing_shrinks_in_the_tick_that_asks_for_further_devices() -> None:
    cfg, half, state = wide(), uneven(8, 1, 1), PolicyState()
    planner = Planner(build_rules(cfg))
    for second in range(60):
        seen = PolicyInput(snapshot([half], NOW_S + second), replace(estimate(90.0), at_s=NOW_S + second))
        state, decision = decided(state, seen, planner)
        assert target(decision).servers["first"][DETECTOR].on("cpu:0") >= 8


def test_settled_load_moves_to_a_process_of_its_own_make_before_break() -> None:
    cfg = wide(Isolation.PROCESS)
    shared = first((4, 4), (4, 4))
    (slot,) = target(at_rate(cfg, snapshot([shared]), 55.0)).launch
    assert slot in ("cpu:2", "cpu:3"), "a device that no server uses"
    assert target(at_rate(wide(), snapshot([shared]), 55.0)).launch == {}, "only where isolation asks for it"
    own = replace(server("own", (4, 4), slot=slot), device=slot)
    state, planner = PolicyState(), Planner(build_rules(cfg))
    for second in range(400):
        seen = snapshot([shared, own], NOW_S + second)
        state, decision = decided(state, PolicyInput(seen, replace(estimate(55.0), at_s=NOW_S + second)), planner)
    assert target(decision).retire == ()
    assert devices_of(target(decision).servers["first"]) == [["cpu:0"], ["cpu:0"]]


def test_instances_go_to_other_devices_before_they_leave_one_and_leave_one_at_a_time() -> None:
    cfg, one = wide(), first((2, 1), (2, 1))
    moved = one.models | {DETECTOR: one.models[DETECTOR].spread_over({"cpu:0": 2, "cpu:2": 2})}
    decision = replace(at_rate(cfg, snapshot([one]), 10.0), target=Target({"first": moved}))
    (grow,) = plan(decision, snapshot([one]), cfg).actions
    assert (grow.kind, grow.after) == (ActionKind.GROW, one.models[DETECTOR].spread_over({"cpu:0": 2, "cpu:1": 2, "cpu:2": 2}))
    three = replace(one, models=one.models | {DETECTOR: one.models[DETECTOR].plus({"cpu:2": 2})})
    (shrink,) = plan(decision, snapshot([three]), cfg).actions
    assert shrink.kind is ActionKind.SHRINK
    assert shrink.after == one.models[DETECTOR].spread_over({"cpu:0": 2, "cpu:1": 1, "cpu:2": 2})


def test_memory_limits_each_device_by_itself() -> None:
    cfg, one = wide(memory_bytes=100 * MIB), first((1, 1), (1, 1))
    readings = (DeviceReading("cpu:0", NOW_S, 2**30, 2**30), DeviceReading("cpu:1", NOW_S, 2**30, 0))
    desired = {name: state.plus({"cpu:0": 1, "cpu:1": 1}) for name, state in one.models.items()}
    kept, clamps = guard(Target({"first": desired}), replace(snapshot([one]), devices=readings), cfg)
    assert {name: state.by_device for name, state in kept.servers["first"].items()} == {key: {"cpu:0": 2, "cpu:1": 1} for key in STAGES}
    assert [(clamp.kind, "cpu:1" in clamp.sentence) for clamp in clamps] == [(ClampKind.MEMORY, True)]


@pytest.mark.parametrize(
    ("renewing", "joint", "free_mib", "counts"),
    [
        (frozenset[str](), False, 150, {"cpu:0": 3, "cpu:1": 1}),  # one more instance of 100 MiB
        (frozenset({"add_one"}), False, 150, {"cpu:0": 2, "cpu:1": 1}),  # three on that device, and one on the other, beside those that run
        (frozenset({"add_one"}), False, 350, {"cpu:0": 3, "cpu:1": 1}),
        (frozenset[str](), True, 150, {"cpu:0": 2, "cpu:1": 1}),
    ],
)
def test_a_change_that_makes_all_instances_anew_needs_the_memory_of_all(
    renewing: frozenset[str], joint: bool, free_mib: int, counts: dict[str, int]
) -> None:
    """A device-blocking backend, as probed, and an instance group over several devices."""
    cfg, one = wide(memory_bytes=100 * MIB), first((2, 1), (1, 1))
    detector = cfg.models[DETECTOR]
    known = replace(detector, profile=replace(detector.profile, renewing=renewing))
    now = replace(one.models[DETECTOR], joint=joint)
    seen = snapshot([replace(one, models=one.models | {DETECTOR: now})])
    readings = tuple(DeviceReading(device, NOW_S, 0, free_mib * MIB) for device in ("cpu:0", "cpu:1"))
    target = Target({"first": one.models | {DETECTOR: one.models[DETECTOR].plus({"cpu:0": 1})}})
    kept, _ = guard(target, replace(seen, devices=readings), replace(cfg, models=cfg.models | {DETECTOR: known}))
    assert kept.servers["first"][DETECTOR].by_device == counts


def test_a_shrink_that_makes_all_instances_anew_waits_for_the_memory_of_all() -> None:
    cfg, one = wide(memory_bytes=100 * MIB), first((3, 1))
    detector = cfg.models[DETECTOR]
    known = replace(detector, profile=replace(detector.profile, renewing=frozenset({"remove_one"})))
    target = Target({"first": one.models | {DETECTOR: one.models[DETECTOR].plus({"cpu:0": -1})}})
    for free_mib, count in ((150, 3), (250, 2)):
        seen = replace(snapshot([one]), devices=(DeviceReading("cpu:0", NOW_S, 0, free_mib * MIB),))
        kept, _ = guard(target, seen, replace(cfg, models=cfg.models | {DETECTOR: known}))
        assert kept.servers["first"][DETECTOR].on("cpu:0") == count


@pytest.mark.parametrize(("operation", "change"), [("add_device", {"cpu:1": 1}), ("remove_device", {"cpu:2": -1})])
def test_an_operation_on_devices_that_lost_requests_is_not_used(operation: str, change: dict[str, int]) -> None:
    cfg, one = wide(), first((1, 1), (0, 0), (1, 1))
    detector = cfg.models[DETECTOR]
    probed = replace(detector, profile=replace(detector.profile, operations={operation: False}))
    desired = one.models | {DETECTOR: one.models[DETECTOR].plus(change)}
    kept, clamps = guard(Target({"first": desired}), snapshot([one]), replace(cfg, models=cfg.models | {DETECTOR: probed}))
    assert kept.servers["first"] == one.models
    assert [clamp.kind for clamp in clamps] == [ClampKind.OPERATION]


def test_a_group_over_several_devices_is_not_divided_where_a_change_of_all_instances_loses_requests() -> None:
    cfg, one = wide(), first((1, 1), (1, 1))
    detector = cfg.models[DETECTOR]
    probed = replace(detector, profile=replace(detector.profile, operations={"rebatch": False}))
    joint = replace(one, models=one.models | {DETECTOR: replace(one.models[DETECTOR], joint=True)})
    cfg = replace(cfg, models=cfg.models | {DETECTOR: probed})
    for server_now, change, count in ((joint, {"cpu:0": 1}, 1), (one, {"cpu:0": 1}, 2), (joint, {}, 1)):
        kept, clamps = guard(Target({"first": one.models | {DETECTOR: one.models[DETECTOR].plus(change)}}), snapshot([server_now]), cfg)
        assert kept.servers["first"][DETECTOR].by_device == {"cpu:0": count, "cpu:1": 1}
        refused = server_now is joint and bool(change)
        sentence = f"{DETECTOR} on first: rebatch loses requests, as probed; its instances stay in one group over several devices"
        assert [clamp.sentence for clamp in clamps] == [sentence] * refused


def test_growth_goes_on_where_only_the_removal_from_a_device_is_refused() -> None:
    cfg, one = wide(), first((1, 1), (1, 1))
    detector = cfg.models[DETECTOR]
    probed = replace(detector, profile=replace(detector.profile, operations={"remove_device": False}))
    desired = one.models | {DETECTOR: one.models[DETECTOR].spread_over({"cpu:0": 2})}
    kept, clamps = guard(Target({"first": desired}), snapshot([one]), replace(cfg, models=cfg.models | {DETECTOR: probed}))
    assert kept.servers["first"][DETECTOR].by_device == {"cpu:0": 2, "cpu:1": 1}
    sentence = f"{DETECTOR} on first: remove_device loses requests, as probed; no device is given up"
    assert [clamp.sentence for clamp in clamps] == [sentence]


def test_a_device_is_offered_once_and_not_while_another_server_uses_it() -> None:
    other = replace(server("other", slot="cpu:2"), device="cpu:2")
    devices = FreeDevices(snapshot([first((1, 1)), other]), wide())
    places = places_of(first((1, 1)), STAGES)
    assert [device for _, device in devices.extensions(places, STAGES)] == ["cpu:1", "cpu:3"]
    assert list(devices.slots) == ["cpu:1", "cpu:3"]
    devices.take("cpu:1", "first")
    assert [device for _, device in devices.extensions(places, STAGES, 1)] == ["cpu:1"], "it may complete what it has begun"
    assert list(devices.slots) == ["cpu:3"]


def test_a_device_is_held_during_a_reload_that_takes_it() -> None:
    """The reload that divides a group over several devices, and one with other batches, may put instances on a further device."""
    joint = replace(first((1, 1)).models[DETECTOR], joint=True)
    call = OpenCall("first", DETECTOR, joint, joint.plus({"cpu:2": 1}), NOW_S)
    seen = replace(snapshot([first((1, 1))]), reloads=(call,))
    assert list(FreeDevices(seen, wide()).slots) == ["cpu:1", "cpu:3"]


def test_a_device_is_held_until_the_instances_there_are_gone() -> None:
    wider = first((1, 1)).models[DETECTOR].plus({"cpu:2": 1})
    removing = OpenCall("first", DETECTOR, wider, wider.plus({"cpu:2": -1}), NOW_S)
    assert list(FreeDevices(replace(snapshot([first((1, 1))]), open_calls=(removing,)), wide()).slots) == ["cpu:1", "cpu:3"]


def test_a_server_that_has_not_answered_yet_holds_the_devices_that_it_may_have() -> None:
    """No server is started where the user's own Triton is about to place its instances."""
    silent = replace(first(), models={}, phase=Phase.UNREACHABLE)
    assert list(FreeDevices(snapshot([silent]), wide()).slots) == list(DEVICES)
    assert list(FreeDevices(snapshot([replace(silent, unread_devices=("cpu:0", "cpu:3"))]), wide()).slots) == ["cpu:1", "cpu:2"]


def test_a_server_that_spreads_its_models_over_devices_is_one_place_and_keeps_what_serves() -> None:
    apart = replace(
        first((1, 0)), models={DETECTOR: ModelState(2, 8, 0, (("cpu:0", 2),)), CLASSIFIER: ModelState(1, 8, 0, (("cpu:1", 1),))}
    )
    (place,) = places_of(apart, STAGES)
    assert (place.name, place.device, place.models) == ("first", "", apart.models)
    more = with_place(apart.models, place, {DETECTOR: replace(apart.models[DETECTOR], instances=3)})
    assert more == apart.models | {DETECTOR: ModelState(3, 8, 0, (("cpu:0", 3),))}


def test_places_of_one_server_wait_less_than_servers_with_a_queue_each() -> None:
    cfg = wide()
    problem = replace(build_rules(cfg).problems["video"], demand_rps=90.0)
    apart = evaluate(problem, 3, [2, 2], [2, 2])
    shared = evaluate(replace(problem, processes=1, extra_places=2), 3, [2, 2], [2, 2])
    assert sum(stage.queueing_ms for stage in shared.stages) < sum(stage.queueing_ms for stage in apart.stages)
    assert (shared.capacity_rps, shared.cost) == (apart.capacity_rps, apart.cost)


def test_a_launching_server_is_one_coming_place() -> None:
    cfg = wide()
    seen = snapshot([first((1, 1), (1, 1)), server("new", phase=Phase.LAUNCHING, slot="cpu:2")])
    view = view_of(cfg.pipelines[0], PolicyInput(seen, estimate(20.0)), Planner(build_rules(cfg)), FreeDevices(seen, cfg))
    assert (view.ready, view.coming, view.extra, view.extending, view.reachable) == ((2,), (1,), 1, 0, 1)


def test_a_place_that_is_given_up_leaves_nothing_behind_though_its_models_have_different_counts() -> None:
    base = wide()
    cfg = replace(base, models=base.models | {DETECTOR: replace(base.models[DETECTOR], min_instances=2)})
    planner, state, fleet = Planner(build_rules(cfg)), PolicyState(), first((2, 1), (4, 1))
    for second in range(400):
        seen = snapshot([fleet], NOW_S + second)
        state, decision = decided(state, PolicyInput(seen, replace(estimate(5.0), at_s=NOW_S + second)), planner)
        for action in plan(decision, seen, cfg).actions:
            assert action.model is not None
            assert action.after is not None
            fleet = replace(fleet, models=fleet.models | {action.model: action.after})
    assert devices_of(fleet.models) == [["cpu:0"], ["cpu:0"]]


def test_what_its_owner_put_on_a_device_stays_and_so_does_half_of_a_change_under_way() -> None:
    alone = first((2, 2), (2, 0))
    for launched, busy, kept in ((False, frozenset[str](), 2), (True, frozenset({f"first/{CLASSIFIER}"}), 2), (True, frozenset[str](), 0)):
        seen = replace(snapshot([replace(alone, launched=launched)]), busy=busy)
        assert target(at_rate(wide(), seen, 5.0)).servers["first"][DETECTOR].on("cpu:1") == kept


def test_a_new_place_takes_no_more_than_the_device_has_free() -> None:
    cfg, one = wide(memory_bytes=100 * MIB), first((3, 3))
    readings = tuple(DeviceReading(device, NOW_S, 2**30, 450 * MIB) for device in DEVICES)
    models = target(at_rate(cfg, replace(snapshot([one]), devices=readings), 120.0)).servers["first"]
    counts = [models[DETECTOR].on(device) + models[CLASSIFIER].on(device) for device in DEVICES]
    assert set(counts) - {0} == {3}, "of 400 MiB less the margin"


def test_models_that_may_not_be_added_on_a_device_get_servers_instead() -> None:
    cfg = wide()
    strict = replace(cfg, models={name: replace(each, require_probed_operations=True) for name, each in cfg.models.items()})
    assert target(at_rate(cfg, snapshot([first((2, 2))]), 120.0)).launch == {}
    assert target(at_rate(strict, snapshot([first((2, 2))]), 120.0)).launch


def test_a_device_is_not_given_up_while_the_others_may_not_grow() -> None:
    cfg, one = wide(memory_bytes=100 * MIB), first((1, 1), (1, 1))
    full = (DeviceReading("cpu:0", NOW_S, 2**30, 0),)
    desired = {name: state.spread_over({"cpu:0": 2}) for name, state in one.models.items()}
    kept, clamps = guard(Target({"first": desired}), replace(snapshot([one]), devices=full), cfg)
    assert kept.servers["first"] == one.models
    assert [clamp.kind for clamp in clamps] == [ClampKind.MEMORY, ClampKind.SURVIVORS]


def test_two_pipelines_that_share_a_model_both_give_a_place_up() -> None:
    cfg = wide()
    lone = PipelineConfig("lone", (CLASSIFIER,), slo_ms=300.0)
    both = replace(cfg, pipelines=(*cfg.pipelines, lone))
    planner, state, fleet = Planner(build_rules(both)), PolicyState(), first((2, 2), (2, 2))
    for second in range(400):
        seen, calm = snapshot([fleet], NOW_S + second), replace(estimate(3.0), at_s=NOW_S + second)
        calm = replace(calm, pipelines=calm.pipelines | {"lone": replace(calm.pipelines["video"], pipeline="lone")})
        state, decision = decided(state, PolicyInput(seen, calm), planner)
        for action in plan(decision, seen, both).actions:
            assert action.model is not None
            assert action.after is not None
            fleet = replace(fleet, models=fleet.models | {action.model: action.after})
    assert devices_of(fleet.models) == [["cpu:0"], ["cpu:0"]]


def test_plans_may_use_every_device_in_reach() -> None:
    base = wide()
    assert base.launch is not None
    address = Address("127.0.0.1", 1)
    adopted = AdoptedServer("first", address, address, address, "cpu:0", reach=DEVICES)
    assert build_rules(replace(base, servers=(adopted,), launch=None)).max_servers == 4
    assert build_rules(replace(base, servers=(adopted,))).max_servers == 4


def test_the_sentence_names_the_devices_of_a_change_and_counts_devices() -> None:
    cfg, seen = wide(), snapshot([first((2, 2))])
    decision = at_rate(cfg, seen, 120.0)
    described = [describe(action) for action in plan(decision, seen, cfg).actions]
    assert all("(cpu:0 +" in text or "(cpu:1 +" in text for text in described)
    assert decision.evidence[0].unit == "device"
    record = TickRecord(1, seen, estimate(120.0), decision, plan(decision, seen, cfg))
    assert "devices 1→" in sentence(record)
