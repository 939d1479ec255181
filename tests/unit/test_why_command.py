import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.unit.samples import NOW_S, action, record, server, snapshot
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.records import unpacked
from themis_triton.commands.decision_results import result_words
from themis_triton.commands.history_command import collapse, history_command
from themis_triton.commands.moments import moment, parse_moment
from themis_triton.commands.why_command import why_command
from themis_triton.core.action import ActionKind, Outcome, OutcomeKind
from themis_triton.core.decision import Clamp, ClampKind, PipelineEvidence
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.estimate import PipelineKnowledge
from themis_triton.core.history import DecisionResult, PipelineSample


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a sidecar that has gone: it changed something two minutes ago, and nothing since."""
    monkeypatch.setattr(SystemClock, "now_s", lambda _: NOW_S + 120.0)
    settings = tmp_path / "themis.yaml"
    settings.write_text("state_directory: state\n")
    journal = Journal(tmp_path / "state" / "journal.sqlite")
    grown = record(action(ActionKind.GROW), seen=snapshot([server("a")], NOW_S))
    held = replace(grown.decision, clamps=(Clamp(ClampKind.DEVICES, "video requires 1 more server and gets 0 of 0 free slots"),))
    journal.record_tick(replace(grown, decision=held))
    journal.record_outcome(Outcome(action(ActionKind.GROW), OutcomeKind.REFUSED, NOW_S, NOW_S + 1.5, "out of memory"))
    quiet = record(seen=snapshot([server("a")], NOW_S + 60.0))
    journal.record_tick(replace(quiet, decision=replace(quiet.decision, id="quiet")))
    journal.close()
    return settings


def why(path: Path, decision: str | None = None, *, as_json: bool = False) -> None:
    why_command(path, decision, as_json=as_json)


def history(path: Path, since: str = "1h", *, every: bool = False, as_json: bool = False) -> None:
    history_command(path, since, 50, every=every, as_json=as_json)


def test_changes_are_listed_with_their_time_and_the_last_tick(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history(path)
    changed, last = capsys.readouterr().out.splitlines()
    assert "(2 m ago)  d  steady; grow video-detector on a 1→2" in changed
    assert "(1 m ago)  last tick: steady" in last
    history(path, since="90s")
    assert capsys.readouterr().out.splitlines()[0] == "nothing was changed in the last 90s"
    history(path, every=True, as_json=True)
    assert [row["decision_id"] for row in json.loads(capsys.readouterr().out)] == ["d", "quiet"]


def test_the_numbers_of_a_pipeline_say_what_they_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A journal that an older version wrote has servers only."""
    (tmp_path / "themis.yaml").write_text("state_directory: state\n")
    journal = Journal(tmp_path / "state" / "journal.sqlite")
    grown = record(action(ActionKind.GROW), seen=snapshot([server("a")], NOW_S))
    numbers = PipelineEvidence("video", 30.0, 20.0, 40.0, 300.0, None, None, 2, 3, unit="device")
    journal.record_tick(replace(grown, decision=replace(grown.decision, evidence=(numbers,))))
    journal.close()
    why(tmp_path / "themis.yaml")
    assert "2→3 devices" in capsys.readouterr().out
    file = tmp_path / "state" / "journal.sqlite"
    with closing(sqlite3.connect(file)) as database, database:
        ((stored,),) = database.execute("SELECT record FROM ticks").fetchall()
        database.execute("UPDATE ticks SET record = ?", (unpacked(stored).replace(',"unit":"device"', ""),))
    why(tmp_path / "themis.yaml")
    assert "2→3 servers" in capsys.readouterr().out


def test_the_capacity_of_a_pipeline_that_is_still_being_learnt_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "themis.yaml").write_text("state_directory: state\n")
    journal = Journal(tmp_path / "state" / "journal.sqlite")
    evidence = PipelineEvidence("video", 151.4, 120.0, 766.0, 300.0, 241.0, None, 1, 1)
    told = record(action(ActionKind.GROW), seen=snapshot([server("a")]))
    for name, enough in (("few", False), ("many", True)):
        knowledge = (PipelineKnowledge("video", enough, ()),)
        decided = replace(told.decision, id=name, evidence=(evidence,))
        journal.record_tick(replace(told, decision=decided, estimate=replace(told.estimate, knowledge=knowledge)))
    journal.close()
    why(tmp_path / "themis.yaml", "many")
    assert re.search(r"video +151 +120 +766 +241 ", capsys.readouterr().out)
    why(tmp_path / "themis.yaml", "few")
    assert re.search(r"video +151 +120 +– +241 .*1 server, 1→2 instances", capsys.readouterr().out)


