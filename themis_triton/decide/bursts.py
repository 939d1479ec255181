"""Bursts that keep outrunning the servers until the percentile of the SLO is missed: servers then stand ready for the next one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from themis_triton.core.attainment import EndedRequests

PART_S, JUDGED_S = 600.0, 3600.0
"""Requests are counted by parts of the time, and the percentile is judged over the last hour of them."""
BURSTS, CALM_S = 3, 10.0
"""So many bursts must have come in that hour, each after a calm of at least this time: a single surge is no reason to stand ready."""
BURST_FACTOR = 2.0
"""A burst is a newest rate of at least this multiple of the stable one: slower service times are no burst."""
AFTERMATH_S = 10.0
"""A request is late by a burst if it ends within a launch's time and this after a burst exceeded the capacity."""


@dataclass(frozen=True, slots=True)
class BurstTick:
    """What a tick shows: the requests that ended since the last one, two rates, and whether the demand exceeds the capacity."""

    at_s: float
    ended: EndedRequests
    rate_rps: float
    stable_rps: float
    exceeds: bool

    @property
    def is_burst(self) -> bool:
        """Whether a burst outruns the servers."""
        return self.exceeds and self.rate_rps >= BURST_FACTOR * self.stable_rps


@dataclass(frozen=True, slots=True)
class BurstPart:
    """A part of the time: requests that ended, those that were late by bursts, how many of these began, and the highest rate in them."""

    start_s: float
    ended: float = 0.0
    late: float = 0.0
    bursts: int = 0
    peak_rps: float = 0.0


@dataclass(frozen=True, slots=True)
class BurstMemory:
    """What is remembered of a pipeline's bursts. `exceeded_at_s`: when a burst last exceeded the capacity.

    `missed_at_s`: when bursts last made the pipeline miss its percentile.
    """

    parts: tuple[BurstPart, ...] = ()
    exceeded_at_s: float = float("-inf")
    missed_at_s: float = float("-inf")

    def observed(self, now: BurstTick, percentile: float, launch_s: float, keep_s: float) -> BurstMemory:
        """With one tick more. `percentile`: the SLO's; `launch_s`: how long a server takes; `keep_s`: how long peaks are remembered."""
        begins = now.is_burst and now.at_s - self.exceeded_at_s > CALM_S
        exceeded_at_s = now.at_s if now.is_burst else self.exceeded_at_s
        outrun = now.at_s - exceeded_at_s <= launch_s + AFTERMATH_S
        earlier, part = self._at(now.at_s, keep_s)
        part = BurstPart(
            part.start_s,
            part.ended + now.ended.requests,
            part.late + (now.ended.late if outrun else 0.0),
            part.bursts + begins,
            max(part.peak_rps, now.rate_rps) if now.is_burst else part.peak_rps,
        )
        memory = BurstMemory((*earlier, part), exceeded_at_s, self.missed_at_s)
        return replace(memory, missed_at_s=now.at_s) if memory._misses(now.at_s, percentile) else memory

    def _at(self, at_s: float, keep_s: float) -> tuple[tuple[BurstPart, ...], BurstPart]:
        """The earlier parts, and that of a time."""
        if self.parts and at_s < self.parts[-1].start_s + PART_S:
            return self.parts[:-1], self.parts[-1]
        return tuple(part for part in self.parts if part.start_s > at_s - max(keep_s, JUDGED_S)), BurstPart(at_s)

    def _misses(self, at_s: float, percentile: float) -> bool:
        judged = [part for part in self.parts if part.start_s > at_s - JUDGED_S]
        if sum(part.bursts for part in judged) < BURSTS:
            return False
        return sum(part.late for part in judged) > (1.0 - percentile / 100.0) * sum(part.ended for part in judged)

    def ready_for_rps(self, at_s: float, keep_s: float) -> float:
        """The highest rate of the remembered bursts, for which servers stand ready; 0 where these were met, or `keep_s` is 0."""
        if not keep_s or at_s - self.missed_at_s > keep_s:
            return 0.0
        return max((part.peak_rps for part in self.parts if part.start_s > at_s - keep_s), default=0.0)


NO_BURSTS = BurstMemory()
