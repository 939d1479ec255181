"""Several pipelines on too few slots."""

from dataclasses import replace

from tests.unit.samples import MIB, NOW_S, config, decided, model, snapshot, table
from themis_triton.core.address import UNKNOWN_ADDRESS
from themis_triton.core.config import DeviceSlot, PipelineConfig, ThemisConfig
from themis_triton.core.decision import ClampKind, Decision
from themis_triton.core.estimate import Estimate, PipelineEstimate
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import launch_of
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState

LIGHT, HEAVY = "light", "heavy"
INSTANCE_BYTES = 50 * MIB


def two_pipelines(slots: int) -> ThemisConfig:
    """Two lone models of the same cost; a request of the second one weighs ten times as much."""
    models = {name: model(name, table(4.0, 8.0, 4.0, 20.0), INSTANCE_BYTES) for name in (LIGHT, HEAVY)}
    pipelines = (PipelineConfig("a-light", (LIGHT,), 200.0, weight=1.0), PipelineConfig("b-heavy", (HEAVY,), 200.0, weight=10.0))
    return replace(config(slots=slots), models=models, pipelines=pipelines)


def with_slot_memory(cfg: ThemisConfig, memory_bytes: int) -> ThemisConfig:
    assert cfg.launch is not None
    return replace(cfg, launch=replace(cfg.launch, slots=tuple(replace(slot, memory_bytes=memory_bytes) for slot in cfg.launch.slots)))


def holder(name: str, model_name: str, slot: str) -> Server:
    models = {model_name: ModelState(8, 8)}
    return Server(name, slot, UNKNOWN_ADDRESS, UNKNOWN_ADDRESS, UNKNOWN_ADDRESS, Phase.SERVING, launched=True, slot=slot, models=models)


def rates(light_rps: float, heavy_rps: float, at_s: float) -> Estimate:
    def steady(name: str, rps: float) -> PipelineEstimate:
        return PipelineEstimate(name, rps, rps, rps, 0.0, 0.0, None)

    return Estimate(at_s, pipelines={"a-light": steady("a-light", light_rps), "b-heavy": steady("b-heavy", heavy_rps)}, history_s=60.0)


def decisions(cfg: ThemisConfig, servers: list[Server], light_rps: float, heavy_rps: float, seconds: int = 1) -> list[Decision]:
    planner, state, result = Planner(build_rules(cfg)), PolicyState(), []
    for second in range(seconds):
        at_s = NOW_S + second
        state, decision = decided(state, PolicyInput(snapshot(servers, at_s), rates(light_rps, heavy_rps, at_s)), planner)
        result.append(decision)
    return result


def launched_models(decision: Decision) -> list[str]:
    assert decision.target is not None
    return sorted(name for models in decision.target.launch.values() for name in models)


def test_slots_for_everybody_are_simply_given() -> None:
    (decision,) = decisions(two_pipelines(8), [holder("l", LIGHT, "cpu:0"), holder("h", HEAVY, "cpu:1")], 100.0, 100.0)
    assert {LIGHT, HEAVY} == set(launched_models(decision))
    assert ClampKind.DEVICES not in [clamp.kind for clamp in decision.clamps]


def test_the_last_slot_goes_where_a_lost_request_weighs_more_whatever_the_order_of_the_settings() -> None:
    (decision,) = decisions(two_pipelines(3), [holder("l", LIGHT, "cpu:0"), holder("h", HEAVY, "cpu:1")], 200.0, 200.0)
    assert launched_models(decision) == [HEAVY]
    assert [clamp.kind for clamp in decision.clamps].count(ClampKind.DEVICES) == 2


def test_a_light_pipeline_gives_a_server_up_once_slots_have_been_short_for_a_while() -> None:
    fleet = [holder("l1", LIGHT, "cpu:0"), holder("l2", LIGHT, "cpu:1"), holder("h", HEAVY, "cpu:2")]
    result = decisions(two_pipelines(3), fleet, 150.0, 400.0, seconds=8)
    retired = [decision.target.retire for decision in result if decision.target is not None]
    assert retired[:5] == [()] * 5
    assert retired[6] == ("l2",)
    (sentence,) = [clamp.sentence for clamp in result[6].clamps if "gives its device" in clamp.sentence]
    assert "b-heavy" in sentence


