"""The model repositories that settings name, and what the models' own files say."""

from __future__ import annotations

import re
from pathlib import Path

from themis_triton.adapters.triton.config_files import ModelRepository
from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.servers import LaunchSettings
from themis_triton.settings.shipped import shipped

_SEQUENCES = re.compile(r"^[^#\"]*\bsequence_batching\b", re.MULTILINE)


def repositories(loaded: Loaded) -> list[ModelRepository]:
    """The model repositories that can be read here: those of launched servers, then those of adopted ones."""
    own = launch_repositories(loaded, loaded.launch) if loaded.launch is not None else []
    for server in map(mapping, loaded.section("servers").values()):
        folder, config_name = server.get("model_repository"), server.get("model_config_name")
        if isinstance(folder, str):
            own.append(ModelRepository(loaded.resolve(Path(folder)), config_name if isinstance(config_name, str) else None))
    return own


def launch_repositories(loaded: Loaded, launch: LaunchSettings) -> list[ModelRepository]:
    """The model repositories of launched servers."""
    named = launch.model_repository
    folders = [shipped("model_repository")] if named is None else [loaded.resolve(folder) for folder in named]
    return [ModelRepository(folder, launch.model_config_name) for folder in folders]


def max_batch_size(config: Path) -> int | None:
    """`max_batch_size` of a model's configuration file; None if it is not set or the file cannot be read."""
    match = re.search(r"^\s*max_batch_size\s*:\s*(\d+)", _text(config), re.MULTILINE)
    return int(match[1]) if match is not None else None


def is_stateful(loaded: Loaded, model: str) -> bool:
    """Whether a model's own file in one of the repositories has `sequence_batching`: it keeps state between calls."""
    return any(_SEQUENCES.search(_text(repository.config(model))) is not None for repository in repositories(loaded))


def _text(file: Path) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
