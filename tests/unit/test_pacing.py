"""Ticks rest while nothing moves, and the first arrival ends the rest within one tick interval."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.unit.samples import DETECTOR, NOW_S, action, record, server, snapshot
from themis_triton.core.action import ActionKind, Outcome, OutcomeKind
from themis_triton.core.decision import Reason
from themis_triton.core.estimate import DriftChange, DriftEvent, Estimate, ModelEstimate
from themis_triton.core.fleet import Phase
from themis_triton.core.policy import PolicyConfig
from themis_triton.core.record import TickRecord
from themis_triton.daemon.pacing import REST_S, is_quiet, wait_for_tick

QUIET = record(seen=snapshot([server("a")]))
GROWTH = action(ActionKind.GROW)
IDLE = ModelEstimate(DETECTOR, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def with_model(model: ModelEstimate) -> TickRecord:
    return replace(QUIET, estimate=Estimate(NOW_S, {DETECTOR: model}))


def because(reason: Reason, *, advisory: bool = False) -> TickRecord:
    return replace(QUIET, decision=replace(QUIET.decision, reason=reason), advisory=advisory)


def test_a_steady_fleet_without_traffic_is_quiet_and_so_is_advice_that_repeats_itself() -> None:
    assert is_quiet(with_model(IDLE))
    advice = record(GROWTH, seen=snapshot([server("a")]), advisory=True)
    assert is_quiet(replace(advice, decision=replace(advice.decision, reason=Reason.SCALE_IN)))


@pytest.mark.parametrize(
    "moving",
    [
        with_model(replace(IDLE, arrival_rps=0.1)),
        with_model(replace(IDLE, burst_rps=0.1)),
        with_model(replace(IDLE, stable_rps=0.1)),
        with_model(replace(IDLE, in_flight=1.0)),
        with_model(replace(IDLE, pending=1.0)),
        *(because(reason) for reason in Reason if reason is not Reason.STEADY),
        *(because(reason, advisory=True) for reason in Reason if reason.value.startswith("hold")),
        record(GROWTH, seen=snapshot([server("a")])),
        replace(QUIET, outcomes=(Outcome(GROWTH, OutcomeKind.DONE, NOW_S, NOW_S),)),
        replace(QUIET, estimate=Estimate(NOW_S, stale={"proxy": "silent"})),
        replace(QUIET, estimate=Estimate(NOW_S, drift_events=(DriftEvent(DETECTOR, DriftChange.BEGAN, 2.0, 1.0),))),
        replace(QUIET, snapshot=replace(QUIET.snapshot, busy=frozenset({"a"}))),
        replace(QUIET, snapshot=replace(QUIET.snapshot, backing_off={"a": NOW_S})),
        replace(QUIET, snapshot=replace(QUIET.snapshot, backing_off={"a": NOW_S, "b": NOW_S}, resting={"b": "warm-up failed"})),
        replace(QUIET, snapshot=replace(QUIET.snapshot, routes_error="no answer")),
        replace(QUIET, snapshot=replace(QUIET.snapshot, routes_unwritten="disk full")),
        replace(QUIET, snapshot=replace(QUIET.snapshot, servers=(server("a"), server("b", phase=Phase.WARMING)))),
    ],
)
def test_whatever_moves_keeps_the_pace(moving: TickRecord) -> None:
    assert not is_quiet(moving)


def test_a_slot_whose_launches_rest_moves_nothing() -> None:
    assert is_quiet(replace(QUIET, snapshot=replace(QUIET.snapshot, backing_off={"b": NOW_S}, resting={"b": "warm-up failed"})))


@pytest.mark.parametrize(
    ("quiet", "moves_at", "looks", "waits"), [(False, None, 0, 1), (True, None, 7, 8), (True, 1, 1, 1), (True, 3, 3, 3)]
)
def test_a_rest_is_bounded_and_ends_with_the_first_look_that_sees_a_move(
    quiet: bool, moves_at: int | None, looks: int, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, slept, looked = PolicyConfig(), [], []

    async def slice_of(_: asyncio.Event, seconds: float) -> bool:
        slept.append(seconds)
        return False

    async def moved() -> bool:
        looked.append(True)
        return len(looked) == moves_at

    monkeypatch.setattr("themis_triton.daemon.pacing._stopped_within", slice_of)
    asyncio.run(wait_for_tick(quiet, policy, asyncio.Event(), moved))
    assert (len(looked), slept) == (looks, [policy.tick_s] * waits)
    assert sum(slept) <= REST_S


def test_a_stop_ends_a_rest_at_once() -> None:
    async def never() -> bool:
        raise AssertionError("a stopped loop looks at nothing")

    async def scenario() -> None:
        stop = asyncio.Event()
        stop.set()
        async with asyncio.timeout(5.0):
            await wait_for_tick(True, PolicyConfig(tick_s=3600.0), stop, never)
        assert stop.is_set()

    asyncio.run(scenario())


def test_libraries_log_in_the_same_form_with_their_tracebacks() -> None:
    program = """
import logging
import structlog
from themis_triton.commands.run_command import configure_logging
configure_logging()
structlog.get_logger().info("server_adopted", server="a")
try:
    raise ValueError("broken")
except ValueError:
    logging.getLogger("asyncio").exception("Task exception was never retrieved")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    first, second = map(json.loads, ended.stderr.splitlines())
    assert (first["event"], first["level"], first["server"]) == ("server_adopted", "info", "a")
    assert (second["event"], second["logger"], second["level"]) == ("Task exception was never retrieved", "asyncio", "error")
    assert "ValueError: broken" in second["exception"]
