"""Two sidecars with a Lease, over a double of the Kubernetes API: the leader is killed in a launch, and nothing is done twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import REPOSITORY, SEVERAL_MACHINES
from tests.e2e.daemon_setup import CLASSIFIER, DETECTOR, QUICK, Sidecar, Status, launched
from tests.e2e.triton_process import free_ports
from tests.e2e.two_sidecars import follow, taken_over
from tests.unit.kubernetes_double import KEY, NAMESPACE, Cluster
from tests.unit.test_kubernetes_launcher import TEMPLATE
from themis_triton.adapters.process_end import stop_everything
from themis_triton.settings.shipped import shipped

pytestmark = [pytest.mark.e2e, SEVERAL_MACHINES]
TICKS_AFTER = 8


@contextmanager
def sidecar_of(folder: Path, cluster: Cluster) -> Iterator[Sidecar]:
    """A sidecar that has two models to serve, each with a pod of its own."""
    folder.mkdir()
    sample: Any = yaml.safe_load((shipped("config") / "themis.yaml").read_text())
    grpc, http, status = (f"127.0.0.1:{port}" for port in free_ports(3))
    (folder / "pod.yaml").write_text(yaml.safe_dump(TEMPLATE))
    (folder / "key").write_text(f"{KEY}\n")
    pods = {"namespace": NAMESPACE, "pod_template": "pod.yaml", "pods": 3, "key_file": "key", "kubeconfig": str(cluster.kubeconfig(folder))}
    settings = {
        "state_directory": "state",
        "envoy": {"grpc_listen": grpc, "http_listen": http},
        "status": {"address": status},
        "models": {name: sample["models"][name] for name in (DETECTOR, CLASSIFIER)},
        "pipelines": {"video": sample["pipelines"]["video"]},
        "planning": {"placement": "separate"},
        "launch": {"kind": "kubernetes", "model_repository": str(REPOSITORY), "kubernetes": pods},
        "standby": {"kind": "kubernetes", "lease_s": 3},
        "policy": QUICK,
    }
    path = folder / "themis.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    sidecar = Sidecar(path, folder / "state", None, grpc, status, folder / "daemon.log")
    try:
        yield sidecar
    finally:
        sidecar.end()
        stop_everything(folder / "state", timeout_s=1.0)


def names(status: Status, *phases: str) -> set[str]:
    """The launched servers in these phases, or in all."""
    return {server["name"] for phase in phases or ("launching", "warming", "serving") for server in launched(status, phase)}


def test_the_second_sidecar_takes_over_from_a_killed_leader_and_creates_and_deletes_no_pod(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(REPOSITORY, places=1)
        async with cluster.serve():
            with sidecar_of(tmp_path / "a", cluster) as a, sidecar_of(tmp_path / "b", cluster) as b:
                await a.start()
                await follow(b)
                begun = await a.until("one serves, the other waits", lambda s: len(names(s, "serving")) == 1 and len(names(s)) == 2)
                pods = set(cluster.pods)
                at_s = time.time()
                await a.kill()
                adopted = await taken_over(b, at_s)
                assert names(adopted) == names(begun)
                await cluster.set_places(3)
                serving = await b.until("both serve", lambda s: len(names(s, "serving")) == 2)
                assert names(serving) == names(begun)
                await b.until("further ticks", lambda s: s["tick"] >= serving["tick"] + TICKS_AFTER)
                assert set(cluster.pods) == pods
                assert cluster.calls.count("POST pods") == len(pods) == 2
                assert [call for call in cluster.calls if call.startswith("DELETE")] == []
                assert await b.terminate() == 0

    asyncio.run(scenario())
