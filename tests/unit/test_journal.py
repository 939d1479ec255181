import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.samples import NOW_S, action, record, route, server, snapshot
from themis_triton.adapters.store import bounds as bounds_module
from themis_triton.adapters.store import writer as writer_module
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.reader import reading
from themis_triton.adapters.store.records import unpacked
from themis_triton.adapters.store.writer import NoticeKind
from themis_triton.core.action import ActionKind, Outcome, OutcomeKind
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.estimate import DriftChange, DriftEvent
from themis_triton.core.fleet import Phase, ProcessId, Server
from themis_triton.core.record import TickRecord
from themis_triton.core.retention import RetentionConfig

JOURNALS = Path(__file__).parent / "journals"


class WrittenJournal(Journal):
    """Each row is in the file when its call returns."""

    def record_tick(self, record: TickRecord) -> None:
        super().record_tick(record)
        assert self.flush()

    def record_outcome(self, outcome: Outcome) -> None:
        super().record_outcome(outcome)
        assert self.flush()

    def save_server(self, server: Server) -> None:
        super().save_server(server)
        assert self.flush()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    opened = WrittenJournal(path)
    yield opened
    opened.close()


def at(second: float, *, changed: bool = False) -> TickRecord:
    actions = (action(ActionKind.GROW),) if changed else ()
    return record(*actions, seen=snapshot([server("a")], NOW_S + second))


def ticks(path: Path, limit: int, *, changed_only: bool = False) -> list[dict[str, Any]]:
    with reading(path) as journal:
        return journal.ticks(limit, changed_only=changed_only)


def outcomes(path: Path, decision_id: str | None = None) -> list[dict[str, Any]]:
    with reading(path) as journal:
        return journal.outcomes(1000, decision_id)


def outcome(second: float, kind: OutcomeKind = OutcomeKind.DONE) -> Outcome:
    return Outcome(action(ActionKind.GROW), kind, NOW_S + second - 1, NOW_S + second, "why")


def test_servers_come_back_as_they_were(path: Path) -> None:
    first = replace(server("a", (3, 2), slot="cpu:1"), process=ProcessId(4711, 170_025), log_file="a.log")
    second = replace(server("b", phase=Phase.WARMING), reach=("cpu:1",))
    journal = Journal(path)
    for each in (second, first):
        journal.save_server(each)
    journal.close()
    again = Journal(path)
    assert again.load_servers() == (first, second)
    again.save_server(replace(first, phase=Phase.DRAINING))
    again.forget_server("b")
    again.forget_server("unknown")
    assert again.load_servers() == (replace(first, phase=Phase.DRAINING),)
    again.close()


def test_a_server_that_another_version_wrote_is_left_out(path: Path, journal: Journal) -> None:
    journal.save_server(server("a"))
    with sqlite3.connect(path) as other:
        other.execute("insert into servers values (?, ?)", ("old", '{"name": "old", "process": {"pid": 1, "started_at_s": 1.5}}'))
    assert [each.name for each in journal.load_servers()] == ["a"]
    with reading(path) as reader:
        assert [each.name for each in reader.servers()] == ["a"]


def test_the_newest_ticks_come_first(path: Path, journal: Journal) -> None:
    for second in range(3):
        journal.record_tick(at(second, changed=second == 1))
    assert [tick["at_s"] - NOW_S for tick in ticks(path, 2)] == [2.0, 1.0]
    (changed,) = ticks(path, 9, changed_only=True)
    assert changed == {
        "at_s": NOW_S + 1,
        "decision_id": "d",
        "reason": "steady",
        "changed": 1,
        "sentence": "steady; grow video-detector on a 1→2",
    }


def test_a_tick_in_which_an_action_failed_is_a_change_and_one_in_which_it_was_done_is_none(path: Path, journal: Journal) -> None:
    journal.record_tick(replace(at(0), outcomes=(outcome(0),)))
    journal.record_tick(replace(at(1), outcomes=(outcome(1), outcome(1, OutcomeKind.REFUSED))))
    assert [tick["at_s"] for tick in ticks(path, 9, changed_only=True)] == [NOW_S + 1]


def test_outcomes_are_kept_with_how_and_why(path: Path, journal: Journal) -> None:
    journal.record_outcome(outcome(1))
    journal.record_outcome(outcome(2, OutcomeKind.REFUSED))
    newest, oldest = outcomes(path)
    assert (newest["outcome"], oldest["outcome"]) == ("refused", "done")
    assert newest == {
        "action_id": "d/a/video-detector",
        "ended_at_s": NOW_S + 2,
        "kind": "grow",
        "outcome": "refused",
        "duration_s": 1.0,
        "sentence": "grow video-detector on a 1→2",
        "detail": "why",
    }


