"""Whether the requests that a drained server had have ended, as far as its metrics show."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from themis_triton.core.observation import ModelCounters, Snapshot

RESTS = "drained_rests"
MIN_QUIET_S = 5.0
QUIET_SERVICES = 3.0
"""Triton shows no requests that are being executed: one may run for so many mean times of a request at most."""


@dataclass(slots=True)
class RestWatch:
    """Tells once of each drained server that its requests have ended: none waits, and no counter moves for a while."""

    _quiet_since: dict[str, tuple[Mapping[str, ModelCounters], float]] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def follow(self, snapshot: Snapshot, drained: Collection[str]) -> Iterator[str]:
        """The sentences of one tick; `drained`: the servers to which the proxy routes no more and that run on."""
        self._told.intersection_update(drained)
        self._quiet_since = {server: seen for server, seen in self._quiet_since.items() if server in drained}
        for reading in snapshot.readings:
            if reading.error is not None or reading.server not in drained or reading.server in self._told:
                continue
            models, since_s = self._quiet_since.get(reading.server, (None, reading.at_s))
            if models != reading.models or any(counters.pending for counters in reading.models.values()):
                self._quiet_since[reading.server] = reading.models, reading.at_s
            elif (quiet_s := reading.at_s - since_s) >= _needed_s(reading.models):
                self._told.add(reading.server)
                yield f"{reading.server} has no requests any more: none waits there, and none has ended for {quiet_s:.0f} s"


def _needed_s(models: Mapping[str, ModelCounters]) -> float:
    means_us = [each.request_us / each.success for each in models.values() if each.success > 0]
    return max(MIN_QUIET_S, QUIET_SERVICES * max(means_us, default=0.0) / 1e6)
