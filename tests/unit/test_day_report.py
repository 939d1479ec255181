"""The report of a day: what it covers, what it compares, and how the sidecar makes it beside its ticks."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from tests.unit.fakes import FakeClock
from tests.unit.recorded_runs import taking
from tests.unit.samples import config, snapshot
from tests.unit.status_api import served
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.minutes import read_minutes, read_report
from themis_triton.adapters.store.reader import reading
from themis_triton.commands import report_command as command_module
from themis_triton.commands.report_command import report_command
from themis_triton.core.config import Mode, PipelineConfig, StageCalls, ThemisConfig
from themis_triton.core.day_report import DayAccount, DayReport, day_span, local_day, report_sentence
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.history import TrafficMinute, UsageMinute
from themis_triton.core.observation import LatencyHistogram, RouteReading
from themis_triton.core.record import TickRecord
from themis_triton.daemon import day_reports as module
from themis_triton.daemon.day_reports import keep_reports, report_day, report_in_process
from themis_triton.daemon.status import StatusBoard
from themis_triton.daemon.tasks import cancelled_on_exit
from themis_triton.estimate.attainment import RequestCounter
from themis_triton.estimate.minutes import Minutes
from themis_triton.replay.day import DayData, day_report
from themis_triton.sim import run as run_module
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions
from themis_triton.tick import EngineState

DAY = "2026-03-01"
START_S = round(day_span(DAY)[0])
WATCHED = replace(config(), mode=Mode.ADVISORY)
PIPELINE = config().pipelines[0].name
PIECE_S = 120.0


def minutes(numbers: range, rps: float = 20.0, late: float = 0.1) -> tuple[list[UsageMinute], list[TrafficMinute]]:
    starts = [START_S + 60 * number for number in numbers]
    usage = [UsageMinute(at_s, 60.0, 120.0, 240.0, 1440.0) for at_s in starts]
    return usage, [TrafficMinute(PIPELINE, at_s, (rps,) * 60, 60 * rps, 60 * rps * late) for at_s in starts]


def data(numbers: range, rps: float = 20.0) -> DayData:
    return DayData(DAY, START_S, START_S + 6 * PIECE_S, *minutes(numbers, rps), ())


def made(what: DayData, settings: ThemisConfig = WATCHED) -> DayReport:
    return day_report(what, settings, START_S + 1e5, lambda: 0.0, PIECE_S)


def test_a_day_is_compared_piece_by_piece_on_its_own_arrivals() -> None:
    report = made(data(range(4)))
    assert report.simulated is not None
    assert report.hours == 2
    assert report.hours_observed == pytest.approx(4 / 60)
    had = report.measured
    assert (had.requests, had.cost) == (4 * 1200, 5760.0)
    assert had.late == pytest.approx(0.1)
    assert had.server_hours == pytest.approx(8 / 60)
    assert had.instance_hours == pytest.approx(16 / 60)
    assert report.simulated.requests == pytest.approx(4800, abs=60)
    assert report.simulated.late is not None
    assert report.simulated.late < 0.02
    # One server suffices for 20 requests/s; two were there.
    assert report.simulated.server_hours == pytest.approx(4 / 60, rel=0.1)
    assert report.sentence.startswith(f"{DAY} in 2 of 24 hours: active, Themis would have had 0.")
    assert report.sentence.endswith("% late at 0.1 server-hours; you had 10.00 % late at 0.1 server-hours")


def test_what_the_time_does_not_suffice_for_is_left_out_evenly_over_the_day() -> None:
    short = day_report(data(range(12)), WATCHED, START_S + 1e5, lambda: 1000.0, PIECE_S, budget_s=1500.0)
    assert short.hours == 1
    assert short.measured.requests == 2 * 1200


@pytest.mark.parametrize(
    ("what", "missing"),
    [
        (data(range(1)), "1 minutes were observed, and no whole hour"),
        (data(range(4), rps=0.0), "no request arrived"),
    ],
)
def test_data_that_do_not_suffice_are_named(what: DayData, missing: str) -> None:
    report = made(what)
    assert (report.simulated, report.missing) == (None, missing)
    assert report.sentence == f"{DAY}: no comparison: {missing}"


def test_in_active_mode_the_simulator_is_what_was_expected() -> None:
    account = DayAccount(10, 0.005, 3.0, 6.0, 1.0)
    report = DayReport(DAY, 0.0, "active", 24, 24.0, account, replace(account, late=None))
    assert report_sentence(report) == (
        f"{DAY}: you had 0.50 % late at 3.0 server-hours; the simulator expects no request at 3.0 server-hours"
    )


def test_days_are_local_ones() -> None:
    start_s, end_s = day_span(DAY)
    assert (local_day(start_s), local_day(end_s - 1.0), local_day(end_s, 1)) == (DAY, DAY, DAY)


def write(journal: Journal, numbers: range) -> None:
    usage, traffic = minutes(numbers)
    for use, each in zip(usage, traffic, strict=True):
        journal.record_minute(use, [each])
    assert journal.flush()


def test_minutes_and_reports_come_back_from_the_journal(tmp_path: Path) -> None:
    path, report = tmp_path / "journal.sqlite", made(data(range(1)))
    with closing(Journal(path)) as journal:
        write(journal, range(3))
        journal.record_report(report)
        assert journal.flush()
    with reading(path) as reader:
        assert read_minutes(reader, START_S, START_S + 120.0) == minutes(range(2))
        assert (read_report(reader, DAY), read_report(reader, "2026-03-02")) == (report, None)


def test_the_report_is_made_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path)) as journal:
        write(journal, range(5))
    report = asyncio.run(report_in_process(WATCHED, path, DAY, (), START_S + 1e5))
    assert (report.mode, report.missing) == ("advisory", "5 minutes were observed, and no whole hour")
    with pytest.raises(EnvironmentCheckError, match=f"the report of {DAY} could not be made: .*no such file"):
        asyncio.run(report_in_process(WATCHED, tmp_path / "none.sqlite", DAY, (), 0.0))
    monkeypatch.setattr(module, "TIMEOUT_S", 0.0)
    with pytest.raises(EnvironmentCheckError, match="could not be made in 0 h"):
        asyncio.run(report_in_process(WATCHED, path, DAY, (), 0.0))


def test_the_sidecar_tells_a_day_once_also_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, report, calls = tmp_path / "journal.sqlite", made(data(range(1))), list[str]()

    async def in_process(_: ThemisConfig, __: Path, day: str, *___: object) -> DayReport:
        calls.append(day)
        return report

    async def scenario(journal: Journal) -> list[StatusBoard]:
        boards = [StatusBoard(WATCHED, 0.0), StatusBoard(WATCHED, 0.0)]
        for board in boards:
            components: Any = SimpleNamespace(clock=FakeClock(), journal=journal)
            await report_day(components, board, WATCHED, path, DAY)
            assert await asyncio.to_thread(journal.flush)
        return boards

    monkeypatch.setattr(module, "report_in_process", in_process)
    with closing(Journal(path)) as journal:
        empty, _ = asyncio.run(scenario(journal))
        assert (calls, empty.report) == ([], None)
        write(journal, range(1))
        first, again = asyncio.run(scenario(journal))
    assert (calls, first.report, again.report) == ([DAY], report, report)
    assert ([event.sentence for event in first.events], list(again.events)) == ([report.sentence], [])
    with reading(path) as reader:
        assert [(row["reason"], row["sentence"]) for row in reader.ticks(9)] == [("day_reported", report.sentence)]


def test_a_report_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, errors = made(data(range(1))), [EnvironmentCheckError("late"), RuntimeError("unexpected")]

    async def in_process(*_: object) -> DayReport:
        if errors:
            raise errors.pop(0)
        return report

    async def scenario() -> DayReport | None:
        board = StatusBoard(WATCHED, 0.0)
        ran: Any = SimpleNamespace(clock=FakeClock(), journal=MagicMock(), config=replace(WATCHED, state_directory=tmp_path))
        told = asyncio.Event()
        ran.journal.record_report.side_effect = lambda _: told.set()
        keeping = asyncio.create_task(keep_reports(lambda: ran, board, lambda: WATCHED))
        async with cancelled_on_exit(keeping):
            await asyncio.wait_for(told.wait(), 20.0)
        return board.report

    monkeypatch.setattr(module, "RETRY_S", 0.0)
    monkeypatch.setattr(module, "_stored", lambda *_: (None, True))
    monkeypatch.setattr(module, "report_in_process", in_process)
    assert asyncio.run(scenario()) == report


def test_the_command_prints_the_sidecars_report_or_makes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "themis.yaml"
    settings.write_text("state_directory: .\n")
    with closing(Journal(tmp_path / "journal.sqlite")) as journal:
        write(journal, range(5))
        journal.record_report(made(data(range(4))))
    assert report_command(settings, DAY, as_json=False).hours == 2
    assert "you had 10.00 % late" in capsys.readouterr().out
    monkeypatch.setattr(command_module, "load_settings", lambda _: WATCHED)
    monkeypatch.setattr(command_module, "prepare_kernels", lambda _: None)
    report_command(settings, local_day(START_S, 1), as_json=True)
    assert json.loads(capsys.readouterr().out)["missing"] == "0 minutes were observed, and no whole hour"
    with pytest.raises(SettingsError, match="--day: soon is invalid: expected a day such as 2026-03-01"):
        report_command(settings, "soon", as_json=True)


def test_the_api_serves_a_days_report(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "journal.sqlite") as api:
            api.journal.record_report(made(data(range(1))))
            assert await asyncio.to_thread(api.journal.flush)
            found = await api.client.get("/report", params={"day": DAY})
            assert found.json()["sentence"].startswith(f"{DAY}: no comparison")
            none = await api.client.get("/report", params={"day": "2026-03-02"})
            assert (none.status_code, "one is made after the end of each day" in none.json()["error"]) == (404, True)

    asyncio.run(scenario())


def test_minutes_count_what_arrived_ended_and_was_late() -> None:
    joined, counter, ended = Minutes(), RequestCounter(), []

    def take(_: EngineState, __: EngineState, record: TickRecord, settings: ThemisConfig) -> None:
        minute = joined.take(record.snapshot, settings, counter.take(record.snapshot, settings.pipelines))
        if minute is not None:
            ended.append(minute)

    times = np.sort(np.random.default_rng(0).uniform(0.0, 130.0, 2600))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "tick", taking(take))
        result = simulate(replace(config(), servers=()), {PIPELINE: times}, 130.0, SimOptions(preroll_s=0.0))
    (usage, (traffic,)), (_, (second,)) = ended
    assert usage.seconds == pytest.approx(60.0, abs=0.5)
    assert usage.server_s == pytest.approx(60.0, rel=0.5)
    counted = np.bincount(times.astype(int), minlength=120)[:120]
    assert sum(traffic.arrivals) == pytest.approx(counted[:60].sum(), abs=15)
    assert np.abs(np.array(second.arrivals) - counted[60:]).max() <= 8
    late = float(result.pipelines[0].violated[(times >= 60.0) & (times < 120.0)].mean())
    assert second.late / second.ended == pytest.approx(late, abs=0.02)


def test_a_minute_counts_all_calls_of_a_request_as_the_status_does() -> None:
    chain = PipelineConfig("chain", ("a", "b"), 100.0, calls=(StageCalls(), StageCalls(4.0, sequential=True)))
    settings, joined, counter = replace(config(), pipelines=(chain,)), Minutes(), RequestCounter()

    def take(second: int) -> Any:
        calls, bounds_ms = 10.0 * second, (1.0, 30.0, 40.0, float("inf"))
        short, long = LatencyHistogram(bounds_ms, (calls,) * 4), LatencyHistogram(bounds_ms, (0.0, 0.0, 4 * calls, 4 * calls))
        routes = (RouteReading("a", second, calls, 0.0, 0.0, short), RouteReading("b", second, 4 * calls, 0.0, 0.0, long))
        seen = replace(snapshot(at_s=float(second)), routes=routes)
        return joined.take(seen, settings, counter.take(seen, settings.pipelines))

    *_, (_, (traffic,)) = [take(second) for second in range(61)]
    assert (traffic.ended, traffic.late) == (590.0, pytest.approx(590.0))