def test_the_journal_is_bounded_and_changes_outlive_quiet_ticks(path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("QUIET_TICKS_KEPT", 10), ("CHANGES_KEPT", 15), ("PRUNE_EVERY", 5)):
        monkeypatch.setattr(writer_module if name == "PRUNE_EVERY" else bounds_module, name, value)
    for second in range(100):
        journal.record_tick(at(second, changed=second % 2 == 0))
        journal.record_outcome(outcome(second))
    changed = ticks(path, 1000, changed_only=True)
    assert 15 <= len(changed) <= 15 + 1 + 5
    assert 10 <= len(ticks(path, 1000)) - len(changed) <= 10 + 1 + 5
    assert 15 <= len(outcomes(path)) <= 15 + 1 + 5
    assert changed[0]["at_s"] == NOW_S + 98


def test_records_hold_no_key_of_model_control_and_no_histogram(path: Path, journal: Journal) -> None:
    seen = replace(snapshot([server("a")]), routes=(route("video-detector", NOW_S, 12345.0),))
    journal.record_tick(record(action(ActionKind.GROW), seen=seen))
    journal.record_outcome(outcome(0))
    with sqlite3.connect(path) as reader:
        rows = [*reader.execute("select * from ticks"), *reader.execute("select * from outcomes")]
    reader.close()
    text = str([unpacked(value) if isinstance(value, bytes) else value for row in rows for value in row])
    assert "12345.0" in text
    assert "secret-of-a" not in text
    assert "bounds_ms" not in text


def test_a_directory_that_cannot_be_written_is_named_with_the_key(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(EnvironmentCheckError, match="state_directory"):
        Journal(file / "journal.sqlite")


def corrupt_pages(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])


def fill_with_garbage(path: Path) -> None:
    path.write_bytes(b"something else entirely, and long enough to be read as a header" * 20)


def make_another_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("create table ticks (something)")
    other.close()


