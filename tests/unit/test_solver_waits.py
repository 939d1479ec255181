"""The default queueing model against a request-level simulation: a bound in nearly every state, and not a loose one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from batch_queue import simulate
from waits import random_states, summary, video_states


def test_simulated_single_servers_wait_as_theory_says() -> None:
    """M/D/1 at half load: the mean wait is half a service time."""
    one = np.array([1])
    sojourn = simulate(np.full((1, 1, 1), 10.0), one, one, np.zeros(1), 1, 50.0, 200_000, 1, True)
    assert sojourn[:, -1].mean() == pytest.approx(15.0, rel=0.02)


def test_simulated_batches_share_one_service() -> None:
    """Far above what single requests could get, batches of eight keep up."""
    sojourn = simulate(np.full((1, 8, 1), 10.0), np.array([1]), np.array([8]), np.zeros(1), 1, 400.0, 20_000, 1, True)
    assert np.percentile(sojourn[:, -1], 99) < 40.0


def test_the_predicted_p99_is_a_bound_in_nearly_all_states_and_not_far_off() -> None:
    numbers = summary(random_states(150))
    assert numbers["share_bounded"] >= 0.94
    assert numbers["median_overestimate"] <= 0.30


def test_it_bounds_the_video_chain_everywhere() -> None:
    numbers = summary(video_states()[::3])
    assert numbers["share_bounded"] == 1.0
    assert numbers["median_overestimate"] <= 0.40
