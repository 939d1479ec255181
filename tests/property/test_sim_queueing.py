"""The simulator against queueing theory, Little's law, and the conservation of requests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_triton.core.fleet import ModelState
from themis_triton.sim.engine import Simulation
from themis_triton.sim.layout import Layout
from themis_triton.sim.world import Dispatcher, ServiceNoise, Sharing, SimWorld
from themis_triton.solver.surface import FloatArray

REQUESTS = 300_000
SERVICE_MS = 10.0
FLAT = np.full((1, 1, 64), SERVICE_MS)
SHARED = SERVICE_MS * np.arange(1.0, 65.0)[None, None, :]
EXPONENTIAL = SimWorld(hop_s=0.0, noise=ServiceNoise.EXPONENTIAL)
STEADY = SimWorld(hop_s=0.0)
CENTRAL = SimWorld(hop_s=0.0, noise=ServiceNoise.EXPONENTIAL, dispatcher=Dispatcher.CENTRAL, sharing=Sharing.CORES)


def poisson(rate_rps: float, count: int = REQUESTS, seed: int = 7) -> FloatArray:
    return np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate_rps, count))


def built(surface: FloatArray, world: SimWorld, arrival_s: FloatArray, instances: int, servers: int = 1) -> Simulation:
    layout = Layout(surface, ((0,),), tuple(range(servers)), 64)
    simulation = Simulation(layout, world, arrival_s, np.zeros(arrival_s.size, dtype=np.int64), seed=3)
    for server in range(servers):
        simulation.configure(server, 0, ModelState(instances, 1))
    simulation.route(0, tuple(range(servers)))
    return simulation


def mean_interval_ms(latency_ms: FloatArray) -> tuple[float, float]:
    """Mean and half the width of its 99.9 % interval, from 30 means of successive parts (t-distribution, 29 degrees of freedom)."""
    parts = np.array([part.mean() for part in np.array_split(latency_ms[latency_ms.size // 20 :], 30)])
    return float(parts.mean()), 3.659 * float(parts.std(ddof=1)) / math.sqrt(parts.size)


def erlang_c_wait_ms(load: float, workers: int) -> float:
    """Mean wait of M/M/c with offered load `load` erlangs."""
    terms = [load**k / math.factorial(k) for k in range(workers)]
    last = load**workers / math.factorial(workers) * workers / (workers - load)
    return last / (sum(terms) + last) * SERVICE_MS / (workers - load)


CASES: dict[str, tuple[FloatArray, SimWorld, int, int, Callable[[float], float]]] = {
    "M/M/1": (FLAT, EXPONENTIAL, 1, 1, lambda load: SERVICE_MS * load / (1 - load)),
    "M/D/1": (FLAT, STEADY, 1, 1, lambda load: SERVICE_MS * load / (2 * (1 - load))),
    "M/M/4 instances": (FLAT, EXPONENTIAL, 4, 1, lambda load: erlang_c_wait_ms(4 * load, 4)),
    "M/M/4 servers with one queue": (FLAT, CENTRAL, 1, 4, lambda load: erlang_c_wait_ms(4 * load, 4)),
    "M/M/1 processor sharing": (SHARED, EXPONENTIAL, 64, 1, lambda load: SERVICE_MS / (1 - load) - SERVICE_MS),
}


@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize("name", CASES)
def test_mean_wait_agrees_with_theory(name: str, load: float) -> None:
    surface, world, instances, servers, expected_ms = CASES[name]
    workers = 1 if surface is SHARED else instances * servers
    arrival_s = poisson(1000.0 * load * workers / SERVICE_MS)
    simulation = built(surface, world, arrival_s, instances, servers)
    simulation.advance(math.inf)
    mean_ms, half_ms = mean_interval_ms(1000.0 * (simulation.engine.ended_s - arrival_s))
    assert half_ms < 0.25 * (expected_ms(load) + SERVICE_MS)
    assert abs(mean_ms - SERVICE_MS - expected_ms(load)) < half_ms


def test_littles_law_and_stepping_changes_nothing() -> None:
    arrival_s = poisson(80.0, 100_000)
    stepped, whole = (built(FLAT, EXPONENTIAL, arrival_s, 1) for _ in range(2))
    whole.advance(math.inf)
    times_s = np.arange(0.0, arrival_s[-1], 0.037)
    inside = np.empty(times_s.size)
    for index, at_s in enumerate(times_s):
        stepped.advance(at_s)
        inside[index] = stepped.route_counts(0)[1]
    stepped.advance(math.inf)
    assert stepped.engine.ended_s.tobytes() == whole.engine.ended_s.tobytes()
    mean_s = float((whole.engine.ended_s - arrival_s).mean())
    assert inside.mean() == pytest.approx(arrival_s.size / arrival_s[-1] * mean_s, rel=0.02)


CHANGES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["configure", "route", "evict"])),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(
    CHANGES,
    st.sampled_from(Dispatcher),
    st.sampled_from(Sharing),
    st.sampled_from([0, 20_000]),
    st.sampled_from([(), (0.0, 0.01), (0.02, math.inf)]),
    st.integers(0, 2**32),
)
def test_every_request_ends_or_fails_once(
    changes: list[tuple[int, int, int, int, str]],
    dispatcher: Dispatcher,
    sharing: Sharing,
    delay_us: int,
    deprioritize_after_s: tuple[float, ...],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    arrival_s = np.sort(rng.uniform(0.0, 2.0, 300))
    surfaces = rng.uniform(5.0, 20.0, (2, 4, 1)).repeat(24, axis=2).cumsum(axis=1)
    world = SimWorld(dispatcher=dispatcher, sharing=sharing, noise=ServiceNoise.LOGNORMAL, noise_cv=0.2)
    layout = Layout(surfaces, ((0, 1), (1,)), (0, 0, 1, 1), 64, deprioritize_after_s)
    simulation = Simulation(layout, world, arrival_s, rng.integers(0, 2, 300), seed)
    if dispatcher is Dispatcher.PER_SERVER:
        simulation.attach(0, 3)
    for server in range(3):
        for model in range(2):
            _configure(simulation, server, model, ModelState(2, 4, delay_us))
    routed = {0: {0, 1, 2}, 1: {0, 1, 2}}
    for model, servers in routed.items():
        simulation.route(model, tuple(servers))
    for step, (server, model, instances, batch, what) in enumerate(changes):
        simulation.advance(0.15 * (step + 1))
        _apply(simulation, routed, server, model, ModelState(instances, batch, delay_us), what)
        _check_counts(simulation)
    for server in range(3):
        for model in range(2):
            _configure(simulation, server, model, ModelState(1, 4, delay_us))
    for model in range(2):
        simulation.route(model, (0, 1, 2))
    simulation.advance(1000.0)
    _check_counts(simulation)
    assert simulation.unfinished == 0
    assert all(simulation.inside(server) == 0 for server in range(3))
    assert np.all(simulation.engine.ended_s >= arrival_s)


def _configure(simulation: Simulation, server: int, model: int, state: ModelState) -> None:
    """The state's instances on the server's own device, one fewer on each further one."""
    counts = [state.instances, *[state.instances - 1] * (len(simulation.rows(server)) - 1)]
    simulation.configure(server, model, replace(state, instances=sum(counts)), counts)


def _apply(simulation: Simulation, routed: dict[int, set[int]], server: int, model: int, state: ModelState, what: str) -> None:
    if what == "configure":
        _configure(simulation, server, model, state)
    elif what == "route":
        routed[model] ^= {server}
        simulation.route(model, tuple(sorted(routed[model])))
    else:
        for each in routed.values():
            each.discard(server)
        simulation.evict(server)


def _check_counts(simulation: Simulation) -> None:
    """What arrived at a model has failed, was answered, or is inside."""
    engine = simulation.engine
    for model in range(2):
        arrivals, in_flight, failures = simulation.route_counts(model)
        answered = sum(simulation.counters(server, model).success for server in range(3))
        assert arrivals == answered + in_flight + failures
        assert simulation.latency(model).counts[-1] == answered
    ended = int(np.count_nonzero(np.isfinite(engine.ended_s)))
    first = int(engine.ints[0])
    crossing, request = 0, int(engine.ints[3])
    while request >= 0:
        crossing, request = crossing + 1, int(engine.following[request])
    assert first == ended + crossing + sum(simulation.route_counts(model)[1] for model in range(2))
