"""The published evaluation's policies: their rules, their states, and what they start from."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.samples import NOW_S, decided
from tests.unit.samples import config as colocated
from themis_triton.core.address import UNKNOWN_ADDRESS
from themis_triton.core.config import ThemisConfig
from themis_triton.core.decision import Decision, Reason, Stage, Target
from themis_triton.core.estimate import Estimate, PipelineEstimate
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import Snapshot
from themis_triton.core.policy import (
    DemandConfig,
    DriftConfig,
    ForecastName,
    HorizontalConfig,
    PolicyConfig,
    PolicyName,
    QueueingModel,
    ScaleDownConfig,
    ScaleUpConfig,
    ThemisPaperConfig,
)
from themis_triton.decide.planner import Planner
from themis_triton.decide.policy import Load
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.evaluation.inferline import base_plan
from themis_triton.evaluation.starts import start_for_peak
from themis_triton.policies import policy_named
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped
from themis_triton.sim.setup import SimOptions, simulated
from themis_triton.sim.starts import prepared, start_of
from themis_triton.sim.world import paper_world
from themis_triton.solver.plans import batches_of, instances_of
from themis_triton.solver.solve import evaluate, solve_joint, solve_vertical

DETECTOR, CLASSIFIER = "video-detector", "video-classifier"
BASELINES = [name for name in PolicyName if name is not PolicyName.THEMIS]
OURS = {PolicyName.VERTICAL_THEMIS, PolicyName.ORACLE}
"""Those with the constants of policy themis."""


def settings(policy: PolicyName = PolicyName.THEMIS_PAPER, planned_rps: float | None = None) -> ThemisConfig:
    """The video pipeline's settings by the published rules, with slots."""
    config = load_settings(shipped("config") / "paper-video.yaml").under(policy)
    if planned_rps is not None:
        config = replace(config, policy=policy_named(policy).prepared(config.policy, Load(planned_rps, planned_rps)))
    return simulated(config, SimOptions())


def replicas(detectors: int, classifiers: int, cores: tuple[int, int] = (1, 1), batch: int = 1) -> tuple[Server, ...]:
    rows = [(DETECTOR, cores[0], n) for n in range(detectors)] + [(CLASSIFIER, cores[1], n) for n in range(classifiers)]
    return tuple(
        Server(
            f"{name}-{n}",
            "d",
            UNKNOWN_ADDRESS,
            UNKNOWN_ADDRESS,
            UNKNOWN_ADDRESS,
            Phase.SERVING,
            launched=True,
            slot=f"{name}-{n}",
            models={name: ModelState(count, batch)},
        )
        for name, count, n in rows
    )


def seen(rps: float, at_s: float = NOW_S, per_second: tuple[float, ...] | None = None) -> Estimate:
    counts = (rps,) * 60 if per_second is None else per_second
    return Estimate(at_s, pipelines={"video": PipelineEstimate("video", rps, rps, rps, 0.0, 0.0, None, per_second=counts)}, history_s=60.0)


def once(planner: Planner, servers: tuple[Server, ...], result: Estimate, state: PolicyState | None = None) -> tuple[PolicyState, Decision]:
    return decided(state or PolicyState(), PolicyInput(Snapshot(result.at_s, servers), result), planner)


def target(decision: Decision) -> Target:
    assert decision.target is not None
    return decision.target


def launched(decision: Decision, name: str) -> int:
    return sum(name in models for models in target(decision).launch.values())


def cores(decision: Decision, name: str) -> set[int]:
    return {models[name].instances for models in target(decision).servers.values() if name in models}


