from dataclasses import replace

import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, action, launch, record, retire
from themis_triton.core.action import Action, ActionKind, Outcome, OutcomeKind
from themis_triton.core.decision import Clamp, ClampKind, Decision, PipelineEvidence, Reason, Stage
from themis_triton.core.estimate import LearntTimes, PipelineKnowledge
from themis_triton.core.fleet import ModelState
from themis_triton.core.record import describe, sentence

EVIDENCE = PipelineEvidence("video", 151.4, 120.0, 92.0, 300.0, 241.0, 250.0, servers_now=1, servers_desired=3)
NUMBERS = "video demand 151/s exceeds capacity 92/s, servers 1→3"


def decision(reason: Reason = Reason.SURGE, *, evidence: bool = True, clamps: tuple[Clamp, ...] = (), detail: str = "") -> Decision:
    return Decision("d", NOW_S, "themis", Stage.ABSORB, reason, None, (EVIDENCE,) if evidence else (), clamps, detail)


OPENINGS = {
    Reason.SURGE: "surge",
    Reason.SETTLE: "scaling down in place",
    Reason.STEADY: "steady",
    Reason.SCALE_OUT: "scaling out",
    Reason.SCALE_IN: "scaling in",
    Reason.REPLACE: "replacing a lost server",
    Reason.INFEASIBLE: "overload: the ready servers cannot carry the demand inside the SLO",
    Reason.HOLD_NO_DATA: "no change: no data",
    Reason.HOLD_STALE: "no change: readings are stale",
    Reason.HOLD_WARMUP: "no change: not enough history yet",
    Reason.HOLD_NO_SERVER: "no change: no server is ready",
}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_opening(reason: Reason) -> None:
    assert sentence(record(decision=decision(reason, evidence=False))) == OPENINGS[reason]
    opening = "overload, no further change" if reason is Reason.STEADY else OPENINGS[reason]
    assert sentence(record(decision=decision(reason))) == f"{opening}: {NUMBERS}"


def test_a_capacity_that_is_a_guess_is_not_told_and_exceeds_nothing() -> None:
    few = PipelineKnowledge("video", False, (LearntTimes(CLASSIFIER, 34.0, 0.0, 10.0),), 66.0, 5.4)
    told = record(decision=decision(Reason.STEADY))
    learning = replace(told, estimate=replace(told.estimate, knowledge=(few,)))
    assert sentence(learning) == "steady: video demand 151/s, capacity not known yet, servers 1→3"
    assert sentence(replace(told, estimate=replace(told.estimate, knowledge=(replace(few, enough=True),)))) == sentence(told)


ACTIONS = {
    ActionKind.GROW: (action(ActionKind.GROW, "s1", before=2, after=5), "grow video-detector on s1 2→5"),
    ActionKind.SHRINK: (action(ActionKind.SHRINK, "s1", before=5, after=4), "shrink video-detector on s1 5→4"),
    ActionKind.REBATCH: (
        replace(action(ActionKind.REBATCH, "s1"), before=ModelState(1, 1), after=ModelState(1, 8)),
        "rebatch video-detector on s1 1→8",
    ),
    ActionKind.LAUNCH: (launch("cpu:1", "cpu1-x"), f"launch cpu1-x on cpu:1 with {CLASSIFIER}×1, {DETECTOR}×2"),
    ActionKind.RETIRE: (retire("s1"), "retire s1"),
    ActionKind.RELOAD: (replace(action(ActionKind.RELOAD, "s1"), before=None), "load video-detector on s1"),
    ActionKind.KILL: (replace(retire("s1"), kind=ActionKind.KILL), "kill s1"),
}


@pytest.mark.parametrize("kind", ActionKind)
def test_every_action_in_a_few_words(kind: ActionKind) -> None:
    result, words = ACTIONS[kind]
    assert describe(result) == words
    assert sentence(record(result, decision=decision())) == f"surge: {NUMBERS}; {words}"


def test_all_actions_of_a_plan_are_told_and_advice_is_told_as_such() -> None:
    grow, words = ACTIONS[ActionKind.GROW]
    both: tuple[Action, ...] = (grow, retire("s2"))
    assert sentence(record(*both, decision=decision())).endswith(f"; {words}, retire s2")
    assert sentence(record(*both, decision=decision(), advisory=True)).endswith(f"; would {words}, retire s2")


def test_details_follow_the_numbers() -> None:
    assert sentence(record(decision=decision(Reason.HOLD_STALE, evidence=False, detail="envoy: no statistics for 4.0 s"))) == (
        "no change: readings are stale; envoy: no statistics for 4.0 s"
    )


def test_a_clamp_is_told_where_nothing_is_done_because_of_it() -> None:
    clamped = decision(clamps=(Clamp(ClampKind.MEMORY, "first"), Clamp(ClampKind.DEVICES, "video wants 1 more server")))
    assert sentence(record(decision=clamped)) == f"surge: {NUMBERS}; video wants 1 more server"
    assert "more server" not in sentence(record(retire("s1"), decision=clamped))


