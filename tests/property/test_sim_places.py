"""Servers on several devices: the compiled simulation against a slow reference, and against the recursion of a queue with k servers."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.places_reference import Change, Place, PlacesReference, PlacesServer, exponential_factors
from themis_triton.core.fleet import ModelState
from themis_triton.sim.engine import Simulation
from themis_triton.sim.layout import Layout
from themis_triton.sim.world import ServiceNoise, SimWorld

WORLD = SimWorld(hop_s=0.0, noise=ServiceNoise.EXPONENTIAL)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.floats(0.3, 1.5), st.integers(0, 2**32))
def test_a_server_on_k_devices_is_one_queue_before_k_instances(devices: int, load: float, seed: int) -> None:
    service_s = 0.01
    arrival_s = np.cumsum(np.random.default_rng(seed).exponential(service_s / (load * devices), 300))
    layout = Layout(np.full((1, 1, 4), 1000.0 * service_s), ((0,),), tuple(range(devices)), 4)
    simulation = Simulation(layout, WORLD, arrival_s, np.zeros(arrival_s.size, dtype=np.int64), seed)
    for row in range(1, devices):
        simulation.attach(0, row)
    simulation.configure(0, 0, ModelState(devices, 1), [1] * devices)
    simulation.route(0, (0,))
    simulation.advance(math.inf)
    free_s, factors, expected = [0.0] * devices, exponential_factors(seed), []
    for at_s in arrival_s:
        expected.append(max(at_s, heapq.heappop(free_s)) + service_s * next(factors))
        heapq.heappush(free_s, expected[-1])
    assert simulation.engine.ended_s == pytest.approx(np.array(expected), rel=0, abs=1e-9)
    assert simulation.counters(0, 0).success == arrival_s.size


CHANGES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.tuples(*[st.integers(0, 3)] * 3)), max_size=6)


@settings(max_examples=100, deadline=None)
@given(CHANGES, st.integers(1, 4), st.sampled_from([0, 3000, 20_000]), st.booleans(), st.integers(0, 2**32))
def test_places_agree_with_the_slow_reference(
    drawn: list[tuple[int, int, tuple[int, int, int]]], max_batch: int, delay_us: int, apart: bool, seed: int
) -> None:
    """Two servers, the first on three devices; the second on one of its own or on one of those; two models."""
    rng = np.random.default_rng(seed)
    arrival_s, models = np.sort(rng.uniform(0.0, 1.0, 150)), rng.integers(0, 2, 150)
    surfaces = rng.uniform(5.0, 20.0, (2, 4, 1)).cumsum(axis=1) * rng.uniform(1.0, 1.3, (2, 1, 40)).cumprod(axis=2)
    devices = (0, 3 if apart else 1, 1, 2)
    layout = Layout(surfaces, ((0,), (1,)), devices, 40)
    simulation = Simulation(layout, WORLD, arrival_s, models, seed)
    servers = [PlacesServer(row, [], max_batch, delay_us / 1e6) for row in (0, 1)]
    for server, row in ((0, 0), (1, 1), (0, 2), (0, 3)):
        if row != server:
            simulation.attach(server, row)
        servers[server].places.append(Place(devices[row], [0, 0]))
    for model in range(2):
        simulation.route(model, (0, 1))
    start = [(0.0, server, model, (1, 1, 0)) for server in range(2) for model in range(2)]
    later = [(0.15 * number + 0.0123, *change) for number, change in enumerate(drawn, 1)]
    ends = [(1.1, server, model, (1, 1, 1)) for server in range(2) for model in range(2)]
    changes = [Change(at_s, s, m, counts[: len(servers[s].places)]) for at_s, s, m, counts in (*start, *later, *ends)]
    for change in changes:
        simulation.advance(change.at_s)
        state = ModelState(sum(change.instances), max_batch, delay_us)
        simulation.configure(change.server, change.model, state, change.instances)
    simulation.advance(math.inf)

    def service_s(model: int, size: int, busy: int) -> float:
        return float(surfaces[model, size - 1, busy - 1]) / 1000.0

    requests = list(zip(arrival_s.tolist(), models.tolist(), strict=True))
    expected = PlacesReference(requests, servers, len(devices), service_s, exponential_factors(seed)).run(changes)
    assert math.isfinite(max(expected))
    assert simulation.engine.ended_s == pytest.approx(np.array(expected), rel=0, abs=1e-7)
