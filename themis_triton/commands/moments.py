"""Times for display: local time, ages and durations."""

from __future__ import annotations

from datetime import UTC, datetime

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
        expected = f"a duration before {end}, such as 30m, or a local time, such as 2026-03-01T14:30"
        raise SettingsError(f"{flag}: {text} is invalid: expected {expected}") from None


def age(seconds: float) -> str:
    """A duration in its largest unit, such as `2 m`."""
    seconds = max(0.0, seconds)
    unit = next(unit for unit in ("d", "h", "m", "s") if seconds >= UNITS_S[unit] or unit == "s")
    return f"{seconds / UNITS_S[unit]:.0f} {unit}"


def moment(at_s: float, now_s: float) -> str:
    """The local time and its age."""
    return f"{datetime.fromtimestamp(at_s, UTC).astimezone():%d %b %H:%M:%S} ({age(now_s - at_s)} ago)"
