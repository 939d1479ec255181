"""A policy's input and its state."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from themis_triton.core.config import PipelineConfig, Placement
from themis_triton.core.estimate import Estimate
from themis_triton.core.fleet import Phase, Place, Server, places_of
from themis_triton.core.observation import Snapshot

COMING = frozenset({Phase.LAUNCHING, Phase.WARMING})


@dataclass(frozen=True, slots=True)
class Group:
    """Stages of a chain on the same places, by their index in it: all where they are co-located, else one.

    `ready` places are those of servers in the routes, ordered by the servers' names; `coming` ones belong to servers that launch or
    warm up, or are being added to a running server.
    """

    stages: tuple[int, ...]
    names: tuple[str, ...]
    ready: tuple[Place, ...]
    coming: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class PolicyInput:
    """One tick's input to a policy."""

    snapshot: Snapshot
    estimate: Estimate

    def groups(self, pipeline: PipelineConfig, placement: Placement) -> tuple[Group, ...]:
        """The chain's groups with the places that hold all stages of each."""
        every = tuple(range(len(pipeline.stages)))
        parts = [every] if placement is Placement.COLOCATED else [(stage,) for stage in every]
        return tuple(self._group(tuple(pipeline.stages[s] for s in part), part) for part in parts)

    def _group(self, names: tuple[str, ...], part: tuple[int, ...]) -> Group:
        holding = [server for server in self.snapshot.servers if all(name in server.models for name in names)]
        serving = [(server, places_of(server, names)) for server in holding if server.phase is Phase.SERVING]
        launching = [Place(server, "", server.models) for server in holding if server.phase in COMING]
        extending = [place for server, places in serving if server.reach for place in self._extending(server, places, names)]
        return Group(part, names, tuple(place for _, places in serving for place in places), (*launching, *extending))

    def _extending(self, server: Server, places: tuple[Place, ...], names: tuple[str, ...]) -> list[Place]:
        """The places that open calls are adding to a server."""
        ready = {place.device for place in places}
        calls = [call for call in self.snapshot.open_calls if call.server == server.name and call.model in names]
        added = dict.fromkeys(device for call in calls for device in call.after.added(call.before) if not call.before.on(device))
        return [Place(server, device, {}, extra=True) for device in added if device not in ready]


@dataclass(frozen=True, slots=True)
class DemandSample:
    """Instances of each stage that were needed at one time, on the servers a group of that time."""

    at_s: float
    instances: tuple[int, ...]
    servers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PipelineState:
    """A policy's state of one pipeline: recent samples of demand, desired servers a group with their times, and fixed values.

    `exceeded_since_s`: since when the demand has exceeded the capacity; None while it does not.
    """

    samples: tuple[DemandSample, ...] = ()
    desired: tuple[tuple[float, tuple[int, ...]], ...] = ()
    fixed_instances: tuple[int, ...] = ()
    fixed_servers: tuple[int, ...] = ()
    fixed_rps: float = 0.0
    exceeded_since_s: float | None = None

    def with_desired(self, at_s: float, servers: tuple[int, ...], window_s: float) -> PipelineState:
        """With one more entry; of those older than the window the newest is kept, which shows that the window is covered."""
        older = [entry for entry in self.desired if entry[0] <= at_s - window_s]
        newer = [entry for entry in self.desired if entry[0] > at_s - window_s]
        return replace(self, desired=(*older[-1:], *newer, (at_s, servers)))

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
        older = [n for n in same if n.at_s <= sample.at_s - window_s]
        newer = [n for n in same if n.at_s > sample.at_s - window_s]
        return replace(self, samples=(*older[-1:], *newer, sample))

    def max_instances_needed(self) -> tuple[int, ...]:
        """Largest need of each stage in the kept samples."""
        return tuple(max(column) for column in zip(*(sample.instances for sample in self.samples), strict=True))


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The policy's state between ticks. `short_since_s`: since when slots have been short.

    `changed_places`: servers with devices that the policy added to them, or began to give up.
    """

    pipelines: dict[str, PipelineState] = field(default_factory=dict)
    short_since_s: float | None = None
    changed_places: frozenset[tuple[str, str]] = frozenset()

    def reset_windows(self) -> PolicyState:
        """The state after a time without observations, which earlier samples do not cover."""
        pipelines = {name: replace(state, samples=(), desired=()) for name, state in self.pipelines.items()}
        return PolicyState(pipelines, changed_places=self.changed_places)
