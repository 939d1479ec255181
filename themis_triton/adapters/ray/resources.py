"""What a server asks of a node, beside what the cluster has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from themis_triton.adapters.ray.cluster import RayCluster
from themis_triton.adapters.ray.orders import Json
from themis_triton.core.config import RayLaunchConfig
from themis_triton.core.errors import ServerError

_SHOWN_NODES = 8


async def asked_and_there(cluster: RayCluster, config: RayLaunchConfig) -> str:
    """A clause: what a server asks for, what is free, and what the nodes have."""
    asked = f"it asks for {resource_words(config.resources)}"
    try:
        return f"{asked}; {cluster_words(await cluster.call('nodes'))}"
    except ServerError as error:
        return f"{asked}; {error}"


def cluster_words(there: Json) -> str:
    """What is free in the cluster, and what its nodes have."""
    nodes = [f"{node['address']} ({resource_words(node)})" for node in there["nodes"].values()]
    more = f" and {len(nodes) - _SHOWN_NODES} more" if len(nodes) > _SHOWN_NODES else ""
    return f"free in the cluster: {resource_words(there['free'])}; its nodes: {', '.join(nodes[:_SHOWN_NODES])}{more}"


def resource_words(resources: Mapping[str, Any]) -> str:
    """Resources as `name: amount`."""
    amounts = {name: amount for name, amount in resources.items() if name not in ("address", "memory")}
    return ", ".join(f"{name}: {amount:g}" for name, amount in sorted(amounts.items())) or "nothing"


def places_for(there: Json, resources: Mapping[str, float]) -> int:
    """How many servers the nodes could have at a time, were they free."""
    if not resources:
        return len(there["nodes"])
    return sum(int(min(node.get(name, 0.0) / amount for name, amount in resources.items())) for node in there["nodes"].values())
