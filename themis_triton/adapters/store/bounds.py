"""The bounds of the journal: how many rows of each kind, how many bytes, and how fine the samples of older times are."""

from __future__ import annotations

import sqlite3

QUIET_TICKS_KEPT = 1_200
CHANGES_KEPT = 20_000
SAMPLES_KEPT_S = 8 * 86_400
MINUTES_KEPT_S = 3 * 86_400
REPORTS_KEPT = 400
ROLL_UPS = ((3_600, 60), (26 * 3_600, 600))
"""Samples older than the first number of seconds are joined into ones of the second number of seconds."""
MEANS = ("rate_rps", "demand_rps", "capacity_rps", "refused_rps", "servers", "instances")


def prune(db: sqlite3.Connection, max_bytes: int, sampled_until_s: float | None, recording_bytes: int = 0) -> None:
    """Remove the oldest rows, in the order of writing, within a transaction.

    `sampled_until_s`: the time of the sample written last, from which the age of samples counts; None: none yet, so all keep their widths.
    """
    for changed, kept in ((0, QUIET_TICKS_KEPT), (1, CHANGES_KEPT)):
        db.execute(
            "delete from ticks where changed = ? and seq < (select seq from ticks where changed = ? order by seq desc limit 1 offset ?)",
            (changed, changed, kept),
        )
    db.execute("delete from outcomes where seq < (select seq from outcomes order by seq desc limit 1 offset ?)", (CHANGES_KEPT,))
    if sampled_until_s is not None:
        roll_up(db, sampled_until_s)
        for table in ("traffic", "usage"):
            db.execute(f"delete from {table} where at_s < ?", (sampled_until_s - MINUTES_KEPT_S,))  # noqa: S608 - constants
    db.execute("delete from reports where day < (select day from reports order by day desc limit 1 offset ?)", (REPORTS_KEPT,))
    _prune_recording(db, recording_bytes)
    while _used_bytes(db) > max_bytes:
        removed = db.execute(
            "delete from ticks where seq in (select seq from ticks order by seq limit (select count(*)/10 + 1 from ticks))"
        )
        samples = db.execute("delete from samples where at_s <= (select min(at_s) + (max(at_s) - min(at_s)) / 10 from samples)")
        for table in ("traffic", "usage"):
            db.execute(f"delete from {table} where at_s <= (select min(at_s) + (max(at_s) - min(at_s)) / 10 from usage)")  # noqa: S608 - constants
        if not removed.rowcount and not samples.rowcount and not _drop_oldest_segment(db):
            return
        _drop_oldest_segment(db)


def _prune_recording(db: sqlite3.Connection, max_bytes: int) -> None:
    """Remove the oldest segments beyond the bound; a segment is of use only with its beginning."""
    (used,) = db.execute("select coalesce(sum(coalesce(length(head), 0) + length(body)), 0) from recordings").fetchone()
    while used > max_bytes:
        used -= _drop_oldest_segment(db)


def _drop_oldest_segment(db: sqlite3.Connection) -> int:
    """Remove the segment that was written first; returns its bytes, 0 where there is none."""
    where = "segment = (select segment from recordings order by seq limit 1)"
    (size,) = db.execute(f"select coalesce(sum(coalesce(length(head), 0) + length(body)), 0) from recordings where {where}").fetchone()  # noqa: S608 - constants
    db.execute(f"delete from recordings where {where}")  # noqa: S608 - constants
    return int(size)


def roll_up(db: sqlite3.Connection, now_s: float) -> None:
    """Join old samples into wider ones and remove those that are too old, within a transaction. Sums and maxima stay exact."""
    for age_s, width_s in ROLL_UPS:
        before_s = (now_s - age_s) // width_s * width_s
        db.execute(
            f"insert or replace into samples select pipeline, cast(at_s / ?2 as integer) * ?2, ?2, {aggregates()} from samples "  # noqa: S608 - constants
            "where width_s < ?2 and at_s < ?1 group by 1, 2",
            (before_s, width_s),
        )
        db.execute("delete from samples where width_s < ? and at_s < ?", (width_s, before_s))
    db.execute("delete from samples where at_s < ?", (now_s - SAMPLES_KEPT_S,))


def aggregates() -> str:
    """What joins samples, in the order of their columns after `width_s`."""
    means = {name: f"sum({name} * seconds) / sum(seconds)" for name in MEANS}
    columns = (
        *("sum(seconds)", means["rate_rps"], "max(peak_rps)", means["demand_rps"], means["capacity_rps"], means["refused_rps"]),
        *(means["servers"], means["instances"], "sum(traffic_s)", "sum(late_s)"),
        *("sum(p50_ms * traffic_s) / nullif(sum(iif(p50_ms is null, 0, traffic_s)), 0)", "max(p99_ms)"),
        *("sum(requests)", "sum(late_requests)"),
    )
    return ", ".join(columns)


def compact(db: sqlite3.Connection, max_bytes: int) -> None:
    """Give the space of removed rows back where the file is larger than it may be; outside of a transaction."""
    if _pragma(db, "page_count") * _pragma(db, "page_size") > max_bytes and _pragma(db, "freelist_count") * 2 > _pragma(db, "page_count"):
        db.execute("vacuum")


def _used_bytes(db: sqlite3.Connection) -> int:
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"pragma {name}").fetchone()[0])
