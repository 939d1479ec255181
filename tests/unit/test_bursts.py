"""Bursts that keep outrunning the servers: when servers stand ready for the next one, and for how long."""

from __future__ import annotations

import pytest

from tests.unit.samples import NOW_S, config, decided, estimate, server, snapshot
from themis_triton.core.attainment import EndedRequests
from themis_triton.core.config import ThemisConfig
from themis_triton.decide.bursts import BURSTS, CALM_S, NO_BURSTS, BurstMemory, BurstPart, BurstTick
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PipelineState, PolicyInput, PolicyState

PERCENTILE, LAUNCH_S, KEEP_S, PEAK_RPS = 99.0, 20.0, 3600.0, 80.0


def observe(
    memory: BurstMemory, from_s: float, to_s: float, rps: float, late: float = 0.0, *, exceeds: bool = False, stable_rps: float = 10.0
) -> BurstMemory:
    """A tick each second; of ten requests that end in each, a fraction is late."""
    for second in range(round(to_s - from_s)):
        tick = BurstTick(from_s + second, EndedRequests(10.0, 10.0 * late), rps, stable_rps, exceeds)
        memory = memory.observed(tick, PERCENTILE, LAUNCH_S, KEEP_S)
    return memory


def bursts(count: int, late: float, memory: BurstMemory = NO_BURSTS, at_s: float = 0.0) -> tuple[BurstMemory, float]:
    """So many bursts of five seconds, one in each minute, and the time after them."""
    for _ in range(count):
        memory = observe(memory, at_s, at_s + 55.0, 10.0)
        memory = observe(memory, at_s + 55.0, at_s + 60.0, PEAK_RPS, late, exceeds=True)
        at_s += 60.0
    return memory, at_s


@pytest.mark.parametrize(
    ("count", "late", "ready_rps"), [(2, 1.0, 0.0), (3, 1.0, PEAK_RPS), (3, 0.05, 0.0)], ids=["too few", "missed", "the percentile holds"]
)
def test_servers_stand_ready_once_several_bursts_have_made_the_percentile_missed(count: int, late: float, ready_rps: float) -> None:
    memory, at_s = bursts(count, late)
    assert memory.ready_for_rps(at_s, KEEP_S) == ready_rps
    assert memory.ready_for_rps(at_s, 0.0) == 0.0


def test_one_long_surge_is_no_reason_to_stand_ready_although_the_demand_falls_below_the_capacity_for_moments() -> None:
    memory, at_s = NO_BURSTS, 0.0
    for _ in range(10):
        memory = observe(memory, at_s, at_s + 20.0, PEAK_RPS, 1.0, exceeds=True)
        memory = observe(memory, at_s + 20.0, at_s + 19.0 + CALM_S, 10.0)
        at_s += 19.0 + CALM_S
    assert memory.ready_for_rps(at_s, KEEP_S) == 0.0


def test_a_rate_as_before_that_is_not_carried_any_more_is_no_burst() -> None:
    memory, at_s = NO_BURSTS, 0.0
    for _ in range(5):
        memory = observe(memory, at_s, at_s + 30.0, PEAK_RPS, 1.0, exceeds=True, stable_rps=0.6 * PEAK_RPS)
        memory = observe(memory, at_s + 30.0, at_s + 60.0, PEAK_RPS, stable_rps=0.6 * PEAK_RPS)
        at_s += 60.0
    assert memory.ready_for_rps(at_s, KEEP_S) == 0.0


def test_requests_that_are_late_long_after_the_demand_was_carried_again_are_late_by_something_else() -> None:
    memory, at_s = bursts(3, 0.0)
    memory = observe(memory, at_s + 2.0 * LAUNCH_S, at_s + 300.0, 10.0, 1.0)
    assert memory.ready_for_rps(at_s + 300.0, KEEP_S) == 0.0


def test_what_was_not_missed_again_is_forgotten_and_memory_is_bounded() -> None:
    memory, at_s = bursts(3, 1.0)
    memory = observe(memory, at_s, at_s + 3.0 * KEEP_S, 10.0)
    assert memory.ready_for_rps(at_s + 3.0 * KEEP_S, KEEP_S) == 0.0
    assert len(memory.parts) <= KEEP_S / 600.0 + 2


def test_by_default_an_hour_is_remembered() -> None:
    settings: ThemisConfig = config()
    assert settings.policy.scale_up.burst_memory_s == KEEP_S


def launches(memory: BurstMemory) -> int:
    """The servers that a decision at a low rate launches beside one that serves."""
    seen = PolicyInput(snapshot([server("a", (4, 4), slot="cpu:0")]), estimate(1.0))
    state = PolicyState({"video": PipelineState(bursts=memory)})
    _, decision = decided(state, seen, Planner(build_rules(config(slots=4))))
    assert decision.target is not None
    return len(decision.target.launch)


def test_servers_are_launched_for_the_bursts_to_come_although_the_present_load_needs_none() -> None:
    met, missed = (BurstMemory((BurstPart(NOW_S - 60.0, 1000.0, late, BURSTS, 300.0),)) for late in (5.0, 200.0))
    assert (launches(NO_BURSTS), launches(met), launches(missed)) == (0, 0, 3)
