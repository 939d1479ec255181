"""Predictions against what was observed: when they stop to hold, nothing is taken away until they hold again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.samples import DETECTOR, NOW_S, STAGES, config, estimate, server, snapshot
from themis_triton.core.config import ThemisConfig
from themis_triton.core.decision import ClampKind, Reason
from themis_triton.core.fleet import Phase
from themis_triton.core.prediction import PredictionScore, prediction_words
from themis_triton.core.record import TickRecord, sentence
from themis_triton.daemon.predictions import FAILED, RESTORED, PredictionWatch
from themis_triton.decide.planner import Planner
from themis_triton.decide.policies import decide
from themis_triton.decide.rules import build_rules
from themis_triton.decide.scores import MEMORY_S, Launch, PipelineScores, Predictions, ScoreSlice, fails, holds
from themis_triton.decide.state import PipelineState, PolicyInput, PolicyState
from themis_triton.policies import policy_named
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions
from themis_triton.solver.surface import FloatArray

BUSY_RPS, CALM_RPS, BUSY_S, UNTIL_S = 60.0, 12.0, 75.0, 170.0
SLOW_FROM_S = 20.0
ALLOWED = 0.01
FAILING = PredictionScore("video", False, ALLOWED, NOW_S, 60.0, 1000.0, 120.0, 60.0, 92.0, 1.8, 1.2)


def arrivals() -> dict[str, FloatArray]:
    """A rate that falls to a fifth, which makes servers superfluous."""
    random = np.random.default_rng(4)
    parts = [
        np.sort(random.uniform(from_s, to_s, int(rate_rps * (to_s - from_s))))
        for rate_rps, from_s, to_s in ((BUSY_RPS, 0.0, BUSY_S), (CALM_RPS, BUSY_S, UNTIL_S))
    ]
    return {"video": np.concatenate(parts)}


def run(settings: ThemisConfig, factor: float) -> list[tuple[float, TickRecord]]:
    """The ticks by their time, of models that take so many times their profiles' times from some time on."""
    result = simulate(settings, arrivals(), UNTIL_S, SimOptions(slowdowns=((SLOW_FROM_S, factor),)))
    return [(record.snapshot.at_s - result.start_s, record) for record in result.ticks if record.decision.predictions]


def instances(record: TickRecord) -> int:
    return sum(state.instances for each in record.snapshot.servers for state in each.models.values())


def test_service_times_that_double_are_corrected_and_predictions_hold() -> None:
    ticks = run(config(), 2.0)
    assert all(record.decision.predictions[0].holds for _, record in ticks)
    assert ticks[-1][1].decision.predictions[0].p99_ratio == pytest.approx(0.8, abs=0.2)
    assert ticks[-1][1].estimate.models[DETECTOR].correction == pytest.approx(2.0, abs=0.1)
    assert len(ticks[-1][1].snapshot.servers) < max(len(record.snapshot.servers) for _, record in ticks)


def test_while_predictions_fail_nothing_is_taken_away_until_they_hold_again() -> None:
    settings = config()
    policy = replace(settings.policy, drift=replace(settings.policy.drift, max_factor=1.0))
    ticks = run(replace(settings, policy=policy), 1.8)
    failing = [(at_s, record) for at_s, record in ticks if not record.decision.predictions[0].holds]
    assert SLOW_FROM_S < failing[0][0] < SLOW_FROM_S + 40.0
    assert failing[-1][0] - failing[0][0] == pytest.approx(len(failing) * policy.tick_s, abs=1.0), "one time in a row"
    counts = [instances(record) for _, record in failing]
    assert counts == sorted(counts)
    assert "predictions of video do not hold: " in sentence(failing[0][1])
    calm = [record for at_s, record in failing if at_s > BUSY_S + 30.0]
    wanted = [record for record in calm if record.decision.reason is Reason.SCALE_IN]
    assert wanted
    assert all(ClampKind.PREDICTION in {clamp.kind for clamp in record.decision.clamps} and not record.plan.actions for record in wanted)
    assert failing[-1][0] < ticks[-1][0] - 10.0
    assert len(ticks[-1][1].snapshot.servers) < len(failing[-1][1].snapshot.servers)


def slices(*late: float) -> tuple[ScoreSlice, ...]:
    return tuple(ScoreSlice(10.0 * number, 10.0, 500.0, each, 50.0, 90.0) for number, each in enumerate(late))


def test_one_stall_is_no_failing_model_and_few_late_requests_are_chance() -> None:
    assert not fails(slices(0.0, 400.0, 0.0, 0.0), ALLOWED)
    assert not fails(slices(40.0, 400.0), ALLOWED)
    assert fails(slices(40.0, 400.0, 40.0), ALLOWED)
    assert not fails(slices(4.0, 400.0, 4.0), ALLOWED)
    assert not fails(slices(*[200.0] * 6), 0.5)
    assert fails(slices(*[400.0] * 6), 0.5)
    assert holds(slices(5.0, 4.0, 5.0), ALLOWED)
    assert not holds(slices(5.0, 4.0, 7.0), ALLOWED)


