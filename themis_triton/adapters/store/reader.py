"""Read access to the journal, beside a running sidecar or after it has stopped."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from themis_triton.core.encoding import remembered_servers
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.fleet import Server

TICK = ("at_s", "decision_id", "reason", "changed", "sentence")
OUTCOME = ("action_id", "ended_at_s", "kind", "outcome", "duration_s", "sentence", "detail")


class JournalReader:
    """Queries on a journal. Times are seconds since the epoch."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def ticks(self, limit: int, since_s: float = 0.0, *, changed_only: bool = False) -> list[dict[str, Any]]:
        """The newest ticks from `since_s` on, newest first, each with the keys of `TICK`."""
        query = f"select {', '.join(TICK)} from ticks where at_s >= ? and changed >= ? order by at_s desc limit ?"  # noqa: S608 - constants
        return [dict(zip(TICK, row, strict=True)) for row in self._db.execute(query, (since_s, int(changed_only), limit))]

    def record(self, decision_id: str) -> dict[str, Any] | None:
        """The whole record of one decision, as the sidecar wrote it; None where there is none, or it was pruned."""
        row = self._db.execute("select sentence, record from ticks where decision_id = ?", (decision_id,)).fetchone()
        return {"sentence": row[0], **json.loads(row[1])} if row is not None else None

    def outcomes(self, limit: int, decision_id: str | None = None) -> list[dict[str, Any]]:
        """The newest outcomes of actions, or of one decision's actions, newest first, each with the keys of `OUTCOME`."""
        prefix = f"{decision_id}/" if decision_id is not None else ""
        query = (
            f"select {', '.join(OUTCOME)} from outcomes where substr(action_id, 1, ?) = ? "  # noqa: S608 - constants
            "order by ended_at_s desc limit ?"
        )
        return [dict(zip(OUTCOME, row, strict=True)) for row in self._db.execute(query, (len(prefix), prefix, limit))]

    def servers(self) -> tuple[Server, ...]:
        """Launched servers that were remembered and not forgotten."""
        rows = self._db.execute("select server from servers order by name").fetchall()
        return remembered_servers(row[0] for row in rows)


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
        yield JournalReader(db)
    except sqlite3.Error as error:
        raise EnvironmentCheckError(f"{path}: the journal cannot be read ({error}); the file is not a Themis journal") from error
    finally:
        db.close()
