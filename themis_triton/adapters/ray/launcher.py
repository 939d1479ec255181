"""The horizontal actuator on a Ray cluster: a supervising actor for each server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from themis_triton.adapters.ray.cluster import RayCluster, Supervisor
from themis_triton.adapters.ray.nodes import nodes_of
from themis_triton.adapters.ray.orders import (
    ENDED,
    GONE,
    PLACED,
    WAITING,
    Json,
    actor_name,
    launch_order,
    models_json,
    server_name,
    server_of,
)
from themis_triton.adapters.ray.resources import asked_and_there
from themis_triton.adapters.ray.state_file import write_state
from themis_triton.adapters.remote_launcher import RemoteLauncher, incarnation_of_own
from themis_triton.adapters.server_files import ServerFiles
from themis_triton.core.config import RayLaunchConfig
from themis_triton.core.errors import LaunchFailedError, ModelFailedError, ServerError, ThemisError
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.nodes import Node

_KEPT_LINES = 2000
_SLACK_S = 15.0
_REMOVED_WITHIN_S = 20.0
_LOG_FILE = "ray.log"
_ORDER_FILE = "order.json"


class RayLauncher(RemoteLauncher):
    """Implements `ServerLauncher`. Use it from one event loop, and `close` it there. `cluster`: its connection.

    Everything about a server is in its actor. The state directory has its models' own configuration files, where changes of counts
    start from, and its order, by which a launch that still waits for a node is known after a restart.

    Args:
        config: the cluster, what a server asks of a node, and the slots, each for one server.
        state_directory: views of the models' files and the logs of ended servers lie here.
        deprioritize_after_s: by model, how long a request waits before all others are served first; see `model_config.for_launch`.
    """

    _config: RayLaunchConfig

    def __init__(self, config: RayLaunchConfig, state_directory: Path, deprioritize_after_s: Mapping[str, float] | None = None) -> None:
        super().__init__(config, state_directory, deprioritize_after_s)
        self._state, self._deprioritize_after_s = state_directory, deprioritize_after_s or {}
        self.cluster = RayCluster(config, state_directory / "logs" / _LOG_FILE)

    async def launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        """Ask the cluster for a place and return at once, in phase LAUNCHING; the addresses are not known yet.

        Raises:
            LaunchFailedError: the slot or a model does not exist, or the cluster does not answer.
            SettingsError: a model's `config.pbtxt` cannot be read.
        """
        if slot not in self._slots:
            raise LaunchFailedError(f"server {name}: slot {slot} does not exist: expected one of {', '.join(self._slots)}")
        files, launch = self._views.files(name), uuid.uuid4().hex[:12]
        order = launch_order(name, self._slots[slot], models, launch, self._config, self._deprioritize_after_s)
        try:
            await self._views.build(name, models)
            await asyncio.to_thread(self._write_files, files, order)
            actor = actor_name(name, launch)
            resources, labels = dict(self._config.resources), dict(self._config.selection_of(slot))
            asked: Json = {"name": actor, "order": order, "resources": resources, "labels": labels, "epoch": self.cluster.epoch}
            answer = await self.cluster.call("create", **asked)
        except ThemisError as error:
            await asyncio.to_thread(files.remove)
            if type(error) is ServerError:
                raise LaunchFailedError(f"server {name}: {error}") from error
            raise
        self.cluster.note(actor, Supervisor(**answer))
        return self._with_files(server_of(order))

    def _write_files(self, files: ServerFiles, order: Json) -> None:
        (files.directory / _ORDER_FILE).write_text(json.dumps(order), encoding="utf-8")
        write_state(self._state, self._config)

    def _with_files(self, server: Server) -> Server:
        """The server with what the sidecar knows of it: its log, and where its models' own files can be read."""
        files = self._views.files(server.name)
        own = files.models if files.models.is_dir() else self._config.model_repository
        return self._secured(replace(server, log_file=str(files.log), model_repository=str(own)))

    async def wait_ready(self, server: Server) -> Server:
        """Wait for a node (`place_timeout_s`), then until Triton is ready there with its models (`ready_timeout_s`).

        Raises:
            LaunchFailedError: it found no node, ended, or was not ready in time; with what the cluster has, or the log's last lines.
            ModelFailedError: a model could not be loaded.
        """
        actor, place_s = _actor(server), self._config.place_timeout_s
        await self.cluster.connect()
        known = await self.cluster.wait_for(actor, lambda known: known is None or known.state != WAITING, place_s)
        if known is not None and known.state == WAITING:
            found = await asked_and_there(self.cluster, self._config)
            raise LaunchFailedError(f"server {server.name} found no place within launch.ray.place_timeout_s = {place_s:g} s: {found}")
        if known is None or known.state != PLACED:
            raise self._over(server, known)
        try:
            answer = await self._invoke(server, "start", self.cluster.epoch, timeout_s=self._config.ready_timeout_s + _SLACK_S)
        except ServerError as error:
            raise LaunchFailedError(f"server {server.name} ended before it was ready, or is not reachable: {error}") from error
        if "model" in answer:
            raise ModelFailedError(answer["error"], answer["model"], answer["cause"], answer["remedy"])
        if "error" in answer:
            raise LaunchFailedError(f"server {server.name} on node {(known.description or {}).get('node')}: {answer['error']}")
        ready = replace(self._with_files(server_of(answer)), phase=Phase.WARMING, models=server.models)
        return await self._with_gpu(ready)

    def _over(self, server: Server, known: Supervisor | None) -> LaunchFailedError:
        why = known.why if known is not None and known.why else "its actor is gone"
        return LaunchFailedError(f"server {server.name} ended before it was ready ({why})")

    async def _invoke(self, server: Server, method: str, *arguments: object, timeout_s: float = 10.0) -> Any:  # noqa: ANN401 - JSON
        """A method of the server's supervisor."""
        call: Json = {"name": _actor(server), "method": method, "arguments": list(arguments), "within_s": timeout_s}
        return await self.cluster.call("invoke", timeout_s + 1.0, **call)

    async def add_model(self, server: Server, model: str, state: ModelState) -> None:
        """Make a model loadable on the server's node, and here the view of its files from which it is changed."""
        await super().add_model(server, model, state)
        await self._change(server, "add_model", model, models_json({model: state})[model], self.cluster.epoch)

    async def add_ensembles(self, server: Server) -> None:
        """Make the ensembles that a running server's models suffice for loadable."""
        await super().add_ensembles(server)
        await self._change(server, "add_ensembles", models_json(server.models), self.cluster.epoch)

    async def _change(self, server: Server, method: str, *arguments: object) -> None:
        answer = await self._invoke(server, method, *arguments)
        if "error" in answer:
            raise LaunchFailedError(f"server {server.name} on node {server.node}: {answer['error']}")

    async def is_alive(self, server: Server) -> bool:
        """Whether the very actor still waits for a node, or its server runs there, as was last seen; True before anything was."""
        if self.cluster.supervisors is None:
            with contextlib.suppress(ServerError):
                await self.cluster.connect()
        known = (self.cluster.supervisors or {}).get(_actor(server))
        return self.cluster.supervisors is None or (known is not None and known.state in (WAITING, PLACED))

    async def read_log(self, server: Server, lines: int) -> str:
        """The last lines of the server's output on its node; of one that is gone, those that were kept."""
        known = (self.cluster.supervisors or {}).get(_actor(server))
        if known is not None and known.state in (PLACED, ENDED):
            with contextlib.suppress(ServerError):
                return str(await self._invoke(server, "read_log", lines))
        return await asyncio.to_thread(self._views.files(server.name).last_lines, lines) or ""

    async def read_memory(self, server: Server) -> int:
        """Bytes that the server's processes hold on its device; 0 where that is unknown."""
        with contextlib.suppress(ServerError):
            return int(await self._invoke(server, "read_memory"))
        return 0

    async def discover(self) -> tuple[Server, ...]:
        """Every server that runs or whose launch was begun with this state directory, by name, in phase LAUNCHING.

        With a lease, a place that another sidecar asked for and did not get yet is given up: only that one knows its order.

        Raises:
            ServerError: the cluster does not answer.
        """
        listed = {name: Supervisor(**each) for name, each in (await self.cluster.call("relist", 3 * _SLACK_S)).items()}
        found = {name: self._server(name, known) for name, known in listed.items()}
        if self.cluster.epoch is not None:
            unclaimed = [name for name, server in found.items() if server is None and listed[name].state == WAITING]
            await asyncio.gather(*(self.cluster.call("remove", name=name, within_s=0.0, epoch=self.cluster.epoch) for name in unclaimed))
        return tuple(sorted((server for server in found.values() if server is not None), key=lambda server: server.name))

    def _server(self, actor: str, known: Supervisor) -> Server | None:
        if known.state not in (WAITING, PLACED):
            return None
        if known.description is not None and (known.description["ports"] or self.cluster.epoch is not None):
            return self._with_files(server_of(known.description))
        name, launch = server_name(actor)
        try:
            order = json.loads((self._views.files(name).directory / _ORDER_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return self._with_files(server_of(order)) if order["launch"] == launch else None

    async def stop(self, server: Server) -> None:
        """SIGTERM on the node, then after a bounded wait SIGKILL; then the actor ends. The log's end is kept.

        Raises:
            ServerError: the server was not launched here, and is never stopped; or something of it is left.
        """
        await self._stop(server, at_once=False)

    async def kill(self, server: Server) -> None:
        """SIGKILL on the node, if that answers, and the actor's end.

        Raises:
            ServerError: the server was not launched here, and is never stopped; or its actor is still there.
        """
        await self._stop(server, at_once=True)

    async def _stop(self, server: Server, *, at_once: bool) -> None:
        incarnation_of_own(server)
        known = (self.cluster.supervisors or {}).get(_actor(server))
        if known is None or known.state in (PLACED, ENDED):
            await self._stop_process(server, at_once=at_once)
        asked: Json = {"name": _actor(server), "within_s": _REMOVED_WITHIN_S, "epoch": self.cluster.epoch}
        if not await self.cluster.call("remove", _REMOVED_WITHIN_S + _SLACK_S, **asked):
            raise ServerError(f"server {server.name}: its actor {_actor(server)} is still there {_REMOVED_WITHIN_S:g} s after it was ended")
        self.cluster.note(_actor(server), Supervisor(GONE, why="it was stopped"))
        await asyncio.to_thread(self._views.files(server.name).remove)

    async def _stop_process(self, server: Server, *, at_once: bool) -> None:
        """End Triton; where its node does not answer, its guardian does that when the actor ends."""
        with contextlib.suppress(ServerError):
            timeout_s = _SLACK_S if at_once else self._config.stop_timeout_s + _SLACK_S
            answer = await self._invoke(server, "stop", at_once, _KEPT_LINES, self.cluster.epoch, timeout_s=timeout_s)
            if answer.get("log"):
                await asyncio.to_thread(self._keep_log, server, answer["log"])

    def _keep_log(self, server: Server, text: str) -> None:
        file = self._views.files(server.name).log
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n", encoding="utf-8")

    async def list_nodes(self) -> tuple[Node, ...]:
        """The nodes that live. ServerError when the cluster does not answer."""
        return await nodes_of(self.cluster, self._config)

    async def stop_all(self) -> tuple[str, ...]:
        """Stop the servers of every actor of the namespace; returns the servers' names. ServerError when one is left."""
        actors = [name for name, each in (await self.cluster.call("relist", 3 * _SLACK_S)).items() if each["state"] != GONE]
        await asyncio.gather(*(self.stop(_named(*server_name(actor))) for actor in actors))
        return tuple(sorted(server_name(actor)[0] for actor in actors))

    async def close(self) -> None:
        """Close the connection to the cluster. The servers run on."""
        await self.cluster.close()


def _actor(server: Server) -> str:
    return actor_name(server.name, server.incarnation or "")


def _named(name: str, launch: str) -> Server:
    """A server of which no more than its actor's name is known."""
    return server_of({"name": name, "device": "", "slot": None, "models": {}, "launch": launch})
