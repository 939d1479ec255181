"""Batching, sharing and routing in small cases that can be followed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from themis_triton.core.fleet import ModelState
from themis_triton.sim.engine import Simulation
from themis_triton.sim.kernels import spread_calls
from themis_triton.sim.layout import Layout
from themis_triton.sim.world import Dispatcher, Sharing, SimWorld
from themis_triton.solver.surface import FloatArray, contention_surface

SURFACE = contention_surface(0.0, 10.0, 0.0, 10.0, 4, 8).latency_ms[None]
"""20, 30, 40, 50 ms for batches of 1 to 4, however many are busy."""


def simulation(
    arrivals_ms: list[float],
    state: ModelState,
    world: SimWorld,
    surface: FloatArray = SURFACE,
    servers: int = 1,
    chain: tuple[int, ...] = (0,),
    follows: tuple[tuple[int, int], ...] | None = None,
) -> Simulation:
    layout = Layout(surface, (chain,), tuple(range(servers)), 16, follows=(follows,))
    built = Simulation(layout, world, np.array(arrivals_ms) / 1000.0, np.zeros(len(arrivals_ms), dtype=np.int64), 0)
    for server in range(servers):
        for model in range(surface.shape[0]):
            built.configure(server, model, state)
    for model in range(surface.shape[0]):
        built.route(model, tuple(range(servers)))
    return built


def ends_ms(built: Simulation) -> list[object]:
    built.advance(100.0)
    return [pytest.approx(1000.0 * end_s) for end_s in built.engine.ended_s]


def test_a_free_instance_takes_what_waits() -> None:
    built = simulation([0, 1, 2, 3, 4, 5], ModelState(1, 4), SimWorld(hop_s=0.0))
    assert ends_ms(built) == [20, 70, 70, 70, 70, 90]
    counters = built.counters(0, 0)
    assert (counters.executions, counters.inferences, counters.pending) == (3, 6, 0)


FOUR = np.stack([np.full((4, 8), ms) for ms in (10.0, 20.0, 50.0, 5.0)])
DIAMOND = ((0, 1), (0, 2), (1, 3), (2, 3))


def test_servers_get_requests_by_their_weights() -> None:
    built = simulation([0] * 8, ModelState(1, 1), SimWorld(hop_s=0.0), servers=2)
    built.route(0, (0, 1), (3, 1))
    built.advance(100.0)
    assert [built.counters(server, 0).inferences for server in (0, 1)] == [6, 2]


def test_stages_side_by_side_start_together_and_the_last_one_lets_the_next_start() -> None:
    built = simulation([0, 100], ModelState(1, 1), SimWorld(hop_s=0.001), FOUR, chain=(0, 1, 2, 3), follows=DIAMOND)
    assert ends_ms(built) == [68, 168]  # 10 + 50 + 5 and three hops
    assert [built.counters(0, model).inferences for model in range(4)] == [2, 2, 2, 2]
    assert built.unfinished == 0


def test_a_request_whose_stages_all_run_side_by_side_ends_with_the_slowest() -> None:
    built = simulation([0, 5], ModelState(2, 1), SimWorld(hop_s=0.0), FOUR, chain=(0, 1, 2), follows=())
    assert ends_ms(built) == [50, 55]
    assert built.route_counts(2) == (2, 0, 0)


def test_a_branch_that_fails_ends_the_request() -> None:
    built = simulation([0], ModelState(1, 1), SimWorld(hop_s=0.0), FOUR, chain=(0, 1, 2, 3), follows=DIAMOND)
    built.route(1, ())
    assert ends_ms(built) == [10]
    assert (list(built.engine.failed), built.unfinished) == ([1], 0)
    assert built.counters(0, 2).inferences == 1
    assert built.counters(0, 3).inferences == 0


def test_queue_delay_waits_for_a_full_batch_but_not_longer() -> None:
    state = ModelState(1, 2, max_queue_delay_us=5000)
    assert ends_ms(simulation([0, 3], state, SimWorld(hop_s=0.0))) == [33, 33]
    assert ends_ms(simulation([0, 7], state, SimWorld(hop_s=0.0))) == [25, 45]


def test_central_queue_leaves_when_full_or_after_its_time_out() -> None:
    world = SimWorld(hop_s=0.0, dispatcher=Dispatcher.CENTRAL, sharing=Sharing.CORES)
    assert ends_ms(simulation([0, 10], ModelState(1, 4), world)) == [80, 80]
    assert ends_ms(simulation([0, 10, 20, 30, 40], ModelState(1, 4), world, servers=2)) == [80, 80, 80, 80, 110]


def test_batches_on_one_device_share_it_at_every_moment() -> None:
    shared = contention_surface(0.0, 0.0, 10.0, 0.0, 1, 8).latency_ms[None]
    assert ends_ms(simulation([0, 5], ModelState(2, 1), SimWorld(hop_s=0.0), shared)) == [15, 20]


def test_cores_speed_up_a_batch_that_is_under_way() -> None:
    world = SimWorld(hop_s=0.0, sharing=Sharing.CORES)
    cores = np.array([[[40.0, 20.0]]])
    built = simulation([0], ModelState(1, 1), world, cores)
    built.advance(0.020)
    built.configure(0, 0, ModelState(2, 1))
    assert ends_ms(built) == [30]


def test_a_chain_takes_its_stages_with_a_hop_before_each() -> None:
    built = simulation([0], ModelState(1, 1), SimWorld(hop_s=0.003), np.concatenate([SURFACE, SURFACE]), chain=(0, 1))
    assert ends_ms(built) == [46]


def test_requests_go_to_the_server_with_the_fewest() -> None:
    built = simulation([0, 1, 2, 3], ModelState(1, 1), SimWorld(hop_s=0.0), servers=2)
    assert ends_ms(built) == [20, 21, 40, 41]


def test_what_no_server_can_take_fails_and_a_dead_server_s_requests_are_retried() -> None:
    built = simulation([0, 1, 50], ModelState(1, 1), SimWorld(hop_s=0.0), servers=2)
    built.advance(0.010)
    built.evict(0)
    assert ends_ms(built)[:2] == [41, 21]
    assert built.route_counts(0) == (3, 0, 0)
    built = simulation([0, 1], ModelState(1, 1), SimWorld(hop_s=0.0))
    built.advance(0.010)
    built.evict(0)
    built.advance(1.0)
    assert built.route_counts(0) == (2, 0, 2)
    assert list(built.engine.failed) == [1, 1]


def calling(
    arrivals_ms: list[float],
    per_request: tuple[float, ...],
    *,
    turns: bool = False,
    instances: int = 1,
    batch: int = 1,
    hop_s: float = 0.0,
    follows: tuple[tuple[int, int], ...] | None = None,
) -> Simulation:
    """Models of 20 ms for one request; a request makes so many calls of each."""
    stages, count = len(per_request), len(arrivals_ms)
    surfaces = np.concatenate([SURFACE] * stages)
    calls = ((per_request,), ((turns,) * stages,))
    layout = Layout(surfaces, (tuple(range(stages)),), (0,), 32, (), (follows,), *calls)
    built = Simulation(layout, SimWorld(hop_s=hop_s), np.array(arrivals_ms) / 1000.0, np.zeros(count, dtype=np.int64), 0)
    for stage in range(stages):
        built.configure(0, stage, ModelState(instances, batch))
        built.route(stage, (0,))
    return built


@pytest.mark.parametrize(("mean", "most", "smallest"), [(6.5, 12, 1), (10.0, 12, 8), (2.0, 12, 1), (0.5, 3, 0)])
def test_numbers_of_calls_have_the_mean_and_the_maximum_that_are_asked_for(mean: float, most: int, smallest: int) -> None:
    drawn = [spread_calls(mean, most, quantile) for quantile in np.linspace(0.0, 0.99999, 10_001)]
    assert (min(drawn), max(drawn)) == (smallest, most)
    assert np.mean(drawn) == pytest.approx(mean, rel=0.01)


def test_a_request_waits_for_the_last_of_its_calls_at_once() -> None:
    assert ends_ms(calling([0], (3.0,))) == [60]
    assert ends_ms(calling([0], (3.0,), instances=2)) == [40]
    assert ends_ms(calling([0, 1], (3.0,), instances=6)) == [20, 21]
    assert ends_ms(calling([0, 10], (2.0, 1.0))) == [60, 100]
    assert ends_ms(calling([0], (4.0,), batch=4)) == [60]  # the first call starts alone, the other three are one batch of 40 ms


def test_calls_in_turn_follow_each_other_with_a_hop_before_each() -> None:
    built = calling([0], (3.0, 1.0), turns=True, instances=4, hop_s=0.002)
    assert ends_ms(built) == [88]
    assert (built.route_counts(0), built.route_counts(1)) == ((3, 0, 0), (1, 0, 0))


@pytest.mark.parametrize(("mean", "counts"), [(0.3, {0, 1}), (2.25, {2, 3})])
@pytest.mark.parametrize("turns", [False, True])
def test_a_number_of_calls_that_is_not_whole_is_drawn(mean: float, counts: set[int], *, turns: bool) -> None:
    requests = 2000
    built = calling([float(100 * n) for n in range(requests)], (1.0, mean), turns=turns)
    built.advance(1e4)
    assert built.route_counts(1)[0] / requests == pytest.approx(mean, abs=0.04)
    taken_ms = {round(ms) for ms in 1000.0 * (built.engine.ended_s - built.engine.arrival_s)}
    assert taken_ms == {20 + 20 * count for count in counts}
    assert built.unfinished == 0


def test_a_request_of_which_a_call_fails_has_failed_once() -> None:
    built = calling([0, 1], (3.0, 1.0))
    built.route(1, ())
    built.advance(1.0)
    assert (list(built.engine.failed), built.route_counts(1)) == ([1, 1], (2, 0, 2))
    built = calling([0], (3.0, 1.0))
    built.advance(0.030)
    built.evict(0)
    built.advance(1.0)
    assert (list(built.engine.failed), list(built.engine.ended_s)) == ([1], [0.03])
    assert (built.route_counts(0), built.route_counts(1)) == ((3, 0, 2), (0, 0, 0))


@pytest.mark.parametrize("turns", [False, True])
def test_branches_of_a_graph_wait_for_all_calls_of_their_stages(*, turns: bool) -> None:
    built = calling([0], (1.0, 3.0, 2.0, 1.0), turns=turns, follows=((0, 1), (0, 2), (1, 3), (2, 3)))
    assert ends_ms(built) == [100]  # 20, three times 20 beside two times 20, 20
    assert [built.route_counts(stage) for stage in range(4)] == [(1, 0, 0), (3, 0, 0), (2, 0, 0), (1, 0, 0)]


def test_a_stage_of_a_graph_that_a_request_does_not_call_ends_at_once() -> None:
    requests = 500
    built = calling([float(200 * n) for n in range(requests)], (0.5, 1.0, 0.5, 1.0), follows=((0, 2), (1, 3), (2, 3)))
    built.advance(1e4)
    assert built.unfinished == 0
    assert [built.route_counts(stage)[0] for stage in (1, 3)] == [requests, requests]
    assert [built.route_counts(stage)[0] / requests for stage in (0, 2)] == pytest.approx([0.5, 0.5], abs=0.08)
    taken_ms = {round(ms) for ms in 1000.0 * (built.engine.ended_s - built.engine.arrival_s)}
    assert taken_ms == {40, 60}
