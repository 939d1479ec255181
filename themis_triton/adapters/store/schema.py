"""The journal's tables, their version, and what an earlier version's file becomes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from themis_triton.adapters.store.records import packed

VERSION = 6
"""The version of the tables, in the file's `user_version`. Before 1 there was none, before 2 no samples, 3 no recordings, 4 no minutes,
5 no requests in samples, 6 no places."""
TABLES = """
create table if not exists ticks (
    seq integer primary key, at_s real, decision_id text, reason text, changed integer, sentence text, record blob);
create table if not exists outcomes (
    seq integer primary key, action_id text, ended_at_s real, kind text, outcome text, duration_s real, sentence text, detail text);
create table if not exists servers (name text primary key, server text);
create table if not exists changed_places (server text, device text, primary key (server, device)) without rowid;
create table if not exists samples (
    pipeline text, at_s real, width_s integer, seconds real, rate_rps real, peak_rps real, demand_rps real, capacity_rps real,
    refused_rps real, servers real, instances real, traffic_s real, late_s real, p50_ms real, p99_ms real,
    requests real not null default 0, late_requests real not null default 0,
    primary key (pipeline, at_s, width_s)) without rowid;
create table if not exists recordings (
    seq integer primary key, segment real, at_s real, end_s real, ticks integer, head blob, body blob);
create table if not exists traffic (
    pipeline text, at_s integer, arrivals blob, ended real, late real, primary key (pipeline, at_s)) without rowid;
create table if not exists usage (at_s integer primary key, seconds real, server_s real, instance_s real, cost real);
create table if not exists reports (day text primary key, report text);
"""
KEPT_ASIDE = 3
LOCK_WAIT_S = 2.0
MAX_LOG_BYTES = 4 * 2**20
"""Of SQLite's write-ahead log once its rows are in the journal."""
_SIDE_FILES = ("-wal", "-shm")
_UNREADABLE = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_SCHEMA,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_CONSTRAINT,
    }
)


def open_journal(path: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> sqlite3.Connection:
    """Open or create a journal, and bring one of an earlier version to this one. sqlite3.Error when that cannot be done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)  # it holds the keys of model control
    db = sqlite3.connect(path, timeout=lock_wait_s, isolation_level=None, check_same_thread=False)
    try:
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = normal")
        db.execute(f"pragma journal_size_limit = {MAX_LOG_BYTES}")
        _check_pages(db)
        _migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def _check_pages(db: sqlite3.Connection) -> None:
    (state,) = db.execute("pragma quick_check(1)").fetchone()
    if state != "ok":
        raise sqlite3.DatabaseError(state)


def is_unreadable(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault, and no lock, no full disk and no missing permission."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF in _UNREADABLE if code is not None else type(error) is sqlite3.DatabaseError


def set_aside(path: Path) -> Path:
    """Rename a journal that cannot be read, so that a new one can be made; returns its new name. The newest few are kept.

    Raises:
        OSError: it cannot be renamed.
    """
    earlier = sorted((int(each.suffix[1:]), each) for each in path.parent.glob(f"{path.name}.unreadable.*") if each.suffix[1:].isdigit())
    target = path.with_name(f"{path.name}.unreadable.{earlier[-1][0] + 1 if earlier else 1}")
    path.rename(target)
    for side in _SIDE_FILES:
        path.with_name(path.name + side).unlink(missing_ok=True)
    for _, old in earlier[: max(0, len(earlier) + 1 - KEPT_ASIDE)]:
        old.unlink(missing_ok=True)
    return target


def version_of(db: sqlite3.Connection) -> int:
    """The version of a journal's tables."""
    return int(db.execute("pragma user_version").fetchone()[0])


def _migrate(db: sqlite3.Connection) -> None:
    version = version_of(db)
    if version > VERSION:
        raise sqlite3.DatabaseError(f"it has version {version} of a later Themis: expected at most {VERSION}")
    if version == VERSION:
        return
    db.execute("begin immediate")
    try:
        if db.execute("select 1 from sqlite_master where name = 'ticks'").fetchone() is not None:
            for migrate in MIGRATIONS[version:]:
                migrate(db)
        _execute_each(db, TABLES)
        db.execute(f"pragma user_version = {VERSION}")
    except BaseException:
        db.execute("rollback")
        raise
    db.execute("commit")


def _number_rows(db: sqlite3.Connection) -> None:
    """Version 0 had a tick a time of day, so that rows were replaced and put in a wrong order when the clock was set back."""
    db.create_function("packed", 1, lambda record: packed(record) if isinstance(record, str) else record)
    for table in ("ticks", "outcomes"):
        db.execute(f"alter table {table} rename to earlier_{table}")
    db.execute("drop index if exists outcomes_ended")
    _execute_each(db, TABLES)
    db.execute(
        "insert into ticks (at_s, decision_id, reason, changed, sentence, record) "
        "select at_s, decision_id, reason, changed, sentence, packed(record) from earlier_ticks order by rowid"
    )
    columns = "action_id, ended_at_s, kind, outcome, duration_s, sentence, detail"
    db.execute(f"insert into outcomes ({columns}) select {columns} from earlier_outcomes order by rowid")  # noqa: S608 - constants
    for table in ("ticks", "outcomes"):
        db.execute(f"drop table earlier_{table}")


def _execute_each(db: sqlite3.Connection, statements: str) -> None:
    """Inside the transaction, which `executescript` would end."""
    for statement in statements.split(";"):
        db.execute(statement)


def _add_tables(db: sqlite3.Connection) -> None:
    """Versions 1 to 3 and 5 had fewer tables; those that are missing are created."""


def _count_requests(db: sqlite3.Connection) -> None:
    """The samples of version 4 counted seconds alone."""
    columns = [row[1] for row in db.execute("pragma table_info(samples)")]
    for name in ("requests", "late_requests") if columns else ():
        if name not in columns:  # a table that an earlier step created has them
            db.execute(f"alter table samples add column {name} real not null default 0")


Migration = Callable[[sqlite3.Connection], None]
MIGRATIONS: Sequence[Migration] = (_number_rows, _add_tables, _add_tables, _add_tables, _count_requests, _add_tables)
"""What brings a journal from the version of each place to the next one."""
