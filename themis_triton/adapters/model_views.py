"""The model repositories that a launcher makes for its servers, from the settings and the state directory."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path

from themis_triton.adapters.server_files import ServerFiles, add_ensembles, add_model, build_view, files_version, model_folder
from themis_triton.core.config import LaunchConfig, ModelInputs
from themis_triton.core.fleet import Models, ModelState


class ModelViews:
    """A view of the models' files for each server of one device.

    Args:
        config: where the models are.
        directory: the views lie here, in a folder for each server.
        deprioritize_after_s: by model, how long a request waits before all others are served first; see `model_config.for_launch`.
        besides: files that a launch depends on besides those of its models.
    """

    def __init__(
        self, config: LaunchConfig, directory: Path, deprioritize_after_s: Mapping[str, float] | None = None, besides: Collection[Path] = ()
    ) -> None:
        self._config, self._besides = config, tuple(besides)
        self._directory = directory
        self._deprioritize_after_s = deprioritize_after_s or {}

    def files(self, name: str) -> ServerFiles:
        """The files of a server."""
        return ServerFiles(self._directory, name)

    async def build(self, name: str, models: Models) -> bool:
        """`build_view` for a new server; whether every configuration is complete. LaunchFailedError, ModelFailedError."""
        config = self._config
        ensembles = config.ensembles_of(models)
        own = (config.model_repository, models, self._deprioritize_after_s, None, config.further_repositories, ensembles)
        return await asyncio.to_thread(build_view, self.files(name), *own, config.model_config_name)

    async def add_model(self, name: str, model: str, state: ModelState) -> None:
        """Put a model into the repository of a running server, as a launch would have done; one that is there stays as it is."""
        config = self._config
        own = (config.model_repository, model, state, self._deprioritize_after_s, None, config.further_repositories)
        await asyncio.to_thread(add_model, self.files(name), *own, config.model_config_name)

    async def add_ensembles(self, name: str, models: Collection[str]) -> None:
        """Put the ensembles that a running server's models suffice for into its repository."""
        config, names = self._config, self._config.ensembles_of(models)
        further = (config.further_repositories, config.model_config_name)
        await asyncio.to_thread(add_ensembles, self.files(name), config.model_repository, names, *further)

    async def versions(self, models: Collection[str], inputs: Mapping[str, ModelInputs]) -> dict[str, str]:
        """By model, what identifies its files, the file of its warm-up inputs and those besides, by their sizes and times."""
        return await asyncio.to_thread(lambda: {model: self._version(model, inputs) for model in models})

    def _version(self, model: str, inputs: Mapping[str, ModelInputs]) -> str:
        file = inputs.get(model, ModelInputs()).file
        folder = model_folder(model, self._config.model_repository, self._config.further_repositories)
        return files_version(folder, *self._besides, *([file] if file is not None else []))
