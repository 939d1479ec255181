"""Read access to the journal, beside a running sidecar or after it has stopped."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from themis_triton.adapters.store.records import unpacked
from themis_triton.adapters.store.schema import VERSION, version_of
from themis_triton.core.encoding import parsed_json, remembered_servers
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.fleet import Server

TICK = ("at_s", "decision_id", "reason", "changed", "sentence")
NUMBERS = frozenset({"at_s", "changed", "ended_at_s", "duration_s"})
MAX_NUMBER = 1e11
SAMPLES_WITHOUT_REQUESTS = 4
OUTCOME = ("action_id", "ended_at_s", "kind", "outcome", "duration_s", "sentence", "detail")


class JournalReader:
    """Queries on a journal, of this version or an earlier one. Times are seconds since the epoch.

    The newest row is the last one written: the clock may have been set back since.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def ticks(self, limit: int, since_s: float = 0.0, *, changed_only: bool = False) -> list[dict[str, Any]]:
        """The newest ticks from `since_s` on, newest first, each with the keys of `TICK`."""
        query = f"select {', '.join(TICK)} from ticks where at_s >= ? and changed >= ? order by rowid desc limit ?"  # noqa: S608 - constants
        return [_row(TICK, row) for row in self._db.execute(query, (since_s, int(changed_only), limit))]

    def record(self, decision_id: str) -> dict[str, Any] | None:
        """The whole record of one decision, as the sidecar wrote it; None where there is none, or it was pruned."""
        row = self._db.execute(
            "select sentence, record from ticks where decision_id = ? order by rowid desc limit 1", (decision_id,)
        ).fetchone()
        if row is None:
            return None
        record = parsed_json(unpacked(row[1])) if isinstance(row[1], (bytes, str)) else None
        if not isinstance(row[0], str) or not isinstance(record, dict):
            raise ValueError(f"the record of {decision_id} is not one of a tick")  # noqa: TRY004 - the file is wrong
        return {"sentence": row[0], **record}

    def outcomes(self, limit: int, decision_id: str | None = None) -> list[dict[str, Any]]:
        """The newest outcomes of actions, or of one decision's actions, newest first, each with the keys of `OUTCOME`."""
        prefix = f"{decision_id}/" if decision_id is not None else ""
        query = (
            f"select {', '.join(OUTCOME)} from outcomes where substr(action_id, 1, ?) = ? "  # noqa: S608 - constants
            "order by rowid desc limit ?"
        )
        return [_row(OUTCOME, row) for row in self._db.execute(query, (len(prefix), prefix, limit))]

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query of this package."""
        return self._db.execute(query, parameters).fetchall()

    @property
    def version(self) -> int:
        """The version of the tables."""
        return version_of(self._db)

    @property
    def has_samples(self) -> bool:
        """Whether there are samples of pipelines that count requests, as from version 5 on."""
        return version_of(self._db) > SAMPLES_WITHOUT_REQUESTS

    def servers(self) -> tuple[Server, ...]:
        """Launched servers that were remembered and not forgotten."""
        rows = self._db.execute("select server from servers where typeof(server) = 'text' order by name").fetchall()
        return remembered_servers(row[0] for row in rows)


def _row(names: Sequence[str], row: Sequence[object]) -> dict[str, Any]:
    """A row with the names of its columns. ValueError when a value cannot be one of that column."""
    for name, value in zip(names, row, strict=True):
        good = isinstance(value, (int, float)) and 0.0 <= value < MAX_NUMBER if name in NUMBERS else isinstance(value, str)
        if not good:
            raise ValueError(f"{name}: {value!r:.40} is invalid")
    return dict(zip(names, row, strict=True))


@contextmanager
def reading(path: Path) -> Iterator[JournalReader]:
    """The journal of that path. EnvironmentCheckError where there is none, or it cannot be read."""
    if not path.exists():
        fix = "start one with `themis run`, or name its settings"
        raise EnvironmentCheckError(f"{path}: no such file: expected the journal of a sidecar that has run. Fix: {fix}")
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise EnvironmentCheckError(f"{path}: the journal cannot be opened ({error})") from error
    try:
        if version_of(db) > VERSION:
            fix = "use that version of themis-triton"
            raise EnvironmentCheckError(f"{path}: the journal has version {version_of(db)}: expected at most {VERSION}. Fix: {fix}")
        yield JournalReader(db)
    except (sqlite3.Error, zlib.error, ValueError) as error:
        raise EnvironmentCheckError(f"{path}: the journal cannot be read ({error})") from error
    finally:
        db.close()
