"""What the state directory remembers of the cluster, so that pods are found and deleted without settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from themis_triton.adapters.remembered import remember, remembered
from themis_triton.core.config import KubernetesLaunchConfig

_FILE = "kubernetes.json"
_FIELDS = ("namespace", "sidecar", "kubeconfig", "context", "key_file", "key_secret")
_PATHS = ("kubeconfig", "key_file")


def write_state(state_directory: Path, config: KubernetesLaunchConfig) -> None:
    """Remember where the pods are."""
    remember(state_directory / _FILE, {name: getattr(config, name) for name in _FIELDS})


def read_state(state_directory: Path, **options: Any) -> KubernetesLaunchConfig | None:  # noqa: ANN401 - fields of LaunchConfig
    """A configuration without slots and template for the remembered pods; None where none was launched."""
    values = remembered(state_directory / _FILE)
    if values is None:
        return None
    known: dict[str, Any] = {
        name: Path(values[name]) if name in _PATHS else values[name] for name in _FIELDS if values.get(name) is not None
    }
    return KubernetesLaunchConfig((), Path(), **known, **options)
