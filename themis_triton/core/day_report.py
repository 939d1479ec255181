"""The report of one day: what happened, and what Themis would have had under the same arrivals."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

REPORT_PATH = "/v1/report"


@dataclass(frozen=True, slots=True)
class DayAccount:
    """What a day's compared hours had, or would have had; `late`: the fraction of requests outside the SLO, None without requests."""

    requests: int
    late: float | None
    server_hours: float
    instance_hours: float
    cost: float
    late_by_pipeline: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DayReport:
    """One local day. `hours`: the whole hours that are compared; `hours_observed`: what of the day was observed at all.

    `simulated` None: there is no comparison, and `missing` says why.
    """

    day: str
    at_s: float
    mode: str
    hours: int
    hours_observed: float
    measured: DayAccount
    simulated: DayAccount | None
    missing: str = ""
    sentence: str = ""


def report_sentence(report: DayReport) -> str:
    """The report in one sentence."""
    had, would = report.measured, report.simulated
    if would is None:
        return f"{report.day}: no comparison: {report.missing}"
    covered = "" if report.hours >= 24 else f" in {report.hours} of 24 hours"
    if report.mode == "advisory":
        return f"{report.day}{covered}: active, Themis would have had {_words(would)}; you had {_words(had)}"
    return f"{report.day}{covered}: you had {_words(had)}; the simulator expects {_words(would)}"


def _words(account: DayAccount) -> str:
    late = "no request" if account.late is None else f"{100.0 * account.late:.2f} % late"
    return f"{late} at {account.server_hours:.1f} server-hours"


def day_span(day: str) -> tuple[float, float]:
    """The start and the end of a local day, `YYYY-MM-DD`, in seconds since the epoch. ValueError for another text."""
    first = date.fromisoformat(day)
    start, end = (datetime(each.year, each.month, each.day).astimezone() for each in (first, first + timedelta(days=1)))
    return start.timestamp(), end.timestamp()


def local_day(at_s: float, days_before: int = 0) -> str:
    """The local day of a time, or one before it."""
    return (datetime.fromtimestamp(at_s).astimezone().date() - timedelta(days=days_before)).isoformat()
