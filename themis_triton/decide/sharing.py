"""What requests of other pipelines and direct calls bring to one pipeline's own places, where models are on others too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.estimate import OtherDemand, PipelineEstimate
from themis_triton.core.fleet import Models, Phase, Place
from themis_triton.core.replacing import replaced
from themis_triton.decide.state import COMING, Group, PolicyInput

STANDING_BY = 0.01
"""Requests of a stage per request, where none reach the places: plans need a number."""


@dataclass(slots=True)
class SharedModels:
    """Where the instances of models are. `requested`: those of servers that pipelines have asked for in this tick, by model."""

    policy_input: PolicyInput
    config: ThemisConfig
    requested: Counter[str] = field(default_factory=Counter)

    def request(self, launch: Sequence[int], models: Sequence[Models]) -> None:
        """Note the servers that a pipeline asks for, a group, each with these models."""
        for count, states in zip(launch, models, strict=True):
            self.requested.update({name: count * state.instances for name, state in states.items()})

    def per_request(self, pipeline: PipelineConfig, groups: Sequence[Group]) -> tuple[float, ...]:
        """The requests of each stage that reach the pipeline's places, per request; empty: as configured.

        None of a model whose calls all go to another server, because it keeps state between them: its copy here only stands by.
        """
        measured, pins = self.policy_input.estimate.pipelines[pipeline.name].per_request, self.policy_input.pinned_to
        if pins.keys().isdisjoint(pipeline.stages):
            return measured
        numbers = list(measured or pipeline.per_request)
        for group in groups:
            here = {place.server.name for place in group.ready}
            for s, model in zip(group.stages, group.names, strict=True):
                if pins.get(model, "") not in {"", *here}:
                    numbers[s] = STANDING_BY
        return tuple(numbers)

    def at(self, pipeline: PipelineConfig, groups: Sequence[Group]) -> PipelineEstimate:
        """The pipeline's estimate with what reaches its places beside its own demand, one part a stage.

        Calls spread over all servers that hold a model, those inside a server stay there. What other places take of the pipeline's own
        calls makes room for others, so that each request is planned for once. The stable rate counts servers that are coming too, so
        that pipelines do not all launch one for the same demand.
        """
        estimate = self.policy_input.estimate.pipelines[pipeline.name]
        if not any(estimate.others):
            return estimate
        calls, others = estimate.per_request or pipeline.per_request, dict[int, tuple[OtherDemand, ...]]()
        for group in groups:
            for s, model in zip(group.stages, group.names, strict=True):
                ready = _Reach(pipeline, model, group.ready, self._instances(model, coming=False))
                later = _Reach(pipeline, model, (*group.ready, *group.coming), self._instances(model, coming=True))
                recent = self._rps(ready, estimate.recent_rps * calls[s], {p.pipeline: p.recent_rps for p in estimate.others[s]})
                stable = self._rps(later, estimate.stable_rps * calls[s], {p.pipeline: p.stable_rps for p in estimate.others[s]})
                executed = estimate.sizes[s].executed if estimate.sizes else 1.0
                others[s] = (OtherDemand(None, executed * recent, executed * stable),)
        return replaced(estimate, others=tuple(others[s] for s in range(len(pipeline.stages))))

    def _instances(self, model: str, *, coming: bool) -> int:
        """The instances of a model that take clients' calls."""
        servers = [s for s in self.policy_input.snapshot.servers if model in s.models and s.takes_calls(model)]
        phases = {Phase.SERVING, *COMING} if coming else {Phase.SERVING}
        return sum(s.models[model].instances for s in servers if s.phase in phases) + (self.requested[model] if coming else 0)

    def _rps(self, reach: _Reach, own_rps: float, parts: Mapping[str | None, float]) -> float:
        here = sum(rps * self._share(reach, source) for source, rps in parts.items())
        elsewhere = own_rps * (1.0 - reach.share) if reach.pipeline.entry is None else 0.0
        return max(0.0, here - elsewhere)

    def _share(self, reach: _Reach, source: str | None) -> float:
        """The share of a source's calls that reaches the places."""
        entered = next((p for p in self.config.pipelines if p.name == source and p.entry is not None), None)
        if entered is None:
            return reach.share
        groups = self.policy_input.groups(entered, self.config.planning.placement)
        places = [place for group in groups if reach.model in group.names for place in group.ready]
        servers = {place.server.name for place in reach.places}
        return _ratio(_count([place for place in places if place.server.name in servers], reach.model), _count(places, reach.model))


@dataclass(frozen=True, slots=True)
class _Reach:
    """A pipeline's places of a model, and the instances of the model on all servers."""

    pipeline: PipelineConfig
    model: str
    places: Sequence[Place]
    everywhere: int

    @property
    def share(self) -> float:
        """The share of clients' calls of the model that these places take."""
        return _ratio(_count(self.places, self.model), self.everywhere)


def _count(places: Iterable[Place], model: str) -> int:
    """The instances that take clients' calls."""
    return sum(place.models[model].instances for place in places if model in place.models and place.server.takes_calls(model))


def _ratio(part: int, whole: int) -> float:
    return min(1.0, part / whole) if whole > 0 else 1.0
