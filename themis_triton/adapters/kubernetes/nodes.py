"""The nodes of a Kubernetes cluster."""

from __future__ import annotations

from themis_triton.adapters.kubernetes.api import ApiError, PodApi
from themis_triton.adapters.kubernetes.pods import ZONE
from themis_triton.adapters.kubernetes.quantities import parse_quantity
from themis_triton.adapters.kubernetes.template import Json
from themis_triton.core.config import KubernetesLaunchConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.nodes import Node, types_by_labels

_NO_DEVICES = ("cpu", "memory", "pods", "ephemeral-storage", "hugepages-")
_FORBIDDEN = 403


async def read_nodes(launch: KubernetesLaunchConfig) -> tuple[Node, ...]:
    """All nodes. ServerError, also where the sidecar has no right to list them; EnvironmentCheckError."""
    api = PodApi(launch)
    try:
        nodes = await api.list_nodes()
    except ApiError as error:
        if error.status != _FORBIDDEN:
            raise
        fix = "bind who runs this to a ClusterRole with `list` on nodes, as in examples/kubernetes/manifests/nodes.yaml"
        raise ServerError(f"Kubernetes: nodes may not be listed. Fix: {fix}") from error
    finally:
        await api.close()
    return tuple(_node(each, launch) for each in nodes)


def _node(node: Json, launch: KubernetesLaunchConfig) -> Node:
    labels: dict[str, str] = node["metadata"].get("labels") or {}
    status, cordoned = node.get("status") or {}, bool((node.get("spec") or {}).get("unschedulable"))
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ())
    amounts = status.get("allocatable") or {}
    return Node(
        node["metadata"]["name"],
        "cordoned" if cordoned else "ready" if ready else "not ready",
        usable=ready and not cordoned,
        devices={name: float(parse_quantity(amount)) for name, amount in amounts.items() if not name.startswith(_NO_DEVICES)},
        memory_bytes=int(parse_quantity(amounts["memory"])) if "memory" in amounts else None,
        zone=labels.get(ZONE),
        labels=labels,
        node_types=types_by_labels(labels, launch.node_types),
    )
