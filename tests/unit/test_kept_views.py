"""In a large fleet views are kept from tick to tick; decisions are those of views that are made anew each time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.samples import NOW_S, decided, snapshot
from tests.unit.test_slow_target import NAMES, RATE_RPS, at_rates, many
from tests.unit.test_slow_target import servers as first_servers
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.estimate import ModelEstimate, OtherDemand
from themis_triton.core.fleet import ModelState, Phase
from themis_triton.core.observation import OpenCall
from themis_triton.decide import policies
from themis_triton.decide.kept_views import KeptViews
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState

TICK_S = 0.25
KINDS = ("rate", "correction", "instances", "phase", "gone", "open call", "loading", "direct calls", "another model")
changes = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=6)


def changed(seen: PolicyInput, kind: str, number: int, amount: int) -> PolicyInput:
    """What is seen where one pipeline differs."""
    name, now, estimate = NAMES[number], seen.snapshot, seen.estimate
    server, own = now.servers[number], estimate.pipelines[name]
    call = OpenCall(server.name, name, ModelState(1, 8), ModelState(1 + amount, 8), now.at_s - 5.0)
    model = ModelEstimate(name, 9.0, 9.0, 9.0, 1.0, 0.0, 9.0, 0.0, correction=1.0 + amount / 10.0)
    demands = {
        "rate": replace(own, recent_rps=amount * RATE_RPS),
        "direct calls": replace(own, others=((OtherDemand(None, 3.0 * amount, 3.0 * amount),),)),
    }
    servers = {
        "instances": [replace(server, models={name: ModelState(amount, 8)})],
        "another model": [replace(server, models={name: ModelState(4, 8), NAMES[number + 4]: ModelState(amount, 8)})],
        "phase": [replace(server, phase=Phase.WARMING)],
        "gone": [],
    }
    fleet = (*now.servers[:number], *servers.get(kind, [server]), *now.servers[number + 1 :])
    loading = frozenset({(server.name, NAMES[number + 4])} if kind == "loading" else ())
    models = {name: model} if kind == "correction" else estimate.models
    return PolicyInput(
        replace(now, servers=fleet, loading=loading, open_calls=(call,) if kind == "open call" else ()),
        replace(estimate, models=models, pipelines=estimate.pipelines | {name: demands.get(kind, own)}),
    )


def shared() -> ThemisConfig:
    """Two pipelines with one model besides those that have their own."""
    config = many()
    return replace(config, pipelines=(*config.pipelines, PipelineConfig("both", (NAMES[0], NAMES[1]), 400.0)))


@settings(deadline=None, max_examples=20)
@given(changes=changes, shares=st.booleans())
def test_decisions_are_those_of_new_views(changes: list[tuple[str, int, int]], *, shares: bool) -> None:
    config = shared() if shares else many()
    names = [pipeline.name for pipeline in config.pipelines]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "SMALL_FLEET", 5)
        keeps, anew = Planner(build_rules(config)), Planner(build_rules(config))
        states, kept = [PolicyState(), PolicyState()], 0
        for number, change in enumerate((None, None, *(each for each in changes for _ in range(2)), None)):
            at_s = NOW_S + number * TICK_S
            seen = PolicyInput(snapshot(first_servers(), at_s), at_rates(dict.fromkeys(names, RATE_RPS), at_s))
            seen = seen if change is None else changed(seen, *change)
            known: KeptViews = keeps.remembered("kept views", lambda: KeptViews(config))
            kept += len(known._kept)
            states[0], one = decided(states[0], seen, keeps)
            anew.remembered("kept views", lambda: KeptViews(config))._kept.clear()
            states[1], other = decided(states[1], seen, anew)
            assert one == other
            assert states[0] == states[1]
        assert kept > 0


def test_kept_views_hold_no_estimates_of_earlier_ticks() -> None:
    config, state = many(), PolicyState()
    names, planner = [pipeline.name for pipeline in config.pipelines], Planner(build_rules(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "SMALL_FLEET", 5)
        for number in range(4):
            at_s = NOW_S + number * TICK_S
            estimate = at_rates(dict.fromkeys(names, RATE_RPS), at_s)
            state, _ = decided(state, PolicyInput(snapshot(first_servers(), at_s), estimate), planner)
    kept: KeptViews = planner.remembered("kept views", lambda: KeptViews(config))
    assert kept._kept
    assert all(each.view.models is estimate.models for each in kept._kept.values())
