"""Requests of a model with sequences that a server executes though all calls of that model go to another one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from themis_triton.core.fleet import Phase, Server
from themis_triton.core.incident import Incident, IncidentKind
from themis_triton.core.observation import ServerReading

SETTLE_S = 10.0
"""For so long after a model was pinned elsewhere its requests on a server may be older ones."""
Pair = tuple[str, str]


@dataclass(slots=True)
class StraySequences:
    """Counts of the executions on servers without the pin. Where they grow, a model there makes the calls by itself (BLS)."""

    incidents: list[Incident]
    _unpinned_since_s: dict[Pair, float] = field(default_factory=dict)
    _counts: dict[Pair, float] = field(default_factory=dict)
    _faults: dict[Pair, str] = field(default_factory=dict)

    @property
    def faults(self) -> tuple[str, ...]:
        """The models with such requests, a sentence each."""
        return tuple(words for _, words in sorted(self._faults.items()))

    def note(self, servers: Collection[Server], readings: Iterable[ServerReading]) -> None:
        """Compare the readings with the last ones; report each model once."""
        unpinned = dict(_unpinned(servers))
        for store in (self._unpinned_since_s, self._counts, self._faults):
            for pair in [pair for pair in store if pair not in unpinned]:
                del store[pair]
        for reading in readings:
            for pair in [pair for pair in unpinned if pair[0] == reading.server and reading.error is None]:
                self._compare(pair, unpinned[pair], reading)

    def _compare(self, pair: Pair, pinned: str, reading: ServerReading) -> None:
        counters = reading.models.get(pair[1])
        since_s = self._unpinned_since_s.setdefault(pair, reading.at_s)
        if counters is None or reading.at_s - since_s < SETTLE_S:
            return
        before, now = self._counts.get(pair), counters.success + counters.failure
        self._counts[pair] = now
        if before is not None and now > before and pair not in self._faults:
            server, model = pair
            self._faults[pair] = words = (
                f"all calls of {model}, which keeps state between them, go to {pinned}, and {server} executes some: a model there calls it "
                f"by itself, or a client calls {server} directly. Fix: name it among the `calls` of its caller"
            )
            self.incidents.append(Incident(IncidentKind.SEQUENCE_STRAYED, server, words, model))


def _unpinned(servers: Collection[Server]) -> Iterator[tuple[Pair, str]]:
    """The stateful models of each serving server without their pin, with the server that has it."""
    pinned = {model: server.name for server in servers for model in server.pinned}
    for server in servers:
        for model in server.stateful if server.phase is Phase.SERVING else ():
            if model not in server.pinned and model in pinned:
                yield (server.name, model), pinned[model]
