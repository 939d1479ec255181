"""What a policy sees and what it remembers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from themis_triton.core.config import PipelineConfig
from themis_triton.core.estimate import Estimate
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import Snapshot

COMING = frozenset({Phase.LAUNCHING, Phase.WARMING})


@dataclass(frozen=True, slots=True)
class Situation:
    """One tick's input to a policy."""

    snapshot: Snapshot
    estimate: Estimate

    def ready(self, pipeline: PipelineConfig) -> tuple[Server, ...]:
        """Servers in the routes that hold every stage, in the order of names."""
        return self._holding(pipeline, frozenset({Phase.SERVING}))

    def coming(self, pipeline: PipelineConfig) -> tuple[Server, ...]:
        """Servers on their way into the routes that will hold every stage."""
        return self._holding(pipeline, COMING)

    def _holding(self, pipeline: PipelineConfig, phases: frozenset[Phase]) -> tuple[Server, ...]:
        return tuple(s for s in self.snapshot.servers if s.phase in phases and all(stage in s.models for stage in pipeline.stages))


@dataclass(frozen=True, slots=True)
class Need:
    """How many instances of each stage were needed at one time."""

    at_s: float
    instances: tuple[int, ...]
    servers: int


@dataclass(frozen=True, slots=True)
class PipelineMemory:
    """What a policy remembers of one pipeline: recent needs, how many servers were wanted when, and counts that it fixed once."""

    needs: tuple[Need, ...] = ()
    wanted: tuple[tuple[float, int], ...] = ()
    fixed_instances: tuple[int, ...] = ()

    def with_wanted(self, at_s: float, servers: int, hold_s: float) -> PipelineMemory:
        """With one more answer to how many servers are wanted; the newest of those older than `hold_s` shows that so much is covered."""
        older = [entry for entry in self.wanted if entry[0] <= at_s - hold_s]
        newer = [entry for entry in self.wanted if entry[0] > at_s - hold_s]
        return replace(self, wanted=(*older[-1:], *newer, (at_s, servers)))

    def most_wanted(self) -> int:
        """Most servers wanted in what is remembered."""
        return max(servers for _, servers in self.wanted)

    def covered_s(self, at_s: float) -> float:
        """How far back the memory of wanted servers reaches."""
        return at_s - self.wanted[0][0]

    def held_instances(self, servers: int) -> tuple[int, ...]:
        """Largest need of each stage among those that were computed for the same number of servers."""
        same = [need.instances for need in self.needs if need.servers == servers]
        return tuple(max(column) for column in zip(*same, strict=True))


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What a policy hands to its next call."""

    pipelines: dict[str, PipelineMemory] = field(default_factory=dict)
