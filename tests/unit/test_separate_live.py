"""Servers of one stage each on Triton: slots that stages share, servers of several stages, and the settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, STAGES, config, decided, server, snapshot
from themis_triton.commands.settings_commands import validate_command
from themis_triton.core.config import PipelineConfig, Placement, PlanningConfig, ThemisConfig
from themis_triton.core.decision import Decision, Target
from themis_triton.core.estimate import Estimate, PipelineEstimate
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.record import sentence
from themis_triton.daemon.reload import settings_change
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.settings import load_settings, problems
from themis_triton.sim.result import SimResult
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions

SHIPPED = Path(__file__).parents[2] / "config" / "themis.yaml"


def separate(cfg: ThemisConfig, max_servers: int | None = None) -> ThemisConfig:
    return replace(cfg, planning=PlanningConfig(placement=Placement.SEPARATE, max_servers=max_servers))


def holder(model: str, number: int = 0, slot: str | None = None) -> Server:
    both = server(f"{model}-{number}", slot=slot or f"cpu:{number}")
    return replace(both, models={model: both.models[model]}, ready_models=(model,))


def decisions(cfg: ThemisConfig, servers: Sequence[Server], rates: dict[str, float], seconds: int = 1) -> list[Decision]:
    planner, state, result = Planner(build_rules(cfg)), PolicyState(), []
    for second in range(seconds):
        at_s = NOW_S + second
        steady = {name: PipelineEstimate(name, rps, rps, rps, 0.0, 0.0, None) for name, rps in rates.items()}
        state, decision = decided(state, PolicyInput(snapshot(servers, at_s), Estimate(at_s, pipelines=steady, history_s=60.0)), planner)
        result.append(decision)
    return result


def target(decision: Decision) -> Target:
    assert decision.target is not None
    return decision.target


def launched(decision: Decision) -> list[tuple[str, ...]]:
    return [tuple(models) for models in target(decision).launch.values()]


def retired(result: Sequence[Decision]) -> list[str]:
    return [name for decision in result for name in target(decision).retire]


def test_without_a_server_one_is_launched_for_each_stage() -> None:
    (decision,) = decisions(separate(config(slots=4)), (), {"video": 0.0})
    assert launched(decision) == [(DETECTOR,), (CLASSIFIER,)]
    assert decision.evidence[0].servers_words == "0+0→1+1"


def test_the_last_slot_goes_to_the_stage_without_a_server() -> None:
    taken = [holder(DETECTOR, number) for number in range(3)]
    (decision,) = decisions(separate(config(slots=4)), taken, {"video": 200.0})
    assert launched(decision) == [(CLASSIFIER,)]


def test_a_pipeline_leaves_the_slots_that_the_first_servers_of_the_next_one_need() -> None:
    cfg = separate(config(slots=6))
    cfg = replace(cfg, pipelines=(PipelineConfig("first", (DETECTOR,), 300.0), PipelineConfig("second", (CLASSIFIER,), 300.0)))
    (decision,) = decisions(cfg, (), {"first": 500.0, "second": 0.0})
    assert Counter(launched(decision)) == {(DETECTOR,): 5, (CLASSIFIER,): 1}


def test_stages_share_all_slots_so_that_the_most_is_carried() -> None:
    """A detector takes twice the time of a classifier."""
    fleet = [holder(DETECTOR, 0), holder(CLASSIFIER, 1)]
    (decision,) = decisions(separate(config(slots=8)), fleet, {"video": 2000.0})
    counts = Counter(launched(decision))
    assert sum(counts.values()) == 6
    assert counts[(DETECTOR,)] > counts[(CLASSIFIER,)] > 0


@pytest.mark.parametrize("rps", [1.0, 150.0])
@pytest.mark.parametrize("alone", [(), (DETECTOR,), (CLASSIFIER,), (DETECTOR, DETECTOR, CLASSIFIER)])
def test_a_server_of_several_stages_stays_until_none_of_them_needs_it(rps: float, alone: tuple[str, ...]) -> None:
    fleet = [*(server(f"both-{n}", slot=f"cpu:{n}") for n in range(2)), *(holder(model, 2 + n) for n, model in enumerate(alone))]
    result = decisions(separate(config(slots=5)), fleet, {"video": rps}, seconds=90)
    for decision in result:
        left = [each for each in fleet if each.name not in target(decision).retire]
        assert all(any(stage in each.models for each in left) for stage in STAGES)
    assert bool(retired(result)) or rps > 1.0


def test_a_model_of_two_pipelines_is_retired_when_both_give_it_up() -> None:
    cfg = separate(config(slots=4))
    cfg = replace(cfg, pipelines=(PipelineConfig("one", (DETECTOR,), 300.0), PipelineConfig("two", (DETECTOR, CLASSIFIER), 400.0)))
    fleet = [holder(DETECTOR, 0), holder(DETECTOR, 1), holder(CLASSIFIER, 2)]
    assert set(retired(decisions(cfg, fleet, {"one": 1.0, "two": 1.0}, seconds=90))) == {f"{DETECTOR}-1"}
    assert retired(decisions(cfg, fleet, {"one": 1.0, "two": 150.0}, seconds=90)) == []


def test_a_stages_last_server_is_not_retired_while_another_one_comes() -> None:
    fleet = [holder(DETECTOR, 0), holder(CLASSIFIER, 1), replace(holder(DETECTOR, 2), phase=Phase.WARMING)]
    assert retired(decisions(separate(config(slots=4)), fleet, {"video": 1.0}, seconds=90)) == []


def test_an_operators_bounds_on_servers_hold_for_each_stage() -> None:
    cfg = separate(config(slots=8))
    cfg = replace(cfg, pipelines=(replace(cfg.pipelines[0], min_servers=2, max_servers=2),))
    (decision,) = decisions(cfg, (), {"video": 400.0})
    assert Counter(launched(decision)) == {(DETECTOR,): 2, (CLASSIFIER,): 2}
    more = [holder(DETECTOR, number) for number in range(3)] + [holder(CLASSIFIER, 3 + number) for number in range(2)]
    assert set(retired(decisions(cfg, more, {"video": 1.0}))) == {f"{DETECTOR}-2"}


def test_a_stateful_stage_stays_on_its_one_server() -> None:
    cfg = separate(config(slots=8))
    cfg = replace(cfg, models=cfg.models | {DETECTOR: replace(cfg.models[DETECTOR], stateful=True)})
    (decision,) = decisions(cfg, [holder(DETECTOR, 0), holder(CLASSIFIER, 1)], {"video": 50.0})
    assert launched(decision) == []
    assert target(decision).servers[f"{DETECTOR}-0"][DETECTOR].instances > 1


def simulated(cfg: ThemisConfig, pipeline: str = "video", more_rps: float = 100.0) -> SimResult:
    """5 requests/s for 90 s, and more from second 10 to 30; launched servers begin with one for each slot or stage."""
    rng = np.random.default_rng(1)
    calm, more = np.cumsum(rng.exponential(1 / 5.0, 800)), 10.0 + np.cumsum(rng.exponential(1 / more_rps, 4000))
    arrivals = np.sort(np.concatenate([calm[calm < 90.0], more[more < 30.0]]))
    return simulate(cfg, {pipeline: arrivals}, 90.0, SimOptions(servers=() if pipeline == "nlp" else None, preroll_s=10.0))


def nlp(slots: int) -> ThemisConfig:
    """The shipped pipeline of three stages on a few slots."""
    cfg = load_settings(SHIPPED)
    assert cfg.launch is not None
    (pipeline,) = [each for each in cfg.pipelines if each.name == "nlp"]
    models = {stage: cfg.models[stage] for stage in pipeline.stages}
    return replace(cfg, models=models, pipelines=(pipeline,), launch=replace(cfg.launch, slots=cfg.launch.slots[:slots]))


def test_stages_are_scaled_by_themselves_in_tritons_world_and_no_request_fails() -> None:
    run = simulated(separate(config(slots=8)))
    assert run.failed == 0
    holders = []
    for tick in run.ticks:
        assert all(len(each.models) == 1 for each in tick.snapshot.servers)
        serving = [next(iter(each.models)) for each in tick.snapshot.servers if each.phase is Phase.SERVING]
        holders.append(tuple(serving.count(stage) for stage in STAGES))
    assert holders[0] == holders[-1] == (1, 1)
    most = [max(column) for column in zip(*holders, strict=True)]
    assert most[0] > most[1] >= 1
    assert min(map(min, holders)) == 1
    assert "servers 1+1" in sentence(run.ticks[-1])


@pytest.mark.parametrize("slots", [1, 2])
def test_stages_share_servers_where_slots_are_fewer_the_slowest_one_last(slots: int) -> None:
    run = simulated(separate(nlp(slots)), "nlp", 8.0)
    assert (run.failed, run.violations) == (0, 0.0)
    first = [set(each.models) for each in run.ticks[-1].snapshot.servers]
    assert sorted(map(len, first)) == ([3] if slots == 1 else [1, 2])
    assert slots == 1 or {"nlp-translation"} in first


def test_a_stage_whose_server_is_lost_is_loaded_into_another_one_where_no_slot_is_free() -> None:
    cfg = separate(config(slots=2))
    (decision,) = decisions(cfg, [holder(DETECTOR, 0), holder(DETECTOR, 1)], {"video": 10.0})
    (sharing,) = [name for name, models in target(decision).servers.items() if CLASSIFIER in models]
    assert f"{CLASSIFIER} of video is loaded into {sharing}: no slot is free for a server of its own" in [
        c.sentence for c in decision.clamps
    ]


def test_the_placement_waits_for_a_restart() -> None:
    current = config()
    change = settings_change(current, separate(current))
    assert (change.changed, change.waiting) == ((), ("planning",))


def written(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = SHIPPED.read_text() + "planning: {placement: separate}\n"
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "themis.yaml"
    path.write_text(text)
    return path


SLOTS = "[cpu:0, cpu:1, cpu:2, cpu:3]"
LARGE = "video-detector:\n    profile:\n"
HUGE = (LARGE, f"{LARGE}      instance_memory: 3GiB\n")
BIG = ("video-classifier:\n    profile:\n", "video-classifier:\n    profile:\n      instance_memory: 2GiB\n")
SMALL = (SLOTS, "[{device: cpu:0, memory: 2GiB}, {device: cpu:1, memory: 2GiB}]")
TIGHT = (SLOTS, "[{device: cpu:0, memory: 4GiB}]")
ENOUGH = (SLOTS, "[cpu:0, cpu:1, cpu:2, cpu:3, cpu:4, cpu:5, cpu:6]")


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ([HUGE, SMALL], "launch.slots", "no slot has the 3,072 MiB that the fewest instances of video-detector need"),
        ([HUGE, BIG, TIGHT], "launch.slots", "all slots have 4,096 MiB, and the fewest instances of all models need 5,120 MiB"),
        ([ENOUGH, ("  slots:", "  reach: [cpu:8]\n  slots:")], "launch.reach", "placement separate uses one device a server"),
        ([ENOUGH, ("separate}", "separate, max_servers: 2}")], "planning.max_servers", "expected at least 3"),
        (
            [
                ENOUGH,
                ("    stages: [video-detector, video-classifier]", "    model: both"),
                ("models:", "calls: {both: [video-detector]}\nmodels:"),
            ],
            "planning.placement",
            "separate is impossible for pipelines.video: both calls its models inside one server",
        ),
    ],
)
def test_what_separate_servers_cannot_do_is_refused(changes: list[tuple[str, str]], key: str, words: str, tmp_path: Path) -> None:
    (problem,) = problems(written(tmp_path, *changes))
    assert problem.key == key
    assert words in str(problem)


def test_validate_says_what_it_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate_command(written(tmp_path), live=False, as_json=False) == 0
    assert (
        "4 launch slots for 7 models: a free slot goes first to a model that no server holds; 3 of them share a server"
        in capsys.readouterr().out
    )
    assert validate_command(written(tmp_path, ENOUGH), live=False, as_json=False) == 0
    shown = capsys.readouterr().out
    assert "planning.placement: each launched server holds one model; 7 launch slots for 7 models" in shown
