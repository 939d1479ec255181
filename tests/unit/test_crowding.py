"""Pipelines that share a server: how busy the others are, and when one leaves a server to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.unit.samples import NOW_S, config, decided, model, snapshot, table
from tests.unit.test_allocation import holder
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.decision import ClampKind, Decision
from themis_triton.core.estimate import Estimate, PipelineEstimate
from themis_triton.core.fleet import ModelState, Place, Server
from themis_triton.core.observation import ModelCounters, ServerReading, Snapshot
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.estimate.busy import busy_instances
from themis_triton.estimate.served import ServedSeries

ONE, OTHER = "one", "other"


def two(slots: int = 2) -> ThemisConfig:
    models = {name: model(name, table(4.0, 8.0, 4.0, 20.0)) for name in (ONE, OTHER)}
    return replace(config(slots=slots), models=models, pipelines=tuple(PipelineConfig(name, (name,), 200.0) for name in models))


def shared(others: int = 8) -> Server:
    return replace(holder("shared", ONE, "cpu:0"), launched=False, slot=None, models={ONE: ModelState(2, 8), OTHER: ModelState(others, 8)})


def own(name: str = ONE) -> Server:
    return replace(holder(f"own-{name}", name, "cpu:1"), models={name: ModelState(2, 8)})


def decision_of(
    seen: Snapshot, busy: Mapping[str, Mapping[str, float]], state: PolicyState | None = None, slots: int = 2
) -> tuple[PolicyState, Decision]:
    pipelines = {name: PipelineEstimate(name, 5.0, 5.0, 5.0, 0.0, 0.0, None) for name in (ONE, OTHER)}
    policy_input = PolicyInput(seen, Estimate(seen.at_s, pipelines=pipelines, history_s=60.0), busy)
    return decided(state or PolicyState(), policy_input, Planner(build_rules(two(slots))))


def test_busy_instances_are_those_of_littles_law_and_only_of_servers_that_pipelines_share() -> None:
    served = {name: ServedSeries() for name in ("shared", "own-one")}
    for step in range(9):  # every half second 40 requests in 10 batches of 75 ms
        at_s, batches = NOW_S - 4.0 + 0.5 * step, 10 * step
        raw = ModelCounters(success=4 * batches, inferences=4 * batches, executions=batches, compute_infer_us=4 * batches * 75_000.0)
        for name, series in served.items():
            served[name] = series.append(ServerReading(name, at_s, {ONE: raw, OTHER: raw}), 10.0)
    busy = busy_instances(snapshot([shared(), own()]), served, two())
    assert busy == {"shared": {ONE: pytest.approx(1.5), OTHER: pytest.approx(1.5)}}


def test_nothing_is_said_of_a_model_without_readings() -> None:
    series = ServedSeries().append(ServerReading("shared", NOW_S, {ONE: ModelCounters()}), 10.0)
    assert busy_instances(snapshot([shared()]), {"shared": series}, two()) == {"shared": {}}


@pytest.mark.parametrize(
    ("busy", "instances"),
    [({}, 8), ({OTHER: 0.0}, 0), ({OTHER: 1.0}, 2), ({OTHER: 4.0}, 6), ({OTHER: 7.9}, 8)],
)
def test_others_count_a_deviation_above_their_mean_and_with_all_instances_where_nothing_is_known(
    busy: dict[str, float], instances: int
) -> None:
    server = shared()
    seen = PolicyInput(snapshot([server]), Estimate(NOW_S), {"shared": busy} if busy else {})
    assert seen.busy_elsewhere(Place(server, "", server.models), (ONE,)) == instances


def test_a_pipeline_leaves_a_server_where_others_make_it_late_once_it_has_another() -> None:
    readings = (ServerReading("shared", NOW_S, models={ONE: ModelCounters(), OTHER: ModelCounters(pending=9.0)}),)
    seen = replace(snapshot([shared(others=60), own()]), readings=readings)
    _, decision = decision_of(seen, {"shared": {ONE: 0.5, OTHER: 55.0}})
    assert decision.target is not None
    assert decision.target.unrouted == (("shared", ONE),)
    assert decision.target.servers["shared"][ONE].instances == 1, "the fewest are enough for no requests"
    (clamp,) = [clamp for clamp in decision.clamps if clamp.kind is ClampKind.CROWDED]
    assert clamp.sentence == "one leaves shared to other pipelines: beside their load there it would be late"


def test_instances_stay_while_requests_wait_there() -> None:
    readings = (ServerReading("shared", NOW_S, models={ONE: ModelCounters(pending=2.0), OTHER: ModelCounters()}),)
    seen = replace(snapshot([shared(others=60), own()]), readings=readings)
    _, decision = decision_of(seen, {"shared": {ONE: 2.0, OTHER: 55.0}})
    assert decision.target is not None
    assert decision.target.servers["shared"][ONE].instances == 2


def test_loaded_instances_that_are_not_busy_crowd_nobody_out() -> None:
    for busy in ({"shared": {ONE: 0.5, OTHER: 0.5}}, {}):
        _, decision = decision_of(snapshot([shared(others=60), own()]), busy)
        assert decision.target is not None
        assert decision.target.unrouted == ()


def test_a_pipeline_without_another_server_keeps_its_routes_and_asks_for_one() -> None:
    state, decision = decision_of(snapshot([shared(others=60)]), {"shared": {ONE: 2.0, OTHER: 55.0}})
    assert decision.target is not None
    assert decision.target.unrouted == ()
    assert {ONE} <= {name for models in decision.target.launch.values() for name in models}
    assert state.left == {ONE: ("shared",)}
    (clamp,) = [clamp for clamp in decision.clamps if clamp.kind is ClampKind.CROWDED]
    assert clamp.sentence == "one stays on shared until it has another server: beside the load of other pipelines it is late there"


def test_the_fewest_instances_stay_where_they_were_on_a_server_whose_models_have_different_devices() -> None:
    second = "second"
    cfg = replace(
        two(),
        models=two().models | {second: model(second, table(4.0, 8.0, 4.0, 20.0))},
        pipelines=(PipelineConfig(ONE, (ONE, second), 200.0), PipelineConfig(OTHER, (OTHER,), 200.0)),
    )
    counts = {ONE: {"cpu:0": 2}, second: {"cpu:2": 2}, OTHER: {"cpu:3": 60}}
    apart = replace(shared(), reach=("cpu:2", "cpu:3"), models={name: ModelState(1, 8).spread_over(each) for name, each in counts.items()})
    elsewhere = replace(own(), models={ONE: ModelState(2, 8), second: ModelState(2, 8)})
    readings = (ServerReading("shared", NOW_S, models={name: ModelCounters() for name in counts}),)
    estimates = {name: PipelineEstimate(name, 5.0, 5.0, 5.0, 0.0, 0.0, None) for name in (ONE, OTHER)}
    seen = replace(snapshot([apart, elsewhere]), readings=readings)
    busy = {"shared": {ONE: 0.0, second: 0.0, OTHER: 55.0}}
    policy_input = PolicyInput(seen, Estimate(NOW_S, pipelines=estimates, history_s=60.0), busy)
    _, decision = decided(PolicyState(), policy_input, Planner(build_rules(cfg)))
    assert decision.target is not None
    assert decision.target.unrouted == (("shared", ONE), ("shared", second))
    left = decision.target.servers["shared"]
    assert (left[ONE].spread, left[second].spread) == ((("cpu:0", 1),), (("cpu:2", 1),))


def test_where_no_server_can_be_launched_it_stays() -> None:
    taken = replace(own(OTHER), device="cpu:0", slot="cpu:0")
    state, decision = decision_of(snapshot([shared(others=60), taken]), {"shared": {OTHER: 55.0}}, slots=1)
    assert decision.target is not None
    assert ("shared", ONE) not in decision.target.unrouted
    assert ONE not in state.left


def test_it_returns_only_where_there_is_room_to_spare() -> None:
    seen, away = snapshot([shared(others=60), own()]), PolicyState(left={ONE: ("shared",)})
    place, planner = Place(seen.servers[0], "", seen.servers[0].models), Planner(build_rules(two()))
    limit = max(count for count in range(60) if planner.meets_slo_alone(ONE, count))

    def others(mean: float) -> int:
        return PolicyInput(seen, Estimate(NOW_S), {"shared": {OTHER: mean}}).busy_elsewhere(place, (ONE,))

    allowed = max(mean for mean in range(60) if others(mean) <= limit)
    for load, unrouted in ((allowed, (("shared", ONE),)), (allowed / 2, ())):
        _, decision = decision_of(seen, {"shared": {ONE: 0.0, OTHER: load}}, away)
        assert decision.target is not None
        assert decision.target.unrouted == unrouted
