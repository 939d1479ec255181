"""The statistics of all Envoys as those of one: what each has grown by is added up, whichever come, go or start anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from themis_triton.adapters.envoy.stats import EnvoyStats, Routes
from themis_triton.adapters.envoy.xds.resources import Node
from themis_triton.adapters.envoy.xds.shares import OWN, ArrivalShares
from themis_triton.core.address import Address
from themis_triton.core.observation import LatencyHistogram, RouteReading

_COUNTERS = ("arrivals", "failures", "refused", "rest_arrivals")


@dataclass(slots=True)
class _Source:
    """One Envoy of xDS: its reader, its name, and its newest readings by model."""

    stats: EnvoyStats
    name: str
    newest: dict[str, RouteReading] = field(default_factory=dict)


class SummedStats:
    """The Envoy of the files, and those that are connected and say where their statistics are. Close it when done.

    `arrivals` counts those of each Envoy.
    """

    def __init__(
        self,
        own: EnvoyStats,
        nodes: Callable[[], Sequence[Node]],
        reader: Callable[[Address], EnvoyStats],
        arrivals: ArrivalShares | None = None,
    ) -> None:
        self._own = own
        self._arrivals = arrivals if arrivals is not None else ArrivalShares()
        self._newest_own: dict[str, RouteReading] = {}
        self._nodes = nodes
        self._reader = reader
        self._sources: dict[Address, _Source] = {}
        self._grown: dict[str, RouteReading] = {}

    async def close(self) -> None:
        """Close all connections."""
        await self._own.close()
        for source in self._sources.values():
            await source.stats.close()

    async def count_arrivals(self) -> float | None:
        """As `EnvoyStats.count_arrivals`, over all; one that does not answer counts as unchanged."""
        sources = await self._connected()
        own, *counts = await asyncio.gather(self._own.count_arrivals(), *(source.stats.count_arrivals() for source in sources))
        if own is None:
            return None
        since = (_growth(source.newest, count) for source, count in zip(sources, counts, strict=True) if count is not None)
        return own + sum(each.arrivals for each in self._grown.values()) + sum(since)

    async def read_routes(self) -> Routes:
        """As `EnvoyStats.read_routes`, over all; an error is that of the Envoy of the files."""
        sources = await self._connected()
        (own, error), *others = await asyncio.gather(self._own.read_routes(), *(source.stats.read_routes() for source in sources))
        self._newest_own = self._count(OWN, self._newest_own, own)
        for source, (readings, _) in zip(sources, others, strict=True):
            self._count(source.name, source.newest, readings)
            for reading in readings:
                self._grown[reading.model] = _added(self._grown.get(reading.model), source.newest.get(reading.model), reading)
                source.newest[reading.model] = reading
        in_flight = dict[str, float]()
        for source in sources:
            for model, reading in source.newest.items():
                in_flight[model] = in_flight.get(model, 0.0) + reading.in_flight
        return tuple(_total(reading, self._grown.get(reading.model), in_flight.get(reading.model, 0.0)) for reading in own), error

    def _count(self, envoy: str, before: Mapping[str, RouteReading], readings: Sequence[RouteReading]) -> dict[str, RouteReading]:
        """Count what arrived at an Envoy since its readings before, if there were any; the newest ones by model."""
        for reading in readings:
            known = before.get(reading.model)
            if known is not None and reading.at_s > known.at_s:
                known = known if reading.arrivals >= known.arrivals else _nothing(reading)  # it has started anew
                self._arrivals.add(
                    envoy, reading.model, reading.arrivals - known.arrivals, reading.at_s, max(0.0, reading.refused - known.refused)
                )
        return {**before, **{reading.model: reading for reading in readings}}

    async def _connected(self) -> list[_Source]:
        """The sources of the connected Envoys; those of others are closed."""
        wanted = {node.stats: node.name for node in self._nodes() if node.stats is not None}
        for address in self._sources.keys() - wanted.keys():
            await self._sources.pop(address).stats.close()
        for address, name in wanted.items():
            self._sources.setdefault(address, _Source(self._reader(address), name))
        self._arrivals.keep(frozenset((OWN, *wanted.values())))
        return [self._sources[address] for address in wanted]


def _growth(newest: Mapping[str, RouteReading], count: float) -> float:
    """By how much a count has grown since the newest readings; one that is smaller began anew, and without readings none is known."""
    before = sum(reading.arrivals for reading in newest.values()) if newest else count
    return count - before if count >= before else count


def _added(total: RouteReading | None, before: RouteReading | None, now: RouteReading) -> RouteReading:
    """The total with what a reading has grown by."""
    anew = before is not None and any(getattr(now, name) < getattr(before, name) for name in _COUNTERS)
    known = before if before is None or not anew else _nothing(now)
    base = total or _nothing(now)
    counters = {name: getattr(base, name) + (getattr(now, name) - getattr(known, name) if known is not None else 0.0) for name in _COUNTERS}
    sizes = known.latency.counts if known is not None else now.latency.counts
    counts = tuple(t + max(0.0, n - k) for t, n, k in zip(base.latency.counts, now.latency.counts, sizes, strict=True))
    return replace(base, at_s=now.at_s, latency=LatencyHistogram(now.latency.bounds_ms, counts), **counters)


def _nothing(like: RouteReading) -> RouteReading:
    return RouteReading(like.model, like.at_s, 0.0, 0.0, 0.0, LatencyHistogram(like.latency.bounds_ms, (0.0,) * len(like.latency.counts)))


def _total(own: RouteReading, grown: RouteReading | None, in_flight: float) -> RouteReading:
    """The reading of the Envoy of the files, with what the others have."""
    if grown is None:
        return own
    counters = {name: getattr(own, name) + getattr(grown, name) for name in _COUNTERS}
    counts = tuple(a + b for a, b in zip(own.latency.counts, grown.latency.counts, strict=True))
    return replace(own, in_flight=own.in_flight + in_flight, latency=LatencyHistogram(own.latency.bounds_ms, counts), **counters)