@pytest.mark.parametrize("pipeline", ["video", "sentiment", "nlp"])
@pytest.mark.parametrize("policy", [name for name in BASELINES if name not in OURS])
def test_the_papers_settings_spell_out_the_published_constants(policy: PolicyName, pipeline: str) -> None:
    """Decisions every 0.5 s for the largest of the last 5 s (inferline: 30 s) and its square root, exponential waits, the whole SLO."""
    rules = load_settings(shipped("config") / f"paper-{pipeline}.yaml").under(policy).policy
    assert rules == PolicyConfig(
        name=policy,
        tick_s=0.5,
        queueing=QueueingModel.EXPONENTIAL,
        slo_margin_fraction=0.0,
        demand=DemandConfig(
            headroom_sigmas=1.0,
            server_headroom_sigmas=1.0,
            growth_sigmas=1.0,
            trend_sigmas=1.0,
            burst_window_s=30.0 if policy is PolicyName.INFERLINE else 5.0,
            forecast=ForecastName.LINEAR,
        ),
        scale_up=ScaleUpConfig(max_added_instances=1_000_000),
        scale_down=ScaleDownConfig(shrink_stabilization_s=0.0),
        drift=DriftConfig(max_factor=1.0),
        horizontal=HorizontalConfig(instances=1),
        themis_paper=ThemisPaperConfig(instances=1),
    )


@pytest.mark.parametrize("policy", sorted(OURS))
def test_references_with_our_decisions_have_our_constants(policy: PolicyName) -> None:
    config = load_settings(shipped("config") / "paper-video.yaml")
    assert config.under(policy).policy == replace(config.under(PolicyName.THEMIS).policy, name=policy)


def test_a_policys_own_section_changes_only_what_it_names(tmp_path: Path) -> None:
    source = shipped("config") / "paper-video.yaml"
    file = tmp_path / "settings.yaml"
    file.write_text(source.read_text(encoding="utf-8").replace("policies:\n", "policies:\n  vertical: {tick_s: 0.1}\n"), encoding="utf-8")
    config, shipped_config = load_settings(file), load_settings(source)
    assert config.under(PolicyName.VERTICAL).policy == replace(shipped_config.under(PolicyName.VERTICAL).policy, tick_s=0.1)
    assert config.under(PolicyName.HORIZONTAL).policy == shipped_config.policy


@pytest.mark.parametrize("policy", list(PolicyName))
def test_no_policy_runs_by_other_constants_than_the_settings_have(policy: PolicyName) -> None:
    ours, load = PolicyConfig(tick_s=0.1, queueing=QueueingModel.SLO_MARGIN), Load(1.0, 2.0)
    for config in (replace(settings(), policies={}, policy=ours), colocated(ours)):
        kept = prepared(config, policy, load).policy
        plain = replace(kept, static=config.policy.static, inferline=config.policy.inferline, vertical=config.policy.vertical)
        assert plain == replace(config.policy, name=policy)


def test_scale_in_takes_ten_seconds_in_a_row_and_goes_to_the_latest_count() -> None:
    planner, fleet, state = Planner(build_rules(settings(PolicyName.HORIZONTAL))), replicas(8, 6), PolicyState()
    leaving: list[int] = []
    for half in range(32):
        rps = 200.0 if half == 10 else 31.0 if half < 20 else 20.0
        state, decision = once(planner, fleet, seen(rps, NOW_S + half / 2), state)
        leaving.append(len(target(decision).retire))
    plan = solve_joint(replace(planner.rules.problems["video"], demand_rps=20.0), instances=(1, 1))
    assert leaving[:31] == [0] * 31
    assert leaving[31] == 14 - sum(stage.servers for stage in plan.stages)


def test_steady_the_papers_policy_is_the_horizontal_programme() -> None:
    fleet = replicas(3, 2)
    (ours, theirs) = (
        once(Planner(build_rules(settings(name))), fleet, seen(31.0))[1] for name in (PolicyName.THEMIS_PAPER, PolicyName.HORIZONTAL)
    )
    assert evaluate(build_rules(settings()).problems["video"], (3, 2), (1, 1), (1, 1)).capacity_rps > 31.0
    assert ours.stage is Stage.OPTIMISE
    assert target(ours) == target(theirs)


