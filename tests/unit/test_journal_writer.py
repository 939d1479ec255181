"""The journal's thread: what is recorded while the file cannot be written, and what becomes of it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.samples import NOW_S, action, record, server, snapshot
from themis_triton.adapters.store import writer as writer_module
from themis_triton.adapters.store.journal import INSERT_OUTCOME, Journal
from themis_triton.adapters.store.reader import reading
from themis_triton.adapters.store.schema import open_journal
from themis_triton.adapters.store.writer import NoticeKind
from themis_triton.core.action import ActionKind
from themis_triton.core.record import TickRecord

WAIT_S = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setattr(writer_module, "RETRY_AFTER_S", 0.05)
    monkeypatch.setattr(writer_module, "LOCK_WAIT_S", 0.05)
    opened = Journal(path)
    yield opened
    opened.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program holds the journal for itself."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin exclusive")
    try:
        yield
    finally:
        other.execute("rollback")
        other.close()


def at(second: float) -> TickRecord:
    return record(action(ActionKind.GROW), seen=snapshot([server("a")], NOW_S + second))


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_S / 0.01)):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")


def seconds(path: Path) -> list[float]:
    with reading(path) as rows:
        return [row["at_s"] - NOW_S for row in rows.ticks(10_000)][::-1]


def test_a_locked_journal_blocks_no_call_and_gets_everything_once_it_is_free(path: Path, journal: Journal) -> None:
    with locked(path):
        for second in range(100):
            journal.record_tick(at(second))
        journal.save_server(server("a"))
        wait_for(lambda: journal.trouble == "the journal is not written: database is locked")
        assert [each.name for each in journal.load_servers()] == ["a"]
        assert seconds(path) == []
    assert journal.flush(WAIT_S)
    assert (seconds(path), journal.trouble, journal.take_notices()) == ([float(second) for second in range(100)], None, ())
    with reading(path) as rows:
        assert [each.name for each in rows.servers()] == ["a"]


def test_rows_beyond_those_that_may_wait_are_lost_and_said_to_be(path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MAX_WAITING_ROWS", 5)
    with locked(path):
        for second in range(20):
            journal.record_tick(at(second))
        for number in range(20):
            journal.save_server(server(f"s{number}"))
    assert journal.flush(WAIT_S)
    assert seconds(path) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert journal.take_notices() == ((NoticeKind.ROWS_LOST, "the journal could not be written for a while: 15 rows are lost"),)
    with reading(path) as rows:
        assert len(rows.servers()) == 20


def test_a_journal_that_is_locked_at_the_start_is_opened_later(path: Path, journal: Journal) -> None:
    journal.save_server(server("gone"))
    assert journal.flush(WAIT_S)
    journal.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("pragma locking_mode = exclusive")
    other.execute("begin exclusive")
    again = Journal(path)
    assert again.trouble == "the journal is not written: database is locked"
    again.save_server(server("new"))
    other.close()
    assert again.flush(WAIT_S)
    assert again.trouble is None
    again.close()
    with reading(path) as rows:
        assert [each.name for each in rows.servers()] == ["new"]


def test_a_journal_that_is_locked_to_the_end_delays_no_stop(path: Path, journal: Journal) -> None:
    with locked(path):
        journal.record_tick(at(0))
        journal.close()
        assert journal.trouble is not None
    assert seconds(path) == []


def test_a_journal_that_is_removed_while_in_use_begins_anew_with_all_servers(path: Path, journal: Journal) -> None:
    journal.save_server(server("a"))
    journal.record_tick(at(0))
    assert journal.flush(WAIT_S)
    for each in path.parent.iterdir():
        each.unlink()
    journal.record_tick(at(1))
    assert journal.flush(WAIT_S)
    assert journal.take_notices() == ((NoticeKind.REPLACED, f"the journal {path} was removed while it was in use: a new one begins"),)
    assert seconds(path) == [1.0]
    with reading(path) as rows:
        assert [each.name for each in rows.servers()] == ["a"]


def test_a_journal_that_is_replaced_while_in_use_gets_all_servers_even_if_it_is_locked_at_first(path: Path, journal: Journal) -> None:
    journal.save_server(server("a"))
    assert journal.flush(WAIT_S)
    for each in path.parent.iterdir():
        each.unlink()
    open_journal(path).close()
    with locked(path):
        journal.record_tick(at(1))
        wait_for(lambda: journal.trouble == "the journal is not written: database is locked")
    assert journal.flush(WAIT_S)
    assert seconds(path) == [1.0]
    with reading(path) as rows:
        assert [each.name for each in rows.servers()] == ["a"]


def test_a_journal_that_is_spoilt_while_in_use_is_kept_aside_and_the_new_one_has_all_servers(path: Path, journal: Journal) -> None:
    journal.save_server(server("a"))
    journal.record_tick(at(0))
    assert journal.flush(WAIT_S)
    with sqlite3.connect(path) as other:
        other.execute("pragma wal_checkpoint(truncate)")
    other.close()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * (path.stat().st_size - 100))
    with sqlite3.connect(path) as other, pytest.raises(sqlite3.DatabaseError):
        other.execute("insert into servers values ('x', 'y')")
    other.close()
    for second in range(1, 30):
        journal.record_tick(at(second))
    journal.save_server(server("b"))
    assert journal.flush(WAIT_S)
    ((kind, notice),) = journal.take_notices()
    assert (kind, notice.partition(" (")[0]) == (NoticeKind.REPLACED, "the journal could not be read")
    assert path.with_name("journal.sqlite.unreadable.1").exists()
    with reading(path) as rows:
        assert [each.name for each in rows.servers()] == ["a", "b"]
    assert seconds(path)[-1] == 29.0


def test_a_row_that_can_never_be_written_costs_no_server_and_no_later_row(path: Path, journal: Journal) -> None:
    journal._writer.add_row(INSERT_OUTCOME, [object()] * 7)
    journal.save_server(server("a"))
    assert journal.flush(WAIT_S)
    assert [kind for kind, _ in journal.take_notices()] == [NoticeKind.ROWS_LOST]
    journal.record_tick(at(1))
    assert journal.flush(WAIT_S)
    assert seconds(path) == [1.0]
    with reading(path) as rows:
        assert [each.name for each in rows.servers()] == ["a"]


def test_ticks_without_a_change_are_written_together(path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "GATHER_S", 1e3)
    quiet = [record(seen=snapshot([server("a")], NOW_S + second)) for second in range(15)]
    for each in quiet[:9]:
        journal.record_tick(each)
    assert seconds(path) == []
    journal.record_tick(quiet[9])
    wait_for(lambda: len(seconds(path)) == 10)
    for each in quiet[10:13]:
        journal.record_tick(each)
    journal.record_tick(at(13))
    wait_for(lambda: len(seconds(path)) == 14)
    journal.record_tick(quiet[14])
    assert journal.flush(WAIT_S)
    assert seconds(path) == [float(second) for second in range(15)]
