"""KEDA's external scaler: a client over gRPC, as KEDA is one, drives a Deployment and a surge by what it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.certificates import authority, issued_certificate
from tests.contracts.ports import EngineContract, LauncherContract, Scenario, World
from tests.unit.kubernetes_double import Cluster
from tests.unit.samples import config
from tests.unit.test_kubernetes_launcher import MODELS, PATIENCE_S, REPOSITORY, launch_config, ports_of
from tests.unit.test_sim_run import PIPELINE, SURGE
from themis_triton.adapters.kubernetes.keda import KedaLauncher
from themis_triton.adapters.kubernetes.pods import SERVER, has_ended
from themis_triton.adapters.kubernetes.scaler import MESSAGES, METRIC, SERVICE, ScalerService
from themis_triton.core.address import Address
from themis_triton.core.config import KedaConfig
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.fleet import Server
from themis_triton.core.listener_tls import ListenerTls
from themis_triton.sim import run
from themis_triton.sim.ports import SimEngine, SimLauncher
from themis_triton.sim.setup import SimOptions, build_world

HERE = Address("127.0.0.1", 0)
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"labels": {"app": "triton"}, "annotations": {}},
    "spec": {
        "containers": [
            {
                "name": "triton",
                "image": "tritonserver",
                "args": [
                    "--model-control-mode=explicit",
                    *(f"--{part}-address=$(POD_IP)" for part in ("grpc", "http", "metrics")),
                    *("--grpc-port=8001", "--http-port=8000", "--metrics-port=8002"),
                    "--grpc-restricted-protocol=model-repository:key=$(KEY)",
                ],
                "env": [
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "themis-model-control", "key": "key"}}},
                ],
            }
        ],
    },
}
"""A pod as the Deployment makes it."""


class Keda:
    """The calls that KEDA makes, over a channel."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._ref = MESSAGES["ScaledObjectRef"](name="triton", namespace="inference", scalerMetadata={"scalerAddress": "themis:9190"})

    def _call(self, name: str, request: str, response: str, kind: str = "unary_unary") -> Any:
        make = getattr(self._channel, kind)
        return make(f"/{SERVICE}/{name}", MESSAGES[request].SerializeToString, MESSAGES[response].FromString)

    def is_active(self) -> Any:
        return self._call("IsActive", "ScaledObjectRef", "IsActiveResponse")(self._ref)

    def stream(self) -> Any:
        return self._call("StreamIsActive", "ScaledObjectRef", "IsActiveResponse", "unary_stream")(self._ref)

    def spec(self) -> Any:
        return self._call("GetMetricSpec", "ScaledObjectRef", "GetMetricSpecResponse")(self._ref)

    def metrics(self) -> Any:
        request = MESSAGES["GetMetricsRequest"](scaledObjectRef=self._ref, metricName=METRIC)
        return self._call("GetMetrics", "GetMetricsRequest", "GetMetricsResponse")(request)


async def scale(cluster: Cluster, launcher: KedaLauncher, ended: asyncio.Event) -> None:
    """As KEDA and its HPA: poll the metric, and give the Deployment as many replicas as there are places for."""
    await launcher._scaler.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{launcher._scaler.port}") as channel:
        while not ended.is_set():
            if launcher.wanted() is not None:  # before, KEDA gets UNAVAILABLE
                (value,) = (await Keda(channel).metrics()).metricValues
                await cluster.set_replicas(min(round(value.metricValueFloat), cluster.places), POD)
            await asyncio.sleep(0.02)


def with_deployment(folder: Path, work: Callable[[KedaLauncher, Cluster], Awaitable[None]]) -> None:
    cluster = Cluster(REPOSITORY)

    async def run_work() -> None:
        async with cluster.serve():
            keda, ended = KedaConfig(HERE, (("app", "triton"),)), asyncio.Event()
            launcher = KedaLauncher(replace(launch_config(folder, cluster), keda=keda, instance_cpu_m=0), folder / "state")
            scaling = asyncio.create_task(scale(cluster, launcher, ended))
            try:
                await work(launcher, cluster)
            finally:
                ended.set()
                await scaling
                await launcher.close()

    asyncio.run(run_work())