def test_a_rise_grows_cores_on_the_replicas_that_there_are_and_never_shrinks_them() -> None:
    planner = Planner(build_rules(settings()))
    fleet = replicas(3, 3, cores=(1, 3))
    _, decision = once(planner, fleet, seen(80.0))
    assert (decision.stage, decision.reason) == (Stage.ABSORB, Reason.SURGE)
    assert (launched(decision, DETECTOR), launched(decision, CLASSIFIER)) == (0, 0)
    assert min(cores(decision, DETECTOR)) > 1
    assert min(cores(decision, CLASSIFIER)) == 3


def test_the_forecast_alone_can_call_a_rise() -> None:
    planner, fleet = Planner(build_rules(settings())), replicas(3, 3)
    climbing = tuple(float(max(5, 2 * (second - 38))) for second in range(60))
    (_, calm), (_, rising) = (once(planner, fleet, seen(39.0, per_second=counts)) for counts in ((20.0,) * 60, climbing))
    assert (calm.stage, rising.stage) == (Stage.OPTIMISE, Stage.ABSORB)


def test_what_cores_cannot_carry_is_launched_and_at_the_limit_the_horizontal_programme_takes_over() -> None:
    planner = Planner(build_rules(settings()))
    _, short = once(planner, replicas(1, 1), seen(150.0))
    assert short.reason is Reason.SCALE_OUT
    assert launched(short, DETECTOR) >= 2
    assert cores(short, DETECTOR) == {4}
    _, limit = once(planner, replicas(1, 1, cores=(4, 4)), seen(150.0))
    plan = solve_joint(replace(planner.rules.problems["video"], demand_rps=150.0), instances=(1, 1))
    assert limit.stage is Stage.OPTIMISE
    # One more a stage, because cores shall go; and they stay until the new replicas serve.
    assert [launched(limit, name) for name in (DETECTOR, CLASSIFIER)] == [stage.servers + 1 - 1 for stage in plan.stages]
    assert cores(limit, DETECTOR) == {4}


def test_cores_go_once_one_replica_more_than_planned_serves_in_each_stage() -> None:
    planner = Planner(build_rules(settings()))
    planned = [stage.servers for stage in solve_joint(replace(planner.rules.problems["video"], demand_rps=31.0), instances=(1, 1)).stages]
    (_, early), (_, ready) = (once(planner, replicas(planned[0] + more, planned[1] + more, cores=(2, 2)), seen(31.0)) for more in (0, 1))
    assert (launched(early, DETECTOR), cores(early, DETECTOR)) == (1, {2})
    assert (launched(ready, DETECTOR), cores(ready, DETECTOR), cores(ready, CLASSIFIER)) == (0, {1}, {1})


def test_inferline_counts_replicas_in_proportion_to_its_plan() -> None:
    planner = Planner(build_rules(settings(PolicyName.INFERLINE, 43.0)))
    plan = base_plan(planner.rules, "video", 43.0)
    problem = replace(planner.rules.problems["video"], demand_rps=43.0, headroom_sigmas=0.0, percentile=90.0)
    assert evaluate(problem, [stage.servers for stage in plan], instances_of(plan), batches_of(plan)).feasible
    detector, classifier = plan
    fleet = replicas(detector.servers, classifier.servers, cores=(detector.instances, classifier.instances))
    _, decision = once(planner, fleet, seen(3.5 * 43.0))
    desired = [math.ceil(3.5 * count - 1e-9) for count in (detector.servers, classifier.servers)]
    assert [launched(decision, name) for name in (DETECTOR, CLASSIFIER)] == [
        n - stage.servers for n, stage in zip(desired, plan, strict=True)
    ]
    assert cores(decision, DETECTOR) == {detector.instances}
    assert {models[DETECTOR].max_batch for models in target(decision).servers.values() if DETECTOR in models} == {detector.batch}


