"""What the state directory remembers of the cluster, so that servers are found and stopped without settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from themis_triton.adapters.remembered import remember, remembered
from themis_triton.core.config import RayLaunchConfig

_FILE = "ray.json"
_FIELDS = ("address", "namespace")


def write_state(state_directory: Path, config: RayLaunchConfig) -> None:
    """Remember where the servers are."""
    remember(state_directory / _FILE, {name: getattr(config, name) for name in _FIELDS})


def read_state(state_directory: Path, **options: Any) -> RayLaunchConfig | None:  # noqa: ANN401 - fields of LaunchConfig
    """A configuration without slots for the remembered servers; None where none was launched."""
    values = remembered(state_directory / _FILE)
    if values is None or not values.keys() >= set(_FIELDS):
        return None
    known: dict[str, Any] = {name: str(values[name]) for name in _FIELDS}
    return RayLaunchConfig((), Path(), **known, **options)
