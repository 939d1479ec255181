"""The nodes of a Kubernetes cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from themis_triton.adapters.kubernetes.api import ApiError, PodApi
from themis_triton.adapters.kubernetes.pods import ZONE
from themis_triton.adapters.kubernetes.quantities import parse_quantity
from themis_triton.adapters.kubernetes.taints import refused_taints
from themis_triton.adapters.kubernetes.template import Json, read_template
from themis_triton.core.config import KubernetesLaunchConfig
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.core.nodes import Node, places_in, types_by_labels

_NO_DEVICES = ("cpu", "memory", "pods", "ephemeral-storage", "hugepages-")
_FORBIDDEN = 403
_READY = "ready"


async def read_nodes(launch: KubernetesLaunchConfig) -> tuple[Node, ...]:
    """All nodes. ServerError, also where the sidecar has no right to list them; EnvironmentCheckError."""
    api = PodApi(launch)
    try:
        return await nodes_of(api, launch)
    finally:
        await api.close()


async def nodes_of(api: PodApi, launch: KubernetesLaunchConfig) -> tuple[Node, ...]:
    """All nodes, by an open connection. What is free on them is known where the pods of all namespaces may be listed too."""
    try:
        nodes = await api.list_nodes()
    except ApiError as error:
        if error.status != _FORBIDDEN:
            raise
        fix = "bind who runs this to a ClusterRole with `list` on nodes, as in examples/kubernetes/manifests/nodes.yaml"
        raise ServerError(f"Kubernetes: nodes may not be listed. Fix: {fix}") from error
    used, pod = await _used(api), await asyncio.to_thread(_pod_spec, launch)
    return tuple(_node(each, launch, (used.get(each["metadata"]["name"], {}) if used is not None else None), pod) for each in nodes)


async def _used(api: PodApi) -> dict[str, dict[str, float]] | None:
    """What the pods of each node ask for; None where the sidecar may not list them."""
    try:
        pods = await api.list_all_pods()
    except ApiError as error:
        if error.status != _FORBIDDEN:
            raise
        return None
    used: dict[str, dict[str, float]] = {}
    for pod in pods:
        if (name := pod["spec"].get("nodeName")) is not None:
            used[name] = _sum([used.get(name, {}), requests_of(pod["spec"])])
    return used


def _pod_spec(launch: KubernetesLaunchConfig) -> Json | None:
    """The `spec` of the pods that Themis makes; None where it cannot be read, or the pods are those of a Deployment."""
    try:
        spec: Json = read_template(launch.pod_template)["spec"]
    except SettingsError:
        return None
    return spec


def requests_of(spec: Json) -> dict[str, float]:
    """What a pod asks of its node: of its containers and sidecars together, or of one initialisation if that is more."""
    first = spec.get("initContainers") or ()
    beside = [each for each in first if each.get("restartPolicy") == "Always"]
    running = _sum(_requests(each) for each in (*spec["containers"], *beside))
    before = [_requests(each) for each in first if each not in beside]
    kinds = {kind for each in (running, *before) for kind in each}
    return {kind: max(each.get(kind, 0.0) for each in (running, *before)) for kind in kinds}


def _requests(container: Json) -> dict[str, float]:
    """A container's requests; a limit alone is a request too."""
    resources = container.get("resources") or {}
    amounts = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {kind: float(parse_quantity(amount)) for kind, amount in amounts.items()}


def _sum(amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for each in amounts:
        for kind, amount in each.items():
            total[kind] = total.get(kind, 0.0) + amount
    return total


def _node(node: Json, launch: KubernetesLaunchConfig, used: Mapping[str, float] | None, pod: Json | None) -> Node:
    """`used` None: not known. `pod`: the `spec` of the pods that are to run there; None: it is not known."""
    labels: dict[str, str] = node["metadata"].get("labels") or {}
    state = _state(node, pod)
    amounts = (node.get("status") or {}).get("allocatable") or {}
    devices = {name: float(parse_quantity(amount)) for name, amount in amounts.items() if not name.startswith(_NO_DEVICES)}
    free = {name: float(parse_quantity(amount)) - used.get(name, 0.0) for name, amount in amounts.items()} if used is not None else None
    node_types, asked = types_by_labels(labels, launch.node_types), requests_of(pod) if pod is not None else {}
    places = places_in(free, asked) if free is not None and asked else None
    return Node(
        node["metadata"]["name"],
        state,
        usable=state == _READY,
        devices=devices,
        memory_bytes=int(parse_quantity(amounts["memory"])) if "memory" in amounts else None,
        zone=labels.get(ZONE),
        labels=labels,
        node_types=node_types,
        free_devices={name: max(0.0, free[name]) for name in devices} if free is not None else None,
        places=dict.fromkeys(node_types, places if state == _READY else 0) if places is not None else None,
    )


def _state(node: Json, pod: Json | None) -> str:
    """Why the node takes no such pod: cordoned, not ready, or its taints; else ready."""
    spec, conditions = node.get("spec") or {}, (node.get("status") or {}).get("conditions") or ()
    if spec.get("unschedulable"):
        return "cordoned"
    if not any(each["type"] == "Ready" and each["status"] == "True" for each in conditions):
        return "not ready"
    taints = refused_taints(spec, pod) if pod is not None else []
    return f"tainted {', '.join(taints)}" if taints else _READY
