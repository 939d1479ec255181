"""The Kubernetes launcher against the double of the API: the port's contracts, and what only Kubernetes does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contracts.ports import EngineContract, LauncherContract, Ports, Scenario, World
from tests.unit.kubernetes_double import KEY, NAMESPACE, Cluster
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.kubernetes.launcher import KubernetesLauncher
from themis_triton.adapters.kubernetes.pods import has_ended
from themis_triton.adapters.launchers import discover_all, stop_all
from themis_triton.adapters.triton.metrics import TritonMetrics
from themis_triton.core.config import DeviceSlot, KubernetesLaunchConfig
from themis_triton.core.errors import ChangeRefusedError, LaunchFailedError, ModelFailedError
from themis_triton.core.fleet import ModelState, Server
from themis_triton.settings.shipped import shipped

REPOSITORY = shipped("model_repository")
MODELS = {"video-detector": ModelState(1, 8), "video-classifier": ModelState(2, 4)}
PATIENCE_S, SHORT_S = 20.0, 0.2
SLOTS = (DeviceSlot("pod-1", "pod:1"), DeviceSlot("pod-2", "pod:2"))
TEMPLATE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"labels": {"team": "vision"}},
    "spec": {
        "nodeSelector": {"disk": "fast"},
        "containers": [
            {
                "name": "triton",
                "image": "nvcr.io/nvidia/tritonserver:25.08-py3",
                "command": ["tritonserver"],
                "args": ["--model-repository=/models"],
                "resources": {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"nvidia.com/gpu": 1}},
            }
        ],
    },
}

Work = Callable[[KubernetesLauncher, Cluster], Awaitable[None]]


def launch_config(folder: Path, cluster: Cluster) -> KubernetesLaunchConfig:
    template, key = folder / "pod.yaml", folder / "key"
    template.write_text(yaml.safe_dump(TEMPLATE))
    key.write_text(f"{KEY}\n")
    return KubernetesLaunchConfig(
        SLOTS,
        REPOSITORY,
        namespace=NAMESPACE,
        pod_template=template,
        key_file=key,
        kubeconfig=cluster.kubeconfig(folder),
        place_timeout_s=PATIENCE_S,
        ready_timeout_s=PATIENCE_S,
        drain_timeout_s=2.0,
        stop_timeout_s=1.0,
        resize_timeout_s=PATIENCE_S,
        warmup_requests=1,
        instance_cpu_m=500,
        owner_deployment="themis",
    )


def with_cluster(folder: Path, work: Work) -> Cluster:
    """Run the work with a launcher over an empty cluster."""
    cluster = Cluster(REPOSITORY)

    async def run() -> None:
        async with cluster.serve():
            launcher = KubernetesLauncher(launch_config(folder, cluster), folder / "state")
            try:
                await work(launcher, cluster)
            finally:
                await launcher.close()

    asyncio.run(run())
    return cluster


def wait_for_places(launcher: KubernetesLauncher, seconds: float) -> None:
    """Bound the waits that a test wants to end by their bound."""
    launcher._config = replace(launcher._config, place_timeout_s=seconds, resize_timeout_s=seconds)


async def ready(launcher: KubernetesLauncher, name: str = "one") -> Server:
    return await launcher.wait_ready(await launcher.launch(name, "pod-1", MODELS))


def ports_of(launcher: KubernetesLauncher, cluster: Cluster, lose_node: Callable[[Server], Awaitable[None]]) -> Ports:
    """The launcher alone, for the contracts of a launcher."""

    def set_places(count: int) -> None:
        cluster.places = count
        wait_for_places(launcher, SHORT_S if count == 0 else PATIENCE_S)

    unused: dict[str, object] = dict.fromkeys(("control", "observer", "routes", "refuse", "targets"))
    names = tuple(slot.name for slot in SLOTS)
    return Ports(launcher=launcher, slots=names, models=MODELS, set_places=set_places, lose_node=lose_node, **unused)  # type: ignore[arg-type]


class TestLauncher(LauncherContract, EngineContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        def run(scenario: Scenario) -> None:
            async def work(launcher: KubernetesLauncher, cluster: Cluster) -> None:
                async def lose_node(server: Server) -> None:
                    await cluster.lose_node(f"themis-{server.name}")
                    await gone(launcher, server)

                await scenario(ports_of(launcher, cluster, lose_node))

            with_cluster(tmp_path, work)

        return run


async def gone(launcher: KubernetesLauncher, server: Server) -> None:
    await launcher._watch.wait_for(f"themis-{server.name}", lambda pod: pod is None or has_ended(pod), PATIENCE_S)
    assert not await launcher.is_alive(server)


def test_a_pod_is_the_template_with_a_place_for_its_server_and_what_its_instances_need(tmp_path: Path) -> None:
    async def work(launcher: KubernetesLauncher, cluster: Cluster) -> None:
        cluster.gpu, cluster.zone = True, "west-1"
        server = await ready(launcher)
        (pod,) = cluster.pods.values()
        assert pod["metadata"]["labels"] == {
            "team": "vision",
            "app.kubernetes.io/managed-by": "themis-triton",
            "app.kubernetes.io/instance": "themis",
            "app.kubernetes.io/component": "triton",
        }
        assert pod["metadata"]["ownerReferences"] == [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "themis", "uid": "uid-of-themis"}
        ]
        assert (pod["spec"]["nodeSelector"], pod["spec"]["restartPolicy"]) == ({"disk": "fast"}, "Never")
        assert pod["spec"]["containers"][0]["resources"] == {
            "requests": {"cpu": "3500m", "memory": "4Gi"},
            "limits": {"nvidia.com/gpu": 1},
        }
        assert KEY not in str(pod)
        assert (server.device, server.node, server.slot) == ("gpu:GPU-5d1f", "node-of-themis-one", "pod-1")
        assert server.zone == "west-1"
        assert server.grpc_address.host == pod["status"]["podIP"]
        assert await launcher.read_memory(server) == 2**22
        metrics = TritonMetrics(SystemClock(), 5.0)
        await metrics.read_servers([server])
        (gpu,) = metrics.remote_devices()
        assert (gpu.device, gpu.memory_total_bytes, gpu.memory_free_bytes) == (server.device, 2**24, 3 * 2**22)
        await metrics.close()
        running = cluster.servers["themis-one"].models
        assert {name: config.instance_group[0].count for name, config in running.items()} == {"video-detector": 1, "video-classifier": 2}
        assert list(running["video-classifier"].dynamic_batching.preferred_batch_size) == [1, 2, 3, 4]

    with_cluster(tmp_path, work)


def test_instances_get_their_processors_in_place_or_are_refused_with_the_nodes_reason(tmp_path: Path) -> None:
    async def work(launcher: KubernetesLauncher, cluster: Cluster) -> None:
        server = await ready(launcher)

        def cpu() -> tuple[str, str]:
            pod = cluster.pods["themis-one"]
            asked, actual = pod["spec"]["containers"][0], pod["status"]["containerStatuses"][0]
            return asked["resources"]["requests"]["cpu"], actual["resources"]["requests"]["cpu"]

        grown = {**MODELS, "video-detector": ModelState(3, 8)}
        await launcher.resize(server, grown)
        assert cpu() == ("4500m", "4500m")
        cluster.capacity_m = 5000
        with pytest.raises(ChangeRefusedError, match=r"pod themis-one could not be resized.*Infeasible: Node didn't have enough capacity"):
            await launcher.resize(server, {**MODELS, "video-detector": ModelState(5, 8)})
        assert cpu() == ("4500m", "4500m")
        cluster.resizes = False
        wait_for_places(launcher, SHORT_S)
        with pytest.raises(ChangeRefusedError, match="has not carried it out"):
            await launcher.resize(server, {**MODELS, "video-detector": ModelState(4, 8)})
        cluster.resizes = True
        wait_for_places(launcher, PATIENCE_S)
        await launcher.resize(server, MODELS)
        assert cpu()[0] == "3500m"
        calls = len(cluster.calls)
        await launcher.resize(server, MODELS)
        assert len(cluster.calls) == calls

    with_cluster(tmp_path, work)


def test_a_watch_goes_on_after_lost_connections_bookmarks_and_an_expired_version(tmp_path: Path) -> None:
    async def work(launcher: KubernetesLauncher, cluster: Cluster) -> None:
        server = await ready(launcher)
        await cluster.bookmark()
        await cluster.drop_watches()
        second = await ready(launcher, "two")
        assert launcher._watch.lists == 1
        cluster.expire()
        await cluster.bookmark()
        cluster.expire()
        await cluster.drop_watches()
        await cluster.crash("themis-one")
        await gone(launcher, server)
        assert await launcher.is_alive(second)

    cluster = with_cluster(tmp_path, work)
    assert cluster.calls.count("WATCH pods") >= 3


def test_calls_are_tried_again_and_a_create_whose_answer_was_lost_makes_one_pod(tmp_path: Path) -> None:
    async def work(launcher: KubernetesLauncher, cluster: Cluster) -> None:
        cluster.failures.extend([429, 503])
        cluster.lost_answers = 1
        server = await ready(launcher)
        assert len(cluster.pods) == 1
        cluster.failures.extend([500, 429, 429])
        await launcher.stop(server)
        assert not cluster.pods
        cluster.failures.append(403)
        with pytest.raises(LaunchFailedError, match=r"refused to get deployment themis \(403\).*rbac\.yaml"):
            await launcher.launch("two", "pod-1", MODELS)
        assert not (tmp_path / "state" / "servers" / "two").exists()

    with_cluster(tmp_path, work)


def test_a_restarted_sidecar_finds_its_pods_as_they_serve_and_every_pod_can_be_deleted_without_settings(tmp_path: Path) -> None:
    async def work(launcher: KubernetesLauncher, cluster: Cluster) -> None:
        before = await ready(launcher)
        cluster.servers["themis-one"].models["video-detector"].instance_group[0].count = 5
        cluster.pods["other"] = {"metadata": {"name": "other", "labels": {}}}
        again = KubernetesLauncher(launch_config(tmp_path, cluster), tmp_path / "state")
        (found,) = await again.discover()
        assert replace(before, phase=found.phase) == found
        adopted = await again.wait_ready(found)
        assert adopted.models == {**MODELS, "video-detector": ModelState(5, 8)}
        await again.close()
        assert [server.name for server in await discover_all(tmp_path / "state")] == ["one"]
        assert await stop_all(tmp_path / "state") == ("one",)
        assert list(cluster.pods) == ["other"]
        assert "successfully loaded 'video-detector'" in await launcher.read_log(before, 5)

    with_cluster(tmp_path, work)


def test_why_a_server_did_not_come_up_is_told_with_its_log(tmp_path: Path) -> None:
    async def work(launcher: KubernetesLauncher, cluster: Cluster) -> None:
        cluster.repository = tmp_path
        with pytest.raises(ModelFailedError, match="failed to poll") as refused:
            await ready(launcher)
        assert refused.value.model in MODELS
        server = await launcher.launch("two", "pod-2", MODELS)
        await cluster.crash("themis-two")
        with pytest.raises(LaunchFailedError, match=r"two ended before it was ready \(Error, exit code 139\).*\n.*started with"):
            await launcher.wait_ready(server)

    with_cluster(tmp_path, work)
