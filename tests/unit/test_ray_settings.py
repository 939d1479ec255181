"""Settings with `launch.kind: ray`: what they become, what each mistake is told with, and what is said of a cluster."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from themis_triton.adapters.launchers import bare_launchers, build_launcher
from themis_triton.adapters.ray.check import check_cluster
from themis_triton.adapters.ray.launcher import RayLauncher
from themis_triton.adapters.ray.orders import actor_name, describe, launch_order, node_config, server_name, server_of
from themis_triton.adapters.ray.resources import cluster_words, places_for
from themis_triton.adapters.ray.state_file import write_state
from themis_triton.core.config import DeviceSlot, RayLaunchConfig, StandbyConfig, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import ModelState
from themis_triton.settings import load_settings

SETTINGS = """\
launch:
  kind: ray
  model_repository: models
  binary: /opt/tritonserver/bin/tritonserver
  ray:
    address: 10.0.0.1:6379
    servers: 3
    memory: 20GiB
    model_repository: /mnt/models
models:
  detector: {profile: {surface: {form: contention, alpha_ms: 1, beta_ms: 2, gamma_ms: 1, zeta_ms: 6}}}
pipelines:
  video: {stages: [detector], slo_ms: 300}
"""
THERE = {
    "nodes": {"a": {"address": "10.0.0.1", "CPU": 4.0}, "b": {"address": "10.0.0.2", "CPU": 8.0, "GPU": 2.0, "memory": 9e9}},
    "free": {"CPU": 12.0, "GPU": 1.0},
}


def loaded(folder: Path, old: str = "", new: str = "") -> ThemisConfig:
    (folder / "models" / "detector").mkdir(parents=True)
    assert old in SETTINGS
    path = folder / "themis.yaml"
    path.write_text(SETTINGS.replace(old, new), encoding="utf-8")
    return load_settings(path)


def test_each_server_is_a_slot_with_a_device_of_its_own_that_is_not_read_here(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    launch = config.launch
    assert isinstance(launch, RayLaunchConfig)
    assert [(slot.name, slot.device, slot.memory_bytes) for slot in launch.slots] == [
        (f"ray-{n}", f"ray:{n}", 20 * 2**30) for n in (1, 2, 3)
    ]
    assert (launch.address, launch.namespace, launch.resources) == ("10.0.0.1:6379", "themis", {"GPU": 1.0})
    assert (launch.model_repository, launch.node_repositories) == (tmp_path / "models", (Path("/mnt/models"),))
    assert config.local_devices == ()
    assert isinstance(build_launcher(launch, tmp_path), RayLauncher)
    assert config.standby == StandbyConfig()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  kind: ray\n", "", r"launch: `ray` is set with kind: local: expected `slots` alone\. Fix: .*kind: ray"),
        ("  kind: ray\n", "  kind: kubernetes\n", r"`ray` is set with kind: kubernetes: expected `kubernetes` alone"),
        ("  kind: ray\n", "  kind: ray\n  reach: [gpu:0]\n", r"`reach` is set with kind: ray.*Fix: remove `reach`; the cluster gives"),
        ("  model_repository: models\n", "", "`model_repository` is missing with kind: ray"),
        ("10.0.0.1:6379", "http://10.0.0.1", r"launch\.ray\.address: http://10.0.0.1 is invalid: expected host:port of the head"),
        ("    servers: 3\n", "    servers: 0\n", r"launch\.ray\.servers: 0 is invalid"),
        ("    servers: 3\n", "    servers: 3\n    resources: {GPU: 2}\n", r"resources: GPU: 2 is invalid: a server has one device.*Fix: "),
        ("    servers: 3\n", "    servers: 3\n    resources: {slot: 0}\n", r"resources\.slot: 0 is invalid"),
        ("    servers: 3\n", "    servers: 3\n    namespace: a b\n", r"namespace: a b is invalid: expected a name"),
        ("launch:\n", "standby: {kind: kubernetes}\nlaunch:\n", r"standby\.kind: the lease is kubernetes.s, and `launch.kind` is ray"),
        ("launch:\n", "standby: {lease_s: 5}\nlaunch:\n", r"`lease_s` is set with kind: file: expected no such key"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_its_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        loaded(tmp_path, old, new)
    assert "themis.yaml:" in str(refused.value)


def test_an_order_is_plain_and_becomes_a_launch_on_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEMIS_EMULATED_SCALE_FILE", "/scale")
    launch = loaded(tmp_path).launch
    assert isinstance(launch, RayLaunchConfig)
    models = {"detector": ModelState(2, 8, 500)}
    order = json.loads(json.dumps(launch_order("one", launch.slots[0], models, "5d1f", launch, {"detector": 0.5})))
    assert order["environment"]["THEMIS_EMULATED_SCALE_FILE"] == "/scale"
    node = node_config(order, "gpu:3", "10.0.0.2")
    assert (node.slots, node.host, node.model_repository) == ((DeviceSlot("ray-1", "gpu:3"),), "10.0.0.2", Path("/mnt/models"))
    assert (node.binary, node.drain_timeout_s) == (launch.binary, launch.drain_timeout_s)
    asked = server_of(order)
    assert (asked.name, asked.slot, asked.device, asked.models, asked.incarnation) == ("one", "ray-1", "ray:1", models, "5d1f")
    running = replace(asked, model_control_key="secret")
    told = json.loads(json.dumps(describe(order, running, "node", "10.0.0.2")))
    assert (server_of(told).model_control_key, server_of(told).node) == ("secret", "node")
    assert server_name(actor_name("a:b", "5d1f")) == ("a:b", "5d1f")


def test_what_the_cluster_has_is_told_beside_what_a_server_asks() -> None:
    assert cluster_words(THERE) == "free in the cluster: CPU: 12, GPU: 1; its nodes: 10.0.0.1 (CPU: 4), 10.0.0.2 (CPU: 8, GPU: 2)"
    assert [places_for(THERE, asked) for asked in ({"GPU": 1.0}, {"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}, {"slot": 1.0})] == [2, 3, 2, 0]
    many = {"nodes": {str(n): {"address": str(n)} for n in range(10)}, "free": {}}
    assert cluster_words(many).endswith("7 (nothing) and 2 more")


def test_validate_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    (finding,) = asyncio.run(check_cluster(RayLaunchConfig((), tmp_path)))
    assert (finding.exit_code, finding.remedy) == (3, "pip install 'themis-triton[ray]'")


def test_the_state_directory_knows_the_cluster_of_its_servers(tmp_path: Path) -> None:
    assert not any(isinstance(each, RayLauncher) for each in bare_launchers(tmp_path))
    write_state(tmp_path, RayLaunchConfig((), tmp_path, address="10.0.0.1:6379", namespace="mine"))
    (launcher, _) = bare_launchers(tmp_path, stop_timeout_s=2.0)
    assert isinstance(launcher, RayLauncher)
    assert (launcher._config.address, launcher._config.namespace, launcher._config.stop_timeout_s) == ("10.0.0.1:6379", "mine", 2.0)
