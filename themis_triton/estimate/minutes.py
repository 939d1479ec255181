"""What happened, by the minute: each pipeline's arrivals by second and its late requests, and what the fleet cost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from themis_triton.core.attainment import EndedRequests
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.history import TrafficMinute, UsageMinute
from themis_triton.core.observation import RouteReading, Snapshot
from themis_triton.core.price import running_price
from themis_triton.estimate.shared import Relations, relations_of

MINUTE_S = 60
MAX_TICK_S = 10.0
"""A longer time between two ticks was not observed."""
Routes = Mapping[str, RouteReading]
Shares = Sequence[tuple[int, float]]
"""Seconds of a minute, with the part of what is counted that belongs to each."""
Callers = Collection[tuple[PipelineConfig, int]]
"""Pipelines that call a front as one of their stages, with the stage."""


@dataclass(slots=True)
class Minutes:
    """Joins snapshots into minutes; what arrived between two of them is spread evenly over that time."""

    start_s: int | None = None
    last_s: float = 0.0
    last: Routes = field(default_factory=dict)
    arrivals: dict[str, list[float]] = field(default_factory=dict)
    ended: dict[str, EndedRequests] = field(default_factory=dict)
    seconds: float = 0.0
    server_s: float = 0.0
    instance_s: float = 0.0
    cost: float = 0.0
    relations: Relations | None = None

    def take(
        self, snapshot: Snapshot, config: ThemisConfig, requests: Mapping[str, EndedRequests]
    ) -> tuple[UsageMinute, tuple[TrafficMinute, ...]] | None:
        """Add a snapshot, and the requests of each pipeline that were found to have ended by then.

        Returns the minute that it ends, if it ends one of which anything was observed.
        """
        ended, start_s = None, int(snapshot.at_s // MINUTE_S) * MINUTE_S
        if start_s != self.start_s:
            ended = self.end(config)
            self._begin(start_s)
        elapsed_s, routes = snapshot.at_s - self.last_s, {route.model: route for route in snapshot.routes}
        for name, each in requests.items():
            self.ended[name] = self.ended.get(name, EndedRequests()) + each
        if 0.0 < elapsed_s <= MAX_TICK_S:
            self._use(snapshot, config, elapsed_s)
            self.relations = relations_of(self.relations, config.pipelines)
            shares = tuple(_shares(self.last_s - start_s, snapshot.at_s - start_s))
            for pipeline in config.pipelines:
                self._count(pipeline, self.relations.others.get(pipeline.front, ()), routes, shares)
        self.last_s, self.last = snapshot.at_s, {**self.last, **routes}
        return ended

    def end(self, config: ThemisConfig) -> tuple[UsageMinute, tuple[TrafficMinute, ...]] | None:
        """The minute as far as it was observed; None where nothing was."""
        if self.start_s is None or not self.seconds:
            return None
        usage = UsageMinute(self.start_s, self.seconds, self.server_s, self.instance_s, self.cost)
        return usage, tuple(self._traffic(pipeline, self.start_s) for pipeline in config.pipelines)

    def _begin(self, start_s: int) -> None:
        self.start_s, self.arrivals, self.ended = start_s, {}, {}
        self.seconds = self.server_s = self.instance_s = self.cost = 0.0

    def _use(self, snapshot: Snapshot, config: ThemisConfig, elapsed_s: float) -> None:
        instances = sum(state.instances for server in snapshot.servers for state in server.models.values())
        self.seconds += elapsed_s
        self.server_s += elapsed_s * len(snapshot.servers)
        self.instance_s += elapsed_s * instances
        self.cost += elapsed_s * running_price((server.models for server in snapshot.servers), config)

    def _count(self, pipeline: PipelineConfig, callers: Callers, routes: Routes, shares: Shares) -> None:
        """Add what arrived for a pipeline since the snapshot before, by `_shares`: at its front, less what other pipelines call there."""
        count = self._arrived(pipeline.front, routes)
        for other, stage in callers:
            count -= other.per_request[stage] * self._arrived(other.front, routes)
        if count <= 0.0:
            return
        seconds = self.arrivals.setdefault(pipeline.name, [0.0] * MINUTE_S)
        for second, share in shares:
            seconds[second] += share * count

    def _arrived(self, model: str, routes: Routes) -> float:
        if model not in routes or model not in self.last:
            return 0.0
        now, before = routes[model].arrivals, self.last[model].arrivals
        return now - before if now >= before else now

    def _traffic(self, pipeline: PipelineConfig, start_s: int) -> TrafficMinute:
        ended = self.ended.get(pipeline.name, EndedRequests())
        return TrafficMinute(pipeline.name, start_s, tuple(self.arrivals.get(pipeline.name, ())), ended.requests, ended.late)


def _shares(from_s: float, to_s: float) -> Iterator[tuple[int, float]]:
    """The seconds of the minute in a span and the fraction of the span in each; what lies before the minute counts to its first one."""
    for second in range(max(0, int(from_s)), min(MINUTE_S - 1, int(to_s)) + 1):
        start_s = from_s if second == max(0, int(from_s)) else float(second)
        end_s = to_s if second == min(MINUTE_S - 1, int(to_s)) else second + 1.0
        if end_s > start_s:
            yield second, (end_s - start_s) / (to_s - from_s)
