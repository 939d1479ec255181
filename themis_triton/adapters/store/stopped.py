"""The journal after everything was stopped: no launched server is left."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path


def forget_servers(journal: Path) -> None:
    """Forget the launched servers, which the next sidecar would otherwise take for lost. Only while no sidecar runs.

    A journal that cannot be written stays as it is: the next sidecar reports it, and the servers as lost.
    """
    if journal.exists():
        with suppress(sqlite3.Error), closing(sqlite3.connect(journal)) as database, database:
            database.execute("delete from servers")
