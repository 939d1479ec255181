"""Pods as values: the pod of a server, and what a pod's status says of its server."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from themis_triton.adapters.kubernetes.proxy import add_proxy, inner_ports
from themis_triton.adapters.kubernetes.quantities import cpu_text, memory_text, parse_quantity, same
from themis_triton.adapters.kubernetes.template import Json, ports_of, triton_container
from themis_triton.adapters.tls_proxy import LOOPBACK
from themis_triton.core.address import UNKNOWN_ADDRESS, Address
from themis_triton.core.config import KubernetesLaunchConfig
from themis_triton.core.fleet import Models, ModelState, Phase, Server

MANAGED_BY = "app.kubernetes.io/managed-by"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
SERVER = "themis-triton/server"
SLOT = "themis-triton/slot"
DEVICE = "themis-triton/device"
MODELS = "themis-triton/models"
LAUNCH = "themis-triton/launch"
"""Annotations: the server's name, its slot and that slot's device, the states that its models were launched with, and the launch's id."""
ZONE = "topology.kubernetes.io/zone"
"""Label of a node; clusters of 1.35 and later copy it to the node's pods."""

_IP_VARIABLE = "THEMIS_POD_IP"
_KEY_VARIABLE = "THEMIS_MODEL_CONTROL_KEY"
_SECRET_KEY = "key"  # noqa: S105 - the entry of the Secret, not its content
_RESTRICTED = "model-repository,shared-memory,trace,logging"
_LOAD_THREADS = 4  # Triton's own default
_NAME_CHARACTERS = 63
_ENDED = ("Succeeded", "Failed", "Unknown")


def selector(sidecar: str) -> str:
    """The label selector of a sidecar's pods."""
    return f"{MANAGED_BY}=themis-triton,{INSTANCE}={sidecar}"


def pod_name(sidecar: str, server: str) -> str:
    """A name that Kubernetes takes, another one for each server."""
    plain = re.sub(r"[^a-z0-9-]+", "-", f"{sidecar}-{server}".lower()).strip("-")
    if plain == f"{sidecar}-{server}" and len(plain) <= _NAME_CHARACTERS:
        return plain
    digest = hashlib.sha256(f"{sidecar}-{server}".encode()).hexdigest()[:8]
    return f"{plain[: _NAME_CHARACTERS - 9].rstrip('-')}-{digest}"


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: a server on a slot, with its models. `launch` identifies this very call."""

    name: str
    slot: str
    device: str
    models: Models
    launch: str


def server_pod(template: Mapping[str, Any], order: Order, config: KubernetesLaunchConfig, owner: Json | None) -> Json:
    """The pod of a server: the template, with labels, name, Triton's own arguments and the resources of its instances."""
    pod = deepcopy(dict(template))
    pod.pop("status", None)
    written = pod.get("metadata") or {}
    labels = {**(written.get("labels") or {}), MANAGED_BY: "themis-triton", INSTANCE: config.sidecar, COMPONENT: "triton"}
    models = {name: [state.instances, state.max_batch, state.max_queue_delay_us] for name, state in order.models.items()}
    marks = {SERVER: order.name, SLOT: order.slot, DEVICE: order.device, MODELS: json.dumps(models), LAUNCH: order.launch}
    pod["metadata"] = {
        "name": pod_name(config.sidecar, order.name),
        "namespace": config.namespace,
        "labels": labels,
        "annotations": {**(written.get("annotations") or {}), **marks},
        **({"ownerReferences": [owner]} if owner is not None else {}),
    }
    selection = config.selection_of(order.slot) if order.slot in config.slot_by_name else {}
    if selection:
        pod["spec"]["nodeSelector"] = {**(pod["spec"].get("nodeSelector") or {}), **selection}
    pod["spec"]["restartPolicy"] = "Never"
    pod["spec"]["terminationGracePeriodSeconds"] = math.ceil(config.drain_timeout_s + config.stop_timeout_s)
    container = triton_container(pod)
    ports, host = ports_of(container), f"$({_IP_VARIABLE})"
    if config.proxy is not None:
        host, proxied = LOOPBACK, ports
        ports = inner_ports(pod["spec"]["containers"])
        add_proxy(pod, proxied, ports, config.proxy)
    container["args"] = [*container.get("args", ()), *_arguments(host, ports, order.models, config)]
    container["env"] = [*container.get("env", ()), *_variables(config.key_secret)]
    if container.get("resources"):
        container["resources"] = resources_for(container["resources"], order.models, config)
    return pod


def _arguments(host: str, ports: Mapping[str, int], models: Models, config: KubernetesLaunchConfig) -> list[str]:
    """Triton listens on an address of the pod; the models are loaded over model control, with their planned states."""
    return [
        "--model-control-mode=explicit",
        f"--model-load-thread-count={max(_LOAD_THREADS, len(models) + 1)}",
        *(f"--{name}-address={host}" for name in ports),
        *(f"--{name}-port={port}" for name, port in ports.items()),
        f"--grpc-restricted-protocol={_RESTRICTED}:key=$({_KEY_VARIABLE})",
        f"--http-restricted-api={_RESTRICTED}:key=$({_KEY_VARIABLE})",
        f"--exit-timeout-secs={math.ceil(config.drain_timeout_s)}",
        *([f"--model-config-name={config.model_config_name}"] if config.model_config_name is not None else []),
        *config.arguments,
    ]


