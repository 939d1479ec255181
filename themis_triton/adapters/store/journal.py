"""The journal: what was decided, what happened, and which launched servers exist, in one SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path

from themis_triton.adapters.store.recording import Recording
from themis_triton.adapters.store.records import packed, packed_counts
from themis_triton.adapters.store.writer import JournalWriter, Notice
from themis_triton.core.action import Outcome, OutcomeKind
from themis_triton.core.config import ThemisConfig
from themis_triton.core.day_report import DayReport
from themis_triton.core.encoding import json_text, plain, remembered_servers, shallow
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.fleet import Server
from themis_triton.core.history import PipelineSample, TrafficMinute, UsageMinute
from themis_triton.core.observation import RouteReading
from themis_triton.core.record import TickRecord, describe, sentence
from themis_triton.core.retention import RetentionConfig

INSERT_TICK = "insert into ticks (at_s, decision_id, reason, changed, sentence, record) values (?, ?, ?, ?, ?, ?)"
INSERT_OUTCOME = "insert into outcomes (action_id, ended_at_s, kind, outcome, duration_s, sentence, detail) values (?, ?, ?, ?, ?, ?, ?)"
_SAMPLE_FIELDS = tuple(field.name for field in fields(PipelineSample))
INSERT_SAMPLE = (
    f"insert or replace into samples ({', '.join(_SAMPLE_FIELDS)}) "  # noqa: S608 - constants
    f"values ({', '.join('?' * len(_SAMPLE_FIELDS))})"
)
INSERT_USAGE = "insert or replace into usage (at_s, seconds, server_s, instance_s, cost) values (?, ?, ?, ?, ?)"
INSERT_TRAFFIC = "insert or replace into traffic (pipeline, at_s, arrivals, ended, late) values (?, ?, ?, ?, ?)"
REMEMBER_PLACE = "insert or ignore into changed_places (server, device) values (?, ?)"
FORGET_PLACE = "delete from changed_places where server = ? and device = ?"
INSERT_REPORT = "insert or replace into reports (day, report) values (?, ?)"
FLUSH_WITHIN_S = 30.0
_DEFAULTS = RetentionConfig()
_ROUTE_FIELDS = tuple(field.name for field in fields(RouteReading) if field.name != "latency")


Places = frozenset[tuple[str, str]]
"""Servers with devices."""


class Journal:
    """A Recorder on SQLite. Ticks that change something are kept longer than quiet ones; the file is bounded.

    Calls return at once: a thread writes. A write that fails (a full disk, a lock) is tried again, and `trouble` holds its message until
    it succeeds. A file that cannot be read is kept under another name, and a new one begins; `take_notices` says so.
    """

    def __init__(self, path: Path, retention: RetentionConfig = _DEFAULTS) -> None:
        try:
            self._writer = JournalWriter(path, retention.journal_bytes)
        except (OSError, sqlite3.Error) as error:
            raise EnvironmentCheckError(f"{path}: the journal cannot be opened ({error}). Fix: make `state_directory` writable") from error

        self._recording = Recording(self._writer.add_row, 0)
        self.bound(retention)

    def bound(self, retention: RetentionConfig) -> None:
        """Bound the file, and the recording in it, by other sizes from the next rows on."""
        self._writer.max_bytes = retention.journal_bytes
        self._writer.recording_bytes = self._recording.max_bytes = retention.recording_bytes

    @property
    def trouble(self) -> str | None:
        """Why nothing is written now; None when all is well."""
        return self._writer.trouble

    def record_tick(self, record: TickRecord) -> None:
        """Append a tick; one that changes nothing has a second."""
        # A row is made by the writer: with 1,000 models, to encode it takes longer than to decide.
        self._writer.add_row(INSERT_TICK, partial(_tick_row, record), at_once=_has_changed(record))

    def record_decided(self, before: object, after: object, record: TickRecord, config: ThemisConfig) -> None:
        """Append to the recording what `themis replay` needs: the engine's state before and after a tick, and its settings."""
        self._recording.take(before, after, record, config)

    def record_event(self, at_s: float, kind: str, sentence: str) -> None:
        """Append a change of the sidecar itself, such as a pause: a row among the ticks, without a decision."""
        self._writer.add_row(INSERT_TICK, (at_s, f"{kind}-{at_s:.0f}", kind, True, sentence, packed("{}")))

    def record_outcome(self, outcome: Outcome) -> None:
        """Append an action's outcome."""
        action = outcome.action
        row = (action.id, outcome.ended_at_s, action.kind, outcome.kind, outcome.duration_s, describe(action), outcome.detail)
        self._writer.add_row(INSERT_OUTCOME, row)

    def record_samples(self, samples: Iterable[PipelineSample]) -> None:
        """Add samples of pipelines; old ones are joined into wider ones."""
        for sample in samples:
            self._writer.sampled_until_s = sample.at_s
            self._writer.add_row(INSERT_SAMPLE, tuple(getattr(sample, name) for name in _SAMPLE_FIELDS))

    def record_minute(self, usage: UsageMinute, traffic: Iterable[TrafficMinute]) -> None:
        """Add what a minute had."""
        self._writer.add_row(INSERT_USAGE, (usage.at_s, usage.seconds, usage.server_s, usage.instance_s, usage.cost))
        for each in traffic:
            row = (each.pipeline, each.at_s, packed_counts(each.arrivals), each.ended, each.late)
            self._writer.add_row(INSERT_TRAFFIC, row)

    def record_report(self, report: DayReport) -> None:
        """Add a day's report."""
        self._writer.add_row(INSERT_REPORT, (report.day, json.dumps(plain(report))))

    def save_server(self, server: Server) -> None:
        """Remember a launched server."""
        self._writer.set_server(server.name, json.dumps(plain(server)))

    def forget_server(self, name: str) -> None:
        """The server is gone."""
        self._writer.set_server(name, None)

    def load_servers(self) -> tuple[Server, ...]:
        """Launched servers that were remembered and not forgotten."""
        return remembered_servers(text for _, text in sorted(self._writer.servers.items()))

    def record_places(self, before: Places, after: Places) -> None:
        """Remember the servers with devices that the policy changed; `before`: those that are remembered."""
        for statement, places in ((FORGET_PLACE, before - after), (REMEMBER_PLACE, after - before)):
            for place in sorted(places):
                self._writer.add_row(statement, place)

    def load_places(self) -> Places:
        """The servers with devices that the policy had changed when the journal was opened."""
        return self._writer.earlier_places

    def take_notices(self) -> tuple[Notice, ...]:
        """What happened to the file since the last call."""
        return self._writer.take_notices()

    def flush(self, within_s: float = FLUSH_WITHIN_S) -> bool:
        """Wait until everything is written, the unfinished part of the recording too; returns whether it is."""
        self._recording.finish()
        return self._writer.flush(within_s)

    def close(self) -> None:
        """Write what waits, for a bounded time, and close the file."""
        self._recording.finish()
        self._writer.close()


def _tick_row(record: TickRecord) -> tuple[object, ...]:
    return (record.snapshot.at_s, record.decision.id, record.decision.reason, _has_changed(record), sentence(record), _thin(record))


def _has_changed(record: TickRecord) -> bool:
    """Whether something happened in the tick. An action that was done as planned is told by the tick that started it."""
    failed = any(outcome.kind is not OutcomeKind.DONE for outcome in record.outcomes)
    return bool(record.plan.actions or failed or record.snapshot.incidents or record.estimate.drift_events)


def _thin(record: TickRecord) -> bytes:
    """The packed record without the raw histograms, which are large and stand in Envoy anyway, and without keys of model control."""
    servers = [shallow(server) for server in record.snapshot.servers]
    for server in servers:
        del server["model_control_key"]
    seen = shallow(record.snapshot) | {"servers": servers, "routes": [_counters(route) for route in record.snapshot.routes]}
    return packed(json_text(shallow(record) | {"snapshot": seen}))


def _counters(route: RouteReading) -> dict[str, object]:
    return {field: getattr(route, field) for field in _ROUTE_FIELDS}