def test_successive_ticks_that_differ_in_numbers_only_are_one_line() -> None:
    def row(name: str, sentence: str) -> dict[str, object]:
        return {"decision_id": name, "sentence": sentence}

    rows = [
        row("1", "surge: video needs 38/s of 24/s; would grow m on a 1→2"),
        row("2", "surge: video needs 39.5/s of 24/s; would grow m on a 1→2"),
        row("3", "surge: video needs 39/s of 24/s; would grow m on a 1→3"),
        row("4", "steady: video needs 39/s of 24/s; would grow m on a 1→3"),
        row("5", "surge: a needs 39/s of 24/s; b needs 1/s of 7/s; would launch cpu-1-5 on cpu:1 with m×1"),
        row("6", "surge: a needs 40/s of 24/s; b needs 2/s of 7/s; would launch cpu-1-6 on cpu:1 with m×1"),
        row("7", "surge: a needs 40/s of 24/s; b needs 2/s of 7/s; would launch cpu-1-7 on cpu:1 with m×2"),
    ]
    assert [(first["decision_id"], last["decision_id"], count) for first, last, count in collapse(rows)] == [
        ("1", "2", 2),
        ("3", "3", 1),
        ("4", "4", 1),
        ("5", "6", 2),
        ("7", "7", 1),
    ]


def test_a_decision_is_explained_with_its_limits_and_its_outcomes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    why(path, "d")
    text = capsys.readouterr().out
    assert "limited: video requires 1 more server and gets 0 of 0 free slots" in text
    assert "grow video-detector on a 1→2: refused after 1.5 s: out of memory" in text
    why(path, "d", as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert (record["outcomes"][0]["outcome"], record["plan"]["actions"][0]["kind"]) == ("refused", "grow")


def test_the_newest_decision_with_actions_is_explained_before_a_newer_change_without_any(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(path.parent / "state" / "journal.sqlite")
    refused = Outcome(action(ActionKind.GROW), OutcomeKind.REFUSED, NOW_S, NOW_S + 1.0)
    failed = replace(record(seen=snapshot([server("a")], NOW_S + 65.0)), outcomes=(refused,))
    journal.record_tick(replace(failed, decision=replace(failed.decision, id="later")))
    journal.close()
    why(path)
    assert "  d  policy" in capsys.readouterr().out
    with closing(sqlite3.connect(path.parent / "state" / "journal.sqlite")) as database, database:
        database.execute("delete from ticks where decision_id = 'd'")
    why(path)
    assert "  later  policy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("measured_ms", "predicted_ms", "words"),
    [
        (None, 218.0, "no p99 measured, 218 ms predicted"),
        (190.0, None, "p99 190 ms at most"),
        (190.0, 2.0, "p99 190 ms at most, 2 ms predicted"),
    ],
)
def test_a_result_names_only_what_is_known(measured_ms: float | None, predicted_ms: float | None, words: str) -> None:
    result = DecisionResult("video", 300.0, predicted_ms, None, 1, measured_ms, held_after_s=0.0)
    assert list(result_words([result])) == [f"video: inside the SLO after 0 s; {words}"]


def test_what_was_predicted_is_told_with_what_came_of_it_and_the_table_reads_in_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "themis.yaml").write_text("state_directory: state\n")
    journal = Journal(tmp_path / "state" / "journal.sqlite")
    numbers = PipelineEvidence(
        "video-of-all-cameras", 1530.0, 1520.0, 2140.0, 300.0, 471.0, 210.0, 12, 13, holds_after_s=2.0, unit="device"
    )
    grown = record(action(ActionKind.GROW), seen=snapshot([server("a")], NOW_S))
    journal.record_tick(replace(grown, decision=replace(grown.decision, evidence=(numbers,))))
    journal.record_outcome(Outcome(action(ActionKind.GROW), OutcomeKind.DONE, NOW_S, NOW_S + 1.5))
    for at_s, late_s, p99_ms in ((NOW_S, 5.0, 480.0), (NOW_S + 5.0, 0.0, 190.0)):
        counts = (5.0, 1500.0, 1600.0, 1500.0, 2100.0, 0.0, 13.0, 40.0, 5.0)
        journal.record_samples((PipelineSample("video-of-all-cameras", at_s, 5, *counts, late_s, 40.0, p99_ms),))
    journal.close()
    why(tmp_path / "themis.yaml")
    lines = capsys.readouterr().out.splitlines()
    title = next(line for line in lines if "demand/s" in line)
    for word in ("pipeline", "demand/s", "stable/s", "capacity", "p99 ms", "predicted", "SLO ms", "now→wanted"):
        assert word in title
    assert all(len(line) <= 80 for line in lines if not line.startswith(("what", "steady"))), lines
    assert any("12→13 devices" in line for line in lines)
    came = "what came of it: video-of-all-cameras: inside the SLO after 5 s, expected after 2 s; p99 190 ms at most, 210 ms predicted"
    assert any(line.startswith(came) for line in lines), lines
    why(tmp_path / "themis.yaml", as_json=True)
    assert json.loads(capsys.readouterr().out)["results"][0]["measured_p99_ms"] == 190.0


