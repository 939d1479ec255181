"""What the state directory remembers of the cluster, so that jobs are found and ended without settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from themis_triton.adapters.remembered import remember, remembered
from themis_triton.core.config import SlurmLaunchConfig

_FILE = "slurm.json"


def write_state(state_directory: Path, config: SlurmLaunchConfig) -> None:
    """Remember where the jobs' files are, and by which name they are known."""
    remember(state_directory / _FILE, {"directory": config.directory, "sidecar": config.sidecar})


def read_state(state_directory: Path, **options: Any) -> SlurmLaunchConfig | None:  # noqa: ANN401 - fields of LaunchConfig
    """A configuration without slots for the remembered jobs; None where none was launched."""
    values = remembered(state_directory / _FILE)
    if values is None or not values.keys() >= {"directory", "sidecar"}:
        return None
    return SlurmLaunchConfig((), Path(), directory=Path(str(values["directory"])), sidecar=str(values["sidecar"]), **options)
