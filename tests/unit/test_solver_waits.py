"""The default queueing model against a request-level simulation: a bound in nearly every state, and not a loose one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from waits import call_states, random_states, spread_states, summary, video_states


def test_the_predicted_p99_is_a_bound_in_nearly_all_states_and_not_far_off() -> None:
    numbers = summary(random_states(150))
    assert numbers["share_bounded"] >= 0.96
    assert numbers["median_overestimate"] <= 0.32


def test_it_bounds_the_video_chain_everywhere() -> None:
    numbers = summary(video_states()[::3])
    assert numbers["share_bounded"] == 1.0
    assert numbers["median_overestimate"] <= 0.35


@pytest.mark.parametrize("turns", [False, True])
def test_it_bounds_most_states_in_which_a_stage_gets_several_calls_of_a_request(*, turns: bool) -> None:
    numbers = summary(call_states(20, turns=turns))
    assert numbers["share_bounded"] >= 0.85
    assert numbers["median_overestimate"] <= 0.35


def test_it_bounds_requests_with_many_calls_only_where_their_number_is_known() -> None:
    assert summary(spread_states(30))["share_bounded"] >= 0.93
    assert summary(spread_states(30, covered=False))["share_bounded"] <= 0.75
