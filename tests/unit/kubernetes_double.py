"""A small double of the Kubernetes API, written from its documentation, with a scheduler and nodes that run a stand-in for Triton.

It has the few endpoints that Themis calls: pods as a list, a watch with bookmarks, create, get, delete, log and the `resize` subresource,
nodes, a Deployment, and Leases. Each object that is created is validated against Kubernetes' own schema.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from aiohttp import web

from tests.unit.stand_in import StandIn
from themis_triton.adapters.kubernetes.quantities import parse_quantity

VERSION = "1.37"
NAMESPACE = "inference"
KEY = "the-key"
_ADDRESSES = itertools.count(1)
Json = dict[str, Any]


def _address() -> str:
    """An address of this machine that no other test uses."""
    number = next(_ADDRESSES)
    return f"127.{16 + os.getpid() % 200}.{os.getpid() // 200 % 256}.{number}"


@dataclass
class Cluster:
    """`places`: how many pods find a node. `capacity_m`: the processors that one pod may have after a resize, in thousandths.

    `failures`: statuses of the next answers. `lost_answers`: so many requests are carried out and their answers lost.
    `run_proxy` starts the proxy of a pod that has one: at the pod's address, before another address that stands for the pod's loopback.
    """

    repository: Path
    places: int = 2
    capacity_m: int = 100_000
    gpu: bool = False
    zone: str = ""
    resizes: bool = True
    pods: dict[str, Json] = field(default_factory=dict)
    servers: dict[str, StandIn] = field(default_factory=dict)
    failures: deque[int] = field(default_factory=deque)
    lost_answers: int = 0
    calls: list[str] = field(default_factory=list)
    lost_nodes: set[str] = field(default_factory=set)
    leases: dict[str, Json] = field(default_factory=dict)
    nodes: list[Json] = field(default_factory=list)
    others_pods: list[Json] = field(default_factory=list)
    may_list_all_pods: bool = False
    run_proxy: Callable[[Json, str, str], None] | None = None
    url: str = ""
    _version: int = 100
    _oldest: int = 0
    _events: list[tuple[int, str, Json]] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _dropped: int = 0

    # What tests do to the cluster.

    async def set_places(self, places: int) -> None:
        self.places = places
        await self._schedule()

    async def set_replicas(self, count: int, pod: Json) -> None:
        """What a Deployment does: pods like this one, as many; those with the lowest deletion cost go first."""
        alive = [each for each in self.pods.values() if "deletionTimestamp" not in each["metadata"]]
        for _ in range(count - len(alive)):
            self._version += 1
            new = copy.deepcopy(pod)
            new["metadata"] |= {"name": f"triton-{self._version}", "uid": f"uid-{self._version}", "namespace": NAMESPACE}
            new["status"] = {"phase": "Pending", "conditions": []}
            self.pods[new["metadata"]["name"]] = new
            await self._changed("ADDED", new)
        cost = "controller.kubernetes.io/pod-deletion-cost"
        alive.sort(key=lambda each: int(each["metadata"].get("annotations", {}).get(cost, "0")))
        for each in alive[: max(0, len(alive) - count)]:
            await self._end(each)
        await self._schedule()

    async def lose_node(self, name: str) -> None:
        """The node of a pod is gone: the node controller taints it and deletes its pods, and no kubelet confirms that."""
        pod = self.pods[name]
        self.lost_nodes.add(name)
        await self.servers[name].kill()
        pod["status"]["conditions"].append(
            {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "deleting due to NoExecute taint"}
        )
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await self._changed("MODIFIED", pod)

    async def crash(self, name: str) -> None:
        await self.servers[name].kill()
        pod = self.pods[name]
        pod["status"]["phase"] = "Failed"
        pod["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 139, "reason": "Error"}}
        await self._changed("MODIFIED", pod)

    async def drop_watches(self) -> None:
        """End the connection of every watch."""
        async with self._news:
            self._dropped += 1
            self._news.notify_all()

    async def bookmark(self) -> None:
        self._version += 1
        await self._emit("BOOKMARK", {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": str(self._version)}})

    def expire(self) -> None:
        """Forget all events, as compaction does: a watch from an older version gets 410."""
        self._oldest = self._version
        self._events.clear()

    # The endpoints.

    @web.middleware
    async def _answered(self, request: web.Request, handler: Any) -> web.StreamResponse:
        watched = request.query.get("watch") in ("true", "True")
        self.calls.append(f"{'WATCH' if watched else request.method} {request.path.rpartition('/')[2]}")
        if self.failures and not watched:
            words = 'User "system:serviceaccount:inference:themis" cannot do this, or the server is busy'
            return _status(self.failures.popleft(), words, headers={"Retry-After": "0"})
        answer: web.StreamResponse = await handler(request)
        if self.lost_answers and request.method in ("POST", "PUT"):
            self.lost_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return answer

    async def list_pods(self, request: web.Request) -> web.StreamResponse:
        wanted = dict(pair.split("=") for pair in request.query["labelSelector"].split(","))

        def selected(pod: Json) -> bool:
            labels: Json = pod["metadata"].get("labels", {})
            return wanted.items() <= labels.items()

        if request.query.get("watch") in ("true", "True"):
            return await self._watch(request, selected)
        items = [pod for pod in self.pods.values() if selected(pod)]
        return web.json_response(
            {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": str(self._version)}, "items": items}
        )

    async def _watch(self, request: web.Request, selected: Any) -> web.StreamResponse:
        assert request.query["allowWatchBookmarks"] in ("true", "True")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        seen, dropped = int(request.query["resourceVersion"]), self._dropped
        if seen < self._oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": f"too old resource version: {seen} ({self._oldest})"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        while True:
            async with self._news:
                await self._news.wait_for(partial(self._has_news, seen, dropped))
            if self._dropped > dropped:
                if request.transport is not None:
                    request.transport.abort()
                return response
            for version, kind, pod in [event for event in self._events if event[0] > seen]:
                seen = version
                if kind == "BOOKMARK" or selected(pod):
                    await response.write(json.dumps({"type": kind, "object": pod}).encode() + b"\n")

    def _has_news(self, seen: int, dropped: int) -> bool:
        return self._dropped > dropped or any(version > seen for version, _, _ in self._events)

    async def create_pod(self, request: web.Request) -> web.Response:
        pod = await request.json()
        kubernetes_validate.validate(pod, VERSION, strict=True)
        name = pod["metadata"]["name"]
        if name in self.pods:
            return _status(409, f'pods "{name}" already exists', "AlreadyExists")
        pod["metadata"] |= {"uid": f"uid-{self._version}", "creationTimestamp": "2026-01-01T00:00:00Z"}
        pod["status"] = {"phase": "Pending", "conditions": []}
        self.pods[name] = pod
        await self._changed("ADDED", pod)
        answer = web.json_response(pod, status=201)
        await self._schedule()
        return answer

    async def get_pod(self, request: web.Request) -> web.Response:
        pod = self.pods.get(request.match_info["name"])
        return web.json_response(pod) if pod is not None else _missing(request)

    async def delete_pod(self, request: web.Request) -> web.Response:
        options, pod = await request.json(), self.pods.get(request.match_info["name"])
        if pod is None:
            return _missing(request)
        if options.get("preconditions", {}).get("uid", pod["metadata"]["uid"]) != pod["metadata"]["uid"]:
            return _status(409, "the UID in the precondition does not match the UID in record", "Conflict")
        name = pod["metadata"]["name"]
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await self._changed("MODIFIED", pod)
        if options.get("gracePeriodSeconds") == 0 or name not in self.lost_nodes:
            await self._end(pod)
            await self._schedule()
        return web.json_response(pod)

    async def _end(self, pod: Json) -> None:
        name = pod["metadata"]["name"]
        if name in self.servers:
            await self.servers.pop(name).kill()
        del self.pods[name]
        self.lost_nodes.discard(name)
        await self._changed("DELETED", pod)

    async def resize_pod(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/strategic-merge-patch+json"
        pod, patch = self.pods[request.match_info["name"]], await request.json()
        for change in patch["spec"]["containers"]:
            container = next(each for each in pod["spec"]["containers"] if each["name"] == change["name"])
            assert set(change) == {"name", "resources"}
            for part, amounts in change["resources"].items():
                container["resources"].setdefault(part, {}).update(amounts)
        kubernetes_validate.validate(pod, VERSION, strict=True)
        conditions = pod["status"]["conditions"] = [each for each in pod["status"]["conditions"] if each["type"] != "PodResizePending"]
        asked = parse_quantity(pod["spec"]["containers"][0]["resources"]["requests"]["cpu"])
        if 1000 * asked > self.capacity_m:
            words = f"Node didn't have enough capacity: cpu, requested: {1000 * asked:.0f}, capacity: {self.capacity_m}"
            conditions.append({"type": "PodResizePending", "status": "True", "reason": "Infeasible", "message": words})
        elif self.resizes:
            pod["status"]["containerStatuses"][0]["resources"] = copy.deepcopy(pod["spec"]["containers"][0]["resources"])
        await self._changed("MODIFIED", pod)
        return web.json_response(pod)

    async def annotate_pod(self, request: web.Request) -> web.Response:
        pod, patch = self.pods.get(request.match_info["name"]), await request.json()
        if pod is None:
            return _missing(request)
        assert set(patch) == {"metadata"}
        if patch["metadata"]["resourceVersion"] != pod["metadata"]["resourceVersion"]:
            return _status(409, "the object has been modified; please apply your changes to the latest version", "Conflict")
        annotations = {**pod["metadata"].get("annotations", {}), **patch["metadata"]["annotations"]}
        pod["metadata"]["annotations"] = {name: value for name, value in annotations.items() if value is not None}
        await self._changed("MODIFIED", pod)
        return web.json_response(pod)

    async def read_log(self, request: web.Request) -> web.Response:
        server = self.servers.get(request.match_info["name"])
        if server is None:
            return _missing(request)
        return web.Response(text="\n".join(server.log[-int(request.query["tailLines"]) :]))

    async def get_deployment(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response({"metadata": {"name": name, "uid": f"uid-of-{name}"}}) if name == "themis" else _missing(request)

    async def get_node(self, request: web.Request) -> web.Response:
        labels = {"topology.kubernetes.io/zone": self.zone} if self.zone else {}
        return web.json_response({"metadata": {"name": request.match_info["name"], "labels": labels}})

    async def get_lease(self, request: web.Request) -> web.Response:
        lease = self.leases.get(request.match_info["name"])
        return web.json_response(lease) if lease is not None else _missing(request)

    async def create_lease(self, request: web.Request) -> web.Response:
        lease = await request.json()
        if lease["metadata"]["name"] in self.leases:
            return _status(409, f'leases "{lease["metadata"]["name"]}" already exists', "AlreadyExists")
        return self._keep_lease(lease, 201)

    async def update_lease(self, request: web.Request) -> web.Response:
        lease, present = await request.json(), self.leases.get(request.match_info["name"])
        if present is None:
            return _missing(request)
        if lease["metadata"]["resourceVersion"] != present["metadata"]["resourceVersion"]:
            return _status(409, "the object has been modified; please apply your changes to the latest version", "Conflict")
        return self._keep_lease(lease, 200)

    def _keep_lease(self, lease: Json, status: int) -> web.Response:
        kubernetes_validate.validate(lease, VERSION, strict=True)
        self._version += 1
        lease["metadata"]["resourceVersion"] = str(self._version)
        self.leases[lease["metadata"]["name"]] = lease
        return web.json_response(lease, status=status)

    async def list_nodes(self, _: web.Request) -> web.Response:
        if self.failures:
            status = self.failures.popleft()
            return web.json_response({"message": "nodes is forbidden: User cannot list resource"}, status=status)
        return web.json_response({"kind": "NodeList", "items": self.nodes})

    async def list_all_pods(self, _: web.Request) -> web.Response:
        if self.may_list_all_pods:
            return web.json_response({"kind": "PodList", "items": [*self.others_pods, *self.pods.values()]})
        return web.json_response({"message": "pods is forbidden: User cannot list resource"}, status=403)

    # The scheduler and the kubelets.

    async def _schedule(self) -> None:
        placed = [pod for pod in self.pods.values() if pod["spec"].get("nodeName")]
        for pod in [pod for pod in self.pods.values() if not pod["spec"].get("nodeName")]:
            if len(placed) < self.places:
                placed.append(pod)
                pod["spec"]["nodeName"] = f"node-of-{pod['metadata']['name']}"
                await self._run(pod)
            elif not pod["status"]["conditions"]:
                words = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
                pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}]
                await self._changed("MODIFIED", pod)

    async def _run(self, pod: Json) -> None:
        """Start the container, with its arguments and variables as Kubernetes expands them."""
        container, address = pod["spec"]["containers"][0], _address()
        variables = {each["name"]: self._variable(each, address) for each in container["env"]}
        arguments = [_expanded(word, variables) for word in container["args"]]
        if "initContainers" in pod["spec"] and self.run_proxy is not None:
            loopback = _address()
            arguments = [word.replace("127.0.0.1", loopback) for word in arguments]
            self.run_proxy(pod, address, loopback)
        server = self.servers[pod["metadata"]["name"]] = StandIn(self.repository, arguments, gpu=self.gpu)
        await server.start()
        running = {"name": container["name"], "image": container["image"], "imageID": "", "ready": True, "restartCount": 0}
        running |= {"state": {"running": {}}, "resources": copy.deepcopy(container.get("resources", {}))}
        scheduled = [{"type": "PodScheduled", "status": "True"}]
        pod["status"] = {"phase": "Running", "podIP": address, "conditions": scheduled, "containerStatuses": [running]}
        await self._changed("MODIFIED", pod)

    def _variable(self, variable: Json, address: str) -> str:
        source = variable["valueFrom"]
        if "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "status.podIP"
            return address
        assert source["secretKeyRef"] == {"name": "themis-model-control", "key": "key"}
        return KEY

    async def _changed(self, kind: str, pod: Json) -> None:
        self._version += 1
        pod["metadata"]["resourceVersion"] = str(self._version)
        await self._emit(kind, copy.deepcopy(pod))

    async def _emit(self, kind: str, pod: Json) -> None:
        async with self._news:
            self._events.append((self._version, kind, pod))
            self._news.notify_all()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Cluster]:
        app = web.Application(middlewares=[self._answered])
        pods, apps = f"/api/v1/namespaces/{NAMESPACE}/pods", f"/apis/apps/v1/namespaces/{NAMESPACE}"
        leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
        app.add_routes(
            [
                web.get(pods, self.list_pods),
                web.post(pods, self.create_pod),
                web.get(f"{pods}/{{name}}", self.get_pod),
                web.delete(f"{pods}/{{name}}", self.delete_pod),
                web.patch(f"{pods}/{{name}}", self.annotate_pod),
                web.patch(f"{pods}/{{name}}/resize", self.resize_pod),
                web.get(f"{pods}/{{name}}/log", self.read_log),
                web.get("/api/v1/nodes", self.list_nodes),
                web.get("/api/v1/pods", self.list_all_pods),
                web.get("/api/v1/nodes/{name}", self.get_node),
                web.get(f"{apps}/deployments/{{name}}", self.get_deployment),
                web.post(leases, self.create_lease),
                web.get(f"{leases}/{{name}}", self.get_lease),
                web.put(f"{leases}/{{name}}", self.update_lease),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            for server in self.servers.values():
                await server.kill()
            await self.drop_watches()
            await runner.cleanup()

    def kubeconfig(self, folder: Path) -> Path:
        """A file with which clients reach it."""
        clusters = [{"name": "double", "cluster": {"server": self.url}}]
        context = {"name": "double", "context": {"cluster": "double", "user": "nobody", "namespace": NAMESPACE}}
        users = [{"name": "nobody", "user": {"token": "a-token"}}]
        text = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": clusters,
            "users": users,
            "contexts": [context],
            "current-context": "double",
        }
        file = folder / "kubeconfig"
        file.write_text(yaml.safe_dump(text))
        return file


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    for name, value in variables.items():
        word = word.replace(f"$({name})", value)
    return word


def _status(code: int, message: str, reason: str = "", headers: Mapping[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}
    return web.json_response(body, status=code, headers=headers)


def _missing(request: web.Request) -> web.Response:
    return _status(404, f'"{request.match_info["name"]}" not found', "NotFound")