def test_no_device_is_given_up_while_another_one_is_on_its_way() -> None:
    fleet = [holder("l1", LIGHT, "cpu:0"), holder("l2", LIGHT, "cpu:1"), holder("h", HEAVY, "cpu:2")]
    draining = [*fleet, replace(holder("l3", LIGHT, "cpu:3"), phase=Phase.DRAINING)]
    left = [decision.target.retire for decision in decisions(two_pipelines(4), draining, 150.0, 400.0, seconds=14) if decision.target]
    assert left == [()] * 14


def test_nobody_gives_a_server_up_where_both_are_carried() -> None:
    fleet = [holder("l1", LIGHT, "cpu:0"), holder("l2", LIGHT, "cpu:1"), holder("h", HEAVY, "cpu:2")]
    for decision in decisions(two_pipelines(3), fleet, 60.0, 20.0, seconds=8):
        assert decision.target is not None
        assert decision.target.retire == ()
        assert decision.target.launch == {}


def test_a_pipelines_last_server_is_never_given_away() -> None:
    fleet = [holder("l", LIGHT, "cpu:0"), holder("h", HEAVY, "cpu:1")]
    for decision in decisions(two_pipelines(2), fleet, 5.0, 400.0, seconds=8):
        assert decision.target is not None
        assert decision.target.retire == ()


def test_slots_that_no_demand_asks_for_go_to_pipelines_without_a_server_the_weightiest_first() -> None:
    (decision,) = decisions(with_slot_memory(two_pipelines(1), INSTANCE_BYTES), [], 0.0, 0.0)
    assert launched_models(decision) == [HEAVY]
    assert [clamp.sentence for clamp in decision.clamps] == ["a-light requires 1 more server and gets 0 of 1 free slots"]


def test_demand_comes_before_a_first_server() -> None:
    (decision,) = decisions(with_slot_memory(two_pipelines(1), INSTANCE_BYTES), [], 50.0, 0.0)
    assert launched_models(decision) == [LIGHT]


def test_a_launch_is_shared_with_a_pipeline_that_would_be_left_without_a_server_as_far_as_memory_allows() -> None:
    cfg = two_pipelines(1)
    for memory_bytes, instances in ((10_000 * MIB, None), (2 * INSTANCE_BYTES, [1, 1])):
        (decision,) = decisions(with_slot_memory(cfg, memory_bytes), [], 50.0, 0.0)
        assert launched_models(decision) == [HEAVY, LIGHT]
        assert decision.target is not None
        counts = [state.instances for state in decision.target.launch["cpu:0"].values()]
        assert instances is None or counts == instances
        shared = "b-heavy shares the server that is launched on cpu:0: no slot is free for one of its own"
        assert decision.clamps[-1].sentence == shared


def test_a_pipeline_without_a_server_is_loaded_into_one_that_runs_where_memory_allows_and_that_one_stays() -> None:
    fleet = [holder("l1", LIGHT, "cpu:0"), replace(holder("l2", LIGHT, "cpu:1"), models={LIGHT: ModelState(2, 8)})]
    for memory_bytes, instances in ((10_000 * MIB, None), (4 * INSTANCE_BYTES, 2), (2 * INSTANCE_BYTES, 0)):
        made = decisions(with_slot_memory(two_pipelines(2), memory_bytes), fleet, 2.0, 400.0, seconds=12)
        assert made[0].target is not None
        loaded = made[0].target.servers["l2"].get(HEAVY)
        assert instances is None or (0 if loaded is None else loaded.instances) == instances
        for decision in made:
            assert decision.target is not None
            hosts = [name for name, models in decision.target.servers.items() if HEAVY in models]
            told = [clamp.sentence for clamp in decision.clamps if "is loaded into" in clamp.sentence]
            assert told == [f"b-heavy is loaded into {host}: no slot is free for a server of its own" for host in hosts]
            assert set(hosts).isdisjoint(decision.target.retire)


