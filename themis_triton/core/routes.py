"""The proxy's routes: a value that a proxy's adapter renders and the RouteWriter applies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from themis_triton.core.address import Address
from themis_triton.core.construction import quick_init


@quick_init
@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server's inference addresses. `zone`: where its machine is, if known."""

    server: str
    grpc_address: Address
    http_address: Address
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class RouteLimit:
    """Admission limit of one model's single requests: their mean rate, and how many may come at once. Excess requests are refused.

    `rest_fraction`: the part of the rate for REST; gRPC has the others. `reason`: what a refused client reads. `min_deadline_ms`: calls
    with a shorter deadline are refused, because no answer can come before it; 0: none are. `classes`: values of `class_header`, the
    highest first: lower ones, and below them requests without any of these, are refused first. `share`: the part of rate and burst that
    the proxy has which this is for; the others have the rest.
    """

    requests_per_s: float
    burst: int
    rest_fraction: float = 0.0
    reason: str = ""
    min_deadline_ms: float = 0.0
    class_header: str = ""
    classes: tuple[str, ...] = ()
    share: float = 1.0


@quick_init
@dataclass(frozen=True, slots=True)
class ModelRoute:
    """How one model's requests are routed.

    `endpoints`: the servers that hold the model. `excluded`: those of them, by name, that get none of its requests now.
    `weights`: how many requests a server takes, relative to one that is not named, by the servers' names.
    `limit`: admission; None: unlimited. `affinity_header`: requests with the same value of this header go to the same
    server; None: to the least loaded one.
    """

    endpoints: tuple[Endpoint, ...] = ()
    excluded: frozenset[str] = frozenset()
    limit: RouteLimit | None = None
    affinity_header: str | None = None
    weights: Mapping[str, int] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[Endpoint, ...]:
        """The endpoints that requests may go to."""
        return tuple(endpoint for endpoint in self.endpoints if endpoint.server not in self.excluded)

    def weight(self, endpoint: Endpoint) -> int:
        """The weight of one endpoint."""
        return self.weights.get(endpoint.server, 1)


@dataclass(frozen=True, slots=True)
class RouteTable:
    """The route of each model that a server holds, the most important model first, and of all other requests.

    `any`: all serving servers, for requests without a model. `unlisted`: for a model that no server's index lists; empty: as `any`.
    `index`: the servers that answer the repository index without a key; empty: the call is refused.
    """

    models: dict[str, ModelRoute]
    any: tuple[Endpoint, ...]
    unlisted: tuple[Endpoint, ...] = ()
    index: tuple[Endpoint, ...] = ()

    @property
    def for_unlisted(self) -> tuple[Endpoint, ...]:
        """The servers of requests for a model that no server's index lists."""
        return self.unlisted or self.any
