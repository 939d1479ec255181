"""Plans that count with drift, and what is said about it."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, record, snapshot
from tests.unit.test_exporter import samples
from themis_triton.adapters.exporter import Exporter
from themis_triton.commands.status_command import show
from themis_triton.core.config import LatencyTable
from themis_triton.core.decision import Decision, Reason, Stage
from themis_triton.core.estimate import DriftChange, DriftEvent, Estimate, ModelEstimate
from themis_triton.core.record import TickRecord, drift_event_words, drift_words, sentence
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.correction import factors_of, with_drift
from themis_triton.decide.planner import CORRECTED, Planner
from themis_triton.decide.rules import build_rules
from themis_triton.solver.solve import solve_joint

CONFIG = config()
RULES = build_rules(CONFIG)
PLANNER = Planner(RULES)
SAID = "video-detector takes 1.42 times its expected time; plans use a correction of 1.40"


def model(name: str, ratio: float | None, correction: float = 1.0, *, drifting: bool = False) -> ModelEstimate:
    return ModelEstimate(name, 9.0, 9.0, 9.0, 1.0, 0.0, 9.0, 0.0, drift_ratio=ratio, drifting=drifting, correction=correction)


def estimated(*models: ModelEstimate, events: tuple[DriftEvent, ...] = ()) -> Estimate:
    return Estimate(NOW_S, {each.model: each for each in models}, drift_events=events)


DRIFTED = estimated(
    model(DETECTOR, 1.42, 1.4, drifting=True),
    model(CLASSIFIER, None),
    events=(DriftEvent(DETECTOR, DriftChange.BEGAN, 1.42, 1.4),),
)


def ticked() -> TickRecord:
    decision = with_drift(Decision("d", NOW_S, "themis", Stage.OPTIMISE, Reason.STEADY, None, detail="all is well"), DRIFTED)
    return replace(record(decision=decision, seen=snapshot()), estimate=DRIFTED)


def test_capacity_by_means_follows_the_drift_too() -> None:
    detector, means = CONFIG.models[DETECTOR], LatencyTable((1, 8), (1, 12), ((20.0, 60.0), (80.0, 300.0)))
    measured = replace(detector, profile=replace(detector.profile, mean_table=means))
    rules = build_rules(replace(CONFIG, models={**CONFIG.models, DETECTOR: measured}))
    before, after = (each.problems["video"].stages[0].mean_surface for each in (rules, Planner(rules).corrected({DETECTOR: 1.4}).rules))
    assert before is not None
    assert after is not None
    assert before.latency_ms[0, 0] == 20.0
    np.testing.assert_array_equal(after.latency_ms, 1.4 * before.latency_ms)


def test_a_planner_without_drift_is_the_planner() -> None:
    assert PLANNER.corrected({DETECTOR: 1.0}) is PLANNER
    assert PLANNER.corrected(factors_of(Estimate(NOW_S), CONFIG.models)) is PLANNER


def test_the_drifted_model_s_latency_is_multiplied_and_nothing_else() -> None:
    result = PLANNER.corrected(factors_of(DRIFTED, CONFIG.models)).rules
    before, after = (rules.problems["video"] for rules in (RULES, result))
    np.testing.assert_array_equal(after.stages[0].surface.latency_ms, 1.4 * before.stages[0].surface.latency_ms)
    assert after.stages[1] is before.stages[1]
    assert replace(after, stages=before.stages) == before
    assert result.config is RULES.config


def test_servers_for_a_surge_are_counted_with_the_drift_too() -> None:
    slow = {
        name: replace(each, profile=replace(each.profile, table=replace(each.profile.table, latency_ms=_doubled(each.profile.table))))
        for name, each in CONFIG.models.items()
    }
    measured, drifted = build_rules(replace(CONFIG, models=slow)), PLANNER.corrected(dict.fromkeys(CONFIG.models, 2.0)).rules
    for problems in ("problems", "server_problems"):
        one, other = (getattr(rules, problems)["video"] for rules in (measured, drifted))
        for ours, theirs in zip(one.stages, other.stages, strict=True):
            np.testing.assert_allclose(ours.surface.latency_ms, theirs.surface.latency_ms)
            assert ours.instance_price == theirs.instance_price


def _doubled(table: LatencyTable) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(2.0 * each for each in row) for row in table.latency_ms)


def test_the_same_factors_give_the_same_planner_and_others_another() -> None:
    planner = Planner(RULES)
    first = planner.corrected({DETECTOR: 1.4})
    assert planner.corrected({DETECTOR: 1.4, CLASSIFIER: 1.0}) is first
    assert planner.corrected({DETECTOR: 1.45}) is not first
    assert Planner(RULES).corrected({DETECTOR: 1.4}) is not first
    for number in range(CORRECTED):
        planner.corrected({CLASSIFIER: 2.0 + number})
    assert planner.corrected({DETECTOR: 1.4}) is not first


def test_slower_models_need_a_larger_plan_and_faster_ones_none_that_is_larger() -> None:
    asked = {factor: replace(PLANNER.corrected({DETECTOR: factor}).rules.problems["video"], demand_rps=35.0) for factor in (0.8, 1.0, 1.4)}
    costs = [solve_joint(problem).cost for problem in asked.values()]
    assert costs[0] <= costs[1] < costs[2]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (model(DETECTOR, 1.42, 1.4, drifting=True), SAID),
        (model(DETECTOR, 1.42, drifting=True), "video-detector takes 1.42 times its expected time"),
        (model(DETECTOR, 1.01, 1.4), "video-detector takes its expected time again; plans still use a correction of 1.40"),
        (
            model(DETECTOR, None, 1.4, drifting=True),
            "video-detector deviated from its expected time and now runs too rarely to measure; plans use a correction of 1.40",
        ),
        (model(DETECTOR, 1.05), ""),
        (model(DETECTOR, None), ""),
    ],
)
def test_what_is_said_of_a_model(state: ModelEstimate, words: str) -> None:
    assert drift_words(state) == words


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (DriftEvent(DETECTOR, DriftChange.BEGAN, 1.2, 1.2), "drift began: video-detector takes 1.20 times its expected time"),
        (DriftEvent(DETECTOR, DriftChange.CHANGED, 1.4, 1.4), "drift changed: video-detector takes 1.40 times its expected time"),
        (DriftEvent(DETECTOR, DriftChange.ENDED, 1.0, 1.4), "drift ended: video-detector takes 1.00 times its expected time"),
    ],
)
def test_what_is_said_of_an_event(event: DriftEvent, words: str) -> None:
    assert drift_event_words(event) == f"{words}; plans use a correction of {event.correction:.2f}"
    assert drift_event_words(replace(event, correction=1.0)) == f"{words}; plans use the expected time"


def test_the_decision_and_its_sentence_name_the_drift() -> None:
    assert ticked().decision.detail == f"all is well; {SAID}"
    assert SAID in sentence(ticked())
    assert with_drift(ticked().decision, estimated(model(DETECTOR, 1.0))) == ticked().decision


def test_status_shows_drift_as_a_line_and_an_event() -> None:
    board = StatusBoard(config(), NOW_S)
    board.take(ticked(), 1.0)
    status = board.status()
    assert status.drift == (SAID,)
    assert status.models[DETECTOR].correction == 1.4
    assert [(event.kinds, event.sentence) for event in status.events] == [(("drift",), f"drift began: {SAID}")]
    console = Console(file=io.StringIO(), width=200)
    show(status, console, NOW_S)
    assert isinstance(console.file, io.StringIO)
    assert f"drift: {SAID}\n" in console.file.getvalue()


def test_metrics_tell_ratio_and_correction_of_every_model() -> None:
    exporter = Exporter()
    exporter.take(ticked(), 0.004)
    result = samples(exporter)
    assert result["themis_drift_ratio", DETECTOR] == 1.42
    assert result["themis_latency_correction", DETECTOR] == 1.4
    assert np.isnan(result["themis_drift_ratio", CLASSIFIER])
    assert result["themis_latency_correction", CLASSIFIER] == 1.0