def test_the_members_of_an_ensemble_are_loaded_into_a_server_that_runs_and_the_ensemble_is_waited_for() -> None:
    light, heavy = two_pipelines(1).pipelines
    cfg = replace(two_pipelines(1), pipelines=(light, replace(heavy, entry="ens")))
    bare = replace(holder("l", LIGHT, "cpu:0"), ready_models=(LIGHT,))
    complete = replace(bare, models={**bare.models, HEAVY: ModelState(1, 8)}, ready_models=(HEAVY, LIGHT))
    failed = {"l/ens": NOW_S + 60.0}
    words = "b-heavy is loaded into {}: no slot is free for a server of its own"
    cases: tuple[tuple[list[Server], dict[str, float], list[str]], ...] = (
        ([bare], {}, [words.format("l")]),
        ([complete], {}, []),
        ([complete], failed, []),
        ([complete, replace(bare, name="m")], failed, [words.format("m")]),
        ([replace(complete, ready_models=("ens", HEAVY, LIGHT))], {}, []),
    )
    for fleet, backing_off, told in cases:
        seen = PolicyInput(replace(snapshot(fleet), backing_off=backing_off), rates(2.0, 5.0, NOW_S))
        _, decision = decided(PolicyState(), seen, Planner(build_rules(cfg)))
        assert [clamp.sentence for clamp in decision.clamps if "is loaded into" in clamp.sentence] == told


def test_a_load_that_failed_is_tried_on_another_server() -> None:
    fleet = [holder("l1", LIGHT, "cpu:0"), replace(holder("l2", LIGHT, "cpu:1"), models={LIGHT: ModelState(2, 8)})]
    for failed, hosts in ((("l2",), ["l1"]), (("l1", "l2"), [])):
        resting = {f"{name}/{HEAVY}": NOW_S + 60.0 for name in failed}
        seen = PolicyInput(replace(snapshot(fleet), backing_off=resting), rates(2.0, 50.0, NOW_S))
        _, decision = decided(PolicyState(), seen, Planner(build_rules(two_pipelines(2))))
        assert decision.target is not None
        assert [name for name, models in decision.target.servers.items() if HEAVY in models] == hosts


def test_a_pipeline_that_is_being_loaded_into_a_server_is_not_loaded_into_another_and_keeps_it() -> None:
    fleet = [holder("l1", LIGHT, "cpu:0"), holder("l2", LIGHT, "cpu:1")]
    seen = replace(snapshot(fleet), loading=frozenset({("l2", HEAVY)}))
    state, planner = PolicyState(), Planner(build_rules(two_pipelines(2)))
    for second in range(12):
        state, decision = decided(state, PolicyInput(replace(seen, at_s=NOW_S + second), rates(2.0, 50.0, NOW_S + second)), planner)
        assert decision.target is not None
        assert not any(HEAVY in models for models in decision.target.servers.values())
        assert "l2" not in decision.target.retire


def test_twenty_pipelines_on_three_slots_all_get_a_server() -> None:
    names = [f"m{number}" for number in range(20)]
    models = {name: model(name, table(4.0, 8.0, 4.0, 20.0)) for name in names}
    cfg = replace(config(slots=3), models=models, pipelines=tuple(PipelineConfig(name, (name,), 200.0) for name in names))
    steady = {name: PipelineEstimate(name, 2.0, 2.0, 2.0, 0.0, 0.0, None) for name in names}
    seen = PolicyInput(snapshot([]), Estimate(NOW_S, pipelines=steady, history_s=60.0))
    _, decision = decided(PolicyState(), seen, Planner(build_rules(cfg)))
    assert launched_models(decision) == sorted(names)
    assert decision.target is not None
    assert sorted(map(len, decision.target.launch.values())) == [6, 7, 7]


def test_a_slot_in_back_off_is_named_where_servers_are_missing_because_of_it() -> None:
    cfg, here = two_pipelines(3), [holder("l", LIGHT, "cpu:0"), holder("h", HEAVY, "cpu:1")]
    seen = replace(snapshot(here), backing_off={"cpu:2": NOW_S + 12.0})
    decision = decided(PolicyState(), PolicyInput(seen, rates(200.0, 10.0, NOW_S)), Planner(build_rules(cfg)))[1]
    assert launched_models(decision) == []
    (clamp,) = [clamp for clamp in decision.clamps if "requires" in clamp.sentence]
    assert clamp.kind is ClampKind.DEVICES
    assert clamp.sentence.endswith("of 0 free slots; cpu:2 is in back-off after a failure for 12 s more")


