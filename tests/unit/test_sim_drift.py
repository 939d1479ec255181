"""Drift in the simulator, by the same tick as live."""

from __future__ import annotations

import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, config
from themis_triton.core.record import TickRecord
from themis_triton.load.traces import TraceOptions, arrivals, load_trace
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions
from themis_triton.sim.world import ServiceNoise, SimWorld

LONGEST_S = 10.0


def run(world: SimWorld, trace: TraceOptions) -> tuple[TickRecord, ...]:
    """Ticks of the video pipeline under a trace, from the first request on."""
    loaded = load_trace(trace)
    result = simulate(config(), {"video": arrivals(loaded, 1)}, loaded.duration_s, SimOptions(world=world))
    return tuple(record for record in result.ticks if record.snapshot.at_s >= result.start_s)


@pytest.mark.parametrize("source", ["surge", "flash", "diurnal"])
def test_a_right_profile_shows_no_drift_however_the_load_moves(source: str) -> None:
    world = SimWorld(noise=ServiceNoise.LOGNORMAL, noise_cv=0.3)
    ticks = run(world, TraceOptions(source, duration_s=120))
    assert not any(record.estimate.drift_events for record in ticks)
    ratios = [model.drift_ratio for record in ticks for model in record.estimate.models.values() if model.drift_ratio is not None]
    assert len(ratios) > len(ticks)


def test_a_wrong_profile_is_noticed_within_ten_seconds_and_plans_count_with_it() -> None:
    right, wrong = (run(SimWorld(service_factor=factor), TraceOptions(rate_rps=40.0, duration_s=60)) for factor in (1.0, 1.4))
    for model in (DETECTOR, CLASSIFIER):
        began = next(record for record in wrong if any(event.model == model for event in record.estimate.drift_events))
        assert began.snapshot.at_s - wrong[0].snapshot.at_s <= LONGEST_S
        assert wrong[-1].estimate.models[model].correction == pytest.approx(1.4, abs=0.1)
    assert f"{DETECTOR} takes 1." in wrong[-1].decision.detail
    costs = [sum(cost(record) for record in ticks[len(ticks) // 2 :]) for ticks in (right, wrong)]
    assert costs[1] > 1.1 * costs[0]
    assert wrong[-1].decision.evidence[0].capacity_rps > 40.0


def cost(record: TickRecord) -> float:
    """What serves in a tick, at the default prices."""
    return sum(10.0 + sum(state.instances for state in server.models.values()) for server in record.snapshot.servers)
