"""Sharp rises that recur at a time of the day: learning them, the servers that wait for them, and how the sidecar gets its history."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.unit.fakes import FakeClock
from tests.unit.samples import NOW_S, config, decided, estimate, server, snapshot
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.rises import RISES_FILE
from themis_triton.core.decision import Decision, Reason
from themis_triton.core.estimate import Estimate
from themis_triton.core.history import TrafficMinute, UsageMinute
from themis_triton.core.observation import Snapshot
from themis_triton.core.recurring import DAY_S, RecurringRise
from themis_triton.daemon.recurring import Recurring, RiseHistory, keep_recurring
from themis_triton.daemon.tasks import cancelled_on_exit
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.estimate.estimate import History
from themis_triton.estimate.estimate import estimate as estimate_of
from themis_triton.forecast.base import FloatArray
from themis_triton.forecast.recurring import HOUR_S, SPAN_S, SeenRises, recurring_rises

PHASE_S, BASE_RPS, PEAK_RPS = 1900, 40.0, 200.0
RISE = RecurringRise(PHASE_S - 25, PHASE_S + 20, PEAK_RPS, 0.9, 9, 10, 200, 240)


def arrivals(days: float, rises_s: list[int]) -> FloatArray:
    counts = np.random.default_rng(1).poisson(BASE_RPS, round(days * DAY_S)).astype(float)
    for at_s in rises_s:
        counts[at_s : at_s + 40] += PEAK_RPS - BASE_RPS
    return counts


def hourly(days: float) -> list[int]:
    return [hour * HOUR_S + PHASE_S + hour % 3 for hour in range(round(days * 24))]


def test_rises_in_the_same_minute_of_every_hour_are_learnt_with_their_evidence() -> None:
    found = recurring_rises(SeenRises().with_counts(arrivals(3, hourly(3)), 0))
    assert len(found) == 24
    assert all(rise.due(rise.from_s // HOUR_S * HOUR_S + PHASE_S, rise.from_s // HOUR_S * HOUR_S + PHASE_S) for rise in found)
    assert all(rise.until_s - rise.from_s <= 60 and rise.chance == 1.0 for rise in found)
    assert found[5].peak_rps == pytest.approx(PEAK_RPS, rel=0.1)
    assert found[5].sentence.endswith("a sharp rise began then on 3 of 3 days, and in 72 of 72 hours")


@pytest.mark.parametrize(("climb_s", "jump_rps"), [(0, PEAK_RPS), (1, PEAK_RPS), (20, 0.0)])
def test_what_half_of_the_rises_reach_within_two_seconds_is_learnt(climb_s: int, jump_rps: float) -> None:
    rises = hourly(3)
    counts = np.full(3 * DAY_S, BASE_RPS)
    for at_s in rises:
        counts[at_s : at_s + 60] = PEAK_RPS
        counts[at_s : at_s + climb_s] = np.linspace(BASE_RPS, PEAK_RPS, climb_s + 2)[1:-1]
    assert {rise.jump_rps for rise in recurring_rises(SeenRises().with_counts(counts, 0))} == {jump_rps}


def test_an_hour_of_the_day_that_never_has_the_rise_gets_no_room_once_there_are_days_to_show_it() -> None:
    seen = [at_s for at_s in hourly(14) if at_s // HOUR_S % 24 < 6]
    found = recurring_rises(SeenRises().with_counts(arrivals(14, seen), 0))
    assert {rise.from_s // HOUR_S for rise in found} >= set(range(6))
    assert [rise.chance for rise in found if rise.from_s // HOUR_S >= 6] == [pytest.approx(5 * 0.25 / 19)] * 18
    weeks = SeenRises().with_counts(arrivals(42, [at_s for at_s in hourly(42) if at_s // HOUR_S % 24 < 6]), 0)
    assert {rise.from_s // HOUR_S for rise in recurring_rises(weeks)} == set(range(6))


@pytest.mark.parametrize("days", [0.04, 14])
def test_no_rise_recurs_where_rises_come_at_random_or_hardly_anything_was_seen(days: float) -> None:
    rises = np.random.default_rng(2).integers(0, round(days * DAY_S) - 60, round(60 * days)).tolist()
    for counts in (arrivals(days, rises), arrivals(days, [])):
        assert recurring_rises(SeenRises().with_counts(counts, 0)) == ()


def test_hours_that_are_seen_one_after_the_other_give_what_all_of_them_give_at_once() -> None:
    counts, seen = arrivals(1, hourly(1)), SeenRises()
    counts[5 * HOUR_S : 6 * HOUR_S] = np.nan
    for hour in range(24):
        start_s = max(0, hour * HOUR_S - SPAN_S)
        seen = seen.with_counts(counts[start_s : (hour + 1) * HOUR_S], start_s)
    assert seen == SeenRises().with_counts(counts, 0)
    assert len(seen.hours) == len(seen.at_s) == 23
    assert seen.since(12 * HOUR_S).hours == frozenset(range(12, 24))


SPANS = ((0, 10, False), (0, 100, True), (110, 120, True), (149, 500, True), (150, 500, False), (150, DAY_S + 99, False))


@pytest.mark.parametrize(("from_s", "until_s", "due"), SPANS)
def test_a_rise_is_due_where_it_may_begin_in_a_span(from_s: float, until_s: float, *, due: bool) -> None:
    rise = replace(RISE, from_s=100, until_s=150)
    assert rise.due(from_s, until_s) is due
    assert rise.shifted(DAY_S - 120).due(from_s - 120, until_s - 120) is due


def at_rate(seen: Snapshot, rps: float, due: RecurringRise | None, state: PolicyState | None = None) -> tuple[PolicyState, Decision]:
    estimated = estimate(rps, seen.at_s)
    pipelines = {name: replace(each, due_rise=due) for name, each in estimated.pipelines.items()}
    policy_input = PolicyInput(seen, Estimate(seen.at_s, pipelines=pipelines, history_s=60.0))
    return decided(state or PolicyState(), policy_input, Planner(build_rules(config(slots=6))))


def test_servers_wait_for_a_rise_that_is_due_and_retire_when_it_has_not_come() -> None:
    one = snapshot([server("a", (2, 1))])
    assert at_rate(one, 30.0, None)[1].target.launch == {}  # type: ignore[union-attr]
    waiting = at_rate(one, 30.0, RISE)[1]
    assert waiting.reason is Reason.SCALE_OUT
    assert RISE.sentence in waiting.detail
    fleet = [server(name, (2, 1), slot=f"cpu:{number}") for number, name in enumerate("abc")]
    state, retired = PolicyState(), dict[float, frozenset[str]]()
    for second in range(30):
        state, decision = at_rate(snapshot(fleet, NOW_S + second), 30.0, RISE if second < 25 else None, state)
        retired[second] = frozenset(decision.target.retire)  # type: ignore[union-attr]
    assert not any(retired[second] for second in range(25))
    assert retired[25]


def test_the_estimate_names_the_rise_that_may_begin_within_a_launch_unless_the_settings_say_not_to() -> None:
    cfg = config()
    launch_s = max(model.profile.server_launch_s for model in cfg.models.values())
    history = History(recurring={"video": (RISE, replace(RISE, from_s=9000, until_s=9050, peak_rps=900.0))})

    def due(at_s: float, *, wanted: bool = True) -> RecurringRise | None:
        demand = replace(cfg.policy.demand, recurring_rises=wanted)
        settings = replace(cfg, policy=replace(cfg.policy, demand=demand))
        return estimate_of(history, snapshot((), at_s), settings)[1].pipelines["video"].due_rise

    assert due(DAY_S + RISE.from_s - launch_s) == RISE
    assert due(DAY_S + RISE.from_s - launch_s, wanted=False) is None
    assert due(DAY_S + RISE.from_s - launch_s - 10.0) is None
    assert due(DAY_S + RISE.until_s) is None


def test_a_jump_is_expected_from_an_initialisation_before_the_rise_may_begin_and_no_sooner() -> None:
    cfg = config()
    init_s = max(model.profile.instance_init_s for model in cfg.models.values())
    launch_s = max(model.profile.server_launch_s for model in cfg.models.values())
    later = replace(RISE, from_s=RISE.from_s + 5, until_s=RISE.until_s, peak_rps=900.0, jump_rps=300.0)
    history = History(recurring={"video": (replace(RISE, jump_rps=90.0), later)})

    def jump_rps(at_s: float) -> float:
        return estimate_of(history, snapshot((), at_s), cfg)[1].pipelines["video"].due_jump_rps

    assert jump_rps(DAY_S + RISE.from_s - launch_s) == 0.0
    assert jump_rps(DAY_S + RISE.from_s - init_s) == 90.0
    assert jump_rps(DAY_S + later.from_s - init_s) == 300.0
    assert jump_rps(DAY_S + RISE.until_s) == 0.0


def test_the_sidecar_learns_from_the_journals_minutes(tmp_path: Path) -> None:
    path, days = tmp_path / "journal.db", 0.5
    counts, clock = arrivals(days, hourly(days)), FakeClock(20 * DAY_S)
    start_s = round(20 * DAY_S - days * DAY_S)
    with closing(Journal(path)) as journal:
        for minute in range(counts.size // 60):
            at_s = start_s + 60 * minute
            traffic = TrafficMinute("video", at_s, tuple(counts[60 * minute :][:60]), 0.0, 0.0)
            journal.record_minute(UsageMinute(at_s, 60.0, 60.0, 60.0, 60.0), [traffic])
        assert journal.flush()
    published: list[tuple[Recurring, str]] = []

    async def learn() -> None:
        learnt = asyncio.Event()

        def publish(found: Recurring, words: str) -> None:
            published.append((found, words))
            learnt.set()

        async with cancelled_on_exit(asyncio.create_task(keep_recurring(path, clock, publish))):
            await asyncio.wait_for(learnt.wait(), 30.0)

    asyncio.run(learn())
    ((found, words),) = published
    assert len(found["video"]) == 24
    assert words.startswith("video: at 24 times of the day sharp rises recur; up to ")
    kept = RiseHistory.kept(path, clock.now_s())
    assert (kept.until_s, len(kept.seen["video"].at_s), kept.seen["video"].hours) == (20 * DAY_S, 12, frozenset(range(468, 480)))
    assert RiseHistory.kept(path, clock.now_s() + 300.0) == kept
    assert RiseHistory.kept(path, clock.now_s() + 40 * DAY_S).until_s == 46 * DAY_S


@pytest.mark.parametrize("text", ["{", '{"until_s": 60}', '{"until_s": 60, "pipelines": [{"pipeline": "video"}]}'])
def test_rises_that_cannot_be_read_are_learnt_anew_and_the_log_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / RISES_FILE).write_text(text)
    with capture_logs() as logs:
        assert RiseHistory.kept(tmp_path / "journal.sqlite", 20 * DAY_S).until_s == 6 * DAY_S
    assert [entry["event"] for entry in logs] == ["recurring_rises_not_read"]
    assert str(tmp_path / RISES_FILE) in logs[0]["message"]


def test_rises_that_cannot_be_kept_are_logged(tmp_path: Path) -> None:
    with capture_logs() as logs:
        RiseHistory(tmp_path / "missing" / "journal.sqlite", 0).keep()
    assert [entry["event"] for entry in logs] == ["recurring_rises_not_kept"]
