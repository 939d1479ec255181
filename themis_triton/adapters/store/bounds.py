"""The bounds of the journal: how many rows of each kind, and how many bytes."""

from __future__ import annotations

import sqlite3

QUIET_TICKS_KEPT = 1_200
CHANGES_KEPT = 20_000


def prune(db: sqlite3.Connection, max_bytes: int) -> None:
    """Remove the oldest rows, in the order of writing, within a transaction."""
    for changed, kept in ((0, QUIET_TICKS_KEPT), (1, CHANGES_KEPT)):
        db.execute(
            "delete from ticks where changed = ? and seq < (select seq from ticks where changed = ? order by seq desc limit 1 offset ?)",
            (changed, changed, kept),
        )
    db.execute("delete from outcomes where seq < (select seq from outcomes order by seq desc limit 1 offset ?)", (CHANGES_KEPT,))
    while _used_bytes(db) > max_bytes:
        removed = db.execute(
            "delete from ticks where seq in (select seq from ticks order by seq limit (select count(*)/10 + 1 from ticks))"
        )
        if not removed.rowcount:
            return


def compact(db: sqlite3.Connection, max_bytes: int) -> None:
    """Give the space of removed rows back where the file is larger than it may be; outside of a transaction."""
    if _pragma(db, "page_count") * _pragma(db, "page_size") > max_bytes and _pragma(db, "freelist_count") * 2 > _pragma(db, "page_count"):
        db.execute("vacuum")


def _used_bytes(db: sqlite3.Connection) -> int:
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"pragma {name}").fetchone()[0])
