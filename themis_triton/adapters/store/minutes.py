"""Minutes and reports of days from the journal."""

from __future__ import annotations

from themis_triton.adapters.store.reader import JournalReader
from themis_triton.adapters.store.records import unpacked_counts
from themis_triton.core.day_report import DayReport
from themis_triton.core.decoding import decode
from themis_triton.core.encoding import parsed_json
from themis_triton.core.history import TrafficMinute, UsageMinute

_VERSION_BEFORE = 3
"""The last version of the tables without minutes and reports."""
_WITHIN = "where at_s >= ? and at_s < ? order by at_s"


def read_minutes(journal: JournalReader, from_s: float, until_s: float) -> tuple[list[UsageMinute], list[TrafficMinute]]:
    """What the minutes that begin in a span had, in order."""
    if journal.version <= _VERSION_BEFORE:
        return [], []
    span = (from_s, until_s)
    usage = journal.rows(f"select at_s, seconds, server_s, instance_s, cost from usage {_WITHIN}", span)  # noqa: S608 - constants
    rows = journal.rows(f"select pipeline, at_s, arrivals, ended, late from traffic {_WITHIN}", span)  # noqa: S608 - constants
    traffic = [TrafficMinute(name, at_s, unpacked_counts(counts), ended, late) for name, at_s, counts, ended, late in rows]
    return [UsageMinute(*row) for row in usage], traffic


def read_report(journal: JournalReader, day: str) -> DayReport | None:
    """The report of a day; None where there is none."""
    if journal.version <= _VERSION_BEFORE:
        return None
    rows = journal.rows("select report from reports where day = ?", (day,))
    return decode(DayReport, parsed_json(rows[0][0])) if rows else None
