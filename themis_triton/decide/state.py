"""What a policy sees and what it remembers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from themis_triton.core.config import PipelineConfig, Placement
from themis_triton.core.estimate import Estimate
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import Snapshot

COMING = frozenset({Phase.LAUNCHING, Phase.WARMING})


@dataclass(frozen=True, slots=True)
class Group:
    """Stages of a chain that live on the same servers, by their index in it: all where they are co-located, else one.

    `ready` servers are in the routes, in the order of names; `coming` ones are on their way there.
    """

    stages: tuple[int, ...]
    names: tuple[str, ...]
    ready: tuple[Server, ...]
    coming: tuple[Server, ...]


@dataclass(frozen=True, slots=True)
class PolicyInput:
    """One tick's input to a policy."""

    snapshot: Snapshot
    estimate: Estimate

    def groups(self, pipeline: PipelineConfig, placement: Placement) -> tuple[Group, ...]:
        """The chain's groups with the servers that hold all stages of each."""
        every = tuple(range(len(pipeline.stages)))
        parts = [every] if placement is Placement.COLOCATED else [(stage,) for stage in every]
        return tuple(self._group(tuple(pipeline.stages[s] for s in part), part) for part in parts)

    def _group(self, names: tuple[str, ...], part: tuple[int, ...]) -> Group:
        holding = [server for server in self.snapshot.servers if all(name in server.models for name in names)]
        ready = tuple(server for server in holding if server.phase is Phase.SERVING)
        return Group(part, names, ready, tuple(server for server in holding if server.phase in COMING))


@dataclass(frozen=True, slots=True)
class DemandSample:
    """How many instances of each stage were needed at one time, on how many servers a group."""

    at_s: float
    instances: tuple[int, ...]
    servers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PipelineState:
    """What a policy remembers of one pipeline: recent needs, how many servers a group were wanted when, and what it fixed once."""

    samples: tuple[DemandSample, ...] = ()
    wanted: tuple[tuple[float, tuple[int, ...]], ...] = ()
    fixed_instances: tuple[int, ...] = ()
    fixed_servers: tuple[int, ...] = ()
    fixed_rps: float = 0.0

    def with_wanted(self, at_s: float, servers: tuple[int, ...], hold_s: float) -> PipelineState:
        """With one more answer to how many servers are wanted; the newest of those older than `hold_s` shows that so much is covered."""
        older = [entry for entry in self.wanted if entry[0] <= at_s - hold_s]
        newer = [entry for entry in self.wanted if entry[0] > at_s - hold_s]
        return replace(self, wanted=(*older[-1:], *newer, (at_s, servers)))

    def max_wanted(self) -> tuple[int, ...]:
        """Most servers a group wanted in what is remembered."""
        return tuple(max(column) for column in zip(*(servers for _, servers in self.wanted), strict=True))

    def covered_s(self, at_s: float) -> float:
        """How far back the state of wanted servers reaches."""
        return at_s - self.wanted[0][0]

    def with_sample(self, sample: DemandSample, hold_s: float) -> PipelineState:
        """With one more need; those for other servers are forgotten, and of those older than `hold_s` all but the newest.

        That one shows that so much is covered, however far apart the ticks are.
        """
        same = [n for n in self.samples if n.servers == sample.servers]
        older = [n for n in same if n.at_s <= sample.at_s - hold_s]
        newer = [n for n in same if n.at_s > sample.at_s - hold_s]
        return replace(self, samples=(*older[-1:], *newer, sample))

    def max_instances_needed(self) -> tuple[int, ...]:
        """Largest remembered need of each stage."""
        return tuple(max(column) for column in zip(*(sample.instances for sample in self.samples), strict=True))


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What a policy hands to its next call. `short_since_s`: since when the slots do not suffice for all pipelines."""

    pipelines: dict[str, PipelineState] = field(default_factory=dict)
    short_since_s: float | None = None

    def reset_windows(self) -> PolicyState:
        """After a time in which nothing was seen: what was needed and wanted before it covers none of it."""
        return PolicyState({name: replace(state, samples=(), wanted=()) for name, state in self.pipelines.items()})
