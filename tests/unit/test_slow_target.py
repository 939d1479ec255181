"""Many pipelines plan in turn; a surge or a change of servers is planned at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.unit.samples import NOW_S, config, decided, model, snapshot, table
from tests.unit.test_allocation import holder
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.estimate import Estimate, PipelineEstimate
from themis_triton.core.fleet import ModelState, Server
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.slow_target import Circumstances, Planned, SlowTarget, is_in_turn
from themis_triton.decide.state import PolicyInput, PolicyState

NAMES = [f"m{number:02}" for number in range(20)]
RATE_RPS = 20.0


def many() -> ThemisConfig:
    models = {name: model(name, table(4.0, 8.0, 4.0, 20.0)) for name in NAMES}
    return replace(config(slots=24), models=models, pipelines=tuple(PipelineConfig(name, (name,), 400.0) for name in NAMES))


def servers() -> list[Server]:
    return [replace(holder(f"s-{name}", name, f"cpu:{number}"), models={name: ModelState(4, 8)}) for number, name in enumerate(NAMES)]


def at_rates(rates_rps: Mapping[str, float], at_s: float) -> Estimate:
    pipelines = {name: PipelineEstimate(name, rps, rps, rps, 0.0, 0.0, None) for name, rps in rates_rps.items()}
    return Estimate(at_s, pipelines=pipelines, history_s=60.0)


def same(demands_rps: tuple[float, ...]) -> Circumstances:
    return Circumstances(("same",), demands_rps)


def planned(state: PolicyState, before: PolicyState) -> set[str]:
    """The pipelines whose slow loop planned in the last tick."""
    return {name for name in NAMES if before.pipelines.get(name) is None or state.pipelines[name].slow is not before.pipelines[name].slow}


@pytest.mark.parametrize(
    ("pipelines", "places", "rounds"), [(1, 8, 1), (1, 40, 1), (1, 41, 2), (5, 5, 1), (6, 6, 2), (20, 20, 4), (60, 60, 12), (4, 256, 7)]
)
def test_each_pipeline_plans_once_in_a_round(pipelines: int, places: int, rounds: int) -> None:
    turns = [[is_in_turn(number, pipelines, places, ticks) for ticks in range(rounds)] for number in range(pipelines)]
    assert all(ticks.count(True) == 1 for ticks in turns)
    assert max(map(sum, zip(*turns, strict=True))) <= 5


def test_demands_may_fall_and_rise_a_little() -> None:
    before = same((100.0, 40.0))
    assert same((20.0, 50.0)).hardly_differ_from(before)
    assert not same((20.0, 50.1)).hardly_differ_from(before)
    assert not Circumstances(("another",), (100.0, 40.0)).hardly_differ_from(before)


def test_a_target_holds_for_a_while_unless_a_demand_rises() -> None:
    target = SlowTarget((1,), None, None, (1,), rises=False, lasting=(1,))
    planned, falls, rises = Planned(NOW_S, same((100.0, 40.0)), target), same((50.0, 40.0)), same((103.0, 40.0))
    assert planned.holds(NOW_S + 0.75, falls, in_turn=True)
    assert not planned.holds(NOW_S + 1.0, falls, in_turn=True)
    assert not planned.holds(NOW_S + 0.25, rises, in_turn=True)
    assert not planned.holds(NOW_S + 0.25, Circumstances(("another",), (100.0, 40.0)), in_turn=True)
    assert planned.holds(NOW_S + 1.0, rises, in_turn=False)


def test_twenty_pipelines_plan_in_turn_and_a_surge_or_another_server_is_planned_at_once() -> None:
    planner, state, rates_rps, fleet = Planner(build_rules(many())), PolicyState(), dict.fromkeys(NAMES, RATE_RPS), servers()

    def tick(number: int) -> set[str]:
        nonlocal state
        before, at_s = state, NOW_S + 0.25 * number
        state, decision = decided(state, PolicyInput(snapshot(fleet, at_s), at_rates(rates_rps, at_s)), planner)
        launched.append({name for models in (decision.target.launch.values() if decision.target else ()) for name in models})
        return planned(state, before)

    launched: list[set[str]] = []
    assert tick(0) == set(NAMES)
    rounds = [tick(number) for number in range(4, 12)]
    assert [len(names) for names in rounds] == [5] * 8
    assert set.union(*rounds[:4]) == set.union(*rounds[4:]) == set(NAMES)
    assert set.union(*launched) == set()
    due = rounds[5]
    surging = min(set(NAMES) - due)
    rates_rps[surging] = 12 * RATE_RPS
    assert tick(13) == due | {surging}
    assert launched[-1] == {surging}
    fleet[-1] = replace(fleet[-1], launched=False, slot=None)
    extra = replace(fleet[-1], name="another", device="cpu:23", slot="cpu:23", launched=True)
    fleet.append(extra)
    assert NAMES[-1] in tick(14)