def test_predictions_of_which_nothing_is_known_any_more_are_tried_again() -> None:
    scores = PipelineScores(slices(40.0), failing_since_s=0.0)
    assert scores.without_old(MEMORY_S) == scores
    assert scores.without_old(MEMORY_S + 1.0) == PipelineScores(failing_since_s=0.0)
    assert scores.without_old(MEMORY_S + 1.0).without_old(MEMORY_S + 1.0) == PipelineScores()


def test_a_minute_without_requests_ends_the_fallback_too() -> None:
    scores = PipelineScores(slices(40.0, 40.0, 40.0), failing_since_s=0.0)
    failing = []
    for number in range(3, 9):
        scores = scores.with_slice(ScoreSlice(10.0 * number, 10.0), 10.0 * number + 10.0, ALLOWED)
        failing.append(scores.failing_since_s is not None)
    assert failing == [True, True, True, True, True, False]


@pytest.mark.parametrize(("observed_s", "late"), [((31.0,), False), ((31.0, 31.0), True), ((31.0, 31.0, 12.0), False)])
def test_no_server_retires_while_launches_take_far_longer_than_predicted(observed_s: tuple[float, ...], late: bool) -> None:
    launches = tuple(
        Launch(NOW_S - 50.0, frozenset(STAGES), 15.0, seconds, NOW_S + (1.0 if seconds > 30.0 else -51.0)) for seconds in observed_s
    )
    state, settings = (
        PolicyState({"video": PipelineState(desired=((NOW_S - 500.0, (1,)),))}, predictions=Predictions(launches=launches)),
        config(),
    )
    servers = [server(name, (2, 2), slot=f"cpu:{number}") for number, name in enumerate("abc")]
    planner = Planner(build_rules(settings))
    _, decision = decide(state, PolicyInput(snapshot(servers), estimate(5.0)), planner, policy_named(settings.policy.name))
    assert decision.target is not None
    assert bool(decision.target.retire) is not late
    assert decision.predictions[0].launches_late is late
    assert decision.predictions[0].launch_ratio == observed_s[-1] / 15.0
    assert ("launches for video take 2.1 times as long as predicted" in decision.detail) is late


def test_a_launch_is_late_only_where_it_takes_longer_than_scale_in_waits() -> None:
    settings, planner = config(), Planner(build_rules(config()))
    for launch_s, late in ((19.0, False), (22.0, True)):
        state = PolicyState()
        for number in range(2):
            for later_s, phase in ((0.0, Phase.LAUNCHING), (launch_s, Phase.SERVING)):
                at_s = NOW_S + 50.0 * number + later_s
                servers = [server("a", (2, 2)), server(f"new-{number}", (2, 2), phase=phase, slot="cpu:1")]
                seen = PolicyInput(snapshot(servers, at_s), estimate(5.0, at_s))
                state, decision = decide(state, seen, planner, policy_named(settings.policy.name))
        (score,) = decision.predictions
        assert score.launches_late is late
        assert score.launch_ratio == pytest.approx(launch_s / (5.0 + 0.5))
        calm = PolicyInput(snapshot([server("a", (2, 2))], at_s + 3.5 * launch_s), estimate(5.0, at_s + 3.5 * launch_s))
        _, decision = decide(state, calm, planner, policy_named(settings.policy.name))
        assert not decision.predictions[0].launches_late


def test_bounds_of_an_operator_are_kept_to_whatever_predictions_do() -> None:
    settings = config()
    bounded = replace(settings, pipelines=(replace(settings.pipelines[0], max_servers=1),))
    servers = [server(name, (2, 2), slot=f"cpu:{number}") for number, name in enumerate("ab")]
    failing = Predictions({"video": PipelineScores(failing_since_s=NOW_S)})
    for chosen, retired in ((settings, 0), (bounded, 1)):
        state = PolicyState({"video": PipelineState(desired=((NOW_S - 500.0, (1,)),))}, predictions=failing)
        planner = Planner(build_rules(chosen))
        _, decision = decide(state, PolicyInput(snapshot(servers), estimate(5.0)), planner, policy_named(settings.policy.name))
        assert decision.target is not None
        assert len(decision.target.retire) == retired


def test_each_change_is_told_once_with_its_numbers() -> None:
    watch = PredictionWatch()
    assert list(watch.follow((replace(FAILING, holds=True),))) == []
    ((kind, words),) = watch.follow((FAILING,))
    assert (kind, words) == (FAILED, prediction_words(FAILING))
    assert words.startswith(
        "predictions of video do not hold: 12.0 % of 1000 requests were late at up to 60/s of a capacity of 92/s, at most 1 %"
    )
    assert list(watch.follow((FAILING,))) == []
    assert [kind for kind, _ in watch.follow((replace(FAILING, holds=True),))] == [RESTORED]
    assert "requests were late, at most" in prediction_words(PredictionScore("video", False, ALLOWED))
