"""Writes the journal in a thread of its own: a lock, a slow disk or a corrupt file never blocks the event loop."""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum, StrEnum, auto
from pathlib import Path

from themis_triton.adapters.store.bounds import compact, prune
from themis_triton.adapters.store.schema import LOCK_WAIT_S, is_unreadable, open_journal, set_aside

MAX_WAITING_ROWS = 4_000
"""With 1,000 pipelines, those of a minute's end are 2,000."""
MAX_UNMADE_ROWS = 20
"""While more wait, rows are made where they are added, so that large values do not wait."""
GATHER_S, GATHERED_ROWS = 1.0, 10
"""For how long rows that have time wait for others, and how many of them at most: one transaction for all costs less."""
PRUNE_EVERY = 200
RETRY_AFTER_S = 1.0
CLOSE_WITHIN_S = 5.0
Row = Sequence[object] | Callable[[], Sequence[object]]
"""The values of a row, or what makes them in the writer's thread."""
Statement = tuple[str, Row]
_DENIED = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})


class NoticeKind(StrEnum):
    """What happened to the journal, by the names of the log events."""

    REPLACED = "journal_replaced"
    ROWS_LOST = "journal_rows_lost"


Notice = tuple[NoticeKind, str]


class _Again(Enum):
    """What of a batch is not written yet and may be."""

    NOTHING = auto()
    SERVERS = auto()
    ALL = auto()


