"""TLS to launched servers of other machines: the settings of each launcher, and what they become."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import ssl
import subprocess
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.certificates import authority, issued_certificate
from tests.unit.kubernetes_double import VERSION
from tests.unit.test_kubernetes_launcher import TEMPLATE
from themis_triton.adapters.envoy.binary import find_envoy
from themis_triton.adapters.kubernetes.pods import Order, server_of, server_pod
from themis_triton.adapters.ray.orders import launch_order, node_config, proxy_of
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.tls_proxy import proxy_command, proxy_files
from themis_triton.core.address import UNKNOWN_ADDRESS, Address
from themis_triton.core.config import KubernetesLaunchConfig, LaunchConfig, RayLaunchConfig, SlurmLaunchConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import ModelState
from themis_triton.core.server_proxy import PodProxy, ServerProxy, ServerTls
from themis_triton.settings import load_settings

SECTIONS = {
    "ray": "  ray:\n    servers: 1\n",
    "slurm": "  slurm:\n    jobs: 1\n    directory: shared\n",
    "kubernetes": "  kubernetes:\n    namespace: inference\n    pods: 1\n    pod_template: pod.yaml\n    key_file: key\n",
}
TLS = "  tls: {ca: ca.pem, server_name: triton.example, certificate: own.pem, key: own.key}\n"
PROXY = "    proxy: {certificate: /etc/node.pem, key: /etc/node.key, client_ca: /etc/ca.pem}\n"
PROXIES = {"ray": PROXY, "slurm": PROXY, "kubernetes": "    proxy: {image: envoy, secret: triton-tls, client_certificates: true}\n"}
MODELS = {"detector": ModelState(1, 8)}


def loaded(folder: Path, kind: str, tls: str = TLS, proxy: str | None = None) -> LaunchConfig:
    (folder / "models" / "detector").mkdir(parents=True)
    for name in ("ca.pem", "own.pem", "own.key"):
        (folder / name).touch()
    (folder / "pod.yaml").write_text(yaml.safe_dump(TEMPLATE), encoding="utf-8")
    path = folder / "themis.yaml"
    path.write_text(
        f"launch:\n  kind: {kind}\n  model_repository: models\n{tls}{SECTIONS[kind]}{PROXIES[kind] if proxy is None else proxy}"
        "models: {detector: {profile: {surface: {form: contention, alpha_ms: 1, beta_ms: 2, gamma_ms: 1, zeta_ms: 6}}}}\n"
        "pipelines: {video: {stages: [detector], slo_ms: 300}}\n",
        encoding="utf-8",
    )
    launch = load_settings(path).launch
    assert launch is not None
    return launch


@pytest.mark.parametrize("kind", list(SECTIONS))
def test_each_launcher_of_other_machines_has_tls_with_files_of_this_machine_and_a_proxy_with_those_of_the_nodes(
    tmp_path: Path, kind: str
) -> None:
    launch = loaded(tmp_path, kind)
    files = {name: str(tmp_path / file) for name, file in (("ca", "ca.pem"), ("certificate", "own.pem"), ("key", "own.key"))}
    assert launch.tls == ServerTls(server_name="triton.example", **files)
    assert launch.tls.at(Address("10.0.0.7", 8001)) == Address("10.0.0.7", 8001, tls=True, server_name="triton.example", **files)
    assert launch.tls.at(UNKNOWN_ADDRESS) == UNKNOWN_ADDRESS
    if isinstance(launch, KubernetesLaunchConfig):
        assert launch.proxy == PodProxy("envoy", "triton-tls", client_certificates=True)
    else:
        assert isinstance(launch, RayLaunchConfig | SlurmLaunchConfig)
        assert launch.proxy == ServerProxy(Path("/etc/node.pem"), Path("/etc/node.key"), Path("/etc/ca.pem"))


NO_CERTIFICATE = "  tls: {ca: ca.pem}\n"


@pytest.mark.parametrize(
    ("kind", "tls", "proxy", "message"),
    [
        ("ray", TLS, "", r"`tls` is set without `ray.proxy`: expected both or neither. Fix: add `ray.proxy`, or remove `tls`"),
        ("slurm", "", None, r"`slurm.proxy` is set without `launch.tls`: expected both or neither. Fix: add `tls: {ca: FILE}`"),
        ("kubernetes", TLS, "", r"`tls` is set without `kubernetes.proxy`"),
        ("ray", NO_CERTIFICATE, None, "`ray.proxy.client_ca` is set, and `tls` has no `certificate`: expected a certificate"),
        ("kubernetes", NO_CERTIFICATE, None, "`kubernetes.proxy.client_certificates` is set, and `tls` has no `certificate`"),
        (
            "slurm",
            TLS,
            "    proxy: {certificate: node.pem, key: /etc/node.key}\n",
            "launch.slurm.proxy.certificate: node.pem is invalid: expected an absolute path, as the nodes see it. Fix: write",
        ),
        ("ray", TLS.replace("ca.pem", "absent.pem"), None, "launch.tls.ca: absent.pem does not exist: expected the path of a PEM file"),
        ("slurm", TLS.replace(", key: own.key", ""), None, "launch.tls: `certificate` is set without `key`: expected both or neither"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_its_remedy(tmp_path: Path, kind: str, tls: str, proxy: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)) as refused:
        loaded(tmp_path, kind, tls, proxy)
    assert re.match(r".*themis\.yaml:\d+:\d+: launch", str(refused.value), re.DOTALL)


def test_a_probe_of_the_template_that_would_meet_tls_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed = deepcopy(TEMPLATE)
    probed["spec"]["containers"][0]["livenessProbe"] = {"httpGet": {"path": "/v2/health/live", "port": 8000}}
    monkeypatch.setitem(globals(), "TEMPLATE", probed)
    with pytest.raises(SettingsError, match=r"pod\.yaml has livenessProbe\.httpGet, and .*proxy` is set.*Fix: remove livenessProbe there"):
        loaded(tmp_path, "kubernetes")


def test_a_certificate_that_is_moved_into_place_is_shown_to_the_next_client(tmp_path: Path) -> None:
    (tmp_path / "proxy").mkdir()
    signer = authority(tmp_path / "authority")
    files, later = (issued_certificate(tmp_path / name, signer, serial) for name, serial in (("first", 1), ("later", 77)))
    proxy = ServerProxy(Path(files["certificate"]), Path(files["key"]), Path(files["ca"]))
    names = ("grpc", "http", "metrics")
    ports = dict(zip(names, free_ports(3), strict=True))

    def serial() -> int | None:
        context = ssl.create_default_context(cafile=signer["ca"])
        context.load_cert_chain(later["certificate"], later["key"])
        context.set_alpn_protocols(["h2"])
        try:
            with (
                socket.create_connection(("127.0.0.1", ports["grpc"]), 5.0) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as secure,
            ):
                assert secure.selected_alpn_protocol() == "h2"
                return int(str((secure.getpeercert() or {})["serialNumber"]), 16)
        except ConnectionError:
            return None

    async def until(expected: int) -> None:
        async with asyncio.timeout(20.0):
            while await asyncio.to_thread(serial) != expected:  # noqa: ASYNC110 - Envoy tells no events
                await asyncio.sleep(0.05)

    with ExitStack() as stack:
        behind = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        targets = {name: each.getsockname()[1] for name, each in zip(names, behind, strict=True)}
        for name, text in proxy_files(tmp_path / "proxy", "127.0.0.1", ports, targets, proxy).items():
            (tmp_path / "proxy" / name).write_text(text)
        envoy = stack.enter_context(subprocess.Popen(proxy_command(str(find_envoy(None)), tmp_path / "proxy")))
        stack.callback(envoy.terminate)
        asyncio.run(until(1))
        for part in ("key", "certificate"):
            Path(shutil.copy(later[part], f"{files[part]}.new")).rename(files[part])
        asyncio.run(until(77))


def test_servers_of_this_machine_have_no_tls(tmp_path: Path) -> None:
    (tmp_path / "models" / "detector").mkdir(parents=True)
    path = tmp_path / "themis.yaml"
    path.write_text("launch:\n  slots: [cpu:0]\n  tls: {ca: ca.pem}\nmodels: {}\npipelines: {}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"`tls` is set with kind: local.*remove `tls`; servers of this machine listen on its loopback"):
        load_settings(path)


def test_an_order_has_the_proxy_and_triton_stays_on_the_loopback_of_the_node(tmp_path: Path) -> None:
    launch = loaded(tmp_path, "ray")
    assert isinstance(launch, RayLaunchConfig)
    order = json.loads(json.dumps(launch_order("one", launch.slots[0], MODELS, "0a", launch, {})))
    assert proxy_of(order) == launch.proxy
    assert proxy_of(order | {"proxy": None}) is None
    assert node_config(order, "gpu:0", "127.0.0.1").host == "127.0.0.1"


def test_a_pod_has_the_proxy_at_the_ports_of_triton_which_moves_to_the_loopback(tmp_path: Path) -> None:
    launch = loaded(tmp_path, "kubernetes")
    assert isinstance(launch, KubernetesLaunchConfig)
    order = Order("one", launch.slots[0].name, "pod:1", MODELS, "0a")
    pod, plain = (server_pod(TEMPLATE, order, each, None) for each in (launch, replace(launch, proxy=None)))
    kubernetes_validate.validate(pod, VERSION, strict=True)
    assert "initContainers" not in plain["spec"]
    (proxy,) = pod["spec"]["initContainers"]
    assert (proxy["restartPolicy"], proxy["image"]) == ("Always", "envoy")
    triton = pod["spec"]["containers"][0]
    assert {"--grpc-address=127.0.0.1", "--http-address=127.0.0.1", "--metrics-address=127.0.0.1"} <= set(triton["args"])
    config = json.loads(pod["metadata"]["annotations"]["themis-triton/themis-proxy-proxy.json"])
    listeners, clusters = (config["static_resources"][part] for part in ("listeners", "clusters"))
    outer = {each["name"]: each["address"]["socket_address"]["port_value"] for each in listeners}
    members = {each["name"]: each["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"] for each in clusters}
    inner = {name: each["address"]["socket_address"]["port_value"] for name, each in members.items()}
    assert {f"--{name}-port={port}" for name, port in inner.items()} <= set(triton["args"])
    pod["status"] = {"podIP": "10.0.0.7"}
    pod["metadata"]["uid"] = "uid"
    server = server_of(pod)
    assert outer == {"grpc": server.grpc_address.port, "http": server.http_address.port, "metrics": server.metrics_address.port}
    assert not set(outer.values()) & set(inner.values())
    assert all(each["filter_chains"][0]["transport_socket"]["typed_config"]["require_client_certificate"] for each in listeners)
