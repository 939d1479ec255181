"""The start of the next tick: after `tick_s`, or later while the system is idle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from themis_triton.core.decision import Reason
from themis_triton.core.estimate import ModelEstimate
from themis_triton.core.fleet import Phase
from themis_triton.core.policy import PolicyConfig
from themis_triton.core.record import TickRecord

REST_S = 2.0
"""The maximum time between two ticks of an idle system. It bounds the detection time of an idle server's crash."""


def is_quiet(record: TickRecord) -> bool:
    """Whether the system is idle: no traffic in any window, all servers serving, no action running."""
    settled = record.decision.reason is Reason.STEADY or (record.advisory and not record.decision.reason.value.startswith("hold"))
    planned = not record.advisory and bool(record.plan.actions)
    snapshot, estimate = record.snapshot, record.estimate
    if not settled or planned or record.outcomes or estimate.stale or estimate.drift_events:
        return False
    if snapshot.busy or snapshot.backing_off.keys() - snapshot.resting or snapshot.routes_unwritten or snapshot.routes_error:
        return False
    if snapshot.incidents or any(reading.error is not None for reading in snapshot.readings):
        return False
    return all(server.phase is Phase.SERVING for server in snapshot.servers) and not any(map(_has_traffic, estimate.models.values()))


def _has_traffic(model: ModelEstimate) -> bool:
    return any((model.arrival_rps, model.burst_rps, model.stable_rps, model.in_flight, model.pending))


async def wait_for_tick(quiet: bool, policy: PolicyConfig, stop: asyncio.Event, moved: Callable[[], Awaitable[bool]]) -> None:
    """Wait `tick_s`. If `quiet`, wait up to `REST_S` and poll `moved` every `tick_s`, so that an arrival is seen within `tick_s`.

    Returns at once when `stop` is set.
    """
    waited_s = 0.0
    while not await _stopped_within(stop, policy.tick_s):
        waited_s += policy.tick_s
        if not quiet or waited_s + policy.tick_s > REST_S or await moved():
            return


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True
