"""The measured number of a stage's requests per request of its pipeline, and what plans make of it."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, STAGES, config, record, route, server, snapshot
from themis_triton.commands.status_command import show
from themis_triton.core.config import PipelineConfig, StageCalls
from themis_triton.core.observation import ModelCounters, ServerReading, Snapshot
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.estimate.calls import CallHistory, Calls, observe_calls, own_models
from themis_triton.estimate.estimate import History, estimate

CONFIG = config()
(VIDEO,) = CONFIG.pipelines


def observed(
    calls: float,
    seconds: int,
    *,
    entered_rps: float = 50.0,
    held_up_rps: float = 0.0,
    start: CallHistory | None = None,
    pipeline: PipelineConfig = VIDEO,
    noise: float = 0.0,
) -> CallHistory:
    """What is used after so many seconds with so many calls of the classifier per request.

    `held_up_rps` of the requests stay in the first stage; `noise`: the share by which the calls of a second differ from the mean.
    """
    history = start
    first_s = start.since_s if start is not None else NOW_S
    held_up = start.samples[-1].before[1] if start is not None else 0.0
    for second in range(seconds + 1):
        uneven = 1.0 + noise * (-1) ** second
        rates = {DETECTOR: entered_rps, CLASSIFIER: calls * uneven * (entered_rps - held_up_rps)}
        in_flight = {DETECTOR: held_up + held_up_rps * second, CLASSIFIER: 0.0}

        def count(model: str, since_s: float, until_s: float, rates: dict[str, float] = rates) -> float:
            return rates[model] * (until_s - since_s)

        history = observe_calls(history, Calls(pipeline, {CLASSIFIER}, count, in_flight.__getitem__), first_s + second)
    assert history is not None
    return history


def test_a_number_is_used_once_enough_requests_show_it() -> None:
    assert observed(4.0, 4).per_request == (1.0, 1.0)
    assert observed(4.0, 5).per_request == (1.0, 4.0)
    assert observed(0.3, 5).per_request == (1.0, 0.3)
    assert observed(3.1415, 30).per_request == (1.0, 3.1)


def test_a_difference_within_the_noise_changes_nothing() -> None:
    assert observed(1.04, 120).per_request == (1.0, 1.0)  # less than a step
    assert observed(1.1, 5).per_request == (1.0, 1.0)  # 250 requests show a tenth more by chance
    assert observed(1.1, 30, noise=0.5).per_request == (1.0, 1.0)  # the calls of each second differ
    assert observed(1.1, 30).per_request == (1.0, 1.1)


def test_a_pipeline_of_few_requests_is_measured_over_a_longer_time() -> None:
    assert observed(6.0, 5, entered_rps=1.0).per_request == (1.0, 1.0)
    assert observed(6.0, 30, entered_rps=1.0).per_request == (1.0, 6.0)
    assert observed(6.0, 120, entered_rps=0.25).per_request == (1.0, 6.0)


@pytest.mark.parametrize(("before", "after"), [(2.0, 6.0), (6.0, 12.0), (12.0, 1.0)])
def test_a_large_change_of_three_requests_per_second_is_used_within_ten_seconds_whatever_was_before(before: float, after: float) -> None:
    long = observed(before, 120, entered_rps=3.0)
    assert long.per_request == (1.0, before)
    assert observed(after, 3, entered_rps=3.0, start=long).per_request[1] == before
    soon = observed(after, 10, entered_rps=3.0, start=long)
    assert soon.per_request[1] == pytest.approx(after, rel=0.2)
    assert observed(after, 30, entered_rps=3.0, start=soon).per_request == (1.0, after)


def test_requests_that_have_not_reached_a_stage_yet_are_not_missing_there() -> None:
    """A bottleneck lets fewer requests through to the next stage: that is no smaller number of calls."""
    held_up = observed(1.0, 40, held_up_rps=15.0)
    assert held_up.per_request == (1.0, 1.0)
    assert observed(1.4, 40, start=held_up).per_request == (1.0, 1.4), "as many stay as before"


def test_many_calls_in_flight_behind_a_stage_do_not_hide_its_number() -> None:
    history = None
    for second in range(31):
        in_flight = {DETECTOR: 2.0, CLASSIFIER: 80.0}.__getitem__
        calls = Calls(VIDEO, {CLASSIFIER}, lambda model, *_: {DETECTOR: 4.0, CLASSIFIER: 48.0}[model], in_flight)
        history = observe_calls(history, calls, NOW_S + second)
    assert history is not None
    assert history.per_request == (1.0, 12.0)


def test_inside_a_server_the_requests_that_run_count_as_noise() -> None:
    """Where a request is there is not known: all of them may still be before the stage."""

    def used(in_flight: float) -> float:
        history, ensemble = None, replace(VIDEO, entry="ensemble")
        for second in range(13):
            calls = Calls(ensemble, {CLASSIFIER}, lambda model, *_: 70.0 if model == CLASSIFIER else 100.0, lambda _: in_flight)
            history = observe_calls(history, calls, NOW_S + second)
        assert history is not None
        return history.per_request[1]

    assert used(500.0) == 1.0
    assert used(10.0) == 0.7


def test_nothing_is_measured_without_requests() -> None:
    four = observed(4.0, 30)
    assert observed(2.0, 60, entered_rps=0.0, start=four).per_request == (1.0, 4.0)


def test_a_stage_that_is_never_called_keeps_a_small_number() -> None:
    assert observed(0.0, 30).per_request == (1.0, 0.01)


def test_only_models_of_one_pipeline_are_measured() -> None:
    lone = PipelineConfig("lone", (CLASSIFIER,), 100.0)
    assert own_models((VIDEO,)) == {CLASSIFIER}
    assert own_models((VIDEO, lone)) == frozenset()
    assert own_models((VIDEO, PipelineConfig("other", ("other", CLASSIFIER), 100.0))) == frozenset()


def ticks(calls: float, seconds: float) -> list[Snapshot]:
    times = [index * 0.5 for index in range(int(seconds / 0.5) + 1)]
    rates = {DETECTOR: 40.0, CLASSIFIER: 40.0 * calls}
    return [
        replace(
            snapshot([server("a")], NOW_S + t),
            routes=tuple(route(name, NOW_S + t, rate * t, (rate * t * 0.9, rate * t, rate * t)) for name, rate in rates.items()),
        )
        for t in times
    ]


@pytest.mark.parametrize(("sequential", "p99_ms"), [(False, 91.0 + 97.75), (True, 91.0 + 4 * 91.0)])
def test_the_estimate_names_the_number_and_counts_the_last_call(*, sequential: bool, p99_ms: float) -> None:
    pipeline = replace(VIDEO, calls=(StageCalls(), StageCalls(sequential=sequential)))
    history = History()
    for each in ticks(4.0, 30.0):
        history, result = estimate(history, each, replace(CONFIG, pipelines=(pipeline,)))
    video = result.pipelines["video"]
    assert video.per_request == (1.0, 4.0)
    assert video.p99_ms == pytest.approx(p99_ms, rel=1e-3)


def test_waiting_calls_of_one_request_are_one_request_that_waits() -> None:
    pipeline = replace(VIDEO, calls=(StageCalls(), StageCalls(12.0)))
    waiting = {DETECTOR: ModelCounters(pending=3.0), CLASSIFIER: ModelCounters(pending=120.0)}
    seen = replace(snapshot([server("a")], NOW_S), readings=(ServerReading("a", NOW_S, waiting),))
    _, result = estimate(History(), seen, replace(CONFIG, pipelines=(pipeline,)))
    assert result.pipelines["video"].backlog == 3.0 + 10.0


def test_plans_follow_the_number_and_are_kept() -> None:
    planner = Planner(build_rules(CONFIG))
    often = planner.called("video", (1.0, 4.0))
    assert often is planner.called("video", (1.0, 4.0))
    assert planner.called("video", ()) is planner.called("video", (1.0, 1.0)) is planner
    assert [stage.demand_ratio for stage in often.rules.problems["video"].stages] == [1.0, 4.0]
    assert [stage.demand_ratio for stage in often.rules.server_problems["video"].stages] == [1.0, 4.0]
    assert often.corrected({CLASSIFIER: 1.5}).rules.problems["video"].stages[1].demand_ratio == 4.0


def test_status_shows_numbers_that_are_not_one() -> None:
    ticked, shown = record(seen=snapshot()), io.StringIO()
    history = History()
    for each in ticks(4.0, 30.0):
        history, result = estimate(history, each, CONFIG)
    board = StatusBoard(CONFIG, NOW_S)
    board.take(replace(ticked, estimate=result), 1.0)
    show(board.status(), Console(file=shown, width=200), NOW_S)
    assert f"requests a stage: a request of video makes 4 of {STAGES[1]}" in shown.getvalue()
