"""The nodes of a Ray cluster."""

from __future__ import annotations

import tempfile
from pathlib import Path

from themis_triton.adapters.ray.cluster import RayCluster
from themis_triton.adapters.ray.orders import ZONE, Json
from themis_triton.core.config import RayLaunchConfig
from themis_triton.core.nodes import Node, places_in, types_by_labels

_NO_DEVICES = ("CPU", "memory", "address")


async def read_nodes(launch: RayLaunchConfig) -> tuple[Node, ...]:
    """The nodes that live, by a connection of its own. ServerError, EnvironmentCheckError."""
    with tempfile.TemporaryDirectory(prefix="themis-nodes-") as aside:
        cluster = RayCluster(launch, Path(aside) / "ray.log", is_logged=False)
        try:
            return await nodes_of(cluster, launch)
        finally:
            await cluster.close()


async def nodes_of(cluster: RayCluster, launch: RayLaunchConfig) -> tuple[Node, ...]:
    """The nodes that live, by an open connection. ServerError."""
    there = await cluster.call("nodes")
    return tuple(_node(name, node, there["labels"][name], there["free_of"].get(name), launch) for name, node in there["nodes"].items())


def _node(name: str, node: Json, labels: dict[str, str], free: dict[str, float] | None, launch: RayLaunchConfig) -> Node:
    node_types = types_by_labels(labels, launch.node_types)
    return Node(
        f"{node['address']}/{name}",
        "alive",
        usable=True,
        devices=(devices := {kind: amount for kind, amount in node.items() if kind not in _NO_DEVICES}),
        memory_bytes=int(node.get("memory", 0)) or None,
        zone=labels.get(ZONE),
        labels=labels,
        node_types=node_types,
        free_devices={kind: free.get(kind, 0.0) for kind in devices} if free is not None else None,
        places=dict.fromkeys(node_types, places_in(free, launch.resources)) if free is not None else None,
    )
