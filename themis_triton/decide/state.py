"""A policy's input and its state."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter, itemgetter

from themis_triton.core.config import PipelineConfig, Placement
from themis_triton.core.construction import quick_init
from themis_triton.core.decision import PipelineEvidence, Stage
from themis_triton.core.estimate import Estimate
from themis_triton.core.fleet import Models, Phase, Place, Server, models_on, places_of
from themis_triton.core.observation import OpenCall, Snapshot
from themis_triton.core.replacing import replaced
from themis_triton.core.routes import RouteLimit
from themis_triton.decide.bursts import NO_BURSTS, BurstMemory
from themis_triton.decide.scores import Predictions
from themis_triton.decide.slow_target import Circumstances, Planned

COMING = frozenset({Phase.LAUNCHING, Phase.WARMING})


@quick_init
@dataclass(frozen=True, slots=True)
class Group:
    """Stages of a chain on the same places, by their index in it: all where they are co-located, else one.

    `ready` places are those of servers in the routes, ordered by the servers' names; `coming` ones belong to servers that launch or
    warm up or load a model again, or are being added to a running server.
    """

    stages: tuple[int, ...]
    names: tuple[str, ...]
    ready: tuple[Place, ...]
    coming: tuple[Place, ...]


@dataclass(frozen=True)
class PolicyInput:
    """One tick's input to a policy. `busy`: mean busy instances by server and model, where it matters and is known."""

    snapshot: Snapshot
    estimate: Estimate
    busy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def busy_elsewhere(self, place: Place, stages: Sequence[str]) -> int:
        """Instances of other models that are busy at a place at a time: a standard deviation above their mean, and at most all there.

        A model of which nothing is known counts with all of its instances.
        """
        known, unknown, mean = 0, 0, 0.0
        for name, count, busy in self._busy_at(place):
            if name in stages:
                continue
            if busy is None:
                unknown += count
            else:
                known += count
                mean += busy
        return unknown + min(math.ceil(mean + math.sqrt(mean)), known)

    def _busy_at(self, place: Place) -> list[tuple[str, int, float | None]]:
        """The models at a place with their instances there, and the mean number of busy ones; None where that is not known."""
        found = self._busy_places.get(place.name)
        if found is None:
            busy, models = self.busy.get(place.server.name, {}), place.server.models
            counts = [(name, state.instances) for name, state in place.models.items() if state.instances]
            # The server's counters do not tell its devices apart.
            found = [(name, n, busy[name] * n / max(1, models[name].instances) if name in busy else None) for name, n in counts]
            self._busy_places[place.name] = found
        return found

    def knows_busy(self, place: Place, stages: Sequence[str]) -> bool:
        """Whether it is known how busy the other models of a place are."""
        busy = self.busy.get(place.server.name, {})
        return all(name in busy or name in stages or not state.instances for name, state in place.models.items())

    def groups(self, pipeline: PipelineConfig, placement: Placement) -> tuple[Group, ...]:
        """The chain's groups with the places that hold all stages of each."""
        key = (pipeline.stages, pipeline.entry, placement)
        if key not in self._groups:
            self._groups[key] = self._find_groups(pipeline, placement)
        return self._groups[key]

    @cached_property
    def _groups(self) -> dict[Hashable, tuple[Group, ...]]:
        """The groups that have been asked for."""
        return {}

    @cached_property
    def _busy_places(self) -> dict[str, list[tuple[str, int, float | None]]]:
        """What `_busy_at` has found."""
        return {}

    def _find_groups(self, pipeline: PipelineConfig, placement: Placement) -> tuple[Group, ...]:
        every = tuple(range(len(pipeline.stages)))
        parts = [every] if placement is Placement.COLOCATED else [(stage,) for stage in every]
        return tuple(self._group(tuple(pipeline.stages[s] for s in part), part, pipeline.entry) for part in parts)

    @cached_property
    def pinned_to(self) -> Mapping[str, str]:
        """The server that has all calls of a model with state between them, by model."""
        return {model: server.name for server in self.snapshot.servers for model in server.pinned}

    def stateful(self, stages: Sequence[str]) -> bool:
        """Whether a server holds one of the models with state between calls: then one server has all of their calls."""
        return not self._stateful_models.isdisjoint(stages)

    @cached_property
    def _stateful_models(self) -> frozenset[str]:
        """The models with state between calls that a server holds."""
        return frozenset(model for server in self.snapshot.servers for model in server.stateful)

    @cached_property
    def ages_s(self) -> Mapping[str, Sequence[float]]:
        """How long ago the arrivals of a model were counted."""
        ages: dict[str, list[float]] = {}
        for route in self.snapshot.routes:
            ages.setdefault(route.model, []).append(self.snapshot.at_s - route.at_s)
        return ages

    def _group(self, names: tuple[str, ...], part: tuple[int, ...], entry: str | None) -> Group:
        """A server whose stateful models get their calls elsewhere is ready where no other one is: the rest of the calls come there."""
        holding_all = [s for s in self.servers_by_model.get(names[0], ()) if all(name in s.models for name in names)]
        holding = [s for s in holding_all if has_entry(s, entry)]
        able = [s for s in holding if s.phase is Phase.SERVING and (entry is None or s.takes_calls(entry))]
        able = [s for s in able if all(map(s.takes_calls, names))] or [s for s in able if any(map(s.takes_calls, names))]
        serving = [(server, places_of(server, names, self._models_on)) for server in able]
        may_load = self.snapshot.servers if self.snapshot.loading else holding_all if entry is not None else ()
        loading = [Place(server, "", {}) for server in may_load if self._is_loading(server, names, entry)]
        launching = [Place(server, "", server.models) for server in holding if server.phase in COMING]
        extending = [place for server, places in serving if server.reach for place in self._extending(server, places, names)]
        return Group(part, names, tuple(place for _, places in serving for place in places), (*launching, *loading, *extending))

    def _models_on(self, server: Server, device: str) -> Models:
        """As `models_on`: the places of all pipelines there have the same ones."""
        key = (server.name, device)
        if key not in self._device_models:
            self._device_models[key] = models_on(server, device)
        return self._device_models[key]

    @cached_property
    def _device_models(self) -> dict[tuple[str, str], Models]:
        """What `_models_on` has found."""
        return {}

    @cached_property
    def servers_by_model(self) -> Mapping[str, Sequence[Server]]:
        """The servers that hold a model, in the snapshot's order."""
        holders: dict[str, list[Server]] = {}
        for server in self.snapshot.servers:
            for model in server.models:
                holders.setdefault(model, []).append(server)
        return holders

    @cached_property
    def open_models(self) -> frozenset[str]:
        """The models with an open call."""
        return frozenset(call.model for call in self.snapshot.open_calls)

    @cached_property
    def _open_calls(self) -> Mapping[str, Sequence[OpenCall]]:
        """The open calls of each server."""
        calls: dict[str, list[OpenCall]] = {}
        for call in self.snapshot.open_calls:
            calls.setdefault(call.server, []).append(call)
        return calls

    def _is_loading(self, server: Server, models: Sequence[str], entry: str | None) -> bool:
        """Whether the models that a serving server lacks are all being loaded; a launched one that lacks the entry alone gets it next."""
        missing = [model for model in models if model not in server.models]
        if server.phase is not Phase.SERVING or (not missing and has_entry(server, entry)):
            return False
        if not missing:
            return server.launched and f"{server.name}/{entry}" not in self.snapshot.backing_off
        return all((server.name, model) in self.snapshot.loading for model in missing)

    def _extending(self, server: Server, places: tuple[Place, ...], names: tuple[str, ...]) -> list[Place]:
        """The places that open calls are adding to a server."""
        ready = {place.device for place in places}
        calls = [call for call in self._open_calls.get(server.name, ()) if call.model in names]
        added = dict.fromkeys(device for call in calls for device in call.after.added(call.before) if not call.before.on(device))
        return [Place(server, device, {}, extra=True) for device in added if device not in ready]


