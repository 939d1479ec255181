"""A slow simulation of servers with places, in plain Python: the oracle of the compiled one, with which it shares no code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

Service = Callable[[int, int, int], float]
"""Seconds for a batch of a model, of a size, while so many batches are under way on the device."""


@dataclass(eq=False)
class Place:
    """A device that a server uses: its instances of each model."""

    device: int
    instances: list[int]


@dataclass(eq=False)
class Batch:
    """Requests that one instance serves; `left` is the fraction that remains."""

    place: Place
    model: int
    requests: list[int]
    factor: float
    left: float = 1.0


@dataclass(eq=False)
class PlacesServer:
    """A server with one queue for each model; `row` is its number in routing."""

    row: int
    places: list[Place]
    max_batch: int = 1
    delay_s: float = 0.0
    queues: dict[int, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """New instance counts of one model on each place of a server."""

    at_s: float
    server: int
    model: int
    instances: Sequence[int]


def exponential_factors(seed: int) -> Iterator[float]:
    """Factors with mean 1: xorshift64*, from the seed sequence of a simulation."""
    mask, x = 2**64 - 1, int(np.random.SeedSequence(seed).generate_state(1, dtype=np.uint64)[0]) | 1
    while True:
        x ^= x >> 12
        x ^= (x << 25) & mask
        x ^= x >> 27
        yield -math.log((((x * 2685821657736338717) & mask) // 2**11 + 1) / 2**53)


class PlacesReference:
    """Requests (time and model, ascending) through servers: least-request routing, one queue a server and model, sharing of devices."""

    def __init__(
        self, requests: Sequence[tuple[float, int]], servers: Sequence[PlacesServer], rows: int, service: Service, factors: Iterator[float]
    ) -> None:
        self.requests, self.servers, self.rows, self.service, self.factors = requests, servers, rows, service, factors
        self.ended_s = [math.inf] * len(requests)
        self.batches: list[Batch] = []
        self.cursor: dict[int, int] = {}
        self.now_s = 0.0

    def run(self, changes: Sequence[Change] = ()) -> list[float]:
        """The time at which each request ends."""
        events: list[tuple[float, int | Change]] = [(at_s, number) for number, (at_s, _) in enumerate(self.requests)]
        events = sorted([*events, *((change.at_s, change) for change in changes)], key=lambda event: event[0])
        for at_s, event in [*events, (math.inf, None)]:
            while (next_s := min(self._next_end_s(), self._next_timer_s())) < at_s:
                self._until(next_s)
            if event is None:
                break
            self._until(at_s)
            if isinstance(event, Change):
                for place, count in zip(self.servers[event.server].places, event.instances, strict=True):
                    place.instances[event.model] = count
            else:
                self._route(event)
            self._start_batches()
        return self.ended_s

    def _whole_s(self, batch: Batch) -> float:
        share = sum(other.place.device == batch.place.device for other in self.batches)
        return self.service(batch.model, len(batch.requests), share) * batch.factor

    def _next_end_s(self) -> float:
        return min((self.now_s + batch.left * self._whole_s(batch) for batch in self.batches), default=math.inf)

    def _next_timer_s(self) -> float:
        waiting = [(server, model) for server in self.servers for model, queue in server.queues.items() if queue]
        return min((self._due_s(server, model) for server, model in waiting if self._idle_places(server, model)), default=math.inf)

    def _due_s(self, server: PlacesServer, model: int) -> float:
        return self.requests[server.queues[model][0]][0] + server.delay_s

    def _until(self, at_s: float) -> None:
        """Advance to a time at which at most one batch ends."""
        first = min(self.batches, key=lambda batch: batch.left * self._whole_s(batch), default=None)
        ends = first is not None and self._next_end_s() <= at_s
        elapsed = [(at_s - self.now_s) / self._whole_s(batch) for batch in self.batches]
        for batch, done in zip(self.batches, elapsed, strict=True):
            batch.left = max(0.0, batch.left - done)
        self.now_s = at_s
        if first is not None and ends:
            self.batches.remove(first)
            for request in first.requests:
                self.ended_s[request] = at_s
        self._start_batches()

    def _route(self, request: int) -> None:
        model = self.requests[request][1]
        start = self.cursor.get(model, 0)
        server = min(self.servers, key=lambda s: (self._outstanding(s, model), (s.row - start) % self.rows))
        self.cursor[model] = server.row + 1
        server.queues.setdefault(model, []).append(request)

    def _outstanding(self, server: PlacesServer, model: int) -> int:
        running = sum(len(batch.requests) for batch in self.batches if batch.model == model and batch.place in server.places)
        return running + len(server.queues.get(model, ()))

    def _idle_places(self, server: PlacesServer, model: int) -> list[Place]:
        def busy(place: Place) -> int:
            return sum(batch.place is place and batch.model == model for batch in self.batches)

        return [place for place in server.places if busy(place) < place.instances[model]]

    def _start_batches(self) -> None:
        for server in self.servers:
            for model, queue in server.queues.items():
                while queue and (idle := self._idle_places(server, model)):
                    if len(queue) < server.max_batch and self._due_s(server, model) > self.now_s:
                        break
                    place = min(idle, key=lambda p: sum(batch.place.device == p.device for batch in self.batches))
                    taken, queue[:] = queue[: server.max_batch], queue[server.max_batch :]
                    self.batches.append(Batch(place, model, taken, next(self.factors)))
