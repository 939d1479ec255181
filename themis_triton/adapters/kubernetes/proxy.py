"""The proxy with TLS in a pod: a container that starts before Triton and ends after it, with its files from the pod's annotations."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from themis_triton.adapters.kubernetes.template import PORTS, Json
from themis_triton.adapters.tls_proxy import CONFIG_FILE, PROXY_OPTIONS, proxy_files
from themis_triton.core.server_proxy import PodProxy, ServerProxy

NAME = "themis-proxy"
"""Of the container, and of its volumes; annotations with its files begin with it."""
_ANNOTATION = f"themis-triton/{NAME}-"
_FILES, _SECRET = Path("/etc/themis-proxy/files"), Path("/etc/themis-proxy/tls")
_ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - the proxy and the sidecar are in other pods
_FIRST_INNER_PORT = 18000


def inner_ports(containers: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Triton's ports on the pod's loopback, which no container declares for itself."""
    declared = {port.get("containerPort") for container in containers for port in container.get("ports", ())}
    free = (port for port in itertools.count(_FIRST_INNER_PORT) if port not in declared)
    return dict(zip(PORTS, free, strict=False))


def add_proxy(pod: Json, ports: Mapping[str, int], targets: Mapping[str, int], proxy: PodProxy) -> None:
    """Add the container to a pod: at `ports` of all of the pod's addresses, before Triton at `targets` of its loopback.

    An init container that is always restarted (Kubernetes 1.29) is there before Triton, and ends after it. Its files are annotations,
    which a volume shows as files, so that no further object and no further right is needed.
    """
    client_ca = _SECRET / "ca.crt" if proxy.client_certificates else None
    files = proxy_files(_FILES, _ANY_ADDRESS, ports, targets, ServerProxy(_SECRET / "tls.crt", _SECRET / "tls.key", client_ca))
    pod["metadata"]["annotations"] |= {f"{_ANNOTATION}{name}": text for name, text in files.items()}
    spec = pod["spec"]
    items = [{"path": name, "fieldRef": {"fieldPath": f"metadata.annotations['{_ANNOTATION}{name}']"}} for name in files]
    secret = {"name": f"{NAME}-tls", "secret": {"secretName": proxy.secret}}
    spec["volumes"] = [*(spec.get("volumes") or ()), {"name": f"{NAME}-files", "downwardAPI": {"items": items}}, secret]
    folders = {f"{NAME}-files": _FILES, f"{NAME}-tls": _SECRET}
    container = {
        "name": NAME,
        "image": proxy.image,
        "restartPolicy": "Always",
        "args": ["-c", str(_FILES / CONFIG_FILE), *PROXY_OPTIONS],
        "ports": [{"name": f"tls-{name}", "containerPort": port} for name, port in ports.items()],
        "volumeMounts": [{"name": name, "mountPath": str(folder), "readOnly": True} for name, folder in folders.items()],
    }
    spec["initContainers"] = [*(spec.get("initContainers") or ()), container]
