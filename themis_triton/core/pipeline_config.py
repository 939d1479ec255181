"""A pipeline: its stages, its SLO, and what happens when it is overloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from themis_triton.core.graph import Graph, longest, text


class Overload(StrEnum):
    """What happens to requests while the serving servers cannot carry the demand inside the SLO.

    QUEUE: all wait in turn. SHED: those beyond what is carried inside the SLO are refused at the proxy. DEPRIORITIZE: those that waited
    too long are served after all others.
    """

    QUEUE = "queue"
    SHED = "shed"
    DEPRIORITIZE = "deprioritize"


@dataclass(frozen=True, slots=True)
class StageCalls:
    """How many requests of a stage a request of the pipeline makes in the mean: all at once, or one after the other.

    `max_per_request`: how many one makes that the SLO's percentile still covers; None: as many as in the mean.
    """

    per_request: float = 1.0
    sequential: bool = False
    max_per_request: float | None = None


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """A chain of models with one end-to-end SLO; a lone model is a chain of one. `calls`: by stage; empty: one each.

    `entry`: the model that clients call, an ensemble or one that calls others by itself: then the stages are what a request to it
    reaches inside the server. None: clients call the stages.
    `graph`: the order of the stages where some run side by side; None: one after the other. `bound`: a request waits less than that,
    because its stages' order is not series-parallel. `min_servers`, `max_servers`: bounds of its servers, or of its devices where a
    server uses several; None: as many as there can be. `overload` None: DEPRIORITIZE where the policy names a fraction of the SLO for it,
    else QUEUE. `classes`: see `RouteLimit`.
    """

    name: str
    stages: tuple[str, ...]
    slo_ms: float
    percentile: float = 99.0
    weight: float = 1.0
    calls: tuple[StageCalls, ...] = ()
    entry: str | None = None
    graph: Graph | None = None
    bound: bool = False
    overload: Overload | None = None
    class_header: str = ""
    classes: tuple[str, ...] = ()
    min_servers: int = 1
    max_servers: int | None = None

    @property
    def sheds(self) -> bool:
        """Whether requests beyond what is carried inside the SLO are refused."""
        return self.overload is Overload.SHED

    @property
    def order(self) -> str:
        """The order of the stages in words, where it is more than a chain or less; empty for a chain."""
        if self.graph is None and not self.bound:
            return ""
        order = text(self.graph) if self.graph is not None else " → ".join(self.stages)
        return f"{order} (bound: stages wait for more than they do in Triton, so that latencies are upper bounds)" if self.bound else order

    def total_ms(self, stages_ms: Sequence[float]) -> float:
        """The latency of a request from those of its stages: the longest path."""
        return sum(stages_ms) if self.graph is None else longest(self.graph, dict(zip(self.stages, stages_ms, strict=True)))

    @property
    def front(self) -> str:
        """The model whose arrivals are the pipeline's demand."""
        return self.stages[0] if self.entry is None else self.entry

    @property
    def client_calls(self) -> tuple[str, ...]:
        """The models that clients call, in order."""
        return self.stages if self.entry is None else (self.entry,)

    @property
    def per_request(self) -> tuple[float, ...]:
        """The configured requests of each stage per request of the pipeline."""
        return tuple([each.per_request for each in self.calls]) or (1.0,) * len(self.stages)

    @property
    def max_per_request(self) -> tuple[float, ...]:
        """The largest numbers of requests of each stage that the SLO's percentile covers, at least those in the mean."""
        own = tuple(max(each.per_request, each.max_per_request or 0.0) for each in self.calls)
        return own or (1.0,) * len(self.stages)

    @property
    def sequential(self) -> tuple[bool, ...]:
        """Whether a request makes its requests of a stage one after the other, by stage."""
        return tuple([each.sequential for each in self.calls]) or (False,) * len(self.stages)