def test_a_model_whose_launches_rest_on_all_slots_is_named_with_the_reason_and_others_get_the_slots() -> None:
    cfg, here = two_pipelines(4), [holder("l", LIGHT, "cpu:0"), holder("h", HEAVY, "cpu:1")]
    resting = {launch_of(slot, HEAVY): "warm-up of model heavy failed 3 times" for slot in ("cpu:2", "cpu:3")}
    seen = replace(snapshot(here), backing_off=dict.fromkeys(resting, NOW_S + 60.0), resting=resting)
    decision = decided(PolicyState(), PolicyInput(seen, rates(500.0, 500.0, NOW_S)), Planner(build_rules(cfg)))[1]
    assert set(launched_models(decision)) == {LIGHT}
    (clamp,) = [clamp for clamp in decision.clamps if "rest:" in clamp.sentence]
    assert clamp.sentence.endswith(f"of 0 free slots; {', '.join(resting)} rest: warm-up of model heavy failed 3 times")


def test_a_model_whose_launches_rest_on_one_slot_gets_another_one() -> None:
    cfg, here = two_pipelines(4), [holder("l", LIGHT, "cpu:0"), holder("h", HEAVY, "cpu:1")]
    seen = replace(snapshot(here), resting={launch_of("cpu:2", HEAVY): "warm-up of model heavy failed 3 times"})
    decision = decided(PolicyState(), PolicyInput(seen, rates(500.0, 500.0, NOW_S)), Planner(build_rules(cfg)))[1]
    assert decision.target is not None
    assert {slot: tuple(models) for slot, models in decision.target.launch.items()} == {"cpu:2": (LIGHT,), "cpu:3": (HEAVY,)}


def test_pipelines_that_share_a_server_get_the_free_slots() -> None:
    names = [f"m{number:02}" for number in range(20)]
    base = config(slots=16)
    cfg = replace(
        base,
        models={name: model(name, table(4.0, 8.0, 4.0, 20.0)) for name in names},
        pipelines=tuple(PipelineConfig(name, (name,), 500.0) for name in names),
    )
    shared = replace(holder("all", names[0], "cpu:0"), models={name: ModelState(4, 8) for name in names})
    demand = {name: PipelineEstimate(name, 20.0, 20.0, 20.0, 0.0, 0.0, None) for name in names}
    seen = PolicyInput(snapshot([shared]), Estimate(NOW_S, pipelines=demand, history_s=60.0))
    decision = decided(PolicyState(), seen, Planner(build_rules(cfg)))[1]
    assert len(launched_models(decision)) == 15


def test_two_launches_in_one_tick_take_two_slots_of_one_device() -> None:
    cfg = two_pipelines(1)
    assert cfg.launch is not None
    cfg = replace(cfg, launch=replace(cfg.launch, slots=(DeviceSlot("one", "cpu:0"), DeviceSlot("two", "cpu:0"))))
    (decision,) = decisions(cfg, [], 10.0, 10.0)
    assert launched_models(decision) == [HEAVY, LIGHT]


def test_what_several_pipelines_say_is_told_once_with_their_names() -> None:
    fleet = [holder(f"{name}{number}", name, f"cpu:{number}") for name in (LIGHT, HEAVY) for number in range(2)]
    last = decisions(two_pipelines(4), fleet, 5.0, 5.0, seconds=3)[-1]
    words, _, detail = last.detail.partition(": ")
    assert words == "a-light, b-heavy"
    assert detail.startswith("1 server suffices; scale-in in ")
    assert last.detail.count("suffices") == 1


def test_a_pipeline_that_wants_a_change_explains_the_decision() -> None:
    (decision,) = decisions(two_pipelines(2), [holder("l", LIGHT, "cpu:0"), holder("h", HEAVY, "cpu:1")], 5.0, 900.0)
    assert [(evidence.pipeline, evidence.explains) for evidence in decision.evidence] == [("a-light", False), ("b-heavy", True)]
