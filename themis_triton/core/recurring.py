"""Rises of the rate that recur at the same time of the day."""

from __future__ import annotations

from dataclasses import dataclass, replace

DAY_S = 86400


@dataclass(frozen=True, slots=True)
class RecurringRise:
    """A time of the day at which the rate has often risen sharply: from `from_s` until `until_s` after midnight (UTC), below a day each.

    `peak_rps`: what such rises reach; `jump_rps`: what half of them reach within two seconds. `days` have shown this time of the day,
    `seen` of them with a rise; `hours` and `seen_hourly` are the same for this part of any hour. `chance`: that there is one next time.
    """

    from_s: int
    until_s: int
    peak_rps: float
    chance: float
    seen: int
    days: int
    seen_hourly: int
    hours: int
    jump_rps: float = 0.0

    def due(self, from_s: float, until_s: float) -> bool:
        """Whether it may begin between two times (s; seconds of the epoch)."""
        into_s = (from_s - self.from_s) % DAY_S
        return into_s < self.until_s - self.from_s or into_s + (until_s - from_s) >= DAY_S

    def shifted(self, by_s: float) -> RecurringRise:
        """The rise on a clock that shows so much more (s)."""
        first_s = round(self.from_s + by_s) % DAY_S
        return replace(self, from_s=first_s, until_s=first_s + self.until_s - self.from_s)

    @property
    def sentence(self) -> str:
        """The evidence."""
        return (
            f"up to {self.peak_rps:.0f}/s are expected from {_clock(self.from_s)} to {_clock(self.until_s)}: a sharp rise began then on "
            f"{self.seen} of {self.days} days, and in {self.seen_hourly} of {self.hours} hours"
        )


def _clock(second: int) -> str:
    return f"{second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}"