def test_the_decision_of_a_time_is_the_newest_until_then(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path / "state" / "journal.sqlite")
    grown = record(action(ActionKind.GROW), seen=snapshot([server("a")], NOW_S + 100.0))
    journal.record_tick(replace(grown, decision=replace(grown.decision, id="later")))
    journal.close()
    for at, name in (("1m", "d"), (f"{datetime.fromtimestamp(NOW_S + 110.0, UTC).isoformat()}", "later")):
        why_command(path, None, as_json=True, at=at)
        assert json.loads(capsys.readouterr().out)["decision"]["id"] == name
    with pytest.raises(SettingsError, match="--at: 1h: the journal has no decision of that time or before"):
        why_command(path, None, as_json=False, at="1h")
    with pytest.raises(SettingsError, match="--at: noon is invalid: expected a duration before now, such as 30m, or a local time"):
        why_command(path, None, as_json=False, at="noon")


def test_without_an_id_the_newest_change_is_explained(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    why(path)
    assert "  d  policy themis, steady" in capsys.readouterr().out.splitlines()[0]
    with sqlite3.connect(tmp_path / "state" / "journal.sqlite") as db:
        db.execute("delete from ticks where changed = 1")
    db.close()
    why(path)
    assert capsys.readouterr().out.splitlines()[0] == "nothing was changed yet"
    why(path, as_json=True)
    assert json.loads(capsys.readouterr().out) is None


@pytest.mark.parametrize("kind", ["paused", "bounded", "drained", "drained_rests"])
def test_pauses_and_drains_are_in_the_history_and_are_no_decisions(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    journal = Journal(tmp_path / "state" / "journal.sqlite")
    journal.record_event(NOW_S + 90.0, kind, "paused by `themis pause`: nothing is changed")
    journal.close()
    history(path)
    assert "paused by `themis pause`: nothing is changed" in capsys.readouterr().out
    why(path)
    assert "  d  policy themis, steady" in capsys.readouterr().out.splitlines()[0]
    why(path, f"{kind}-{NOW_S + 90.0:.0f}")
    assert capsys.readouterr().out == "paused by `themis pause`: nothing is changed\n"


def test_a_time_may_be_typed_as_the_history_prints_it() -> None:
    now_s = datetime(2026, 3, 1, 3, 10, 30).astimezone().timestamp()
    for typed, day in (
        ("03:10:05", (2026, 3, 1, 3, 10, 5)),
        ("3:09", (2026, 3, 1, 3, 9)),
        ("23:59", (2026, 2, 28, 23, 59)),
        ("28 Feb 14:00:01", (2026, 2, 28, 14, 0, 1)),
        ("31 Dec 14:00", (2025, 12, 31, 14, 0)),
        ("2026-02-03T04:05", (2026, 2, 3, 4, 5)),
    ):
        assert datetime.fromtimestamp(parse_moment(typed, "--at", now_s, "now"), UTC) == datetime(*day).astimezone(), typed
    assert moment(now_s - 60.0, now_s).partition(" (")[0] == "01 Mar 03:09:30"
    for typed in ("25:00", "10", "29 Feb 10:00", "03:10:05 28"):
        with pytest.raises(SettingsError, match=f"--at: {typed} is invalid: .* a local time, such as 14:30"):
            parse_moment(typed, "--at", now_s, "now")


@pytest.mark.parametrize("since", ["10", "m", "-1m", "0s", "nanh", "10w", ""])
def test_a_wrong_time_is_named(path: Path, since: str) -> None:
    with pytest.raises(SettingsError, match=f"--since: {since} is invalid: expected a number and a unit"):
        history(path, since=since)


def test_an_unknown_decision_and_a_missing_journal_are_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nope: the journal has no such decision"):
        why(path, "nope")
    other = tmp_path / "other.yaml"
    other.write_text("state_directory: elsewhere\n")
    with pytest.raises(EnvironmentCheckError, match=r"elsewhere/journal\.sqlite: no such file: expected the journal"):
        why(other)
