"""Batching, sharing and routing in small cases that can be followed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from themis_triton.core.fleet import ModelState
from themis_triton.sim.engine import Simulation
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
) -> Simulation:
    layout = Layout(surface, (chain,), tuple(range(servers)), 16)
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