class TestLauncher(LauncherContract, EngineContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        def run_scenario(scenario: Scenario) -> None:
            async def work(launcher: KedaLauncher, cluster: Cluster) -> None:
                async def lose_node(server: Server) -> None:
                    name = next(name for name, pod in cluster.pods.items() if pod["metadata"]["annotations"].get(SERVER) == server.name)
                    await cluster.lose_node(name)
                    await launcher._watch.wait_for(name, lambda pod: pod is None or has_ended(pod), PATIENCE_S)

                await scenario(ports_of(launcher, cluster, lose_node))

            with_deployment(tmp_path, work)

        return run_scenario


def test_a_freed_pod_goes_first_and_its_server_is_forgotten(tmp_path: Path) -> None:
    async def work(launcher: KedaLauncher, cluster: Cluster) -> None:
        names = {"one": "pod-1", "two": "pod-2"}
        one, two = [await launcher.wait_ready(await launcher.launch(name, slot, MODELS)) for name, slot in names.items()]
        assert launcher.wanted() == 2
        await launcher.stop(one)
        assert launcher.wanted() == 1
        await launcher._watch.wait_until(lambda pods: len(pods) == 1, PATIENCE_S)
        assert await launcher.is_alive(two)
        again = KedaLauncher(launcher._config, tmp_path / "state")
        assert again.wanted() is None
        assert [server.name for server in await again.discover()] == ["two"]
        assert again.wanted() == 1
        await again.close()

    with_deployment(tmp_path, work)


@pytest.fixture
def served() -> Iterator[tuple[list[int | None], str]]:
    """A scaler in a thread of its own; the last entry of the list is what is wanted."""
    wanted: list[int | None] = [None]
    service, loop = ScalerService(HERE, lambda: wanted[-1]), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(service.start(), loop).result(10.0)
    yield wanted, f"127.0.0.1:{service.port}"
    asyncio.run_coroutine_threadsafe(service.close(), loop).result(10.0)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_keda_is_told_what_is_wanted_and_nothing_while_that_is_not_known(served: tuple[list[int | None], str]) -> None:
    wanted, address = served
    with grpc.insecure_channel(address) as channel:
        keda = Keda(channel)
        for call in (keda.is_active, keda.metrics):
            with pytest.raises(grpc.RpcError, match="keep the number of replicas"):
                call()
        (spec,) = keda.spec().metricSpecs
        assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == (METRIC, 1, 1.0)
        wanted.append(0)
        assert not keda.is_active().result
        stream = keda.stream()
        assert not next(stream).result
        wanted.append(3)
        assert next(stream).result
        stream.cancel()
        (value,) = keda.metrics().metricValues
        assert (value.metricName, value.metricValue, value.metricValueFloat) == (METRIC, 3, 3.0)
        assert keda.is_active().result
    with pytest.raises(EnvironmentCheckError, match=r"keda\.listen.*cannot be listened on"):
        asyncio.run(ScalerService(Address.parse(address), lambda: 0).start())


def test_keda_needs_a_certificate_where_the_scaler_has_tls(tmp_path: Path) -> None:
    ca = authority(tmp_path / "ca")
    own, keda = (issued_certificate(tmp_path / name, ca, serial) for serial, name in enumerate(("own", "keda"), 1))
    tls = ListenerTls(Path(own["certificate"]), Path(own["key"]), Path(ca["ca"]))

    pair = {"private_key": Path(keda["key"]).read_bytes(), "certificate_chain": Path(keda["certificate"]).read_bytes()}
    known, unknown = (grpc.ssl_channel_credentials(Path(ca["ca"]).read_bytes(), **shown) for shown in (pair, {}))

    async def ask(port: int, credentials: Any) -> Any:
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            (value,) = (await Keda(channel).metrics()).metricValues
            return value.metricValueFloat

    async def scenario() -> None:
        service = ScalerService(HERE, lambda: 3, tls)
        await service.start()
        try:
            assert await ask(service.port, known) == 3
            with pytest.raises(grpc.RpcError):
                await ask(service.port, unknown)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as plain:
                with pytest.raises(grpc.RpcError):
                    await Keda(plain).metrics()
        finally:
            await service.close()
        with pytest.raises(EnvironmentCheckError, match=r"launch\.kubernetes\.keda\.tls: .*none\.pem cannot be read"):
            await ScalerService(HERE, lambda: 3, replace(tls, key=tmp_path / "none.pem")).start()

    asyncio.run(scenario())


def test_a_surge_gets_its_servers_through_keda(served: tuple[list[int | None], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes of the simulated engine are those that KEDA, a client of the scaler, has added; it asks every five virtual seconds."""
    wanted, address = served
    told: list[int] = []

    async def keda(launcher: SimLauncher, engine: SimEngine) -> None:
        with grpc.insecure_channel(address) as channel:
            while True:
                wanted.append(sum([await launcher.is_alive(server) for server in launcher.launched.values()]))
                told.append(round(Keda(channel).metrics().metricValues[0].metricValueFloat))
                engine.places = told[-1]
                await asyncio.sleep(5.0)

    def watched(*arguments: Any) -> Any:
        world = build_world(*arguments)
        launcher: Any = world.supervisor._launcher
        launcher.engine.places = 0
        asyncio.get_running_loop().create_task(keda(launcher, launcher.engine))
        return world

    monkeypatch.setattr(run, "build_world", watched)
    result = run.simulate(replace(config(), servers=()), {PIPELINE: SURGE}, 60.0, SimOptions())
    assert result.actions["launch"] >= 1
    assert told[0] == 0
    assert max(told) >= 1
    assert not result.failed_actions
    assert result.pipelines[0].failed.sum() == 0
