"""The nodes of a Ray cluster."""

from __future__ import annotations

import tempfile
from pathlib import Path

from themis_triton.adapters.ray.cluster import RayCluster
from themis_triton.adapters.ray.orders import ZONE
from themis_triton.core.config import RayLaunchConfig
from themis_triton.core.nodes import Node, types_by_labels

_NO_DEVICES = ("CPU", "memory", "address")


async def read_nodes(launch: RayLaunchConfig) -> tuple[Node, ...]:
    """The nodes that live, by a connection of its own. ServerError, EnvironmentCheckError."""
    with tempfile.TemporaryDirectory(prefix="themis-nodes-") as aside:
        cluster = RayCluster(launch, Path(aside) / "ray.log", is_logged=False)
        try:
            there = await cluster.call("nodes")
        finally:
            await cluster.close()
    return tuple(
        Node(
            f"{node['address']}/{name}",
            "alive",
            usable=True,
            devices={kind: amount for kind, amount in node.items() if kind not in _NO_DEVICES},
            memory_bytes=int(node.get("memory", 0)) or None,
            zone=there["labels"][name].get(ZONE),
            labels=there["labels"][name],
            node_types=types_by_labels(there["labels"][name], launch.node_types),
        )
        for name, node in there["nodes"].items()
    )