def test_no_single_step_from_inferlines_plan_saves_anything() -> None:
    planner = Planner(build_rules(settings(PolicyName.INFERLINE)))
    plan = base_plan(planner.rules, "video", 43.0)
    problem = replace(planner.rules.problems["video"], demand_rps=43.0, headroom_sigmas=0.0, percentile=90.0)
    for stage in range(2):
        for batch in range(plan[stage].batch, 5):
            batches = [batch if s == stage else plan[s].batch for s in range(2)]
            servers = [size.servers - (s == stage) for s, size in enumerate(plan)]
            fewer = [size.instances - (s == stage) for s, size in enumerate(plan)]
            assert servers[stage] == 0 or not evaluate(problem, servers, instances_of(plan), batches).feasible
            assert fewer[stage] == 0 or not evaluate(problem, [size.servers for size in plan], fewer, batches).feasible


def test_inferline_without_a_rate_to_plan_for_takes_the_first_that_it_sees() -> None:
    planner = Planner(build_rules(settings(PolicyName.INFERLINE)))
    state, _ = once(planner, replicas(1, 1), seen(43.0))
    assert state.pipelines["video"].fixed_rps == 43.0
    state, _ = once(planner, replicas(1, 1), seen(99.0), state)
    assert state.pipelines["video"].fixed_rps == 43.0


def test_static_keeps_its_plan_for_the_peak_or_what_it_finds() -> None:
    _, reported = once(Planner(build_rules(settings(PolicyName.STATIC, 183.0))), replicas(1, 1), seen(5.0))
    plan = solve_joint(replace(build_rules(settings()).problems["video"], demand_rps=183.0))
    assert [launched(reported, name) for name in (DETECTOR, CLASSIFIER)] == [stage.servers - 1 for stage in plan.stages]
    fleet = replicas(2, 1, cores=(2, 3), batch=2)
    _, result = once(Planner(build_rules(settings(PolicyName.STATIC))), fleet, seen(500.0))
    assert target(result).servers == {server.name: server.models for server in fleet}
    assert (target(result).launch, target(result).retire) == ({}, ())


def test_vertical_starts_with_the_cheapest_servers_that_carry_the_peak_at_their_limits() -> None:
    config = settings(PolicyName.VERTICAL)
    started = start_for_peak(config, 183.0)
    problem = replace(build_rules(config).problems["video"], demand_rps=183.0)
    counts = [sum(name in models for models in started) for name in (DETECTOR, CLASSIFIER)]
    assert all(state == ModelState(1, 1) for models in started for state in models.values())
    assert solve_vertical(problem, counts).feasible
    assert not any(solve_vertical(problem, [n - (s == stage) for s, n in enumerate(counts)]).feasible for stage in range(2))


@pytest.mark.parametrize("policy", BASELINES)
def test_every_baseline_has_a_start_and_settings_of_its_own(policy: PolicyName) -> None:
    load = Load(first_rps=31.0, peak_rps=183.0)
    own = prepared(load_settings(shipped("config") / "paper-video.yaml"), policy, load)
    assert own.policy.static.planned_rps == (183.0 if policy is PolicyName.STATIC else None)
    assert own.policy.inferline.planned_rps == (31.0 if policy is PolicyName.INFERLINE else None)
    started = start_of(own, policy, load, SimOptions(), waits=True)
    assert started is not None
    assert {name for models in started for name in models} == {DETECTOR, CLASSIFIER}


def test_colocated_baselines_start_as_the_options_say_unless_they_plan_once() -> None:
    load = Load(first_rps=20.0, peak_rps=60.0)
    for policy in BASELINES:
        own = prepared(colocated(), policy, load)
        started = start_of(own, policy, load, SimOptions(), waits=False)
        assert (started is None) == (policy not in {PolicyName.STATIC, PolicyName.INFERLINE, PolicyName.VERTICAL_THEMIS})
        assert started is None or all(set(models) == {DETECTOR, CLASSIFIER} for models in started)


def test_policies_are_told_what_the_worlds_changes_take() -> None:
    world = replace(paper_world(cold_start_s=20.0), grow_s=1.5, shrink_s=0.7, control_s=0.1)
    profiles = [m.profile for m in simulated(settings(), SimOptions(world=world)).models.values()]
    assert {(p.server_launch_s, round(p.instance_init_s, 6), round(p.instance_stop_s, 6)) for p in profiles} == {(20.0, 1.6, 0.8)}
