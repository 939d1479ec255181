"""The horizontal actuator on this machine: `tritonserver` processes on device slots."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from themis_triton.adapters.arguments import hide_argument
from themis_triton.adapters.http import HttpClient
from themis_triton.adapters.local.discovery import find_launched
from themis_triton.adapters.local.failures import launch_failure, warmup_failure
from themis_triton.adapters.local.launch_command import planned_server, server_command, server_environment
from themis_triton.adapters.local.nodes import read_nodes
from themis_triton.adapters.local.running import has_ended, has_open_connections, is_alive, is_gone, read_memory
from themis_triton.adapters.local.triton_install import TritonInstall, find_triton
from themis_triton.adapters.process_end import group_members, stop_everything, stop_process
from themis_triton.adapters.processes import spawn
from themis_triton.adapters.server_files import ServerFiles, add_ensembles, add_model, build_view, files_version, model_folder
from themis_triton.adapters.triton.client import new_client
from themis_triton.adapters.triton.groups import numbered_devices
from themis_triton.adapters.triton.idle import POLL_S, POLL_TIMEOUT_S, holds_models, wait_idle
from themis_triton.adapters.triton.warmup import Warmup
from themis_triton.core.config import LocalLaunchConfig, ModelInputs
from themis_triton.core.errors import LaunchFailedError, ModelFailedError, ServerError, ThemisError
from themis_triton.core.fleet import Models, ModelState, Phase, Server
from themis_triton.core.nodes import Node

log = structlog.get_logger()
_PORT_TAKEN = "already in use"
_PORT_TAKEN_LINES = 5
_PORT_ATTEMPTS = 4


class LocalLauncher:
    """Implements `ServerLauncher`.

    Everything about a server is in the `Server` and in the state directory, so that a restarted daemon handles the servers of its
    predecessor.

    Args:
        config: where and how to launch.
        state_directory: logs, model views and prepared backends lie here; its path marks the processes.
        deprioritize_after_s: by model, how long a request waits before all others are served first; see `model_config.for_launch`.
    """

    def __init__(self, config: LocalLaunchConfig, state_directory: Path, deprioritize_after_s: Mapping[str, float] | None = None) -> None:
        self._config = config
        self._inputs = config.inputs
        self._state = state_directory
        self._deprioritize_after_s = deprioritize_after_s or {}
        self._slots = {slot.name: slot for slot in config.slots}
        self._install: TritonInstall | None = None
        self._install_lock = asyncio.Lock()
        self._log_starts: dict[str, int] = {}
        self._ended_in_warmup: set[str] = set()

    async def launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        """Start a process on the slot and return at once, in phase LAUNCHING. The log begins anew.

        Raises:
            LaunchFailedError: the slot or a model does not exist, or the process cannot be started.
            ModelFailedError: a model's `config.pbtxt` cannot be parsed, or the model cannot have the state.
            EnvironmentCheckError: Triton is not installed, or its Python does not fit.
        """
        self._files(name).log.unlink(missing_ok=True)
        return await self._launch(name, slot, models)

    async def _launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        if slot not in self._slots:
            raise LaunchFailedError(
                f"server {name}: device slot {slot} does not exist: expected one of launch.slots: {', '.join(self._slots)}"
            )
        install = await self._triton()
        files = self._files(name)
        server = planned_server(files, self._slots[slot], models, self._config)
        try:
            own = (
                self._config.model_repository,
                models,
                self._deprioritize_after_s,
                numbered_devices(server),
                self._config.further_repositories,
                self._config.ensembles_of(models),
                self._config.model_config_name,
            )
            complete = await asyncio.to_thread(build_view, files, *own)
            return await asyncio.to_thread(self._start, files, server, install, complete=complete)
        except ThemisError:
            await asyncio.to_thread(files.remove)
            raise

    async def add_model(self, server: Server, model: str, state: ModelState) -> None:
        """Put a model into the repository of a running server, as a launch would have done; one that is there stays as it is.

        Raises:
            LaunchFailedError: the model does not exist, its `config.pbtxt` cannot be parsed, or its files cannot be written.
        """
        own = (self._config.model_repository, model, state, self._deprioritize_after_s, numbered_devices(server))
        further = (self._config.further_repositories, self._config.model_config_name)
        await asyncio.to_thread(add_model, self._files(server.name), *own, *further)

    def ensembles_of(self, models: Collection[str]) -> tuple[str, ...]:
        """The ensembles that a server with these models gets."""
        return self._config.ensembles_of(models)

    async def add_ensembles(self, server: Server) -> None:
        """Put the ensembles that a running server's models suffice for into its repository, as a launch would have done.

        Raises:
            LaunchFailedError: an ensemble does not exist, or its files cannot be linked.
        """
        names, config = self.ensembles_of(server.models), self._config
        further = (config.further_repositories, config.model_config_name)
        await asyncio.to_thread(add_ensembles, self._files(server.name), config.model_repository, names, *further)

    async def _triton(self) -> TritonInstall:
        async with self._install_lock:
            if self._install is None:
                self._install = await asyncio.to_thread(find_triton, self._state, self._config.binary, self._config.backend_directory)
            return self._install

    def _files(self, name: str) -> ServerFiles:
        return ServerFiles(self._state, name)

    def _start(self, files: ServerFiles, server: Server, install: TritonInstall, *, complete: bool) -> Server:
        command = server_command(files, server, install, self._config, complete=complete)
        slots = sum(slot.device == server.device for slot in self._slots.values())
        self._log_starts[files.name] = files.log_size()
        try:
            process = spawn(command, server_environment(server, install, self._state, slots), files.log)
        except OSError as error:
            raise LaunchFailedError(f"server {files.name}: {install.binary} cannot be started: {error}; {files.log_tail()}") from error
        return replace(server, process=process)

    async def wait_ready(self, server: Server) -> Server:
        """Wait until it is ready and holds its models; when another process took one of its ports first, it is started again on others.

        Returns:
            The server in phase WARMING; its process and addresses may be others than before.

        Raises:
            LaunchFailedError: it ended, or was not ready in time (then it still runs, for the caller to stop); with the log's last lines.
                One that was started again is stopped already.
        """
        deadline_s = asyncio.get_running_loop().time() + self._config.ready_timeout_s
        return await self._wait_ready(server, deadline_s, _PORT_ATTEMPTS - 1)

    async def _wait_ready(self, server: Server, deadline_s: float, attempts_left: int) -> Server:
        if await self._is_ready_before(server, deadline_s):
            await self._hide_key(server)
            return replace(server, phase=Phase.WARMING)
        if not attempts_left or _PORT_TAKEN not in self._files(server.name).log_tail(_PORT_TAKEN_LINES):
            raise launch_failure(self._files(server.name), server, "ended before it was ready")
        again = await self._launch(server.name, server.slot or "", server.models)
        try:
            return await self._wait_ready(again, deadline_s, attempts_left - 1)
        except LaunchFailedError:
            await self.stop(again)  # The caller knows only the first process.
            raise

    async def _hide_key(self, server: Server) -> None:
        """Triton takes the key of model control from the command line alone, which other users can read."""
        process, key = server.process, server.model_control_key
        if process is not None and key and not await asyncio.to_thread(hide_argument, process, key):
            log.warning("key_not_hidden", server=server.name, message="its command line shows the key of model control to other users")

    async def _is_ready_before(self, server: Server, deadline_s: float) -> bool:
        """True when ready, False when the process ended."""
        ensembles, loop, triton = self._config.ensembles_of(server.models), asyncio.get_running_loop(), new_client(server.grpc_address)
        log_start, hidden = self._log_starts.get(server.name), False
        try:
            async with HttpClient(POLL_TIMEOUT_S) as client:
                while await self.is_alive(server):
                    # A server that writes its log has copied its arguments; models may take minutes from there.
                    if not hidden and log_start is not None and self._has_read_arguments(server, log_start):
                        await self._hide_key(server)
                        hidden = True
                    if await holds_models(client, triton, server, ensembles) and await self.is_alive(server):
                        return True
                    if loop.time() >= deadline_s:
                        raise launch_failure(
                            self._files(server.name),
                            server,
                            f"was not ready within launch.ready_timeout_s = {self._config.ready_timeout_s:g} s",
                        )
                    await asyncio.sleep(POLL_S)
        finally:
            await triton.close()
        return False

    def _has_read_arguments(self, server: Server, log_start_bytes: int) -> bool:
        return server.process is not None and self._files(server.name).has_line_of(server.process.pid, log_start_bytes)

    async def warm_up(self, server: Server) -> None:
        """Send real inference requests at every planned batch size, one at a time an instance, and check that they are answered.

        Models are warmed up side by side, but one after the other where the last server on the slot ended meanwhile.

        Raises:
            LaunchFailedError: a request failed or its answer is empty, or the server's process ended.
            ServerError: the server does not answer.
        """
        slot = server.slot or ""
        parts = [{name: state} for name, state in server.models.items()] if slot in self._ended_in_warmup else [server.models]
        async with Warmup(server, self._config.warmup_requests, self._config.ready_timeout_s, self._inputs) as warmup:
            for models in parts:
                try:
                    await warmup.warm_all(models)
                except ModelFailedError:
                    raise
                except ServerError as error:
                    if not await has_ended(server):
                        raise
                    self._ended_in_warmup.add(slot)
                    raise warmup_failure(self._files(server.name), server, models) from error
        self._ended_in_warmup.discard(slot)

    def use_inputs(self, inputs: Mapping[str, ModelInputs]) -> None:
        """Warm up with these inputs from now on."""
        self._inputs = inputs

    async def read_files_versions(self, models: Collection[str]) -> dict[str, str]:
        """By model, what identifies its files and the file of its warm-up inputs, by their sizes and times."""
        return await asyncio.to_thread(lambda: {model: self._files_version(model) for model in models})

    def _files_version(self, model: str) -> str:
        inputs = self._inputs.get(model, ModelInputs()).file
        folder = model_folder(model, self._config.model_repository, self._config.further_repositories)
        return files_version(folder, *([inputs] if inputs is not None else []))

    async def is_alive(self, server: Server) -> bool:
        """Whether the very process that was launched still runs."""
        return is_alive(server)

    async def resize(self, server: Server, models: Models) -> None:
        """Does nothing: processes of this machine share all of its processors and memory."""

    async def read_log(self, server: Server, lines: int) -> str:
        """The last lines of the server's log; it stays after the server's end."""
        return await asyncio.to_thread(self._files(server.name).last_lines, lines) or ""

    async def wait_idle(self, server: Server) -> bool:
        """Wait until no request is in flight (`idle.wait_idle`); False after the drain time-out."""
        return await wait_idle(server, self._config.drain_timeout_s, partial(is_gone, server), partial(has_open_connections, server))

    async def read_memory(self, server: Server) -> int:
        """Bytes that the server's processes hold on its devices; 0 where that is unknown."""
        return await read_memory(server)

    async def discover(self) -> tuple[Server, ...]:
        """Every launched server that runs now, by name, in phase LAUNCHING; known by the marks that its process carries."""
        return await asyncio.to_thread(find_launched, self._state)

    async def list_nodes(self) -> tuple[Node, ...]:
        """This machine."""
        return await read_nodes(self._config)

    async def stop_all(self) -> tuple[str, ...]:
        """Stop every process that carries the state directory's mark: servers, and the Envoy that was started beside them.

        Returns:
            The pids of the stopped processes, as text.

        Raises:
            ServerError: a process survived SIGKILL.
        """
        try:
            pids = await asyncio.to_thread(stop_everything, self._state, self._config.stop_timeout_s)
        except TimeoutError as error:
            raise ServerError(str(error)) from error
        return tuple(map(str, pids))

    async def close(self) -> None:
        """Does nothing: no connection is kept."""

    async def stop(self, server: Server) -> None:
        """SIGTERM, then after a bounded wait SIGKILL; returns when the process and its children are gone. The log stays.

        Raises:
            ServerError: the server was not launched here, and is never stopped.
        """
        await self._stop(server, self._config.stop_timeout_s)

    async def kill(self, server: Server) -> None:
        """SIGKILL at once; returns when the process and its children are gone. The log stays.

        Raises:
            ServerError: the server was not launched here, and is never stopped; or a process survived.
        """
        await self._stop(server, 0.0)

    async def _stop(self, server: Server, timeout_s: float) -> None:
        if not server.launched or server.process is None:
            raise ServerError(
                f"server {server.name} was not launched by Themis and is never stopped by it. Fix: stop it where it was started"
            )
        await stop_process(server.process, timeout_s)
        if left := await asyncio.to_thread(group_members, server.process):
            raise ServerError(f"server {server.name}: processes {[process.pid for process in left]} survived SIGKILL")
        await asyncio.to_thread(self._files(server.name).remove)
