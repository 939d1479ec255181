"""Which file of a model's folder is its configuration. Needs no package of Triton's, so that settings can be checked without one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from themis_triton.core.config import AdoptedServer
from themis_triton.core.fleet import Server

CONFIG_FILE = "config.pbtxt"
CONFIG_FOLDER = "configs"


def config_file(folder: Path, config_name: str | None) -> Path:
    """The file that a server with `--model-config-name` reads of a model's folder; without such a file, config.pbtxt, as Triton does."""
    custom = folder / CONFIG_FOLDER / f"{config_name}.pbtxt"
    return custom if config_name is not None and custom.is_file() else folder / CONFIG_FILE


def model_folder(server: Server | AdoptedServer, model: str) -> Path | None:
    """The model's folder in the first repository of a server that has it, else in the first one; None where none can be read here."""
    if server.model_repository is None:
        return None
    folders = [Path(folder) / model for folder in (server.model_repository, *server.further_repositories)]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


@dataclass(frozen=True, slots=True)
class ModelRepository:
    """A model repository, and the `--model-config-name` of the servers that read it."""

    folder: Path
    config_name: str | None = None

    def config(self, model: str) -> Path:
        """The model's configuration file; it may be absent."""
        return config_file(self.folder / model, self.config_name)
