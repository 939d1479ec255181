"""The calls of the Kubernetes API that Themis makes, through the official client; objects are plain JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

from themis_triton.adapters.kubernetes.template import Json
from themis_triton.core.config import KubernetesLaunchConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError

_TIMEOUT_S = 10.0
_TRIES = 5
_PAUSE_S = 0.2
_MAX_PAUSE_S = 10.0
_WATCH_S = 50
_RETRIED = (429, 500, 502, 503, 504)


class ApiError(ServerError):
    """The API answered with an error, or not at all (`status` 0)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class PodApi:
    """Lists, watches, creates, deletes and resizes the pods of a namespace. Use it from one event loop, and `close` it there.

    Too many requests, errors of the server and lost connections are tried again, as long as the answer says (`Retry-After`).
    """

    def __init__(self, config: KubernetesLaunchConfig) -> None:
        self._config = config
        self._client: Any = None

    async def list_pods(self, selector: str) -> tuple[list[Json], str]:
        """The pods with these labels, and the resource version to watch from."""
        pods = await self._json("list pods", "GET", self._pods(), {"labelSelector": selector})
        return pods["items"], pods["metadata"]["resourceVersion"]

    async def watch_pods(self, selector: str, version: str) -> AsyncIterator[tuple[str, Json]]:
        """Events (ADDED, MODIFIED, DELETED, BOOKMARK) after a resource version, until the server ends the watch.

        Raises:
            ApiError: the watch was refused, is too old (410), or its connection was lost.
        """
        query = {"labelSelector": selector, "watch": "true", "allowWatchBookmarks": "true"}
        query |= {"resourceVersion": version, "timeoutSeconds": str(_WATCH_S)}
        try:
            answer = await self._send("GET", self._pods(), query, timeout_s=_WATCH_S + _TIMEOUT_S)
            async with answer.response as response:
                if response.status >= 400:
                    raise _refusal("watch pods", response.status, await response.text())
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _refusal("watch pods", int(event["object"].get("code", 500)), json.dumps(event["object"]))
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(f"Kubernetes: watch pods: {error or type(error).__name__}", 0) from error

    async def create_pod(self, pod: Json) -> Json:
        """Create a pod; returns it as the server has it."""
        return await self._json(f"create pod {pod['metadata']['name']}", "POST", self._pods(), body=pod)

    async def read_pod(self, name: str) -> Json:
        """A pod by name. ApiError 404 where there is none."""
        return await self._json(f"get pod {name}", "GET", self._pods(name))

    async def delete_pod(self, name: str, uid: str, grace_s: int | None) -> None:
        """Delete this very pod; one that is gone, or another one of its name (409), is left alone.

        `grace_s` None: the pod's own grace period; 0: at once, without its node.
        """
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        try:
            await self._call(f"delete pod {name}", "DELETE", self._pods(name), body=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def resize_pod(self, name: str, container: str, resources: Json) -> Json:
        """Change the processor time and the memory of a container in place (the `resize` subresource)."""
        patch = {"spec": {"containers": [{"name": container, "resources": resources}]}}
        return await self._json(f"resize pod {name}", "PATCH", f"{self._pods(name)}/resize", body=patch)

    async def annotate_pod(self, pod: Json, annotations: Mapping[str, str | None]) -> Json:
        """Set annotations of a pod, or remove those with None. ApiError 409 where the pod has changed since it was read."""
        metadata = {"resourceVersion": pod["metadata"]["resourceVersion"], "annotations": dict(annotations)}
        name = pod["metadata"]["name"]
        return await self._json(f"annotate pod {name}", "PATCH", self._pods(name), body={"metadata": metadata})

    async def read_log(self, name: str, container: str, lines: int) -> str:
        """The last lines of a container's output."""
        query = {"container": container, "tailLines": str(lines)}
        return await self._call(f"read the log of pod {name}", "GET", f"{self._pods(name)}/log", query)

    async def read_deployment(self, name: str) -> Json:
        """A Deployment by name."""
        path = f"/apis/apps/v1/namespaces/{self._config.namespace}/deployments/{name}"
        return await self._json(f"get deployment {name}", "GET", path)

    async def read_lease(self, name: str) -> Json:
        """A Lease by name. ApiError 404 where there is none."""
        return await self._json(f"get lease {name}", "GET", self._leases(name))

    async def write_lease(self, lease: Json) -> Json:
        """Create a Lease, or update one that has a resource version. ApiError 409 where another one was first."""
        name = lease["metadata"]["name"]
        if "resourceVersion" in lease["metadata"]:
            return await self._json(f"update lease {name}", "PUT", self._leases(name), body=lease)
        return await self._json(f"create lease {name}", "POST", self._leases(), body=lease)

    def _leases(self, name: str | None = None) -> str:
        leases = f"/apis/coordination.k8s.io/v1/namespaces/{self._config.namespace}/leases"
        return leases if name is None else f"{leases}/{name}"

    async def read_node(self, name: str) -> Json:
        """A node by name. ApiError 403 where the sidecar has no right to read nodes."""
        return await self._json(f"get node {name}", "GET", f"/api/v1/nodes/{name}")

    async def list_nodes(self) -> list[Json]:
        """All nodes. ApiError 403 where the sidecar has no right to list them."""
        nodes: list[Json] = (await self._json("list nodes", "GET", "/api/v1/nodes"))["items"]
        return nodes

    async def list_all_pods(self) -> list[Json]:
        """The pods of all namespaces that have not ended. ApiError 403 where the sidecar has no right to list them."""
        query = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed", "resourceVersion": "0"}
        pods: list[Json] = (await self._json("list pods of all namespaces", "GET", "/api/v1/pods", query))["items"]
        return pods

    def _pods(self, name: str | None = None) -> str:
        pods = f"/api/v1/namespaces/{self._config.namespace}/pods"
        return pods if name is None else f"{pods}/{name}"

    async def _json(self, what: str, method: str, path: str, query: Mapping[str, str] | None = None, body: Json | None = None) -> Json:
        text = await self._call(what, method, path, query, body)
        try:
            result: Json = json.loads(text)
        except ValueError as error:
            raise ApiError(f"Kubernetes: {what}: the answer is not JSON: {text[:100]!r}", 0) from error
        return result

    async def _call(self, what: str, method: str, path: str, query: Mapping[str, str] | None = None, body: Json | None = None) -> str:
        """The body of the answer; ApiError once the call has failed as often as it is tried."""
        pause_s, left = _PAUSE_S, _TRIES
        while True:
            try:
                answer = await self._send(method, path, query, body)
                text = str((await answer.read()).decode(errors="replace"))
                if answer.status < 400:
                    return text
                failure, wait_s = _refusal(what, answer.status, text), _retry_after_s(answer.headers.get("Retry-After"), pause_s)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure, wait_s = ApiError(f"Kubernetes: {what}: {error or type(error).__name__}", 0), pause_s
            left -= 1
            if not left or failure.status not in (0, *_RETRIED):
                raise failure
            await asyncio.sleep(wait_s)
            pause_s = min(_MAX_PAUSE_S, 2 * pause_s)

    async def _send(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Json | None = None, timeout_s: float = _TIMEOUT_S
    ) -> Any:  # noqa: ANN401 - the client's
        """One request through the client, which adds the cluster's address and the credentials. Its typed models are left out.

        They would refuse what the API takes (numbers as quantities), and drop fields that are newer than the client.
        """
        if self._client is None:
            self._client = await _connected(self._config)
        kind = "application/strategic-merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json, */*", "Content-Type": kind}
        parts = await self._client.param_serialize(
            method, path, query_params=list((query or {}).items()), header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        return await self._client.call_api(*parts, _request_timeout=timeout_s)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None


async def _connected(config: KubernetesLaunchConfig) -> Any:  # noqa: ANN401 - the client is generated
    try:
        from kubernetes.aio import client  # noqa: PLC0415 - importing the client takes seconds
        from kubernetes.aio import config as cluster  # noqa: PLC0415
    except ImportError as error:
        fix = "pip install 'themis-triton[kubernetes]'"
        raise EnvironmentCheckError(f"launch.kind: kubernetes needs the extra `kubernetes`. Fix: {fix}") from error
    settings = client.Configuration()
    try:
        if config.kubeconfig is None and config.context is None:
            try:
                cluster.load_incluster_config(settings)
            except cluster.ConfigException:
                await cluster.load_kube_config(client_configuration=settings)
        else:
            file = str(config.kubeconfig) if config.kubeconfig is not None else None
            await cluster.load_kube_config(file, config.context, client_configuration=settings)
    except (cluster.ConfigException, OSError) as error:
        fix = "run the sidecar in a pod with a service account, or set launch.kubernetes.kubeconfig and context"
        raise EnvironmentCheckError(f"launch.kubernetes: no cluster is configured here: {error}. Fix: {fix}") from error
    return client.ApiClient(settings)


def _refusal(what: str, status: int, body: str) -> ApiError:
    """The API's own words, with the remedy where one is known."""
    try:
        words = str(json.loads(body).get("message") or body)
    except (ValueError, AttributeError):
        words = body[:500]
    fix = (
        ". Fix: bind the sidecar's service account to the Role of examples/kubernetes/rbac.yaml"
        if status == 401 or (status == 403 and "cannot" in words)
        else ""
    )
    return ApiError(f"Kubernetes refused to {what} ({status}): {words}{fix}", status)


def _retry_after_s(header: str | None, default_s: float) -> float:
    try:
        return min(_MAX_PAUSE_S, max(0.0, float(header))) if header is not None else default_s
    except ValueError:
        return default_s
