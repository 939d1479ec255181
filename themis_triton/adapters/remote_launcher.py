"""What launchers for other machines share: their servers are known over the network, and their models' files by views of them here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.model_views import ModelViews
from themis_triton.adapters.triton.gpus import gpu_readings
from themis_triton.adapters.triton.idle import POLL_TIMEOUT_S, wait_idle
from themis_triton.adapters.triton.warmup import Warmup
from themis_triton.core.config import LaunchConfig, ModelInputs
from themis_triton.core.errors import ServerError
from themis_triton.core.fleet import Models, ModelState, Server
from themis_triton.core.observation import DeviceReading


class RemoteLauncher(ABC):
    """The part of `ServerLauncher` that is the same whoever places the servers.

    Args:
        config: the models, and how they are warmed up and drained.
        directory: views of the models' files lie here.
        deprioritize_after_s: by model, how long a request waits before all others are served first; see `model_config.for_launch`.
        besides: files that a launch depends on besides those of its models.
    """

    def __init__(
        self, config: LaunchConfig, directory: Path, deprioritize_after_s: Mapping[str, float] | None = None, besides: Collection[Path] = ()
    ) -> None:
        self._config = config
        self._inputs = config.inputs
        self._slots = {slot.name: slot for slot in config.slots}
        self._views = ModelViews(config, directory, deprioritize_after_s, besides)

    @abstractmethod
    async def is_alive(self, server: Server) -> bool:
        """Whether what was launched for the server is still there."""

    async def warm_up(self, server: Server) -> None:
        """Send real inference requests at every planned batch size, one at a time an instance, and check that they are answered.

        Raises:
            LaunchFailedError: a request failed or its answer is empty.
            ServerError: the server does not answer.
        """
        async with Warmup(server, self._config.warmup_requests, self._config.ready_timeout_s, self._inputs) as warmup:
            await warmup.warm_all(server.models)

    def use_inputs(self, inputs: Mapping[str, ModelInputs]) -> None:
        """Warm up with these inputs from now on."""
        self._inputs = inputs

    async def add_model(self, server: Server, model: str, state: ModelState) -> None:
        """Put a model into the view of a running server's repository, as a launch would have done; one that is there stays as it is."""
        await self._complete_view(server)
        await self._views.add_model(server.name, model, state)

    def ensembles_of(self, models: Collection[str]) -> tuple[str, ...]:
        """The ensembles that a server with these models gets."""
        return self._config.ensembles_of(models)

    async def add_ensembles(self, server: Server) -> None:
        """Put the ensembles that a running server's models suffice for into the view of its repository."""
        await self._complete_view(server)
        await self._views.add_ensembles(server.name, server.models)

    async def _complete_view(self, server: Server) -> None:
        """Make the view that its launch would have made here, where that was on another machine or the state directory is a new one."""
        if not self._views.files(server.name).models.is_dir():
            await self._views.build(server.name, server.models)

    async def read_files_versions(self, models: Collection[str]) -> dict[str, str]:
        """By model, what identifies its files as they are seen here, and what its launch depends on besides, by their sizes and times."""
        return await self._views.versions(models, self._inputs)

    async def resize(self, server: Server, models: Models) -> None:  # noqa: B027 - what most of them do
        """Does nothing: a server keeps the processors and the memory that it was placed with."""

    async def wait_idle(self, server: Server) -> bool:
        """Wait until the counters show no request (`idle.wait_idle`); False after the drain time-out."""
        return await wait_idle(server, self._config.drain_timeout_s, partial(self._has_ended, server))

    async def _has_ended(self, server: Server) -> bool:
        return not await self.is_alive(server)

    async def read_memory(self, server: Server) -> int:
        """Bytes in use on the server's GPUs, by Triton's metrics; 0 without a GPU."""
        return sum((gpu.memory_total_bytes or 0) - (gpu.memory_free_bytes or 0) for gpu in await self._gpus(server))

    def _secured(self, server: Server) -> Server:
        """The server with the TLS of `launch.tls` at its addresses."""
        return self._config.tls.secured(server) if self._config.tls is not None else server

    async def _with_gpu(self, server: Server) -> Server:
        """The server with its device by UUID, where its metrics show exactly one GPU."""
        gpus = await self._gpus(server)
        return replace(server, device=gpus[0].device) if len(gpus) == 1 else server

    async def _gpus(self, server: Server) -> tuple[DeviceReading, ...]:
        try:
            async with HttpClient(POLL_TIMEOUT_S) as http:
                return gpu_readings((await http.get_at(server.metrics_address, "/metrics")).decode(errors="replace"), 0.0)
        except (HttpError, ValueError):
            return ()


def incarnation_of_own(server: Server) -> str:
    """What tells a server that was launched here from others of its name. ServerError for any other server."""
    if not server.launched or server.incarnation is None:
        raise ServerError(f"server {server.name} was not launched by Themis and is never stopped by it. Fix: stop it where it was started")
    return server.incarnation