def raise_the_version(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("pragma user_version = 99")
    other.close()


@pytest.mark.parametrize("spoil", [corrupt_pages, truncate, fill_with_garbage, make_another_database, raise_the_version])
def test_a_journal_that_cannot_be_read_is_kept_aside_and_a_new_one_begins(path: Path, spoil: Callable[[Path], None]) -> None:
    journal = Journal(path)
    for second in range(20):
        journal.record_tick(at(second, changed=True))
    journal.save_server(server("a"))
    journal.close()
    spoil(path)
    content = path.read_bytes()
    journal = Journal(path)
    ((kind, notice),) = journal.take_notices()
    assert kind is NoticeKind.REPLACED
    kept = path.with_name("journal.sqlite.unreadable.1")
    assert notice.startswith("the journal could not be read (")
    assert notice.endswith(f"it is kept as {kept}, and a new one begins")
    assert kept.read_bytes()[100:] == content[100:]
    assert (journal.load_servers(), journal.take_notices()) == ((), ())
    journal.record_tick(at(0))
    journal.close()
    assert len(ticks(path, 9)) == 1


def test_the_newest_three_unreadable_journals_are_kept(path: Path) -> None:
    path.parent.mkdir()
    for number in range(12):
        path.write_bytes(b"no journal, the one with number %d" % number * 100)
        Journal(path).close()
    kept = sorted(path.parent.glob("*.unreadable.*"), key=lambda each: int(each.suffix[1:]))
    assert [each.suffix for each in kept] == [".10", ".11", ".12"]
    assert kept[-1].read_bytes().startswith(b"no journal, the one with number 11")


def test_an_earlier_versions_journal_keeps_its_rows_in_the_order_of_writing(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as earlier:
        earlier.executescript((JOURNALS / "version-0.sql").read_text())
    earlier.close()
    before = (ticks(path, 9), outcomes(path))
    journal = Journal(path)
    assert [(each.name, each.phase, each.process) for each in journal.load_servers()] == [
        ("a", Phase.SERVING, ProcessId(4711, 170_025)),
        ("b", Phase.DRAINING, ProcessId(4712, 170_026)),
    ]
    journal.record_tick(at(-7200))
    journal.record_tick(at(-7200))
    journal.close()
    assert Journal(path).take_notices() == ()
    newest, same_time, *migrated = ticks(path, 9)
    assert (newest["at_s"], same_time["at_s"]) == (NOW_S - 7200, NOW_S - 7200)
    assert (migrated, outcomes(path)) == before
    assert [row["at_s"] - NOW_S for row in migrated] == [-3599, -3600, 1, 0]
    with reading(path) as reader:
        result = reader.record("paused-1699996401")
    assert result == {"sentence": "paused by `themis pause`: nothing is changed"}


def test_changed_devices_are_remembered_until_the_policy_forgets_them(path: Path) -> None:
    home, second, third = (("a", f"gpu:{device}") for device in range(3))
    for before, after in ((set(), {home, second}), ({home, second}, {second, third})):
        journal = Journal(path)
        assert journal.load_places() == before
        journal.record_places(frozenset(before), frozenset(after))
        journal.close()
    last = Journal(path)
    assert last.load_places() == {second, third}
    last.close()


def test_samples_that_counted_no_requests_are_kept(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as earlier:
        earlier.executescript(
            """create table ticks (seq integer primary key);
            create table samples (pipeline text, at_s real, width_s integer, primary key (pipeline, at_s, width_s)) without rowid;
            insert into samples values ('video', 5.0, 5);
            pragma user_version = 4;"""
        )
    Journal(path).close()
    with reading(path) as reader:
        assert reader.rows("select * from samples") == [("video", 5.0, 5, 0.0, 0.0)]


def test_rows_written_after_the_clock_was_set_back_outlive_older_ones(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("QUIET_TICKS_KEPT", 5), ("PRUNE_EVERY", 5)):
        monkeypatch.setattr(writer_module if name == "PRUNE_EVERY" else bounds_module, name, value)
    for second in (*range(20), *range(-3600, -3590)):
        journal.record_tick(at(second))
    assert [row["at_s"] - NOW_S for row in ticks(path, 100)] == [*range(-3591, -3597, -1)]


def test_the_journal_is_bounded_in_bytes_and_a_larger_file_shrinks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "PRUNE_EVERY", 20)
    large = WrittenJournal(path)
    for second in range(600):
        large.record_tick(at(second, changed=True))
    large.close()
    before = path.stat().st_size
    bounded = WrittenJournal(path, RetentionConfig(before // 4, 0))
    for second in range(600, 640):
        bounded.record_tick(at(second, changed=second % 2 == 0))
    bounded.close()
    assert path.stat().st_size <= before // 2
    seconds = [row["at_s"] - NOW_S for row in ticks(path, 1000)]
    assert seconds == [float(second) for second in range(639, 639 - len(seconds), -1)]
    assert 40 <= len(seconds) < 300


def test_a_later_versions_journal_is_not_read(path: Path, journal: Journal) -> None:
    journal.record_tick(at(0))
    raise_the_version(path)
    with (
        pytest.raises(EnvironmentCheckError, match=r"journal\.sqlite: the journal has version 99: expected at most 6\. Fix: use that"),
        reading(path),
    ):
        pass


def test_a_tick_in_which_drift_changes_is_kept_like_one_that_changes_something(path: Path, journal: Journal) -> None:
    quiet = at(1.0)
    drifted = replace(quiet.estimate, drift_events=(DriftEvent("m", DriftChange.BEGAN, 1.4, 1.4),))
    journal.record_tick(at(0.0))
    journal.record_tick(replace(quiet, estimate=drifted))
    assert [tick["at_s"] for tick in ticks(path, 9, changed_only=True)] == [NOW_S + 1.0]


def test_a_decision_is_found_with_what_came_of_it(path: Path, journal: Journal) -> None:
    journal.record_tick(at(0, changed=True))
    journal.record_outcome(outcome(1))
    with reading(path) as reader:
        result = reader.record("d")
        assert result is not None
        assert result["sentence"] == "steady; grow video-detector on a 1→2"
        assert [each["id"] for each in result["plan"]["actions"]] == ["d/a/video-detector"]
        assert reader.record("other") is None
        assert reader.ticks(9, NOW_S + 1) == []
    assert len(outcomes(path, "d")) == 1
    assert outcomes(path, "d/a") == outcomes(path, "d")
    assert outcomes(path, "e") == []


def test_a_record_that_an_earlier_version_wrote_as_text_is_read(path: Path, journal: Journal) -> None:
    journal.record_tick(at(0))
    with sqlite3.connect(path) as other:
        other.execute("update ticks set record = ?", ('{"number": 7}',))
    with reading(path) as reader:
        assert reader.record("d") == {"sentence": "steady", "number": 7}


def test_a_journal_is_read_after_its_sidecar_has_gone(path: Path) -> None:
    writer = Journal(path)
    writer.save_server(server("a", slot="cpu:1"))
    writer.close()
    with reading(path) as reader:
        assert [each.name for each in reader.servers()] == ["a"]


def test_no_journal_or_another_file_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(EnvironmentCheckError, match=r"journal\.sqlite: no such file: expected the journal of a sidecar"),
        reading(tmp_path / "journal.sqlite"),
    ):
        pass
    other = tmp_path / "other.sqlite"
    other.write_bytes(b"something else entirely, and long enough to be read as a header" * 20)
    with pytest.raises(EnvironmentCheckError, match=r"the journal cannot be read"), reading(other) as reader:
        reader.ticks(1)
