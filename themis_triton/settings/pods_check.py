"""What `launch.kubernetes` asks of the pod template and of the other settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from themis_triton.adapters.kubernetes.template import read_template, triton_container
from themis_triton.core.errors import SettingsError
from themis_triton.settings.kubernetes import KubernetesSettings
from themis_triton.settings.loading import Loaded
from themis_triton.settings.problem import Problem
from themis_triton.settings.source import KeyPath

_SECTION: KeyPath = ("launch", "kubernetes")


_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
_ASKING = ("httpGet", "grpc")


def _probes(loaded: Loaded, pods: KubernetesSettings, container: Mapping[str, Any], path: KeyPath) -> Iterator[Problem]:
    """An error for each probe that would meet the proxy's TLS, so that the kubelet ends the container."""
    for probe in _PROBES if pods.proxy is not None else ():
        how = next((each for each in _ASKING if each in (container.get(probe) or {})), None)
        if how is not None:
            found = f"{pods.pod_template} has {probe}.{how}, and `kubernetes.proxy` is set"
            fix = f"remove {probe} there: Themis watches the servers itself"
            yield loaded.source.problem(path, found, "no probe that meets the proxy's TLS", fix)


def check_pods(loaded: Loaded) -> Iterator[Problem]:
    """An error for a template that is no pod for Triton, or without the requests or limits that instances add to."""
    pods = loaded.launch.kubernetes if loaded.launch is not None else None
    if pods is None or pods.pod_template is None:
        return
    path = (*_SECTION, "pod_template")
    try:
        template = read_template(loaded.resolve(pods.pod_template))
    except SettingsError as error:
        fault, _, fix = str(error).partition(" Fix: ")
        yield loaded.source.problem(path, fault.rstrip("."), "a manifest of `kind: Pod` for Triton", fix or "correct it")
        return
    yield from _probes(loaded, pods, triton_container(template), path)
    resources = triton_container(template).get("resources") or {}
    for key, name in (("instance_cpu", "cpu"), ("instance_memory", "memory")):
        if getattr(pods, key) and not any(name in (resources.get(part) or {}) for part in ("requests", "limits")):
            fix = f"write resources.requests.{name} there, or remove {key}"
            yield loaded.source.problem((*_SECTION, key), f"the container of {pods.pod_template} has no {name}", "one to add to", fix)
