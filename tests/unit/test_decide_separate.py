"""Our policy where a server holds one stage: counts that differ by server, quick levers, servers a stage."""

from dataclasses import replace
from pathlib import Path

from tests.unit.samples import NOW_S, decided, route, snapshot
from themis_triton.core.address import UNKNOWN_ADDRESS
from themis_triton.core.config import DeviceSlot, LaunchConfig, ThemisConfig
from themis_triton.core.decision import Decision, Reason, Target
from themis_triton.core.estimate import Estimate, PipelineEstimate
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.policy import PolicyName
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.plan.steps import plan
from themis_triton.settings import load_settings

DETECTOR, CLASSIFIER = "video-detector", "video-classifier"


def paper_video() -> ThemisConfig:
    """The paper's video pipeline under our policy, with quick levers and places for replicas."""
    config = load_settings(Path(__file__).parents[2] / "config" / "paper-video.yaml").under(PolicyName.THEMIS)
    quick = {name: replace(m, profile=replace(m.profile, instance_init_s=0.1, instance_stop_s=0.1)) for name, m in config.models.items()}
    slots = tuple(DeviceSlot(f"replica-{n}", f"replica-{n}") for n in range(40))
    return replace(config, models=quick, launch=LaunchConfig(slots, Path()))


def replicas(stage: str, cores: tuple[int, ...], batch: int = 1) -> list[Server]:
    names = [f"{stage}-{number}" for number in range(len(cores))]
    states = [{stage: ModelState(count, batch)} for count in cores]
    return [
        Server(name, name, UNKNOWN_ADDRESS, UNKNOWN_ADDRESS, UNKNOWN_ADDRESS, Phase.SERVING, launched=True, slot=name, models=models)
        for name, models in zip(names, states, strict=True)
    ]


def once(servers: list[Server], rps: float, *, stable_rps: float | None = None, backlog: float = 0.0, age_s: float = 0.0) -> Decision:
    steady = PipelineEstimate("video", rps, rps, rps if stable_rps is None else stable_rps, 0.0, backlog, None)
    now = replace(snapshot(servers), routes=(route(DETECTOR, NOW_S - age_s, 1000.0),))
    seen = PolicyInput(now, Estimate(NOW_S, pipelines={"video": steady}, history_s=60.0))
    return decided(PolicyState(), seen, Planner(build_rules(paper_video())))[1]


def target(decision: Decision) -> Target:
    assert decision.target is not None
    return decision.target


def cores(decision: Decision, stage: str) -> list[int]:
    models = [models for name, models in target(decision).servers.items() if name.startswith(stage)]
    return sorted(models[stage].instances for models in models)


def test_a_little_more_load_raises_some_replicas_and_not_all() -> None:
    fleet = replicas(DETECTOR, (1, 1, 1, 1, 1, 1)) + replicas(CLASSIFIER, (1, 1, 1, 1, 1))
    calm, busier = once(fleet, 70.0), once(fleet, 120.0)
    assert sum(cores(calm, DETECTOR)) < sum(cores(busier, DETECTOR)) < 2 * 6
    assert max(cores(busier, DETECTOR)) - min(cores(busier, DETECTOR)) == 1
    assert target(busier).whole_changes


def test_the_raised_replicas_are_those_that_have_more_cores_already() -> None:
    fleet = replicas(DETECTOR, (1, 2, 1, 1, 1, 1)) + replicas(CLASSIFIER, (1, 1, 1, 1, 1))
    decision = once(fleet, 120.0)
    assert target(decision).servers[f"{DETECTOR}-1"][DETECTOR].instances == 2


def test_a_surge_takes_all_cores_and_launches_what_is_missing_of_each_stage() -> None:
    decision = once(replicas(DETECTOR, (1, 1)) + replicas(CLASSIFIER, (1,)), 200.0, stable_rps=30.0)
    assert cores(decision, DETECTOR) == [4, 4]
    assert cores(decision, CLASSIFIER) == [4]
    launched = [name for models in target(decision).launch.values() for name in models]
    assert {DETECTOR, CLASSIFIER} == set(launched)
    assert launched.count(DETECTOR) >= 3
    assert decision.reason is Reason.SCALE_OUT


def test_a_backlog_asks_for_cores() -> None:
    fleet = replicas(DETECTOR, (1,) * 6) + replicas(CLASSIFIER, (1,) * 5)
    assert sum(cores(once(fleet, 60.0, backlog=40.0), DETECTOR)) > sum(cores(once(fleet, 60.0), DETECTOR))


def test_a_stage_without_a_replica_gets_one() -> None:
    launched = [name for models in target(once(replicas(DETECTOR, (1, 1)), 10.0)).launch.values() for name in models]
    assert CLASSIFIER in launched


def test_cores_are_not_given_up_at_once_where_counters_are_old() -> None:
    fleet = replicas(DETECTOR, (4, 4, 4)) + replicas(CLASSIFIER, (4, 4))
    assert cores(once(fleet, 5.0, backlog=2.0), DETECTOR) < [4, 4, 4]
    assert cores(once(fleet, 5.0, backlog=2.0, age_s=1.0), DETECTOR) == [4, 4, 4]


def test_late_requests_let_others_pass_after_the_margin_for_waits_where_cores_come_slowly() -> None:
    quick = paper_video()
    assert quick.deprioritize_after_s[DETECTOR] == 0.5 * 0.3
    slow = {name: replace(m, profile=replace(m.profile, instance_init_s=1.2)) for name, m in quick.models.items()}
    assert replace(quick, models=slow).deprioritize_after_s[DETECTOR] == 0.35 * 300.0 / 1000.0


def test_quick_levers_shrink_in_one_step_and_set_batches_side_by_side() -> None:
    fleet = replicas(DETECTOR, (4, 4, 4), batch=3) + replicas(CLASSIFIER, (4, 4), batch=3)
    decision = once(fleet, 5.0)
    actions = plan(decision, snapshot(fleet), paper_video()).actions
    changed = [action for action in actions if action.model == DETECTOR and action.after is not None]
    assert len(changed) == 3
    assert {action.after.instances for action in changed if action.after is not None} == {1}
