"""In a large fleet steady pipelines are proposed in turn; one that changes is proposed at once."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.samples import NOW_S, decided, snapshot
from tests.unit.test_slow_target import NAMES, RATE_RPS, at_rates, many
from tests.unit.test_slow_target import servers as with_four_instances
from themis_triton.core.decision import Decision, PipelineEvidence, Reason, Stage
from themis_triton.core.estimate import ModelEstimate
from themis_triton.core.fleet import ModelState, Server
from themis_triton.core.observation import Snapshot
from themis_triton.decide import policies, resting
from themis_triton.decide.planner import Planner
from themis_triton.decide.proposal import PolicyResult, Proposal
from themis_triton.decide.resting import RISE_FACTOR, ROUND_S, Rest, due
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PipelineState, PolicyInput, PolicyState

CONFIG = many()
TICK_S = CONFIG.policy.tick_s


def servers() -> list[Server]:
    """With the instances that the rate needs."""
    return [replace(server, models={name: ModelState(1, 8) for name in server.models}) for server in with_four_instances()]


def after(ticks: int) -> tuple[Planner, PolicyState, list[Decision]]:
    """The decisions of a steady fleet."""
    planner, state, decisions = Planner(build_rules(CONFIG)), PolicyState(), list[Decision]()
    for number in range(ticks):
        at_s = NOW_S + number * TICK_S
        seen = PolicyInput(snapshot(servers(), at_s), at_rates(dict.fromkeys(NAMES, RATE_RPS), at_s))
        state, decision = decided(state, seen, planner)
        decisions.append(decision)
    return planner, state, decisions


def proposed(state: PolicyState, planner: Planner, rates_rps: dict[str, float], seen: Snapshot, slow: str = "") -> set[str]:
    """The pipelines that are proposed anew in the next tick; `slow`: a model whose service times are corrected from now on."""
    estimate = at_rates(rates_rps, seen.at_s)
    if slow:
        estimate = replace(estimate, models={slow: ModelEstimate(slow, 9.0, 9.0, 9.0, 1.0, 0.0, 9.0, 0.0, correction=1.2)})
    after_it, _ = decided(state, PolicyInput(seen, estimate), planner)
    # A proposal notes what it desired; a pipeline that rests keeps its state.
    return {name for name in NAMES if after_it.pipelines[name] is not state.pipelines[name]}


@pytest.fixture
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (policies, resting):
        monkeypatch.setattr(module, "SMALL_FLEET", 5)


@pytest.mark.usefixtures("_large")
def test_what_rests_is_decided_as_before() -> None:
    _, state, decisions = after(60)
    assert sum(each.resting is not None for each in state.pipelines.values()) == len(NAMES)
    assert len(state.resting_servers) == len(NAMES) - 5  # all but those whose slow loop plans
    targets = [each.target for each in decisions[-8:]]
    assert targets == targets[:1] * 8
    assert all({each.pipeline for each in decision.evidence} == set(NAMES) for decision in decisions[-8:])


@pytest.mark.usefixtures("_large")
def test_only_a_part_is_proposed_and_whatever_changes_besides() -> None:
    planner, state, _ = after(60)
    now = snapshot(servers(), NOW_S + 60 * TICK_S)
    steady = dict.fromkeys(NAMES, RATE_RPS)
    quiet = proposed(state, planner, steady, now)
    assert 0 < len(quiet) <= 10  # those that are due, and those whose slow loop plans
    rests = next(name for name in NAMES if name not in quiet)
    assert proposed(state, planner, steady | {rests: 1.02 * RATE_RPS}, now) == quiet
    assert proposed(state, planner, steady | {rests: 1.2 * RATE_RPS}, now) == quiet | {rests}
    assert proposed(state, planner, steady, now, slow=rests) == quiet | {rests}
    fewer = [replace(server, models={}) if server.name == f"s-{rests}" else server for server in servers()]
    assert rests in proposed(state, planner, steady, replace(now, servers=tuple(fewer)))


def test_a_small_fleet_has_none_that_rest() -> None:
    _, state, _ = after(4)
    assert all(each.resting is None for each in state.pipelines.values())


EVIDENCE = PipelineEvidence("m", 0.0, 0.0, 0.0, 0.0, None, None, 0, 0)
RESULT = PolicyResult(PipelineState(), Proposal({}, Stage.OPTIMISE, Reason.STEADY, EVIDENCE, (), ()))
rests = st.lists(st.none() | st.builds(Rest, st.just(RESULT), st.floats(0.0, 9.0), st.floats(0.5, 2.0)), min_size=1, max_size=300)


@given(rests)
def test_whatever_must_be_proposed_now_is_and_only_a_part_of_the_rest(each: list[Rest | None]) -> None:
    chosen = due(each, TICK_S)
    assert {number for number, rest in enumerate(each) if rest is None} <= chosen
    at_rest = [number for number, rest in enumerate(each) if rest is not None]
    turns, count = chosen.intersection(at_rest), math.ceil(len(each) * TICK_S / ROUND_S)
    assert min(count, len(at_rest)) <= len(turns) <= 2 * count
    waits = [each[number].since_s for number in at_rest if number not in chosen and each[number].rise <= RISE_FACTOR]  # type: ignore[union-attr]
    assert not waits or min(waits) >= max(sorted(each[number].since_s for number in at_rest)[:count])  # type: ignore[union-attr]


@settings(deadline=None, max_examples=30)
@given(st.integers(101, 600), st.sets(st.integers(0, 100), max_size=100), st.integers(0, 100))
def test_each_pipeline_has_its_turn_in_a_round_whatever_rises(pipelines: int, rising: set[int], urgent: int) -> None:
    since_s, longest_s = [0.0] * pipelines, 0.0
    for tick in range(1, 3 * round(ROUND_S / TICK_S)):
        at_s = tick * TICK_S
        each = [
            None if number < urgent else Rest(RESULT, since_s[number], 1.5 if number - urgent in rising else 1.0)
            for number in range(pipelines)
        ]
        for number in due(each, TICK_S):
            longest_s, since_s[number] = max(longest_s, at_s - since_s[number]), at_s
    assert max(longest_s, at_s - min(since_s)) <= ROUND_S + TICK_S
