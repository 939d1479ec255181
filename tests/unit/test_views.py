"""A pipeline's view, the places that it gives up, and the devices that decisions take: exact values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, MIB, NOW_S, STAGES, config, estimate, server, snapshot
from tests.unit.test_decide_places import DEVICES, at_rate, first, target, wide
from themis_triton.core.config import DeviceSlot, Isolation, LocalLaunchConfig, PipelineConfig, Placement, ThemisConfig
from themis_triton.core.estimate import Estimate, PipelineEstimate
from themis_triton.core.fleet import ModelState, Phase, Server, places_of
from themis_triton.core.observation import DeviceReading, OpenCall, Snapshot, devices_of
from themis_triton.decide.demand import Demand
from themis_triton.decide.devices import FreeDevices
from themis_triton.decide.plan_query import PlanQuery
from themis_triton.decide.planner import Planner
from themis_triton.decide.proposal import leaving, to_launch
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PipelineState, PolicyInput
from themis_triton.decide.themis import THEMIS
from themis_triton.decide.view import PipelineView, view_of


class Asked(Planner):
    """A planner that keeps the queries of joint plans."""

    def __init__(self, cfg: ThemisConfig) -> None:
        super().__init__(build_rules(cfg))
        self.queries: list[PlanQuery] = []

    def joint(self, query: PlanQuery, instances: tuple[int, ...] | None):  # type: ignore[no-untyped-def]
        self.queries.append(query)
        return super().joint(query, instances)


def view(cfg: ThemisConfig, seen: Snapshot, planner: Planner | None = None, rps: float = 20.0) -> PipelineView:
    return view_of(cfg.pipelines[0], PolicyInput(seen, estimate(rps)), planner or Planner(build_rules(cfg)), FreeDevices(seen, cfg))


def separate(cfg: ThemisConfig) -> ThemisConfig:
    return replace(cfg, planning=replace(cfg.planning, placement=Placement.SEPARATE))


def of_stage(name: str, stage: str, count: int) -> Server:
    return replace(server(name, slot=name), models={stage: ModelState(count, 8)})


@pytest.mark.parametrize(("kept", "names"), [(0, ("a",)), (1, ("a",)), (2, ("a",)), (3, ()), (4, ())])
def test_colocated_servers_leave_one_at_a_time_that_with_the_fewest_instances_first(kept: int, names: tuple[str, ...]) -> None:
    fleet = [server("a", (1, 1)), server("b", (3, 3)), server("c", (2, 2))]
    assert leaving(view(config(), snapshot(fleet)), (kept,)) == names
    assert leaving(view(config(), snapshot([*fleet, server("d", phase=Phase.WARMING)])), (kept,)) == ()


def test_adopted_servers_never_leave_and_extra_places_leave_before_any_server() -> None:
    adopted = [replace(server(name, (1, 1)), launched=False) for name in "ab"]
    assert leaving(view(config(), snapshot(adopted)), (1,)) == ()
    assert leaving(view(config(), snapshot([*adopted, server("c", (8, 8))])), (1,)) == ("c",)
    extended = snapshot([first((1, 1), (9, 9)), server("own", (2, 2), slot="cpu:3")])
    assert leaving(view(wide(), extended), (2,)) == ("first@cpu:1",)


def test_separate_servers_leave_all_at_once_each_group_by_itself() -> None:
    fleet = [of_stage(f"d{n}", DETECTOR, n) for n in (1, 2, 3, 4)] + [of_stage(f"c{n}", CLASSIFIER, n) for n in (1, 2)]
    seen = view(separate(config()), snapshot(fleet))
    assert leaving(seen, (2, 1)) == ("d2", "d1", "c1")
    assert leaving(seen, (4, 2)) == ()
    coming = replace(of_stage("d9", DETECTOR, 1), phase=Phase.LAUNCHING)
    assert leaving(view(separate(config()), snapshot([*fleet, coming])), (2, 1)) == ("c1",)
    assert to_launch(seen, (6, 2)) == (2, 0)
    assert to_launch(view(separate(config()), snapshot([*fleet, coming])), (6, 2)) == (1, 0)


def test_a_query_says_what_is_busy_elsewhere_and_which_places_share_a_queue() -> None:
    cfg, demand = wide(), Demand(20.0, 1.0, 1.0, 2.0)
    two = [first((2, 2), (2, 2), (2, 2)), replace(server("own", (2, 2), slot="cpu:3", max_batch=4), device="cpu:3")]
    planner = Asked(cfg)
    view(cfg, snapshot(two), planner).joint(demand)
    view(cfg, snapshot(two), planner).joint(demand, reload=True)
    view(cfg, snapshot(two[1:]), planner).joint(demand)
    assert planner.queries == [
        PlanQuery("video", demand, (4, 4), 0, processes=2, extra_places=2),
        PlanQuery("video", demand, None, 0, processes=2, extra_places=2),
        PlanQuery("video", demand, (4, 4), 0),
    ]
    assert view(cfg, snapshot(two)).batch_caps == (4, 4)


def test_an_open_call_commits_its_counts_at_each_place() -> None:
    one = first((2, 2), (2, 2))
    grown = one.models[DETECTOR].plus({"cpu:0": 4, "cpu:1": 4})
    seen = snapshot([one])
    waiting = replace(seen, open_calls=(OpenCall("first", DETECTOR, one.models[DETECTOR], grown, NOW_S - 9.0),))
    now, committed = view(wide(), seen), view(wide(), waiting)
    assert (len(now.open_calls), len(committed.open_calls)) == (0, 1)
    assert committed.committed_rps((2, 6)) == now.committed_rps((6, 6))
    assert committed.committed_rps((9, 6)) == now.committed_rps((6, 6)), "the call's counts, not the planned ones"
    young = replace(seen, open_calls=(OpenCall("first", DETECTOR, one.models[DETECTOR], grown, NOW_S),))
    assert view(wide(), young).open_calls == ()
    shrinking = OpenCall("first", DETECTOR, grown, one.models[DETECTOR], NOW_S - 9.0)
    assert view(wide(), replace(seen, open_calls=(shrinking,))).open_calls == ()
    foreign = OpenCall("first", "other", ModelState(1, 1), ModelState(2, 1), NOW_S - 9.0)
    cfg = wide()
    more = replace(cfg, models=cfg.models | {"other": replace(cfg.models[DETECTOR], name="other")})
    assert view(more, replace(seen, open_calls=(foreign,))).open_calls == ()


def test_capacities_of_places_that_differ_are_added_up() -> None:
    alone = [view(wide(), snapshot([first(counts)])).capacity_rps for counts in ((2, 2), (4, 3))]
    assert view(config(), snapshot([server("a", (2, 2)), server("b", (4, 3))])).capacity_rps == sum(alone)
    assert view(wide(), snapshot([])).capacity_rps == 0.0


def test_places_of_one_server_carry_what_they_do_with_equal_counts_because_they_share_its_queues() -> None:
    even, uneven = (view(wide(), snapshot([first(*counts)])).capacity_rps for counts in (((3, 2), (3, 2)), ((5, 1), (1, 3))))
    apart = [server("a", (5, 1)), server("b", (1, 3))]
    assert even == uneven > view(config(), snapshot(apart)).capacity_rps
    beside = replace(server("b", (4, 4)), device="cpu:3")
    assert view(wide(), snapshot([first((5, 1), (1, 3)), beside])).capacity_rps > even


def test_devices_beyond_the_slots_are_those_that_only_running_servers_can_take() -> None:
    cfg = wide()
    assert cfg.launch is not None
    few = replace(cfg, launch=replace(cfg.launch, slots=cfg.launch.slots[:1]))
    places = places_of(first((1, 1)), STAGES)
    devices = FreeDevices(snapshot([first((1, 1))]), few)
    assert (devices.slots, devices.beyond_slots(places)) == (("cpu:1",), 2)
    devices.take("cpu:3", "first")
    assert devices.beyond_slots(places) == 1
    devices.take_slot("cpu:1")
    assert (devices.slots, devices.beyond_slots(places)) == ((), 1)
    assert FreeDevices(snapshot([]), config(slots=0)).slots == ()


def test_slots_of_a_full_device_and_those_that_rest_are_not_free() -> None:
    launch = LocalLaunchConfig(tuple(DeviceSlot(name, "cpu:0") for name in ("one", "two", "three")), Path("models"))
    cfg = replace(config(), launch=launch)
    here = [replace(server("s", slot="one"), device="cpu:0")]
    assert FreeDevices(snapshot(here), cfg).slots == ("two", "three")
    assert FreeDevices(replace(snapshot(here), busy=frozenset({"two"})), cfg).slots == ("three",)
    assert FreeDevices(replace(snapshot(here), backing_off={"three": NOW_S + 1.0}), cfg).slots == ("two",)


def test_extensions_go_to_the_server_with_the_fewest_places_and_begin_where_something_runs() -> None:
    far = replace(server("far", (1, 1), launched=False), device="cpu:9", reach=DEVICES)
    near = first((1, 1), (1, 1))
    seen, cfg = snapshot([near, far]), wide()
    places = (*places_of(near, STAGES), *places_of(far, STAGES))
    assert [(each.name, device) for each, device in FreeDevices(seen, cfg).extensions(places, STAGES, 2)] == [
        ("far", "cpu:2"),
        ("first", "cpu:3"),
    ]
    half = replace(near, models=near.models | {DETECTOR: near.models[DETECTOR].plus({"cpu:3": 1})})
    seen = snapshot([half, far])
    places = (*places_of(half, STAGES), *places_of(far, STAGES))
    assert [(each.name, device) for each, device in FreeDevices(seen, cfg).extensions(places, STAGES, 1)] == [("first", "cpu:3")]
    assert FreeDevices(seen, cfg).extensions(places, STAGES, 0) == ()
    resting = replace(seen, backing_off={f"first/{DETECTOR}": NOW_S + 3.0, "far": NOW_S - 1.0})
    assert {each.name for each, _ in FreeDevices(resting, cfg).extensions(places, STAGES)} == {"far"}
    at_home = replace(seen, resting={devices_of("first", DETECTOR): "it is of KIND_MODEL"})
    assert {each.name for each, _ in FreeDevices(at_home, cfg).extensions(places, STAGES)} == {"far"}
    assert FreeDevices(at_home, cfg).within_reach(places, STAGES)
    assert not FreeDevices(at_home, cfg).within_reach(places_of(half, STAGES), STAGES)


def test_a_device_without_the_memory_for_one_instance_of_each_model_is_not_offered() -> None:
    cfg, one = wide(memory_bytes=100 * MIB), first((1, 1))
    margin = cfg.policy.memory_margin_fraction * 2**30

    def offered(free_bytes: float) -> list[str]:
        seen = replace(snapshot([one]), devices=(DeviceReading("cpu:1", NOW_S, 2**30, int(free_bytes)),))
        return [device for _, device in FreeDevices(seen, cfg).extensions(places_of(one, STAGES), STAGES)]

    assert offered(margin + 200 * MIB + 1) == ["cpu:1", "cpu:2", "cpu:3"]
    assert offered(margin + 200 * MIB - MIB) == ["cpu:2", "cpu:3"]
    devices = FreeDevices(replace(snapshot([one]), devices=(DeviceReading("cpu:1", NOW_S, 2**30, int(margin + 350 * MIB)),)), cfg)
    wanted = {DETECTOR: ModelState(3, 8), CLASSIFIER: ModelState(2, 8)}
    assert {name: state.instances for name, state in devices.fitting("cpu:1", wanted).items()} == {DETECTOR: 1, CLASSIFIER: 2}
    assert devices.fitting("cpu:2", wanted) == wanted


def proposed(cfg: ThemisConfig, seen: Snapshot, rps: float) -> tuple[int, tuple[int, ...]]:
    proposal = THEMIS.propose(PipelineState(), view(cfg, seen, rps=rps)).proposal
    return proposal.extend, proposal.launch


def test_running_servers_take_what_they_reach_and_servers_are_launched_for_the_rest() -> None:
    near, alone = snapshot([first((2, 2))]), snapshot([server("first", (2, 2), launched=False)])
    wanted = proposed(wide(), alone, 150.0)[1][0]
    assert proposed(wide(), alone, 150.0) == (0, (wanted,))
    extend, launch = proposed(wide(), near, 150.0)
    assert (extend > 0, launch) == (True, (0,))
    cfg = wide()
    assert cfg.launch is not None
    slots = tuple(DeviceSlot(f"cpu:{number}", f"cpu:{number}") for number in range(1, 9))
    short = replace(cfg, launch=replace(cfg.launch, slots=slots, reach=("cpu:1",)))
    one_more = replace(first((2, 2)), reach=("cpu:1",))
    assert proposed(short, snapshot([one_more]), 150.0)[0] == 1
    assert proposed(short, snapshot([one_more]), 150.0)[1][0] > 0


def test_isolation_waits_for_a_carried_and_steady_load_and_leaves_what_a_surge_would_take() -> None:
    cfg, shared = wide(Isolation.PROCESS), snapshot([first((4, 4), (4, 4))])
    assert proposed(cfg, shared, 55.0) == (0, (1,))
    assert proposed(wide(), shared, 55.0) == (0, (0,))
    assert cfg.launch is not None
    greedy = replace(
        cfg,
        planning=replace(cfg.planning, max_servers=8),
        policy=replace(cfg.policy, scale_up=replace(cfg.policy.scale_up, burst_headroom_factor=4.0)),
    )
    assert proposed(greedy, shared, 55.0)[1] == (0,), "the devices that are left belong to the next surge"
    none_free = replace(cfg, launch=replace(cfg.launch, slots=cfg.launch.slots[:1]))
    assert proposed(none_free, shared, 55.0)[1] == (0,), "the only slot's device is in use"


@pytest.mark.parametrize(("rps", "words"), [(4000.0, "video requires 3 more devices"), (95.0, "")])
def test_devices_that_are_missing_are_counted(rps: float, words: str) -> None:
    base = wide()
    assert base.launch is not None
    cfg = replace(
        base, launch=replace(base.launch, slots=base.launch.slots[:1], reach=DEVICES[:1]), planning=replace(base.planning, max_servers=4)
    )
    decision = at_rate(cfg, snapshot([replace(first((2, 2)), reach=DEVICES[:1])]), rps)
    found = [clamp.sentence for clamp in decision.clamps if "requires" in clamp.sentence]
    assert found == ([f"{words} and gets 1 of 1 free devices"] if words else [])
    assert len(target(decision).servers["first"][DETECTOR].spread) == 2


def test_a_lone_pipeline_of_one_model_is_a_view_of_one_stage() -> None:
    cfg = wide()
    lone = replace(cfg, pipelines=(PipelineConfig("lone", (CLASSIFIER,), 300.0),))
    calm = PipelineEstimate("lone", 9.0, 9.0, 9.0, 0.0, 0.0, None)
    seen = snapshot([first((2, 3), (2, 1))])
    found = view_of(
        lone.pipelines[0],
        PolicyInput(seen, Estimate(NOW_S, pipelines={"lone": calm}, history_s=60.0)),
        Planner(build_rules(lone)),
        FreeDevices(seen, lone),
    )
    assert (found.ready, found.instances_now, found.busy_elsewhere, found.extra, found.unit) == ((2,), (1,), 2, 1, "device")
