"""What the state directory remembers of the cluster, so that servers are found and stopped without settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from themis_triton.core.config import RayLaunchConfig

_FILE = "ray.json"
_FIELDS = ("address", "namespace")


def write_state(state_directory: Path, config: RayLaunchConfig) -> None:
    """Remember where the servers are."""
    text = json.dumps({name: getattr(config, name) for name in _FIELDS}, indent=1)
    file = state_directory / _FILE
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        state_directory.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def read_state(state_directory: Path, **options: Any) -> RayLaunchConfig | None:  # noqa: ANN401 - fields of LaunchConfig
    """A configuration without slots for the remembered servers; None where none was launched."""
    try:
        values = json.loads((state_directory / _FILE).read_text(encoding="utf-8"))
        known: dict[str, Any] = {name: str(values[name]) for name in _FIELDS}
        return RayLaunchConfig((), Path(), **known, **options)
    except (OSError, ValueError, KeyError, TypeError):
        return None
