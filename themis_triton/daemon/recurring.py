"""Rises that recur, learnt from the journal's minutes: at the start, and once an hour from then on. What was seen outlives a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog

from themis_triton.adapters.store.minutes import read_minutes
from themis_triton.adapters.store.reader import reading
from themis_triton.adapters.store.rises import load_rises, save_rises
from themis_triton.core.errors import ThemisError
from themis_triton.core.history import TrafficMinute
from themis_triton.core.recurring import DAY_S, RecurringRise
from themis_triton.daemon.kernels import in_thread
from themis_triton.estimate.minutes import MINUTE_S
from themis_triton.forecast.base import FloatArray
from themis_triton.forecast.recurring import SPAN_S, SeenRises, recurring_rises
from themis_triton.ports import Clock

log = structlog.get_logger()
EVERY_S = 3600.0
KEPT_S = 14 * DAY_S
CHUNK_S = 6 * 3600
"""Minutes that are read at a time."""
OVERLAP_S = -(-SPAN_S // MINUTE_S) * MINUTE_S
LEARNT = "recurring_rises_learnt"
Recurring = Mapping[str, tuple[RecurringRise, ...]]


@dataclass(slots=True)
class RiseHistory:
    """What was seen of each pipeline, until `until_s` (a whole minute). `path`: the journal's."""

    path: Path
    until_s: int
    seen: dict[str, SeenRises] = field(default_factory=dict)

    @classmethod
    def kept(cls, path: Path, now_s: float) -> RiseHistory:
        """What an earlier sidecar has seen; nothing yet where it left nothing that can be read, which is logged."""
        earliest_s, latest_s = (int(at_s // MINUTE_S) * MINUTE_S for at_s in (now_s - KEPT_S, now_s))
        try:
            known = load_rises(path.parent)
        except (OSError, ValueError) as error:
            log.warning("recurring_rises_not_read", message=str(error))
            known = None
        if known is None:
            return cls(path, earliest_s)
        until_s, seen = known
        return cls(path, max(earliest_s, min(until_s, latest_s)), seen)

    def keep(self) -> None:
        """Write what was seen; that it cannot be written is logged."""
        try:
            save_rises(self.path.parent, self.until_s, self.seen)
        except OSError as error:
            log.warning("recurring_rises_not_kept", message=str(error))

    def extend(self, now_s: float) -> Recurring:
        """Read the minutes that have ended since, and find what recurs."""
        end_s = int(now_s // MINUTE_S) * MINUTE_S
        while self.until_s < end_s:
            start_s, self.until_s = self.until_s - OVERLAP_S, min(self.until_s + CHUNK_S, end_s)
            with reading(self.path) as journal:
                minutes = read_minutes(journal, start_s, self.until_s)[1]
            for name, counts in _counts(minutes, start_s, self.until_s).items():
                self.seen[name] = self.seen.get(name, SeenRises()).with_counts(counts, start_s)
        self.seen = {name: seen.since(now_s - KEPT_S) for name, seen in self.seen.items()}
        return {name: rises for name, seen in self.seen.items() if (rises := recurring_rises(seen))}


def _counts(minutes: Iterable[TrafficMinute], start_s: int, end_s: int) -> dict[str, FloatArray]:
    """The arrivals of each second by pipeline; NaN in minutes that were not observed."""
    counts: dict[str, FloatArray] = {}
    for minute in minutes:
        own = counts.setdefault(minute.pipeline, np.full(end_s - start_s, np.nan))
        own[minute.at_s - start_s :][:MINUTE_S] = minute.arrivals or 0.0
    return counts


async def keep_recurring(path: Path, clock: Clock, publish: Callable[[Recurring, str], None]) -> None:
    """Learn until cancelled; `publish` gets what recurs, with a sentence, where that has changed. Errors are logged."""
    history = await in_thread(lambda: RiseHistory.kept(path, clock.now_s()))
    known: Recurring = {}
    while True:
        try:
            found = await in_thread(lambda: history.extend(clock.now_s()))
        except (ThemisError, OSError, ValueError) as error:
            log.warning("recurring_rises_not_learnt", message=str(error))
        else:
            await in_thread(history.keep)
            if {name: _times(rises) for name, rises in found.items()} != {name: _times(rises) for name, rises in known.items()}:
                publish(found, recurring_words(found))
            known = found
        await asyncio.sleep(EVERY_S)


def _times(rises: Iterable[RecurringRise]) -> list[tuple[int, int]]:
    return [(rise.from_s, rise.until_s) for rise in rises]


def recurring_words(recurring: Recurring) -> str:
    """What recurs, with the likeliest time of each pipeline."""
    if not recurring:
        return "no sharp rises recur any more"
    words = []
    for name, rises in recurring.items():
        likeliest = max(rises, key=lambda rise: rise.chance)
        words.append(f"{name}: at {len(rises)} times of the day sharp rises recur; {likeliest.sentence}")
    return "; ".join(words)
