"""The journal: what was decided, what happened, and which launched servers exist, in one SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from themis_triton.core.action import Outcome
from themis_triton.core.encoding import plain, remembered_servers
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.fleet import Server
from themis_triton.core.record import TickRecord, describe, sentence

SCHEMA = """
create table if not exists ticks (
    at_s real primary key, decision_id text, reason text, changed integer, sentence text, record text);
create table if not exists outcomes (
    action_id text, ended_at_s real, kind text, outcome text, duration_s real, sentence text, detail text);
create table if not exists servers (name text primary key, server text);
create index if not exists outcomes_ended on outcomes (ended_at_s);
"""
QUIET_TICKS_KEPT = 1_200
CHANGES_KEPT = 20_000
PRUNE_EVERY = 200


class Journal:
    """A Recorder on SQLite. Ticks that change something are kept longer than quiet ones; the file is bounded.

    A write that fails (a full disk, a lock) never stops the loop: `trouble` holds its message until a write succeeds.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # it holds the keys of model control
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise EnvironmentCheckError(f"{path}: the journal cannot be opened ({error}). Fix: make `state_directory` writable") from error
        self._since_prune = 0
        self.trouble: str | None = None

    def record_tick(self, record: TickRecord) -> None:
        """Append a tick."""
        changed = bool(record.plan.actions or record.outcomes or record.estimate.drift_events)
        row = (record.snapshot.at_s, record.decision.id, record.decision.reason, changed, sentence(record), _thin(record))
        self._write("insert or replace into ticks values (?, ?, ?, ?, ?, ?)", row)
        self._since_prune += 1
        if self._since_prune >= PRUNE_EVERY:
            self._prune()

    def record_event(self, at_s: float, kind: str, sentence: str) -> None:
        """Append a change of the sidecar itself, such as a pause: a row among the ticks, without a decision."""
        self._write("insert or replace into ticks values (?, ?, ?, ?, ?, ?)", (at_s, f"{kind}-{at_s:.0f}", kind, True, sentence, "{}"))

    def record_outcome(self, outcome: Outcome) -> None:
        """Append an action's outcome."""
        action = outcome.action
        row = (action.id, outcome.ended_at_s, action.kind, outcome.kind, outcome.duration_s, describe(action), outcome.detail)
        self._write("insert into outcomes values (?, ?, ?, ?, ?, ?, ?)", row)

    def save_server(self, server: Server) -> None:
        """Remember a launched server."""
        self._write("insert or replace into servers values (?, ?)", (server.name, json.dumps(plain(server))))

    def forget_server(self, name: str) -> None:
        """The server is gone."""
        self._write("delete from servers where name = ?", (name,))

    def load_servers(self) -> tuple[Server, ...]:
        """Launched servers that were remembered and not forgotten."""
        rows = self._db.execute("select server from servers order by name").fetchall()
        return remembered_servers(row[0] for row in rows)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _prune(self) -> None:
        self._since_prune = 0
        for changed, kept in ((0, QUIET_TICKS_KEPT), (1, CHANGES_KEPT)):
            self._write(
                "delete from ticks where changed = ? and at_s < "
                "(select at_s from ticks where changed = ? order by at_s desc limit 1 offset ?)",
                (changed, changed, kept),
            )
        self._write(
            "delete from outcomes where ended_at_s < (select ended_at_s from outcomes order by ended_at_s desc limit 1 offset ?)",
            (CHANGES_KEPT,),
        )

    def _write(self, statement: str, row: Sequence[object]) -> None:
        try:
            self._db.execute(statement, row)
        except sqlite3.Error as error:
            self.trouble = f"the journal is not written: {error}"
        else:
            self.trouble = None


def _thin(record: TickRecord) -> str:
    """The record as JSON without the raw histograms, which are large and stand in Envoy anyway, and without keys of model control."""
    data = plain(record)
    for route in data["snapshot"]["routes"]:
        del route["latency"]
    for server in data["snapshot"]["servers"]:
        del server["model_control_key"]
    return json.dumps(data, separators=(",", ":"))
