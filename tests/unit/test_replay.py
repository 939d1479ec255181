"""Recorded time is decided again to the byte, and shows what other settings would have made of it."""

from __future__ import annotations

import json
import sqlite3
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.recorded_runs import recorded_run, taking
from tests.unit.samples import config, record, server, snapshot
from themis_triton.adapters.store import recording as recording_module
from themis_triton.adapters.store.frozen_values import MODULES, OtherVersionError, frozen, thawed
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.reader import reading
from themis_triton.adapters.store.recording import Recording, Segment, read_segment, read_segments
from themis_triton.commands.replay_command import ReplayFlags, chosen_journal, replay, replay_command
from themis_triton.core.address import Address
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.graph import Calls, Parallel, Series
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.core.recorded import RecordedTick
from themis_triton.core.retention import RetentionConfig
from themis_triton.core.server_config import AdoptedServer
from themis_triton.load.traces import TraceOptions, arrivals, load_trace
from themis_triton.sim import run as run_module
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions
from themis_triton.tick import EngineState

PIPELINE = config().pipelines[0].name
UNNEEDED = "themis_triton.demo.view"
LAUNCHES = replace(config(), servers=())
DURATION_S = 40
POLICIES = (PolicyName.THEMIS, PolicyName.THEMIS_PAPER, PolicyName.HORIZONTAL, PolicyName.INFERLINE, PolicyName.CONCURRENCY)
SURGE = arrivals(load_trace(TraceOptions("surge", duration_s=DURATION_S)), 1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "journal.sqlite"
    recorded_run(path, LAUNCHES, {PIPELINE: SURGE}, DURATION_S)
    return path


def segments(path: Path) -> list[Segment]:
    with reading(path) as journal:
        return read_segments(journal, 0.0, 1e10)[0]


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_recorded_surge_is_decided_again_to_the_byte(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay_command(ReplayFlags(recorded), as_json=True) == 0
    replayed = printed(capsys)
    assert (replayed["ticks"], replayed["differing"]) == (4 * (DURATION_S + 5), 0)
    assert any(tick.plan.actions for segment in segments(recorded) for tick in segment.ticks)
    assert replay_command(ReplayFlags(recorded), as_json=False) == 0
    assert "every decision and plan is the recorded one, byte for byte" in capsys.readouterr().out


def test_the_first_difference_is_named(recorded: Path) -> None:
    (segment,) = segments(recorded)
    dearer = replace(segment.config, prices=replace(segment.config.prices, instance=50.0))
    replayed = replay([replace(segment, config=dearer)])
    assert replayed.first is not None
    assert replayed.differing > 0
    assert replayed.first.sentence.startswith(f"{replayed.first.decision_id}: decision.")
    assert " was " in replayed.first.sentence


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    policy=st.sampled_from(POLICIES),
    rates=st.lists(st.floats(0.0, 120.0), min_size=2, max_size=4),
    seed=st.integers(0, 99),
    death_s=st.floats(1.0, 15.0),
)
def test_random_runs_are_decided_again_to_the_byte(policy: PolicyName, rates: list[float], seed: int, death_s: float) -> None:
    rows: list[Any] = []
    recording = Recording(lambda _, row: rows.append(row), 2**24)
    random = np.random.default_rng(seed)
    counts = random.poisson(np.multiply(5.0, rates))
    times = np.sort(np.repeat(5.0 * np.arange(len(rates)), counts) + random.uniform(0.0, 5.0, counts.sum()))
    own = replace(config(PolicyConfig(name=policy)), servers=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "tick", taking(recording.take))
        patch.setattr(recording_module, "SEGMENT_S", 4.0)
        simulate(own, {PIPELINE: times}, 5.0 * len(rates), SimOptions(seed=seed, deaths_s=(death_s,)))
        recording.finish()
    replayed = replay(by_segment([row() for row in rows]))
    assert replayed.first is None
    assert replayed.ticks == 4 * (5 * len(rates) + 5)


def by_segment(rows: Sequence[Sequence[Any]]) -> list[Segment]:
    chunks: dict[float, list[tuple[bytes | None, bytes]]] = {}
    for segment, _, _, _, head, body in rows:
        chunks.setdefault(segment, []).append((head, body))
    assert len(chunks) > 1
    return [read_segment(each) for each in chunks.values()]


def test_a_segment_begins_where_the_state_or_the_settings_change_between_two_ticks() -> None:
    rows: list[Any] = []
    recording = Recording(lambda _, row: rows.append(row), 2**24)
    states, first, second = list("abcde"), config(), config()
    for number, (before, after, by) in enumerate(
        [("a", "b", first), ("b", "c", first), ("c", "d", second), ("x", "e", second), ("e", "f", second)]
    ):
        recording.take(before, after, record(seen=snapshot([server("s")], 1000.0 + number)), by)
    recording.finish()
    assert states
    assert [(row()[0], row()[3]) for row in rows] == [(1000.0, 2), (1002.0, 1), (1003.0, 2)]
    assert [thawed(row()[4])[1] for row in rows] == ["a", "c", "x"]


def test_the_tables_say_what_was_and_what_would_have_been(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ReplayFlags(recorded, (f"{PIPELINE}=1000",), "horizontal")
    assert replay_command(flags, as_json=True) == 0
    measured, same, other = printed(capsys)
    assert [row["name"] for row in (measured, same, other)] == [
        "measured",
        "simulated",
        f"slo {PIPELINE}=1000, policy horizontal",
    ]
    assert abs(measured["requests"] - np.count_nonzero(SURGE < DURATION_S - 0.25)) <= 2
    assert same["requests"] == pytest.approx(measured["requests"], rel=0.01)
    assert same["server_hours"] == pytest.approx(measured["server_hours"], rel=0.15)
    assert same["cost"] == pytest.approx(measured["cost"], rel=0.2)
    assert measured["late"] == pytest.approx(0.263, abs=0.01)  # so many of the run's own requests were late
    assert abs(same["late"] - measured["late"]) < 0.07
    assert other["instance_hours"] < same["instance_hours"]
    assert len(measured["servers"]) == len(other["instances"]) == 12
    assert replay_command(flags, as_json=False) == 0
    assert f"{measured['requests']:,}" in capsys.readouterr().out


def test_spans_count_from_the_recordings_end(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay_command(ReplayFlags(recorded, to_text="20s"), as_json=True)
    assert 0 < printed(capsys)["ticks"] <= 4 * (DURATION_S + 5 - 20) + 1
    with pytest.raises(SettingsError, match=r"--from: soon is invalid: expected a duration before the recording's end, such as 30m"):
        replay_command(ReplayFlags(recorded, from_text="soon"), as_json=True)
    with pytest.raises(SettingsError, match="nothing was recorded then"):
        replay_command(ReplayFlags(recorded, to_text="2h"), as_json=True)


@pytest.mark.parametrize(
    ("slo", "policy", "message"),
    [
        ("video", None, "--slo: video is invalid: expected PIPELINE=MS"),
        ("other=5", None, "--slo: other=5 is invalid"),
        (f"{PIPELINE}=-1", None, "--slo: .* is invalid"),
        (f"{PIPELINE}=9", "cheapest", "--policy: cheapest is invalid: expected themis,"),
    ],
)
def test_a_wrong_flag_is_named(recorded: Path, slo: str, policy: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        replay_command(ReplayFlags(recorded, (slo,), policy), as_json=True)


def test_the_journal_is_that_of_the_settings_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "themis.yaml").write_text("state_directory: state\n")
    assert chosen_journal(tmp_path / "themis.yaml", None) == tmp_path / "state" / "journal.sqlite"
    assert chosen_journal(None, tmp_path / "copy") == tmp_path / "copy"
    with pytest.raises(SettingsError, match="expected either -c, a settings file, or --journal"):
        chosen_journal(None, None)


def test_a_journal_without_a_recording_is_named_with_the_key(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", RetentionConfig(recording_bytes=0))
    journal.record_decided("a", "b", record(), config())
    journal.close()
    with pytest.raises(EnvironmentCheckError, match=r"the journal has no recording\. Fix: .*max_recording"):
        replay_command(ReplayFlags(tmp_path / "journal.sqlite"), as_json=True)


def test_the_recording_is_bounded_by_whole_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("themis_triton.adapters.store.writer.PRUNE_EVERY", 1)
    monkeypatch.setattr(recording_module, "SEGMENT_S", 10.0)
    path, bound = tmp_path / "journal.sqlite", 40_000
    journal = Journal(path, RetentionConfig(recording_bytes=bound))
    take: Any = partial(journal.record_decided)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "tick", taking(take))
        simulate(LAUNCHES, {PIPELINE: SURGE}, DURATION_S)
    journal.close()
    with sqlite3.connect(path) as db:
        ((size, newest),) = db.execute("select sum(coalesce(length(head), 0) + length(body)), max(end_s) from recordings").fetchall()
    db.close()
    kept = segments(path)
    assert 0 < size <= bound
    assert newest == DURATION_S + 5 - 0.25
    assert kept[0].ticks[0].snapshot.at_s > 10.0
    assert replay(kept).first is None


def test_a_recording_holds_no_key_of_model_control() -> None:
    rows: list[Any] = []
    recording = Recording(lambda _, row: rows.append(row), 2**24)
    seen, address = snapshot([server("a")]), Address("127.0.0.1", 1)
    adopted = AdoptedServer("b", address, address, address, "cpu:0", model_control_key="secret-of-b")
    recording.take(EngineState(), EngineState(), record(seen=seen), replace(config(), servers=(adopted,)))
    recording.finish()
    (row,) = (row() for row in rows)
    assert not any(b"secret-of-" in zlib.decompress(data) for data in row[4:])
    segment = read_segment([row[4:]])
    assert segment.config.servers == (replace(adopted, model_control_key=None),)
    assert segment.ticks[0].snapshot.servers == (replace(seen.servers[0], model_control_key=None),)


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("run",)


def test_a_foreign_pickle_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"builtins.print is no value of this package"):
        thawed(frozen(_Evil()))
    assert capsys.readouterr().out == ""


def recorded_classes(kind: Any, found: set[type]) -> set[type]:
    """The package's classes of a type, of its subclasses and of their fields."""
    for inner in get_args(kind):
        recorded_classes(inner, found)
    if isinstance(kind, type) and kind.__module__.startswith("themis_triton.") and kind not in found:
        found.add(kind)
        for inner in (*kind.__subclasses__(), *get_type_hints(kind, localns={"Graph": Series | Parallel | Calls}).values()):
            recorded_classes(inner, found)
    return found


def test_all_classes_of_a_recording_can_be_read_and_no_other_module_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recorded_classes(ThemisConfig | EngineState | RecordedTick | Series | Parallel | Calls, set())
    assert len(found) > 50
    assert {each.__module__ for each in found} == MODULES
    monkeypatch.setitem(sys.modules, UNNEEDED, None)  # no import of it succeeds
    data = zlib.decompress(frozen(RetentionConfig())).replace(RetentionConfig.__module__.encode(), UNNEEDED.encode())
    with pytest.raises(OtherVersionError, match=f"{UNNEEDED} has no recorded values"):
        thawed(zlib.compress(data))


def test_values_of_a_version_with_other_fields_or_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = frozen(RetentionConfig())
    assert thawed(data) == RetentionConfig()
    for name in (b"core.retentiom", b"core.r"):
        other = zlib.compress(zlib.decompress(data).replace(b"core.retention", name))
        with pytest.raises(OtherVersionError, match="another version of Themis wrote it: "):
            thawed(other)
    with pytest.raises(ValueError, match="it is damaged"):
        thawed(data[:-9])
    fields = {name: field for name, field in RetentionConfig.__dataclass_fields__.items() if name != "log_bytes"}
    monkeypatch.setattr(RetentionConfig, "__dataclass_fields__", fields)
    with pytest.raises(OtherVersionError, match=r"another version of Themis wrote it: .*RetentionConfig has other fields"):
        thawed(data)


def test_segments_of_another_version_are_left_out_and_counted(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "journal.sqlite"
    with sqlite3.connect(recorded) as source, sqlite3.connect(path) as db:
        source.backup(db)
        ((segment, head),) = db.execute("select segment, head from recordings where head is not null").fetchall()
        later = db.execute("select seq from recordings order by seq").fetchall()[2][0]
        db.execute("update recordings set segment = ?, head = ? where seq >= ?", (segment + 1.0, head, later))
        db.execute("update recordings set head = null where seq > ?", (later,))
        db.execute(
            "update recordings set head = ? where segment = ? and head is not null",
            (zlib.compress(zlib.decompress(head).replace(b"core.retention", b"core.retained")), segment),
        )
    source.close()
    db.close()
    with reading(path) as journal:
        found, others = read_segments(journal, 0.0, 1e10)
    assert (len(found), others) == (1, 1)
    replay_command(ReplayFlags(path), as_json=True)
    told = capsys.readouterr()
    assert json.loads(told.out)["ticks"] == len(found[0].ticks)
    assert "1 of 2 recorded segments are of another version of Themis and left out" in told.err
    with pytest.raises(EnvironmentCheckError, match=r"1 of 1 recorded .*Fix: replay them with the version that recorded them"):
        replay_command(
            ReplayFlags(path, to_text=f"{found[0].ticks[-1].snapshot.at_s - found[0].ticks[0].snapshot.at_s + 1:.0f}s"), as_json=True
        )