def has_entry(server: Server, entry: str | None) -> bool:
    """Whether clients' calls for a pipeline's entry can reach a server: its index lists the model, or is not known, or the server comes."""
    if entry is None or entry in server.models or server.phase in COMING:
        return True
    return server.ready_models is None or entry in server.ready_models


@dataclass(frozen=True, slots=True)
class DemandSample:
    """Instances of each stage that were needed at one time, on the servers a group of that time."""

    at_s: float
    instances: tuple[int, ...]
    servers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AutoscalerState:
    """What an autoscaler of one group remembers, each entry with its time: samples of its metric, recommended counts, changes made.

    `servers`: the present target; 0 before the first one. `next_at_s`: when it decides again. `panic_at_s`: when a burst was last seen.
    """

    servers: int = 0
    next_at_s: float = 0.0
    samples: tuple[tuple[float, float], ...] = ()
    recommended: tuple[tuple[float, int], ...] = ()
    changes: tuple[tuple[float, int], ...] = ()
    panic_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Resting:
    """Under which circumstances a pipeline was left as it is, when, and that proposal."""

    since: Circumstances
    at_s: float
    stage: Stage
    evidence: PipelineEvidence
    launch_models: tuple[Models, ...]
    detail: str


@quick_init
@dataclass(frozen=True, slots=True)
class PipelineState:
    """A policy's state of one pipeline: recent samples of demand, desired servers a group with their times, and fixed values.

    `exceeded_since_s`: since when the demand has exceeded the capacity; None while it does not. `slow`: the slow loop's last target.
    `bursts`: what is remembered of those that outran the servers. `autoscalers`: those of baselines that have one a group.
    `resting`: of a steady pipeline of a large fleet, see `decide.resting`.
    """

    samples: tuple[DemandSample, ...] = ()
    desired: tuple[tuple[float, tuple[int, ...]], ...] = ()
    fixed_instances: tuple[int, ...] = ()
    fixed_servers: tuple[int, ...] = ()
    fixed_rps: float = 0.0
    exceeded_since_s: float | None = None
    slow: Planned | None = None
    bursts: BurstMemory = NO_BURSTS
    autoscalers: tuple[AutoscalerState, ...] = ()
    resting: Resting | None = None

    def with_desired(self, at_s: float, servers: tuple[int, ...], window_s: float) -> PipelineState:
        """With one more entry; of those older than the window the newest is kept, which shows that the window is covered."""
        older = bisect_right(self.desired, at_s - window_s, key=itemgetter(0))
        return replaced(self, desired=(*self.desired[max(0, older - 1) :], (at_s, servers)))

    def max_desired(self) -> tuple[int, ...]:
        """Largest desired count of each group in the kept entries."""
        return tuple(max(column) for column in zip(*(servers for _, servers in self.desired), strict=True))

    def covered_s(self, at_s: float) -> float:
        """Seconds that the kept entries reach back."""
        return at_s - self.desired[0][0]

    def with_sample(self, sample: DemandSample, window_s: float) -> PipelineState:
        """With one more sample; samples for other servers are dropped, and of those older than the window all but the newest.

        That one shows that the window is covered, however far apart the ticks are.
        """
        same = [n for n in self.samples if n.servers == sample.servers]
        older = bisect_right(same, sample.at_s - window_s, key=attrgetter("at_s"))
        return replaced(self, samples=(*same[max(0, older - 1) :], sample))

    def max_instances_needed(self) -> tuple[int, ...]:
        """Largest need of each stage in the kept samples."""
        return tuple(max(column) for column in zip(*(sample.instances for sample in self.samples), strict=True))


