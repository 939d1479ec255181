"""The horizontal actuator on a Slurm cluster: a job for each server."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from themis_triton.adapters.http import HttpClient
from themis_triton.adapters.local.triton_install import TritonInstall, find_triton
from themis_triton.adapters.remote_launcher import RemoteLauncher, incarnation_of_own
from themis_triton.adapters.slurm.ending import end_jobs
from themis_triton.adapters.slurm.inventory import read_nodes
from themis_triton.adapters.slurm.jobs import Job
from themis_triton.adapters.slurm.listing import JobList
from themis_triton.adapters.slurm.nodes import address_of
from themis_triton.adapters.slurm.order import Endpoint, Order, models_of, read_endpoint, read_order, submission, write_order
from themis_triton.adapters.slurm.programs import SlurmError
from themis_triton.adapters.slurm.state_file import write_state
from themis_triton.adapters.triton.client import new_client
from themis_triton.adapters.triton.idle import POLL_S, POLL_TIMEOUT_S, holds_models
from themis_triton.core.address import UNKNOWN_ADDRESS
from themis_triton.core.config import SlurmLaunchConfig
from themis_triton.core.errors import LaunchFailedError, ModelFailedError, ThemisError
from themis_triton.core.fleet import Models, ModelState, Phase, Server
from themis_triton.core.nodes import Node

log = structlog.get_logger()
_PLACE_POLL_S = 0.2


class SlurmLauncher(RemoteLauncher):
    """Implements `ServerLauncher`. Use it from one event loop, and `close` it there.

    Everything about a server is in its job's name and in `config.directory`, which the nodes share with this machine: the view of its
    models, its log, and the file in which its job writes the ports that it found free on its node.

    Args:
        config: the cluster's partition, what a job asks for, and the slots, each for one job.
        state_directory: remembers where the jobs' files are.
        deprioritize_after_s: by model, how long a request waits before all others are served first; see `model_config.for_launch`.
    """

    _config: SlurmLaunchConfig

    def __init__(self, config: SlurmLaunchConfig, state_directory: Path, deprioritize_after_s: Mapping[str, float] | None = None) -> None:
        super().__init__(config, config.directory, deprioritize_after_s)
        self._state = state_directory
        self._jobs = JobList(config.sidecar, config.poll_s)
        self._install: TritonInstall | None = None
        self._install_lock = asyncio.Lock()

    async def launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        """Submit the server's job and return at once, in phase LAUNCHING; its addresses are not known yet. The log begins anew.

        Raises:
            LaunchFailedError: the slot or a model does not exist, or Slurm refused the job.
            ModelFailedError: a model's `config.pbtxt` cannot be parsed, or the model cannot have the state.
            EnvironmentCheckError: Slurm's programs or Triton are not installed here.
        """
        if slot not in self._slots:
            raise LaunchFailedError(f"server {name}: slot {slot} does not exist: expected one of {', '.join(self._slots)}")
        install, files = await self._triton(), self._views.files(name)
        order = Order(files, self._slots[slot], models, secrets.token_urlsafe(24), uuid.uuid4().hex)
        try:
            complete = await self._views.build(name, models)
            files.log.unlink(missing_ok=True)
            await asyncio.to_thread(write_order, order, self._config, install, complete=complete)
            write_state(self._state, self._config)
            job = await self._jobs.submit(*submission(order, self._config))
        except ThemisError as error:
            await asyncio.to_thread(files.remove)
            if isinstance(error, SlurmError):
                raise LaunchFailedError(f"server {name}: {error}") from error
            raise
        return self._server(job, Path(files.models), models, order.slot.device, slot, order.key)

    async def _triton(self) -> TritonInstall | None:
        """The Triton that the nodes see under the same path; None for that of the container."""
        if self._config.container is not None:
            return None
        async with self._install_lock:
            if self._install is None:
                own = (self._config.directory, self._config.binary, self._config.backend_directory)
                self._install = await asyncio.to_thread(find_triton, *own)
            return self._install

    def _server(self, job: Job, repository: Path, models: Models, device: str, slot: str | None, key: str | None) -> Server:
        return Server(
            job.server,
            device,
            UNKNOWN_ADDRESS,
            UNKNOWN_ADDRESS,
            UNKNOWN_ADDRESS,
            Phase.LAUNCHING,
            launched=True,
            slot=slot,
            model_control_key=key,
            log_file=str(self._views.files(job.server).log),
            model_repository=str(repository),
            models=dict(models),
            incarnation=job.incarnation,
            node=job.node or None,
        )

    async def wait_ready(self, server: Server) -> Server:
        """Wait for a node (`place_timeout_s`), then until Triton is ready and holds its models (`ready_timeout_s`).

        Raises:
            LaunchFailedError: it found no node, ended, or was not ready in time; with Slurm's reason and the log's last lines.
            ModelFailedError: a model could not be loaded.
        """
        loop, place_s = asyncio.get_running_loop(), self._config.place_timeout_s
        deadline_s, files = loop.time() + place_s, self._views.files(server.name)
        if await asyncio.to_thread(read_order, files, _launch_of(server)) is None:
            raise LaunchFailedError(f"server {server.name}: its files are not in {files.directory}: it can only be stopped")
        while await self._endpoint(server) is None:
            job = await self._running(server)
            if job.waits_forever or (job.is_waiting and loop.time() >= deadline_s):
                within = f"within launch.slurm.place_timeout_s = {place_s:g} s"
                raise LaunchFailedError(f"server {server.name} found no place {within}: {job.waits_for}")
            if not job.is_waiting and loop.time() >= deadline_s + self._config.ready_timeout_s:
                raise LaunchFailedError(f"{self._late(server)}: {job.end} has not written its ports; {self._log_tail(server)}")
            await asyncio.sleep(_PLACE_POLL_S)
        return replace(await self._with_gpu(await self._answering(server)), phase=Phase.WARMING)

    async def _running(self, server: Server) -> Job:
        """The server's job, which has not ended. LaunchFailedError otherwise; ServerError while the jobs are not known."""
        job = (await self._jobs.jobs()).get(server.incarnation or "")
        if job is None or job.is_over:
            how = job.end if job is not None else "its job is known to Slurm no more"
            words = f"server {server.name} ended before it was ready ({how}); {self._log_tail(server)}"
            failure = self._views.files(server.name).load_failure()
            if failure is not None and failure[0] in server.models:
                raise ModelFailedError(words, *failure, f"correct its files or its config.pbtxt; log {server.log_file}")
            raise LaunchFailedError(words)
        return job

    async def _endpoint(self, server: Server) -> Endpoint | None:
        return await asyncio.to_thread(read_endpoint, self._views.files(server.name), _launch_of(server))

    async def _answering(self, server: Server) -> Server:
        """The server with its node and addresses, once it holds its models. A job whose ports were taken starts it on others."""
        loop, ensembles = asyncio.get_running_loop(), self._config.ensembles_of(server.models)
        deadline_s, seen = loop.time() + self._config.ready_timeout_s, None
        async with HttpClient(POLL_TIMEOUT_S) as http, contextlib.AsyncExitStack() as stack:
            while True:
                await self._running(server)
                endpoint = await self._endpoint(server)
                if endpoint is not None and endpoint != seen:
                    now, seen = await self._located(server, endpoint), endpoint
                    triton = new_client(now.grpc_address)
                    stack.push_async_callback(triton.close)
                if seen is not None and await holds_models(http, triton, now, ensembles):
                    return now
                if loop.time() >= deadline_s:
                    raise LaunchFailedError(f"{self._late(server)}; {self._log_tail(server)}")
                await asyncio.sleep(POLL_S)

    async def _located(self, server: Server, endpoint: Endpoint) -> Server:
        places = endpoint.addresses(await address_of(endpoint.node))
        grpc, http, metrics = (places[name] for name in ("grpc", "http", "metrics"))
        return self._secured(replace(server, node=endpoint.node, grpc_address=grpc, http_address=http, metrics_address=metrics))

    def _late(self, server: Server) -> str:
        bound_s = self._config.ready_timeout_s
        return f"server {server.name} on slot {server.slot} was not ready within launch.ready_timeout_s = {bound_s:g} s"

    def _log_tail(self, server: Server) -> str:
        return self._views.files(server.name).log_tail()

    async def is_alive(self, server: Server) -> bool:
        """Whether the very job still runs or waits for a node, by the last list; True while the controller has never answered."""
        try:
            job = (await self._jobs.jobs()).get(server.incarnation or "")
        except ThemisError as error:
            log.warning("jobs_not_listed", server=server.name, error=str(error))
            return True
        return job is not None and not job.is_over

    async def read_log(self, server: Server, lines: int) -> str:
        """The last lines of the server's log, and how its job ended; it stays after the server's end."""
        text = await asyncio.to_thread(self._views.files(server.name).last_lines, lines) or ""
        with contextlib.suppress(ThemisError):
            job = (await self._jobs.jobs()).get(server.incarnation or "")
            if job is not None and job.is_over:
                return "\n".join([*text.splitlines(), job.end][-lines:])
        return text

    async def discover(self) -> tuple[Server, ...]:
        """Every job of this sidecar that has not ended, by name, in phase LAUNCHING. ServerError where Slurm does not answer."""
        jobs = [job for job in (await self._jobs.refresh()).values() if not job.is_over]
        servers = await asyncio.gather(*(self._found(job) for job in jobs))
        return tuple(sorted(servers, key=lambda server: server.name))

    async def _found(self, job: Job) -> Server:
        """The server of a job; one whose files are gone has no models and no key, and can only be stopped."""
        files = self._views.files(job.server)
        content = await asyncio.to_thread(read_order, files, job.launch)
        if content is None:
            log.warning("job_without_files", server=job.server, job=job.number, directory=str(files.directory))
            return self._server(job, files.models, {}, "", None, None)
        server = self._server(job, files.models, models_of(content), content["device"], content["slot"], content["key"])
        endpoint = await self._endpoint(server)
        return await self._located(server, endpoint) if endpoint is not None else server

    async def list_nodes(self) -> tuple[Node, ...]:
        """All nodes. SlurmError where the controller does not answer."""
        return await read_nodes(self._config)

    async def stop_all(self) -> tuple[str, ...]:
        """End every job of this sidecar; returns the servers' names. ServerError when one is left."""
        jobs = [job for job in (await self._jobs.refresh()).values() if not job.is_gone]
        await end_jobs(self._jobs, jobs, self._config.stop_timeout_s)
        for job in jobs:
            await asyncio.to_thread(self._remove, job.server, job.launch)
        return tuple(sorted(job.server for job in jobs))

    async def stop(self, server: Server) -> None:
        """Cancel the job: SIGTERM, then after a bounded wait SIGKILL; returns when its node has confirmed the end, or is lost.

        Raises:
            ServerError: the server was not launched here, and is never stopped; or its job is still there.
        """
        await end_jobs(self._jobs, await self._known(server), self._config.stop_timeout_s)
        await asyncio.to_thread(self._remove, server.name, _launch_of(server))

    async def kill(self, server: Server) -> None:
        """Cancel the job with SIGKILL at once.

        Raises:
            ServerError: the server was not launched here, and is never stopped; or its job is still there.
        """
        await end_jobs(self._jobs, await self._known(server), 0.0)
        await asyncio.to_thread(self._remove, server.name, _launch_of(server))

    async def _known(self, server: Server) -> list[Job]:
        """The server's job, unless nothing of it is left."""
        job = (await self._jobs.refresh()).get(incarnation_of_own(server))
        return [job] if job is not None and not job.is_gone else []

    def _remove(self, name: str, launch: str) -> None:
        """Remove a server's files, unless they are those of a later launch."""
        files = self._views.files(name)
        if read_order(files, launch) is not None:
            files.remove()

    async def close(self) -> None:
        """End the polling. The jobs run on."""
        await self._jobs.close()


def _launch_of(server: Server) -> str:
    return (server.incarnation or "").partition("/")[2]
