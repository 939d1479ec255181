"""A model in several pipelines, or called directly besides: what reaches it, and what plans make of the sum."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from rich.console import Console

from tests.unit.samples import BY_METRIC, CLASSIFIER, DETECTOR, NOW_S, config, decided, model, record, route, server, snapshot, table
from themis_triton.commands.status_command import show
from themis_triton.core.config import PipelineConfig, StageCalls, ThemisConfig
from themis_triton.core.estimate import Estimate, OtherDemand, PipelineEstimate
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.policy import PolicyName
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.planner import Planner
from themis_triton.decide.policy import Load
from themis_triton.decide.rules import build_rules
from themis_triton.decide.sharing import SharedModels
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.estimate.estimate import History, estimate
from themis_triton.estimate.shared import callers_of
from themis_triton.policies import policy_named

OTHER = "other"
VIDEO, LONE = PipelineConfig("video", (DETECTOR, CLASSIFIER), 300.0), PipelineConfig("lone", (CLASSIFIER,), 300.0)
SECOND = PipelineConfig("second", (OTHER, CLASSIFIER), 300.0)


def shared_config(*pipelines: PipelineConfig) -> ThemisConfig:
    cfg = config()
    return replace(cfg, models={**cfg.models, OTHER: model(OTHER, table(4.0, 8.0, 4.0, 20.0))}, pipelines=pipelines)


def estimated(cfg: ThemisConfig, rates: dict[str, float], seconds: float = 40.0, waiting: float = 0.0) -> Estimate:
    """The estimate after steady arrivals by model, with so many requests inside each model."""
    history = History()
    for index in range(int(seconds / 0.5) + 1):
        t = index * 0.5
        readings = (replace(route(name, NOW_S + t, rps * t), in_flight=waiting) for name, rps in rates.items())
        history, result = estimate(history, replace(snapshot([server("a")], NOW_S + t), routes=tuple(readings)), cfg)
    return result


def parts(result: Estimate, pipeline: str, stage: int) -> dict[str | None, float]:
    others = result.pipelines[pipeline].others
    return {part.pipeline: part.stable_rps for part in others[stage]} if others else {}


def test_pipelines_that_share_a_later_stage_know_each_others_calls() -> None:
    result = estimated(shared_config(VIDEO, SECOND), {DETECTOR: 40.0, OTHER: 30.0, CLASSIFIER: 70.0})
    assert parts(result, "video", 1) == pytest.approx({"second": 30.0})
    assert parts(result, "second", 1) == pytest.approx({"video": 40.0})
    assert parts(result, "video", 0) == {}
    assert (result.pipelines["video"].recent_rps, result.pipelines["second"].recent_rps) == pytest.approx((40.0, 30.0))


def test_several_calls_a_request_count_as_many() -> None:
    often = replace(SECOND, calls=(StageCalls(), StageCalls(3.0)))
    result = estimated(shared_config(VIDEO, often), {DETECTOR: 40.0, OTHER: 30.0, CLASSIFIER: 130.0})
    assert parts(result, "video", 1) == pytest.approx({"second": 90.0})


def test_calls_of_another_pipeline_are_not_the_demand_of_the_one_that_starts_with_the_model() -> None:
    result = estimated(shared_config(VIDEO, LONE), {DETECTOR: 40.0, CLASSIFIER: 100.0})
    own, others = result.pipelines["lone"].stable_rps, parts(result, "lone", 0)
    assert own + others["video"] == pytest.approx(100.0)
    assert own == pytest.approx(60.0 + math.sqrt(2.0 * 40.0 / 2.0)), "what chance explains counts as its own"
    assert parts(result, "video", 1)["lone"] == pytest.approx(own)
    assert result.pipelines["video"].stable_rps == pytest.approx(40.0)


def test_direct_calls_are_the_arrivals_beyond_what_pipelines_explain_and_noise() -> None:
    explained = estimated(shared_config(VIDEO, SECOND), {DETECTOR: 40.0, OTHER: 30.0, CLASSIFIER: 72.0})
    assert None not in parts(explained, "video", 1)
    beyond = estimated(shared_config(VIDEO, SECOND), {DETECTOR: 40.0, OTHER: 30.0, CLASSIFIER: 170.0})
    assert parts(beyond, "video", 1)[None] == parts(beyond, "second", 1)[None]
    assert 85.0 < parts(beyond, "video", 1)[None] < 100.0


def test_who_calls_a_model_is_kept_until_the_pipelines_or_their_calls_change() -> None:
    pipelines, once = (VIDEO, SECOND), ((1.0, 1.0), (1.0, 1.0))
    known = callers_of(None, pipelines, once)
    assert callers_of(known, pipelines, ((1.0, 1.0), (1.0, 1.0))) is known
    assert [caller.calls for caller in callers_of(known, pipelines, ((1.0, 1.0), (1.0, 2.5))).of[CLASSIFIER]] == [1.0, 2.5]
    assert CLASSIFIER not in callers_of(known, (VIDEO,), ((1.0, 1.0),)).fronts
    assert known.entangled == {"video", "second"}, "both call one model"
    assert callers_of(known, (VIDEO,), ((1.0, 1.0),)).single == ((CLASSIFIER, DETECTOR, 1.0),)


def test_requests_that_come_out_of_a_backlog_are_no_direct_calls() -> None:
    held_up = estimated(shared_config(VIDEO, SECOND), {DETECTOR: 40.0, OTHER: 30.0, CLASSIFIER: 170.0}, waiting=1600.0)
    assert None not in parts(held_up, "video", 1)


def test_calls_from_inside_a_server_are_told_apart_from_those_of_clients() -> None:
    inside = replace(SECOND, entry="ensemble")
    result = estimated(shared_config(VIDEO, inside), {DETECTOR: 40.0, CLASSIFIER: 40.0, "ensemble": 25.0})
    assert parts(result, "video", 1) == pytest.approx({"second": 25.0})
    assert parts(result, "second", 1) == pytest.approx({"video": 40.0})


def test_a_member_that_clients_call_directly_is_planned_for_these_calls_too() -> None:
    inside = replace(SECOND, entry="ensemble")
    result = estimated(shared_config(inside), {CLASSIFIER: 50.0, "ensemble": 25.0})
    assert 40.0 < parts(result, "second", 1)[None] < 50.0


def test_pipelines_with_one_first_model_are_one_demand() -> None:
    first, also = replace(VIDEO, name="first"), PipelineConfig("also", (DETECTOR, OTHER), 300.0)
    result = estimated(shared_config(first, also), {DETECTOR: 100.0, CLASSIFIER: 60.0, OTHER: 40.0})
    for name, called in (("first", 0.6), ("also", 0.4)):
        assert result.pipelines[name].stable_rps == pytest.approx(100.0)
        assert result.pipelines[name].others == ()
        assert result.pipelines[name].per_request == (1.0, called)


def test_status_names_the_sum_and_its_parts() -> None:
    cfg, shown = shared_config(VIDEO, SECOND), io.StringIO()
    result = estimated(cfg, {DETECTOR: 40.0, OTHER: 30.0, CLASSIFIER: 170.0})
    board = StatusBoard(cfg, NOW_S)
    board.take(replace(record(seen=snapshot()), estimate=result), 1.0)
    show(board.status(), Console(file=shown, width=200), NOW_S)
    direct_rps = parts(result, "video", 1)[None]
    expected = f"shared: {CLASSIFIER} gets {70.0 + direct_rps:.0f}/s: 40/s of video, 30/s of second, {direct_rps:.0f}/s of direct calls"
    assert expected in shown.getvalue()


def holder(name: str, phase: Phase = Phase.SERVING, **counts: int) -> Server:
    names = {"detector": DETECTOR, "classifier": CLASSIFIER, "other": OTHER}
    models = {names[key]: ModelState(count, 8) for key, count in counts.items()}
    return replace(server(name, phase=phase, slot=name), models=models, ready_models=tuple(sorted(models)))


def rates(cfg: ThemisConfig, others: Mapping[str, tuple[OtherDemand, ...]], rps: float = 40.0) -> Estimate:
    """Steady rates; `others` by pipeline: what reaches its last stage besides."""

    def steady(pipeline: PipelineConfig) -> PipelineEstimate:
        empty = ((),) * (len(pipeline.stages) - 1)
        return PipelineEstimate(pipeline.name, rps, rps, rps, 0.0, 0.0, None, others=(*empty, others.get(pipeline.name, ())))

    return Estimate(NOW_S, pipelines={p.name: steady(p) for p in cfg.pipelines}, history_s=60.0)


def reaching(cfg: ThemisConfig, servers: list[Server], others: tuple[OtherDemand, ...], requested: int = 0) -> tuple[float, float]:
    """(recent, stable) requests/s of others that reach the classifier at the places of the first pipeline."""
    policy_input = PolicyInput(snapshot(servers), rates(cfg, {cfg.pipelines[0].name: others}))
    shared = SharedModels(policy_input, cfg)
    shared.request((requested,), ({CLASSIFIER: ModelState(2, 8)},))
    groups = policy_input.groups(cfg.pipelines[0], cfg.planning.placement)
    (part,) = shared.at(cfg.pipelines[0], groups).others[-1]
    return part.recent_rps, part.stable_rps


def test_others_calls_reach_a_pipelines_places_by_the_instances_there_less_what_other_places_take_of_its_own() -> None:
    cfg, others = shared_config(VIDEO, SECOND), (OtherDemand("second", 60.0, 90.0),)
    both = holder("a", detector=1, classifier=2, other=1)
    assert reaching(cfg, [both], others) == (60.0, 90.0)
    assert reaching(cfg, [both, holder("b", classifier=2, other=1)], others) == (10.0, 25.0)  # half of 40 + 60, and of 40 + 90, less 40
    assert reaching(cfg, [both, holder("b", classifier=6, other=1)], others) == (0.0, 0.0)


def test_servers_that_come_or_are_asked_for_in_the_same_tick_count_for_the_stable_rate() -> None:
    cfg, others = shared_config(VIDEO, SECOND), (OtherDemand("second", 60.0, 60.0),)
    both = holder("a", detector=1, classifier=2, other=1)
    assert reaching(cfg, [both, holder("b", Phase.LAUNCHING, classifier=2, other=1)], others) == (60.0, 10.0)
    assert reaching(cfg, [both], others, requested=1) == (60.0, 10.0)
    assert reaching(cfg, [both, holder("b", Phase.LAUNCHING, detector=1, classifier=2)], others) == (60.0, 60.0), "its own new server"


def test_calls_inside_a_server_stay_there() -> None:
    cfg = shared_config(VIDEO, replace(SECOND, entry=OTHER))
    servers = [holder("a", detector=1, classifier=2, other=1), holder("b", classifier=2, other=1)]
    assert reaching(cfg, servers, (OtherDemand("second", 60.0, 60.0),)) == (10.0, 10.0)
    inside = shared_config(replace(SECOND, entry=OTHER), VIDEO)
    assert reaching(inside, [*servers, holder("c", detector=1, classifier=4)], (OtherDemand("video", 60.0, 60.0),)) == (30.0, 30.0)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_shared_model_gets_the_instances_of_the_sum_whatever_the_order_of_the_settings(*, swapped: bool) -> None:
    pipelines = (SECOND, VIDEO) if swapped else (VIDEO, SECOND)
    cfg = shared_config(*pipelines)
    one = holder("a", detector=2, classifier=1, other=2)
    others = {"video": (OtherDemand("second", 60.0, 60.0),), "second": (OtherDemand("video", 60.0, 60.0),)}

    def classifiers(others: Mapping[str, tuple[OtherDemand, ...]]) -> int:
        _, decision = decided(PolicyState(), PolicyInput(snapshot([one]), rates(cfg, others, 6.0)), Planner(build_rules(cfg)))
        assert decision.target is not None
        return decision.target.servers["a"][CLASSIFIER].instances

    assert classifiers(others) > classifiers({})
    assert classifiers({"video": others["video"]}) == classifiers({"second": others["second"]}) == classifiers(others)


@pytest.mark.parametrize("name", [name for name in PolicyName if name not in BY_METRIC])
def test_every_policy_plans_a_shared_model_for_the_sum(name: PolicyName) -> None:
    cfg = shared_config(VIDEO, SECOND).under(name)
    cfg = replace(cfg, policy=policy_named(name).prepared(cfg.policy, Load(40.0, 40.0)))
    one = holder("a", detector=2, classifier=1, other=2)
    several = {"video": (OtherDemand("second", 200.0, 200.0),)}

    def size(others: Mapping[str, tuple[OtherDemand, ...]]) -> float:
        _, decision = decided(PolicyState(), PolicyInput(snapshot([one]), rates(cfg, others)), Planner(build_rules(cfg)))
        assert decision.target is not None
        instances = decision.target.servers["a"][CLASSIFIER].instances
        video = next(each for each in decision.evidence if each.pipeline == "video")
        return instances * video.servers_desired

    assert size(several) > size({})


def test_a_shared_model_shrinks_only_where_all_pipelines_agree() -> None:
    cfg = shared_config(VIDEO, SECOND)
    planner = Planner(build_rules(cfg))
    one = holder("a", detector=3, classifier=8, other=3)
    needs_many = {"video": (OtherDemand("second", 110.0, 110.0),)}

    def lowest(others: Mapping[str, tuple[OtherDemand, ...]]) -> int:
        state, counts = PolicyState(), []
        for second in range(30):
            at_s = NOW_S + second
            seen = replace(rates(cfg, others, 5.0), at_s=at_s)
            state, decision = decided(state, PolicyInput(snapshot([one], at_s), seen), planner)
            assert decision.target is not None
            counts.append(decision.target.servers["a"][CLASSIFIER].instances)
        return min(counts)

    assert lowest({}) < lowest(needs_many)