@dataclass(frozen=True, slots=True)
class StandingLimit:
    """The admission limit of a pipeline that holds, since when, and the capacity that it was made for."""

    limit: RouteLimit
    since_s: float
    capacity_rps: float


@dataclass(frozen=True, slots=True)
class Division:
    """Devices of the pool by pipeline, when they were divided, and under which circumstances."""

    at_s: float
    since: Circumstances
    shares: tuple[int, ...]


@quick_init
@dataclass(frozen=True, slots=True)
class PolicyState:
    """The policy's state between ticks. `short_since_s`: since when slots have been short; `division`: how they are divided then.

    `changed_places`: servers with devices that the policy added to them, or began to give up.
    `left`: pipelines with the crowded servers that they have left. `limits`: the admission limits that hold, by pipeline.
    `predictions`: what was observed of those that were made. `resting_servers`: those of pipelines that rest, see `decide.resting`: what
    they count is not needed at every tick.
    """

    pipelines: dict[str, PipelineState] = field(default_factory=dict)
    short_since_s: float | None = None
    changed_places: frozenset[tuple[str, str]] = frozenset()
    left: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    limits: Mapping[str, StandingLimit] = field(default_factory=dict)
    predictions: Predictions = field(default_factory=Predictions)
    resting_servers: frozenset[str] = frozenset()
    division: Division | None = None

    def reset_windows(self) -> PolicyState:
        """The state after a time without observations, which earlier samples do not cover."""
        pipelines = {name: replaced(state, samples=(), desired=(), slow=None, resting=None) for name, state in self.pipelines.items()}
        return PolicyState(
            pipelines,
            changed_places=self.changed_places,
            left=self.left,
            limits=self.limits,
            predictions=self.predictions.interrupted(),
        )
