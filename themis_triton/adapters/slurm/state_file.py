"""What the state directory remembers of the cluster, so that jobs are found and ended without settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from themis_triton.core.config import SlurmLaunchConfig

_FILE = "slurm.json"


def write_state(state_directory: Path, config: SlurmLaunchConfig) -> None:
    """Remember where the jobs' files are, and by which name they are known."""
    text = json.dumps({"directory": str(config.directory), "sidecar": config.sidecar}, indent=1)
    file = state_directory / _FILE
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        state_directory.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def read_state(state_directory: Path, **options: Any) -> SlurmLaunchConfig | None:  # noqa: ANN401 - fields of LaunchConfig
    """A configuration without slots for the remembered jobs; None where none was launched."""
    try:
        values = json.loads((state_directory / _FILE).read_text(encoding="utf-8"))
        return SlurmLaunchConfig((), Path(), directory=Path(values["directory"]), sidecar=str(values["sidecar"]), **options)
    except (OSError, ValueError, KeyError, TypeError):
        return None
