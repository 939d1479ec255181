"""Times for display: local time, ages and durations."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

from themis_triton.core.errors import SettingsError

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_duration(text: str, flag: str) -> float:
    """The seconds of a duration such as `10m`. SettingsError names the flag for any other text."""
    try:
        value = float(text[:-1]) * UNITS_S[text[-1:]]
    except (ValueError, KeyError):
        value = -1.0
    if not 0.0 < value < float("inf"):
        raise SettingsError(f"{flag}: {text} is invalid: expected a number and a unit of {', '.join(UNITS_S)}. Fix: write for example 10m")
    return value


def parse_moment(text: str, flag: str, end_s: float, end: str) -> float:
    """The time of a text: so long before `end_s`, such as `30m`, or a local time. SettingsError names the flag for any other text."""
    if text[-1:] in UNITS_S and text[:-1].replace(".", "", 1).isdigit():
        return end_s - parse_duration(text, flag)
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        at_s = _printed_moment(text, end_s)
    if at_s is None:
        expected = f"a duration before {end}, such as 30m, or a local time, such as 14:30, 01 Mar 14:30:00 or 2026-03-01T14:30"
        raise SettingsError(f"{flag}: {text} is invalid: expected {expected}")
    return at_s


def _printed_moment(text: str, end_s: float) -> float | None:
    """The newest time until `end_s` that is printed so: a time of day, or with day and month, as `moment` writes it; else None."""
    end = datetime.fromtimestamp(end_s, UTC).astimezone()
    days = [end.date(), end.date() - timedelta(days=1)]
    written = [(f"{day} {text}", f"%Y-%m-%d {form}") for form in ("%H:%M:%S", "%H:%M") for day in days]
    written += [(f"{year} {text}", f"%Y {form}") for form in ("%d %b %H:%M:%S", "%d %b %H:%M") for year in (end.year, end.year - 1)]
    for value, form in written:
        with suppress(ValueError):
            at_s = datetime.strptime(value, form).astimezone().timestamp()
            if at_s <= end_s:
                return at_s
    return None


def age(seconds: float) -> str:
    """A duration in its largest unit, such as `2 m`."""
    seconds = max(0.0, seconds)
    unit = next(unit for unit in ("d", "h", "m", "s") if seconds >= UNITS_S[unit] or unit == "s")
    return f"{seconds / UNITS_S[unit]:.0f} {unit}"


def moment(at_s: float, now_s: float) -> str:
    """The local time and its age."""
    return f"{datetime.fromtimestamp(at_s, UTC).astimezone():%d %b %H:%M:%S} ({age(now_s - at_s)} ago)"
