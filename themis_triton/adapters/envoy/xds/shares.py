"""The part of each admission limit that each Envoy gets: as it had of the model's arrivals in the last seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from themis_triton.core.routes import RouteTable

OWN = ""
"""The Envoy of the files, among the names of the others."""
MEMORY_S = 5.0
"""What arrived so long ago counts for 37 %."""
RECENT_S = 1.0
"""The same for the rate of now, which rises with a surge."""
RESERVE = 0.1
"""The part of a limit that Envoys without requests share, beside what the others get: so much more may pass when clients move."""
MIN_ARRIVALS = 20.0
"""With fewer remembered arrivals of a model its limit is split equally."""
STEADY, STEADY_REFUSING = 0.15, 0.05
"""Parts stay as they are until one has changed by so much of itself; the latter while requests are refused."""
Shares = Mapping[str, Mapping[str, float]]
"""By Envoy, and by model."""


@dataclass(slots=True)
class _Count:
    at_s: float
    arrivals: float = 0.0
    recent: float = 0.0
    refused: float = 0.0

    def add(self, arrivals: float, refused: float, at_s: float) -> None:
        recent, before = self._kept(self.recent, at_s, RECENT_S), self._kept(self.refused, at_s, MEMORY_S)
        self.arrivals, self.recent, self.refused, self.at_s = self.at(at_s) + arrivals, recent + arrivals, before + refused, at_s

    def at(self, now_s: float) -> float:
        """The arrivals that are remembered."""
        return self._kept(self.arrivals, now_s, MEMORY_S)

    def rate_at(self, now_s: float) -> float:
        """Requests per second, rather too many than too few."""
        return max(self.at(now_s) / MEMORY_S, self._kept(self.recent, now_s, RECENT_S) / RECENT_S)

    def _kept(self, arrivals: float, now_s: float, memory_s: float) -> float:
        return arrivals * math.exp(-max(0.0, now_s - self.at_s) / memory_s)


@dataclass(slots=True)
class ArrivalShares:
    """Counts arrivals by Envoy and model, and splits limits by them."""

    _counts: dict[tuple[str, str], _Count] = field(default_factory=dict)
    _newest_s: float = 0.0
    _kept: frozenset[str] = frozenset()

    def add(self, envoy: str, model: str, arrivals: float, at_s: float, refused: float = 0.0) -> None:
        """Count requests that arrived at an Envoy, and those of them that it refused."""
        self._counts.setdefault((envoy, model), _Count(at_s)).add(arrivals, refused, at_s)
        self._newest_s = max(self._newest_s, at_s)

    def keep(self, envoys: frozenset[str]) -> None:
        """Forget the other Envoys."""
        if envoys != self._kept:
            self._kept = envoys
            self._counts = {key: count for key, count in self._counts.items() if key[0] in envoys}

    def tolerance(self, model: str, envoys: Sequence[str]) -> float:
        """By how much of itself a part may be another one than was sent."""
        counts = [count for name in envoys if (count := self._counts.get((name, model))) is not None]
        return STEADY_REFUSING if sum(count.refused for count in counts) >= 1.0 else STEADY

    def split(self, model: str, limit_rps: float, envoys: Sequence[str]) -> dict[str, float]:
        """The part of each Envoy. One whose requests are not counted, or not yet, has an equal part.

        Of the others each has its part of the requests, and an equal one of what the limit has beyond all requests; one with next to
        none has its part of the reserve.
        """
        counts = {name: count for name in envoys if (count := self._counts.get((name, model))) is not None}
        seen = {name: count.at(self._newest_s) for name, count in counts.items()}
        total, equal = sum(seen.values()), 1.0 / max(1, len(envoys))
        if total < MIN_ARRIVALS:
            return dict.fromkeys(envoys, equal)
        left = 1.0 - equal * (len(envoys) - len(seen))
        rate_rps = sum(count.rate_at(self._newest_s) for count in counts.values())
        spare = max(0.0, 1.0 - rate_rps / limit_rps) if limit_rps > 0.0 else 0.0
        busy = {name: arrivals for name, arrivals in seen.items() if arrivals > RESERVE * equal * total}
        taken = sum(busy.values())
        by_requests = {name: left * busy[name] / taken if name in busy else RESERVE * equal for name in seen}
        return {name: (1.0 - spare) * by_requests[name] + spare * equal if name in seen else equal for name in envoys}


def steady(before: Mapping[str, float], now: Mapping[str, float], tolerance: float = STEADY) -> bool:
    """Whether parts have changed too little to be sent anew."""
    return before.keys() == now.keys() and all(abs(now[name] - part) <= tolerance * part for name, part in before.items())


def with_shares(table: RouteTable, shares: Mapping[str, float], otherwise: float) -> RouteTable:
    """The table with one Envoy's parts of the limits; `otherwise`: of models that are not named."""
    models = {
        model: replace(route, limit=replace(route.limit, share=shares.get(model, otherwise))) if route.limit is not None else route
        for model, route in table.models.items()
    }
    return replace(table, models=models)
