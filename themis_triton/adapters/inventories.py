"""The one registry of inventories: what lists the nodes of which kind of `launch` section."""

from __future__ import annotations

from collections.abc import Mapping

from themis_triton.adapters.kubernetes.nodes import read_nodes as read_kubernetes_nodes
from themis_triton.adapters.local.nodes import read_nodes as read_local_nodes
from themis_triton.adapters.ray.nodes import read_nodes as read_ray_nodes
from themis_triton.adapters.slurm.inventory import read_nodes as read_slurm_nodes
from themis_triton.core.config import KubernetesLaunchConfig, LaunchConfig, LocalLaunchConfig, RayLaunchConfig, SlurmLaunchConfig
from themis_triton.core.nodes import Node
from themis_triton.ports import Inventory

INVENTORIES: Mapping[type[LaunchConfig], Inventory] = {
    LocalLaunchConfig: read_local_nodes,
    KubernetesLaunchConfig: read_kubernetes_nodes,
    RayLaunchConfig: read_ray_nodes,
    SlurmLaunchConfig: read_slurm_nodes,
}
"""By the type of a kind's configuration."""


async def read_nodes(launch: LaunchConfig) -> tuple[Node, ...]:
    """The nodes of the configuration's engine, as `Inventory` has them."""
    return await INVENTORIES[type(launch)](launch)
