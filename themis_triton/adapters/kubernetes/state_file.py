"""What the state directory remembers of the cluster, so that pods are found and deleted without settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from themis_triton.core.config import KubernetesLaunchConfig

_FILE = "kubernetes.json"
_FIELDS = ("namespace", "sidecar", "kubeconfig", "context", "key_file", "key_secret")
_PATHS = ("kubeconfig", "key_file")


def write_state(state_directory: Path, config: KubernetesLaunchConfig) -> None:
    """Remember where the pods are."""
    values = {name: getattr(config, name) for name in _FIELDS}
    text = json.dumps({name: str(value) if value is not None else None for name, value in values.items()}, indent=1)
    file = state_directory / _FILE
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        state_directory.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def read_state(state_directory: Path, **options: Any) -> KubernetesLaunchConfig | None:  # noqa: ANN401 - fields of LaunchConfig
    """A configuration without slots and template for the remembered pods; None where none was launched."""
    try:
        values = json.loads((state_directory / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known: dict[str, Any] = {
        name: Path(values[name]) if name in _PATHS else values[name] for name in _FIELDS if values.get(name) is not None
    }
    return KubernetesLaunchConfig((), Path(), **known, **options)