@pytest.mark.parametrize("kind", OutcomeKind)
def test_actions_that_failed_or_did_not_start_are_told_with_their_reason_and_others_are_not(kind: OutcomeKind) -> None:
    outcome = Outcome(ACTIONS[ActionKind.GROW][0], kind, NOW_S, NOW_S + 1, "out of memory")
    message = sentence(replace(record(decision=decision(Reason.STEADY, evidence=False)), outcomes=(outcome,)))
    if kind is OutcomeKind.DONE:
        assert message == "steady"
    else:
        assert message == f"steady; grow video-detector on s1 2→5 {kind.value.replace('_', ' ')}: out of memory"


def test_a_sentence_says_what_was_started_and_not_what_was_only_planned() -> None:
    grow, words = ACTIONS[ActionKind.GROW]
    skipped = Outcome(grow, OutcomeKind.SKIPPED, NOW_S, NOW_S, "s1/video-detector is busy with d1")
    ticked = replace(record(grow, retire("s2"), decision=decision(Reason.STEADY, evidence=False)), outcomes=(skipped,))
    assert ticked.started == (retire("s2"),)
    assert sentence(ticked) == f"steady; retire s2; {words} skipped: s1/video-detector is busy with d1"


CALM = replace(EVIDENCE, demand_fast_rps=16.2, capacity_rps=92.0, servers_now=4, servers_desired=4)


def message(evidence: PipelineEvidence, reason: Reason = Reason.STEADY) -> str:
    return sentence(record(decision=replace(decision(reason), evidence=(evidence,))))


def test_steady_is_said_only_where_the_capacity_suffices() -> None:
    assert message(CALM) == "steady: video demand 16/s, capacity 92/s, servers 4"
    overloaded = replace(CALM, capacity_rps=9.1)
    assert message(overloaded) == "overload, no further change: video demand 16/s exceeds capacity 9/s, servers 4"
    assert message(replace(CALM, capacity_rps=15.8)) == "steady: video demand 16/s, capacity 16/s, servers 4"


def test_what_is_refused_is_said_and_a_limit_that_refuses_nothing_is_not() -> None:
    standing = replace(EVIDENCE, limit_rps=92.0)
    refusing = replace(standing, refused_rps=59.3)
    texts = [sentence(record(decision=replace(decision(), evidence=(each,)))) for each in (standing, refusing)]
    assert texts == [f"surge: {NUMBERS}", f"surge: {NUMBERS}, refuses 59/s beyond 92/s"]


def test_a_missed_slo_is_said_where_the_capacity_suffices() -> None:
    late = replace(CALM, measured_p99_ms=320.4)
    assert message(late) == f"{message(CALM)}, SLO missed although capacity suffices: p99 320 ms exceeds 300 ms"
    assert "missed" not in message(replace(late, measured_p99_ms=300.0))
    assert "missed" not in message(replace(late, capacity_rps=9.0))


def test_a_surge_says_when_the_slo_is_expected_to_hold() -> None:
    assert message(replace(EVIDENCE, holds_after_s=1.5), Reason.SURGE) == f"surge: {NUMBERS}, SLO expected to hold in 1.5 s"


def test_of_many_pipelines_a_sentence_names_those_that_explain_it_and_says_how_many_more_there_are() -> None:
    many = tuple(replace(CALM, pipeline=f"p{number}") for number in range(20))
    late, overloaded = replace(many[17], measured_p99_ms=320.0), replace(many[19], capacity_rps=9.0)
    text = sentence(record(decision=replace(decision(Reason.STEADY), evidence=(*many[:17], late, many[18], overloaded))))
    assert [part.split()[0] for part in text.partition(": ")[2].split("; ")] == ["p17", "p19", "p0", "p1", "and"]
    assert text.endswith("; and 16 further pipelines")


def test_pipelines_that_miss_their_slo_by_the_prediction_come_before_those_that_change_and_those_before_the_others() -> None:
    many = tuple(replace(CALM, pipeline=f"p{number}") for number in range(20))
    changed, late = replace(many[18], explains=True), replace(many[19], predicted_p99_ms=728_301.0)
    text = sentence(record(decision=replace(decision(Reason.INFEASIBLE), evidence=(*many[:18], changed, late))))
    numbers = text.partition("SLO: ")[2].split("; ")
    assert [part.split()[0] for part in numbers] == ["p19", "p18", "p0", "p1", "and"]
    assert numbers[0].endswith("servers 4, predicted p99 728301 ms exceeds 300 ms")


def test_of_many_actions_a_sentence_names_some_and_says_how_many_more_there_are() -> None:
    actions = [retire(f"s{number}") for number in range(6)]
    assert sentence(record(*actions, decision=decision())).endswith("; retire s0, retire s1, retire s2, retire s3, and 2 further actions")
    assert sentence(record(*actions[:4], decision=decision())).endswith("; retire s0, retire s1, retire s2, retire s3")
