"""What the fast loop asks for, by the time that its lever takes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.unit.samples import estimate
from themis_triton.core.estimate import PipelineEstimate
from themis_triton.core.policy import DemandConfig, PolicyConfig
from themis_triton.decide.demand import fast_demand, launch_demand, survivor_demand

POLICY = PolicyConfig(
    tick_s=0.1, demand=DemandConfig(headroom_sigmas=1.0, slow_actuation_headroom_sigmas=2.0, backlog_drain_s=0.5, backlog_slack_s=0.0)
)
QUICK_S, SLOW_S = 0.1, 1.2


def result(recent_rps: float, stable_rps: float, backlog: float = 0.0) -> PipelineEstimate:
    return replace(
        estimate(recent_rps).pipelines["video"], recent_rps=recent_rps, stable_rps=stable_rps, backlog=backlog, growth_rps_per_s=0.0
    )


def test_a_quick_lever_follows_the_newest_rate() -> None:
    demand = fast_demand(result(64.0, 100.0), POLICY, QUICK_S)
    assert demand.with_headroom_rps() == 64.0 + 8.0


@pytest.mark.parametrize("recent_rps", [64.0, 100.0])
def test_a_slow_lever_carries_chance_around_the_settled_rate_whatever_the_last_second_was(recent_rps: float) -> None:
    demand = fast_demand(result(recent_rps, 100.0), POLICY, SLOW_S)
    assert demand.with_headroom_rps() == 100.0 + 2 * 10.0


def test_a_slow_lever_follows_a_newest_rate_above_that() -> None:
    assert fast_demand(result(144.0, 100.0), POLICY, SLOW_S).with_headroom_rps() == 144.0 + 12.0


def test_a_backlog_is_drained_no_faster_than_the_lever_acts() -> None:
    assert fast_demand(result(64.0, 64.0, 12.0), POLICY, QUICK_S).extra_rps == pytest.approx(12.0 / 0.5)
    assert fast_demand(result(64.0, 64.0, 12.0), POLICY, SLOW_S).extra_rps == pytest.approx(12.0 / SLOW_S)


def test_headroom_follows_the_measured_dispersion_up_to_its_bound() -> None:
    bursty = replace(result(100.0, 0.0), dispersion=9.0)
    assert fast_demand(bursty, POLICY, QUICK_S).with_headroom_rps() == pytest.approx(100.0 + math.sqrt(3.0 * 100.0))
    unbounded = fast_demand(bursty, replace(POLICY, demand=replace(POLICY.demand, max_dispersion=100.0)), QUICK_S)
    assert unbounded.with_headroom_rps() == pytest.approx(100.0 + math.sqrt(9.0 * 100.0))


def test_servers_are_launched_for_what_waits_too_as_far_as_instances_do_not_drain_it_meanwhile() -> None:
    assert launch_demand(result(64.0, 64.0), POLICY, 5.0).extra_rps == 0.0
    assert launch_demand(result(64.0, 64.0, 40.0), POLICY, 5.0).extra_rps == pytest.approx(40.0 / 5.0)
    assert launch_demand(result(64.0, 64.0, 40.0), POLICY, 0.1).extra_rps == pytest.approx(40.0 / 0.5)
    assert launch_demand(
        result(64.0, 64.0, 40.0), replace(POLICY, demand=replace(POLICY.demand, backlog_slack_s=0.5)), 5.0
    ).extra_rps == pytest.approx(8.0 / 5.0)


@pytest.mark.parametrize(("actuation_s", "reached_rps"), [(1.4, 64.0 + 8.0 * 4.0), (60.0, 128.0)])
def test_a_trend_counts_up_to_twice_the_rate_however_long_a_launch_takes(actuation_s: float, reached_rps: float) -> None:
    rising = replace(result(64.0, 64.0), trend_base_rps=64.0, trend_rps_per_s=8.0)
    exact = replace(POLICY, demand=replace(POLICY.demand, trend_sigmas=0.0, trend_window_s=5.0))
    assert launch_demand(rising, exact, actuation_s).rate_rps == pytest.approx(reached_rps)


@pytest.mark.parametrize(("recent_rps", "total_rps"), [(40.0, 64.0 + 8.0), (79.0, 64.0 + 8.0), (81.0, 81.0 + 9.0)])
def test_further_devices_are_for_the_mean_or_a_newest_rate_beyond_chance_with_its_headroom(recent_rps: float, total_rps: float) -> None:
    """Up to 80/s are two standard deviations around 64/s: chance may bring them."""
    settled = replace(result(recent_rps, 64.0), trend_base_rps=64.0)
    assert launch_demand(settled, POLICY, 1.0, within_reach=True).with_headroom_rps() == pytest.approx(total_rps)
    assert launch_demand(settled, POLICY, 1.0).with_headroom_rps() == pytest.approx(recent_rps + math.sqrt(recent_rps))


def test_survivors_carry_the_largest_rate_with_its_margin() -> None:
    policy = replace(POLICY, scale_down=replace(POLICY.scale_down, survivor_margin_fraction=0.25))
    for rates in ((80.0, 60.0, 40.0), (60.0, 80.0, 40.0), (40.0, 60.0, 80.0)):
        settled, peak, recent = rates
        demand = survivor_demand(replace(result(recent, settled), burst_rps=peak), policy)
        assert demand.total_rps == pytest.approx(100.0)
