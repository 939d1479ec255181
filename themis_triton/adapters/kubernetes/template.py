"""The pod template of the settings: a manifest of `kind: Pod` with one container for Triton."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from themis_triton.adapters.kubernetes.quantities import parse_quantity
from themis_triton.core.errors import SettingsError

Json: TypeAlias = dict[str, Any]

CONTAINER = "triton"
PORTS = {"grpc": 8001, "http": 8000, "metrics": 8002}
"""Triton's default ports; the container's `ports` of these names may say others."""
_OWN_ARGUMENTS = ("--model-control-mode", "--load-model", "--grpc-address", "--http-address", "--metrics-address", "--model-config-name")


def read_template(file: Path) -> Json:
    """The pod of a template file.

    Raises:
        SettingsError: it cannot be read, is no pod, or sets what Themis sets.
    """
    try:
        pod = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}. Fix: name a manifest of `kind: Pod`") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{file}: is not YAML: {error}") from error
    fault = _fault(pod)
    if fault is not None:
        raise SettingsError(f"{file}: {fault}")
    result: Json = pod
    return result


def triton_container(pod: Mapping[str, Any]) -> Json:
    """The container of a valid pod that runs Triton: that of the name `triton`, or the only one."""
    containers: list[Json] = pod["spec"]["containers"]
    return next((each for each in containers if each.get("name") == CONTAINER), containers[0])


def ports_of(container: Mapping[str, Any]) -> dict[str, int]:
    """Triton's ports by name."""
    named = {port.get("name"): port.get("containerPort") for port in container.get("ports", ())}
    return {name: int(named.get(name) or port) for name, port in PORTS.items()}


def _fault(pod: object) -> str | None:
    """What is wrong with a template, with the remedy."""
    if not isinstance(pod, dict) or pod.get("kind") != "Pod" or pod.get("apiVersion") != "v1":
        return "is not a pod: expected `apiVersion: v1` and `kind: Pod`"
    spec = pod.get("spec")
    containers = spec.get("containers") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not isinstance(containers, list) or not all(isinstance(each, dict) for each in containers):
        return "spec.containers: missing or no list. Fix: add a container that runs tritonserver"
    named = [each for each in containers if each.get("name") == CONTAINER]
    if len(containers) != 1 and len(named) != 1:
        return (
            f"spec.containers: {len(containers)} containers, none named {CONTAINER}. Fix: name the one that runs tritonserver {CONTAINER}"
        )
    if spec.get("restartPolicy", "Never") != "Never":
        return f"spec.restartPolicy: {spec['restartPolicy']} is invalid: expected Never: Themis replaces a pod that ended. Fix: remove it"
    return _container_fault(triton_container(pod))


def _container_fault(container: Mapping[str, Any]) -> str | None:
    where = f"container {container.get('name')}"
    if not isinstance(container.get("image"), str):
        return f"{where}: image is missing. Fix: name an image with tritonserver"
    arguments = [str(word) for word in (*container.get("command", ()), *container.get("args", ()))]
    own = next((word for word in arguments for option in _OWN_ARGUMENTS if word.startswith(option)), None)
    if own is not None:
        return f"{where}: {own} is set by Themis. Fix: remove it"
    if not any(word.startswith(("--model-repository", "--model-store")) for word in arguments):
        return f"{where}: no --model-repository among its arguments. Fix: add the repository as the pod sees it"
    try:
        for amounts in container.get("resources", {}).values():
            for amount in amounts.values() if isinstance(amounts, dict) else ():
                parse_quantity(amount)
    except ValueError as error:
        return f"{where}: resources: {error}"
    return None
