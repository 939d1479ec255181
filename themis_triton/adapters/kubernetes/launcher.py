"""The horizontal actuator on a Kubernetes cluster: a pod for each server."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.kubernetes.api import ApiError, PodApi
from themis_triton.adapters.kubernetes.loading import load_models
from themis_triton.adapters.kubernetes.nodes import nodes_of
from themis_triton.adapters.kubernetes.pods import (
    LAUNCH,
    ZONE,
    Order,
    end_of,
    has_ended,
    incarnation_of,
    is_placed,
    pod_name,
    selector,
    server_of,
    server_pod,
    waits_for,
)
from themis_triton.adapters.kubernetes.resizing import resize_pod
from themis_triton.adapters.kubernetes.state_file import write_state
from themis_triton.adapters.kubernetes.template import Json, read_template, triton_container
from themis_triton.adapters.kubernetes.watch import PodWatch
from themis_triton.adapters.remote_launcher import RemoteLauncher, incarnation_of_own
from themis_triton.adapters.triton.idle import POLL_S, POLL_TIMEOUT_S
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.config import KubernetesLaunchConfig
from themis_triton.core.errors import LaunchFailedError, ServerError, SettingsError, ThemisError
from themis_triton.core.fleet import Models, ModelState, Phase, Server
from themis_triton.core.nodes import Node

log = structlog.get_logger()
_TAIL_LINES = 20
_KEPT_LINES = 2000
_CONFLICT = 409
_FORCED_WAIT_S = 20.0


class KubernetesLauncher(RemoteLauncher):
    """Implements `ServerLauncher`. Use it from one event loop, and `close` it there.

    It is stateless but for a copy of what the API server has: everything about a server is in its pod, and its models' own
    configuration files are in the state directory, where changes of counts start from.

    Args:
        config: the cluster, the pod template and the slots, each for one pod.
        state_directory: views of the models' files and the logs of ended servers lie here.
        deprioritize_after_s: by model, how long a request waits before all others are served first; see `model_config.for_launch`.
    """

    _config: KubernetesLaunchConfig

    def __init__(
        self, config: KubernetesLaunchConfig, state_directory: Path, deprioritize_after_s: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(config, state_directory, deprioritize_after_s, [config.pod_template] if config.keda is None else [])
        self._state = state_directory
        self._api = PodApi(config)
        self._watch = PodWatch(self._api, self._selector())
        self._control = TritonModelControl()

    def _selector(self) -> str:
        return selector(self._config.sidecar)

    def _name(self, server: Server) -> str:
        """The name of the server's pod."""
        return pod_name(self._config.sidecar, server.name)

    async def launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        """Create the server's pod and return at once, in phase LAUNCHING; its addresses are not known yet.

        Raises:
            LaunchFailedError: the slot or a model does not exist, or the API refused the pod (a quota, a policy, missing rights).
            SettingsError: the template, a model's `config.pbtxt` or the key of model control cannot be read.
        """
        if slot not in self._slots:
            raise LaunchFailedError(f"server {name}: slot {slot} does not exist: expected one of {', '.join(self._slots)}")
        template, files = await asyncio.to_thread(read_template, self._config.pod_template), self._views.files(name)
        order = Order(name, slot, self._slots[slot].device, models, uuid.uuid4().hex)
        try:
            self._read_key()
            await self._views.build(name, models)
            write_state(self._state, self._config)
            pod = await self._create(server_pod(template, order, self._config, await self._owner()))
        except ThemisError as error:
            await asyncio.to_thread(files.remove)
            if isinstance(error, ApiError):
                raise LaunchFailedError(f"server {name}: {error}") from error
            raise
        return self._with_files(server_of(pod))

    async def _create(self, pod: Json) -> Json:
        """Create the pod; where an earlier try was carried out but its answer was lost, the pod that it made."""
        await self._watch.pods()
        try:
            return await self._watch.create(pod)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
            there = await self._api.read_pod(pod["metadata"]["name"])
            if there["metadata"].get("annotations", {}).get(LAUNCH) != pod["metadata"]["annotations"][LAUNCH]:
                raise
            return there

    async def _owner(self) -> Json | None:
        """The reference to the Deployment with which the pods are deleted."""
        if self._config.owner_deployment is None:
            return None
        metadata = (await self._api.read_deployment(self._config.owner_deployment))["metadata"]
        return {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"]}

    def _read_key(self) -> str:
        try:
            return self._config.key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingsError(
                f"launch.kubernetes.key_file: {self._config.key_file} cannot be read: {error.strerror}. "
                f"Fix: mount the Secret {self._config.key_secret} there"
            ) from error

    def _with_files(self, server: Server) -> Server:
        """The server with what the sidecar knows of it: its key, its log, and where its models' own files can be read."""
        files = self._views.files(server.name)
        own = files.models if files.models.is_dir() else self._config.model_repository
        known = replace(server, model_control_key=self._read_key(), log_file=str(files.log), model_repository=str(own))
        return self._secured(known)

    async def wait_ready(self, server: Server) -> Server:
        """Wait for a node (`place_timeout_s`), then until Triton answers and its models are loaded (`ready_timeout_s`).

        Models that are READY already stay as they are.

        Raises:
            LaunchFailedError: it found no node, ended, or was not ready in time; with Kubernetes' reason and the log's last lines.
            ModelFailedError: a model could not be loaded.
        """
        name, place_s = self._name(server), self._config.place_timeout_s
        pod = await self._watch.wait_for(name, lambda pod: self._is_over(server, pod) or (pod is not None and is_placed(pod)), place_s)
        await self._refuse_over(server, pod)
        if pod is None or not is_placed(pod):
            raise LaunchFailedError(
                f"server {server.name} found no place within launch.kubernetes.place_timeout_s = {place_s:g} s: {waits_for(pod or {})}"
            )
        deadline_s = asyncio.get_running_loop().time() + self._config.ready_timeout_s
        ready = replace(await self._answering(server, deadline_s), models=server.models)
        loading = load_models(self._control, ready, self._config.ensembles_of(ready.models))
        try:
            models = await asyncio.wait_for(loading, max(1.0, deadline_s - asyncio.get_running_loop().time()))
        except TimeoutError as error:
            raise LaunchFailedError(f"{self._late(ready)}: its models are not loaded; {await self._log_tail(ready)}") from error
        except LaunchFailedError:
            raise
        except ServerError as error:
            raise LaunchFailedError(f"server {server.name}: {error}; {await self._log_tail(ready)}") from error
        return replace(await self._with_gpu(ready), phase=Phase.WARMING, models=models, zone=await self._zone(ready))

    async def _answering(self, server: Server, deadline_s: float) -> Server:
        """The server with its addresses, once it answers."""
        name, loop = self._name(server), asyncio.get_running_loop()
        async with HttpClient(POLL_TIMEOUT_S) as http:
            while True:
                pod = (await self._watch.pods()).get(name)
                await self._refuse_over(server, pod)
                now = self._with_files(server_of(pod)) if pod is not None else server
                if now.http_address.host:
                    with contextlib.suppress(HttpError):
                        for address, path in ((now.http_address, "/v2/health/live"), (now.metrics_address, "/metrics")):
                            await http.get_at(address, path)
                        return now
                if loop.time() >= deadline_s:
                    raise LaunchFailedError(f"{self._late(server)}: {waits_for(pod or {})}; {await self._log_tail(server)}")
                await asyncio.sleep(POLL_S)

    def _late(self, server: Server) -> str:
        return (
            f"server {server.name} on slot {server.slot} was not ready within launch.ready_timeout_s = {self._config.ready_timeout_s:g} s"
        )

    def _is_over(self, server: Server, pod: Json | None) -> bool:
        return pod is None or incarnation_of(pod) != server.incarnation or has_ended(pod)

    async def _refuse_over(self, server: Server, pod: Json | None) -> None:
        if self._is_over(server, pod):
            how = end_of(pod) if pod is not None else "its pod is gone"
            raise LaunchFailedError(f"server {server.name} ended before it was ready ({how}); {await self._log_tail(server)}")

    async def _log_tail(self, server: Server) -> str:
        return f"pod {self._name(server)}, last lines:\n{await self.read_log(server, _TAIL_LINES)}"

    async def _zone(self, server: Server) -> str | None:
        """The zone of the server's node: by the pod's label, else the node's; None where neither can be read."""
        if server.zone is not None or server.node is None:
            return server.zone
        try:
            labels: dict[str, str] = (await self._api.read_node(server.node))["metadata"].get("labels") or {}
        except ApiError as error:
            log.info("zone_unknown", server=server.name, node=server.node, reason=str(error))
            return None
        return labels.get(ZONE)

    async def is_alive(self, server: Server) -> bool:
        """Whether the very pod still runs or waits for a node, by the watch; True while the API server has never answered."""
        try:
            pods = await self._watch.pods()
        except ServerError as error:
            log.warning("pods_not_listed", server=server.name, error=str(error))
            return True
        return not self._is_over(server, pods.get(self._name(server)))

    async def resize(self, server: Server, models: Models) -> None:
        """Resize the pod in place for the instances of these models, as `launch.kubernetes.instance_cpu` and `instance_memory` say.

        Raises:
            ChangeRefusedError: the node lacks the room, or did not decide within `resize_timeout_s`; the pod keeps what it has.
        """
        if self._config.instance_cpu_m or self._config.instance_memory_bytes:
            base = triton_container(await asyncio.to_thread(read_template, self._config.pod_template)).get("resources") or {}
            await resize_pod(self._api, self._watch, self._config, self._name(server), base, models)

    async def read_log(self, server: Server, lines: int) -> str:
        """The last lines of the pod's log; of one that is gone, those that were kept."""
        name, pods = self._name(server), dict[str, Json]()
        with contextlib.suppress(ServerError):
            pods |= await self._watch.pods()
            if name in pods and incarnation_of(pods[name]) == server.incarnation:
                return await self._api.read_log(name, triton_container(pods[name])["name"], lines)
        return await asyncio.to_thread(self._views.files(server.name).last_lines, lines) or ""

    async def discover(self) -> tuple[Server, ...]:
        """Every pod of this sidecar that has not ended, by name, in phase LAUNCHING. ServerError where the API does not answer."""
        pods = await self._watch.relist()
        running = [self._with_files(server_of(pod)) for pod in pods.values() if not has_ended(pod)]
        return tuple(sorted(running, key=lambda server: server.name))

    async def list_nodes(self) -> tuple[Node, ...]:
        """All nodes. ServerError where the sidecar may not list them, or the API does not answer."""
        return await nodes_of(self._api, self._config)

    async def stop_all(self) -> tuple[str, ...]:
        """Delete every pod of this sidecar; returns the servers' names. ServerError when one is left."""
        servers = [server_of(pod) for pod in (await self._watch.relist()).values()]
        await asyncio.gather(*(self.stop(server) for server in servers))
        return tuple(sorted(server.name for server in servers))

    async def stop(self, server: Server) -> None:
        """Delete the pod: SIGTERM, and SIGKILL after its grace period; by force where its node does not confirm. The log's end is kept.

        Raises:
            ServerError: the server was not launched here, and is never stopped; or its pod is still there.
        """
        await self._delete(server, None, self._config.drain_timeout_s + self._config.stop_timeout_s)

    async def kill(self, server: Server) -> None:
        """Delete the pod by force, without waiting for its node.

        Raises:
            ServerError: the server was not launched here, and is never stopped; or its pod is still there.
        """
        await self._delete(server, 0, _FORCED_WAIT_S)

    async def _delete(self, server: Server, grace_s: int | None, wait_s: float) -> None:
        name, uid = self._name(server), incarnation_of_own(server).partition("/")[0]
        await self._keep_log(server)
        for grace, bound_s in ((grace_s, wait_s), (0, _FORCED_WAIT_S)):
            await self._api.delete_pod(name, uid, grace)
            pod = await self._watch.wait_for(name, lambda pod: pod is None or pod["metadata"]["uid"] != uid, bound_s)
            if pod is None or pod["metadata"]["uid"] != uid:
                await self._control.forget(server)
                await asyncio.to_thread(self._views.files(server.name).remove)
                return
        raise ServerError(f"server {server.name}: pod {name} is still there {math.ceil(_FORCED_WAIT_S)} s after it was deleted by force")

    async def _keep_log(self, server: Server) -> None:
        """Write the end of the log to its file, because it goes with the pod."""
        pod = (await self._watch.pods()).get(self._name(server))
        if pod is None or incarnation_of(pod) != server.incarnation:
            return
        file = self._views.files(server.name).log
        with contextlib.suppress(ServerError, OSError):
            text = await self._api.read_log(pod["metadata"]["name"], triton_container(pod)["name"], _KEPT_LINES)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")

    async def close(self) -> None:
        """Close the watch and the connections. The pods run on."""
        await self._watch.close()
        await self._control.close()
        await self._api.close()
