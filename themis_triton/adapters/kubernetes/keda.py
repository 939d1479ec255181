"""The horizontal actuator where KEDA owns the Deployment of the servers: Themis publishes how many it wants, and claims the pods."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from themis_triton.adapters.kubernetes.api import ApiError
from themis_triton.adapters.kubernetes.launcher import KubernetesLauncher
from themis_triton.adapters.kubernetes.pods import DEVICE, LAUNCH, MODELS, SERVER, SLOT, has_ended, incarnation_of, is_placed
from themis_triton.adapters.kubernetes.scaler import ScalerService
from themis_triton.adapters.kubernetes.template import Json
from themis_triton.core.address import UNKNOWN_ADDRESS
from themis_triton.core.config import KubernetesLaunchConfig
from themis_triton.core.errors import LaunchFailedError, ServerError, SettingsError
from themis_triton.core.fleet import ModelState, Phase, Server

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""Annotation: of the pods that a Deployment gives up, those with the lowest number go first."""
_FREE_COST, _CLAIMED_COST = "-100", "100"
_CHANGED = (404, 409)


class KedaLauncher(KubernetesLauncher):
    """Implements `ServerLauncher` over the pods of a Deployment.

    A launch raises the number of servers wanted, which KEDA reads (`ScalerService`), and claims the next pod that no server has. A stop
    lowers it and frees the pod, which the Deployment gives up first; until then the next launch claims it again.
    """

    def __init__(
        self, config: KubernetesLaunchConfig, state_directory: Path, deprioritize_after_s: Mapping[str, float] | None = None
    ) -> None:
        if config.keda is None:
            raise SettingsError("launch.kubernetes.keda: missing")
        self._keda = config.keda
        super().__init__(config, state_directory, deprioritize_after_s)
        self._asked: set[str] = set()
        self._scaler = ScalerService(self._keda.listen, self.wanted, self._keda.tls)

    def wanted(self) -> int | None:
        """The servers wanted: those that have a pod and those that wait for one; None before the pods are known."""
        pods = self._watch.known
        return None if pods is None else len(self._asked | {_claimant(pod) for pod in pods.values() if _is_claimed(pod)})

    def _selector(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self._keda.selector)

    def _name(self, server: Server) -> str:
        """The name of the pod that the server has claimed; the server's own where there is none."""
        pod = self._pod(server)
        return str(pod["metadata"]["name"]) if pod is not None else server.name

    def _pod(self, server: Server) -> Json | None:
        own = [pod for pod in (self._watch.known or {}).values() if _claimant(pod) == server.name]
        return next((pod for pod in own if server.incarnation in (None, incarnation_of(pod))), None)

    async def launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        """Raise the number of servers wanted and return at once, in phase LAUNCHING; the server has no pod yet.

        Raises:
            LaunchFailedError: the slot or a model does not exist.
            SettingsError: the key of model control cannot be read.
        """
        if slot not in self._slots:
            raise LaunchFailedError(f"server {name}: slot {slot} does not exist: expected one of {', '.join(self._slots)}")
        await self._scaler.start()
        await self._watch.pods()
        await self._views.build(name, models)
        nowhere = (UNKNOWN_ADDRESS, UNKNOWN_ADDRESS, UNKNOWN_ADDRESS)
        server = Server(name, self._slots[slot].device, *nowhere, Phase.LAUNCHING, launched=True, slot=slot, models=dict(models))
        server = self._with_files(server)
        self._asked.add(name)
        return server

    async def wait_ready(self, server: Server) -> Server:
        """Wait for a pod that no server has (`place_timeout_s`), claim it, then as on Kubernetes.

        Raises:
            LaunchFailedError: no pod came, it ended, or was not ready in time.
            ModelFailedError: a model could not be loaded.
        """
        if server.incarnation is None:
            if server.name not in self._asked:
                raise LaunchFailedError(f"server {server.name} ended before it was ready: it is not wanted any more")
            pod = await self._claim(server)
            self._asked.discard(server.name)
            server = replace(server, incarnation=incarnation_of(pod))
        return await super().wait_ready(server)

    async def _claim(self, server: Server) -> Json:
        loop, place_s = asyncio.get_running_loop(), self._config.place_timeout_s
        deadline_s = loop.time() + place_s
        models = {name: [state.instances, state.max_batch, state.max_queue_delay_us] for name, state in server.models.items()}
        marks = {SERVER: server.name, SLOT: server.slot, DEVICE: server.device, MODELS: json.dumps(models), LAUNCH: uuid.uuid4().hex}
        marks[DELETION_COST] = _CLAIMED_COST
        while True:
            pods = await self._watch.wait_until(lambda pods: any(map(_is_free, pods.values())), deadline_s - loop.time())
            free = sorted(filter(_is_free, pods.values()), key=lambda pod: DELETION_COST not in _annotations(pod))  # models may be loaded
            if not free:
                raise LaunchFailedError(
                    f"server {server.name} found no place within launch.kubernetes.place_timeout_s = {place_s:g} s: "
                    f"{self.wanted()} servers are wanted, and KEDA has added no pod with {self._selector()}"
                )
            try:
                pod = await self._api.annotate_pod(free[0], marks)
            except ApiError as error:
                if error.status not in _CHANGED:
                    raise LaunchFailedError(f"server {server.name}: {error}") from error
                await self._watch.relist()
                continue
            await self._watch.put(pod)
            return pod

    async def is_alive(self, server: Server) -> bool:
        """Whether the server waits for a pod, or its pod runs and is still its own."""
        if server.incarnation is None and self._pod(server) is None:
            return server.name in self._asked
        pod = self._pod(server)
        return await super().is_alive(replace(server, incarnation=incarnation_of(pod)) if pod is not None else server)

    async def discover(self) -> tuple[Server, ...]:
        """Every server with a pod, by name, in phase LAUNCHING; from now on KEDA is answered. ServerError where the API is silent."""
        servers = [server for server in await super().discover() if _is_claimed(self._pod(server))]
        await self._scaler.start()
        return tuple(servers)

    async def stop_all(self) -> tuple[str, ...]:
        """Free every pod; returns the servers' names."""
        servers = [server for server in await super().discover() if _is_claimed(self._pod(server))]
        for server in servers:
            await self.stop(server)
        return tuple(server.name for server in servers)

    async def stop(self, server: Server) -> None:
        """Lower the number of servers wanted, and free the server's pod: the Deployment gives it up first.

        Raises:
            ServerError: the server was not launched here, or the API does not answer.
        """
        if not server.launched:
            raise ServerError(f"server {server.name} was not launched by Themis and is never stopped by it. Fix: stop it where it runs")
        self._asked.discard(server.name)
        await self._watch.pods()
        while (pod := self._pod(server)) is not None:
            await self._keep_log(replace(server, incarnation=incarnation_of(pod)))
            freed = dict.fromkeys((SERVER, SLOT, DEVICE, MODELS, LAUNCH)) | {DELETION_COST: _FREE_COST}
            try:
                await self._watch.put(await self._api.annotate_pod(pod, freed))
            except ApiError as error:
                if error.status not in _CHANGED:
                    raise
                await self._watch.relist()
        await self._control.forget(server)
        await asyncio.to_thread(self._views.files(server.name).remove)

    async def kill(self, server: Server) -> None:
        """Delete the pod by force; the Deployment replaces it as long as KEDA wants as many.

        Raises:
            ServerError: the server was not launched here, or its pod is still there.
        """
        pod = self._pod(server)
        if pod is None or not server.launched:
            await self.stop(server)
            return
        await super().kill(replace(server, incarnation=incarnation_of(pod)))

    async def close(self) -> None:
        """Close the scaler, the watch and the connections. KEDA keeps the number of pods while it is not answered."""
        with contextlib.suppress(OSError):
            await self._scaler.close()
        await super().close()


def _annotations(pod: Json) -> Mapping[str, str]:
    return pod["metadata"].get("annotations") or {}


def _claimant(pod: Json) -> str | None:
    return _annotations(pod).get(SERVER)


def _is_claimed(pod: Json | None) -> bool:
    return pod is not None and _claimant(pod) is not None and not has_ended(pod)


def _is_free(pod: Json) -> bool:
    return _claimant(pod) is None and is_placed(pod) and not has_ended(pod) and bool(pod.get("status", {}).get("podIP"))
