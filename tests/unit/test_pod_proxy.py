"""The proxy with TLS in pods: the launcher's contracts against the double of the API, with a real Envoy in each pod."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.ports import LauncherContract, Scenario, World
from tests.server_tls import check_closed, mutual_tls, server_tls
from tests.unit.kubernetes_double import Cluster
from tests.unit.test_kubernetes_launcher import REPOSITORY, launch_config, ports_of
from themis_triton.adapters.envoy.binary import find_envoy
from themis_triton.adapters.kubernetes.launcher import KubernetesLauncher
from themis_triton.core.config import KubernetesLaunchConfig
from themis_triton.core.fleet import Server
from themis_triton.core.server_proxy import PodProxy

Json = dict[str, Any]
FILES_OF_SECRET = {"tls.crt": "certificate", "tls.key": "key", "ca.crt": "ca"}


@contextmanager
def running_proxy(pod: Json, address: str, loopback: str, secret: Path, folder: Path) -> Iterator[None]:
    """What a kubelet does: annotations and Secret become files, and the container runs. Folders and addresses stand for the pod's."""
    (container,) = pod["spec"]["initContainers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    stand_ins = {mounts["themis-proxy-files"]: str(folder), mounts["themis-proxy-tls"]: str(secret)}
    stand_ins |= {"127.0.0.1": loopback, "0.0.0.0": address}  # noqa: S104 - it is replaced
    for item in volumes["themis-proxy-files"]["downwardAPI"]["items"]:
        text = pod["metadata"]["annotations"][item["fieldRef"]["fieldPath"].split("'")[1]]
        for own, stand_in in stand_ins.items():
            text = text.replace(own, stand_in)
        (folder / item["path"]).write_text(text, encoding="utf-8")
    arguments = [word.replace(mounts["themis-proxy-files"], str(folder)) for word in container["args"]]
    with (folder / "log").open("wb") as log, subprocess.Popen([find_envoy(None), *arguments], stdout=log, stderr=log) as envoy:
        try:
            yield
        finally:
            envoy.terminate()


@contextmanager
def with_proxies(folder: Path, files: dict[str, str], stack: ExitStack) -> Iterator[tuple[Cluster, KubernetesLaunchConfig]]:
    """A cluster whose pods have proxies; the launcher's configuration is made inside its event loop."""
    secret = folder / "secret"
    secret.mkdir()
    for name, part in FILES_OF_SECRET.items():
        (secret / name).write_bytes(Path(files[part]).read_bytes())

    def run(pod: Json, address: str, loopback: str) -> None:
        own = folder / f"pod-{address}"
        own.mkdir()
        stack.enter_context(running_proxy(pod, address, loopback, secret, own))

    cluster = Cluster(REPOSITORY, run_proxy=run)
    with stack:
        yield cluster, KubernetesLaunchConfig((), Path(), tls=server_tls(files), proxy=PodProxy("envoy", "triton-tls", True))


class TestLauncher(LauncherContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        return lambda scenario: asyncio.run(run(tmp_path, mutual_tls(tmp_path / "tls"), scenario))


async def run(folder: Path, files: dict[str, str], scenario: Scenario) -> None:
    with with_proxies(folder, files, ExitStack()) as (cluster, secured):
        async with cluster.serve():
            config = replace(launch_config(folder, cluster), tls=secured.tls, proxy=secured.proxy)
            launcher = KubernetesLauncher(config, folder / "state")
            try:
                await scenario(ports_of(launcher, cluster, partial(_never, cluster)))
            finally:
                await launcher.close()


async def _never(cluster: Cluster, server: Server) -> None:
    raise AssertionError(f"{server.name} of {cluster} is not to be lost")


def test_a_pod_answers_no_client_without_a_certificate(tmp_path: Path) -> None:
    files = mutual_tls(tmp_path / "tls")

    async def scenario(ports: Any) -> None:
        server = await ports.ready("one")
        await asyncio.to_thread(check_closed, server, files)

    asyncio.run(run(tmp_path, files, scenario))