class JournalWriter:
    """One thread that owns the file. Rows wait in memory while it cannot be written, at most `MAX_WAITING_ROWS`; servers always.

    `earlier_places` are the changed places that an earlier sidecar left in the file.
    `sampled_until_s` is the time of the last sample, for the bounds: one that a wrong clock put into the future must not age all others.
    `trouble` says why nothing is written now. A file that cannot be read is kept under another name, and one that is gone is made anew:
    with all servers, and a notice.

    Args:
        path: the journal.
        max_bytes: bound on the file; the oldest ticks are removed, checked after every `PRUNE_EVERY` rows.

    Raises:
        OSError, sqlite3.Error: the file cannot be created or opened for want of permission.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self.max_bytes, self.recording_bytes = max_bytes, 0
        self.sampled_until_s: float | None = None
        self._rows: deque[Statement] = deque()
        self._servers: dict[str, str] = {}
        self.earlier_places: frozenset[tuple[str, str]] = frozenset()
        self._changed: set[str] = set()
        self._notices: list[Notice] = []
        self._lost_rows = self._since_prune = 0
        self._writing = self._closing = self._urgent = False
        self._changes = threading.Condition()
        self._db: sqlite3.Connection | None = None
        self._inode = 0
        self._filled = False
        self.trouble: str | None = None
        try:
            self._open()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DENIED:
                raise
            self.trouble = _trouble(error)
        if self._db is not None:
            rows = self._db.execute("select name, server from servers where typeof(name) = 'text' and typeof(server) = 'text'")
            self._servers = dict(rows.fetchall())
            places = self._db.execute("select server, device from changed_places where typeof(server) = 'text' and typeof(device) = 'text'")
            self.earlier_places = frozenset((server, device) for server, device in places)
            self._filled = True
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    @property
    def servers(self) -> Mapping[str, str]:
        """The remembered servers by name."""
        return self._servers

    def add_row(self, statement: str, row: Row, *, at_once: bool = True) -> None:
        """Have a row written, or soon with others (`at_once`); it is lost if too many wait."""
        if callable(row) and len(self._rows) >= MAX_UNMADE_ROWS:
            row = row()
        with self._changes:
            if len(self._rows) >= MAX_WAITING_ROWS:
                self._lost_rows += 1
                return
            self._rows.append((statement, row))
            self._urgent |= at_once or len(self._rows) >= GATHERED_ROWS
            if self._urgent or len(self._rows) == 1:
                self._changes.notify_all()

    def set_server(self, name: str, text: str | None) -> None:
        """Remember a server, or forget it (None)."""
        with self._changes:
            if text is None:
                self._servers.pop(name, None)
            else:
                self._servers[name] = text
            self._changed.add(name)
            self._changes.notify_all()

    def take_notices(self) -> tuple[Notice, ...]:
        """What happened to the file since the last call."""
        with self._changes:
            taken = tuple(self._notices)
            self._notices.clear()
        return taken

    def flush(self, within_s: float) -> bool:
        """Wait until everything is written; returns whether it is."""
        with self._changes:
            self._urgent = True
            self._changes.notify_all()
            return self._changes.wait_for(lambda: not (self._rows or self._changed or self._writing), within_s)

    def close(self) -> None:
        """Write what waits, for a bounded time, and close the file."""
        with self._changes:
            self._closing = True
            self._changes.notify_all()
        self._thread.join(CLOSE_WITHIN_S)

    def _run(self) -> None:
        while True:
            with self._changes:
                self._changes.wait_for(lambda: self._rows or self._changed or self._closing)
                self._changes.wait_for(lambda: self._urgent or self._changed or self._closing, GATHER_S)
                self._urgent = False
                if self._closing and not (self._rows or self._changed):
                    break
                rows, servers = list(self._rows), {name: self._servers.get(name) for name in self._changed}
                self._changed.clear()
                self._writing = True
            again = self._attempt(rows, servers)
            with self._changes:
                self._writing = False
                self._changed |= servers.keys() if again is not _Again.NOTHING else frozenset()
                if again is not _Again.ALL:
                    for _ in rows:
                        self._rows.popleft()
                if again is _Again.NOTHING:
                    self._note_loss()
                self._changes.notify_all()
                if again is not _Again.NOTHING:
                    self._urgent = True
                    if self._closing:
                        break
                    self._changes.wait_for(lambda: self._closing, RETRY_AFTER_S)
        self._close()

    def _attempt(self, rows: Sequence[Statement], servers: Mapping[str, str | None]) -> _Again:
        """Write a batch; returns what of it must be tried again. Rows that can never be written are lost."""
        try:
            self._write(rows, servers)
        except Exception as error:  # noqa: BLE001 - the thread must live on, or nothing would be written any more
            self.trouble = _trouble(error)
            if isinstance(error, sqlite3.Error) and is_unreadable(error):
                self._start_anew(error)
                return _Again.ALL
            if isinstance(error, (sqlite3.OperationalError, OSError)):
                return _Again.ALL
            self._lost_rows += len(rows)
            return _Again.SERVERS
        self.trouble = None
        return _Again.NOTHING

    def _write(self, rows: Sequence[Statement], servers: Mapping[str, str | None]) -> None:
        db = self._connection()
        db.execute("begin immediate")
        try:
            if not self._filled:
                self._fill(db)
            for name, text in servers.items():
                if text is None:
                    db.execute("delete from servers where name = ?", (name,))
                else:
                    db.execute("insert or replace into servers values (?, ?)", (name, text))
            for statement, row in rows:
                db.execute(statement, row() if callable(row) else row)
            self._since_prune += len(rows)
            pruned = self._since_prune >= PRUNE_EVERY
            if pruned:
                prune(db, self.max_bytes, self.sampled_until_s, self.recording_bytes)
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("rollback")
            raise
        db.execute("commit")
        self._filled = True
        if pruned:
            self._since_prune = 0
            with suppress(sqlite3.Error):  # the rows are written; a disk that is too full for the copy keeps the file as it is
                compact(db, self.max_bytes)

    def _connection(self) -> sqlite3.Connection:
        """The open file; opened again where it was not open or its file is gone."""
        if self._db is not None and not self._is_there():
            self._notice(NoticeKind.REPLACED, f"the journal {self._path} was removed while it was in use: a new one begins")
            self._close()
        return self._db if self._db is not None else self._open()

    def _fill(self, db: sqlite3.Connection) -> None:
        """Put all servers into a file that was opened again, within the transaction of its first rows."""
        with self._changes:
            servers = dict(self._servers)
        db.execute("delete from servers")
        db.executemany("insert into servers values (?, ?)", servers.items())

    def _is_there(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _open(self) -> sqlite3.Connection:
        try:
            db = open_journal(self._path, lock_wait_s=LOCK_WAIT_S)
        except sqlite3.Error as error:
            if not is_unreadable(error):
                raise
            self._set_aside(error)
            db = open_journal(self._path, lock_wait_s=LOCK_WAIT_S)
        self._db, self._inode, self._filled = db, self._path.stat().st_ino, False
        return db

    def _start_anew(self, error: sqlite3.Error) -> None:
        """Put a corrupt file aside, so that the next attempt makes another one."""
        self._close()
        with suppress(OSError):
            self._set_aside(error)

    def _set_aside(self, error: sqlite3.Error) -> None:
        kept = set_aside(self._path)
        self._notice(NoticeKind.REPLACED, f"the journal could not be read ({error}): it is kept as {kept}, and a new one begins")

    def _notice(self, kind: NoticeKind, sentence: str) -> None:
        with self._changes:
            self._notices.append((kind, sentence))

    def _note_loss(self) -> None:
        if self._lost_rows:
            self._notices.append((NoticeKind.ROWS_LOST, f"the journal could not be written for a while: {self._lost_rows} rows are lost"))
            self._lost_rows = 0

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _trouble(error: Exception) -> str:
    return f"the journal is not written: {error}"