def _variables(secret: str) -> list[Json]:
    key = {"secretKeyRef": {"name": secret, "key": _SECRET_KEY}}
    return [
        {"name": _IP_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": _KEY_VARIABLE, "valueFrom": key},
    ]


def resources_for(base: Mapping[str, Any], models: Models, config: KubernetesLaunchConfig) -> Json:
    """The template's resources with what the instances add; only where the template has such a request or limit."""
    instances = sum(state.instances for state in models.values())
    added = {"cpu": (Decimal(config.instance_cpu_m) / 1000, cpu_text), "memory": (Decimal(config.instance_memory_bytes), memory_text)}
    result: Json = deepcopy(dict(base))
    for amounts in (result.get("requests"), result.get("limits")):
        for name, (each, text) in added.items():
            if amounts and name in amounts and each:
                amounts[name] = text(parse_quantity(amounts[name]) + instances * each)
    return result


def resizable(resources: Mapping[str, Any]) -> Json:
    """The part of resources that a running pod may change."""
    parts = {part: {name: each for name, each in (resources.get(part) or {}).items() if name in ("cpu", "memory")} for part in PARTS}
    return {part: amounts for part, amounts in parts.items() if amounts}


PARTS = ("requests", "limits")


def has_resources(pod: Mapping[str, Any], wanted: Mapping[str, Any], *, actual: bool) -> bool:
    """Whether the pod asks for these resources, or (`actual`) its running container has them."""
    own = (container_status(pod) if actual else triton_container(pod)).get("resources") or {}
    return all(same((own.get(part) or {}).get(name), each) for part in wanted for name, each in wanted[part].items())


def container_status(pod: Mapping[str, Any]) -> Json:
    """The status of Triton's container; empty before it has one."""
    name = triton_container(pod)["name"]
    statuses: list[Json] = pod.get("status", {}).get("containerStatuses") or []
    return next((each for each in statuses if each.get("name") == name), {})


def condition(pod: Mapping[str, Any], kind: str) -> Json:
    """A condition of the pod; empty where it has none of that kind."""
    conditions: list[Json] = pod.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), {})


def has_ended(pod: Mapping[str, Any]) -> bool:
    """Whether the pod serves no more, or is being taken away: deleted, evicted, or its node is lost."""
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp") or status.get("phase") in _ENDED or status.get("reason") == "NodeLost":
        return True
    return condition(pod, "DisruptionTarget").get("status") == "True" or "terminated" in (container_status(pod).get("state") or {})


def is_placed(pod: Mapping[str, Any]) -> bool:
    """Whether the pod has a node."""
    return bool(pod["spec"].get("nodeName"))


def waits_for(pod: Mapping[str, Any]) -> str:
    """Why a pod does not run yet, in Kubernetes' words."""
    if not is_placed(pod):
        return str(condition(pod, "PodScheduled").get("message") or "it has not been scheduled yet")
    waiting = (container_status(pod).get("state") or {}).get("waiting") or {}
    return ": ".join(str(waiting[part]) for part in ("reason", "message") if waiting.get(part)) or "its container is not ready"


def end_of(pod: Mapping[str, Any]) -> str:
    """How a pod ended, in Kubernetes' words."""
    ended = (container_status(pod).get("state") or {}).get("terminated") or {}
    status, target = pod.get("status", {}), condition(pod, "DisruptionTarget")
    words = [ended.get("reason"), f"exit code {ended['exitCode']}" if "exitCode" in ended else None]
    words += [status.get("reason"), status.get("message"), target.get("reason"), target.get("message")]
    return ", ".join(str(word) for word in words if word) or "it was deleted"


def incarnation_of(pod: Mapping[str, Any]) -> str:
    """What tells this run of a server from others: the pod, and the launch that got it."""
    return f"{pod['metadata']['uid']}/{(pod['metadata'].get('annotations') or {}).get(LAUNCH, '')}"


def server_of(pod: Mapping[str, Any]) -> Server:
    """The server of a pod, in phase LAUNCHING, without its key and its files."""
    metadata, address = pod["metadata"], pod.get("status", {}).get("podIP")
    marks, ports = metadata.get("annotations", {}), ports_of(triton_container(pod))
    places = {name: Address(str(address), port) if address else UNKNOWN_ADDRESS for name, port in ports.items()}
    models = {name: ModelState(*state) for name, state in json.loads(marks.get(MODELS, "{}")).items()}
    return Server(
        marks.get(SERVER, metadata["name"]),
        marks.get(DEVICE, metadata["name"]),
        places["grpc"],
        places["http"],
        places["metrics"],
        Phase.LAUNCHING,
        launched=True,
        slot=marks.get(SLOT),
        models=models,
        incarnation=incarnation_of(pod),
        node=pod["spec"].get("nodeName"),
        zone=(metadata.get("labels") or {}).get(ZONE),
    )
