"""`themis validate --live` against real servers: what is there, what is not, and that looking changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tritonclient.grpc as triton
import yaml

from tests.e2e.triton_process import REPOSITORY, free_ports, package_folder
from themis_triton.adapters.findings import Finding, Severity
from themis_triton.adapters.live_check import check_live
from themis_triton.commands.settings_commands import validate_command
from themis_triton.core.address import Address
from themis_triton.core.config import AdoptedServer, EnvoyConfig, ModelConfig, PipelineConfig, StatusConfig, ThemisConfig
from themis_triton.core.fleet import Server
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

pytestmark = pytest.mark.e2e
SHIPPED = shipped("config") / "themis.yaml"
STAGES = ("video-detector", "video-classifier")


@pytest.fixture(scope="module")
def models() -> dict[str, ModelConfig]:
    return load_settings(SHIPPED).models


def configured(folder: Path, models: dict[str, ModelConfig], server: AdoptedServer, stages: tuple[str, ...] = STAGES) -> ThemisConfig:
    """One adopted server, and addresses that are free."""
    grpc, http, admin, status = (Address("127.0.0.1", port) for port in free_ports(4))
    return ThemisConfig(
        state_directory=folder,
        models=models,
        pipelines=(PipelineConfig("video", stages, 300.0),),
        servers=(server,),
        envoy=EnvoyConfig(grpc, http, admin, folder / "envoy"),
        status=StatusConfig(status),
    )


def adopted(server: Server) -> AdoptedServer:
    addresses = (server.grpc_address, server.http_address, server.metrics_address)
    return AdoptedServer("first", *addresses, "cpu:0", server.model_control_key, REPOSITORY)


def not_fine(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings if finding.severity is not Severity.OK}


def looked_at(config: ThemisConfig) -> list[Finding]:
    return asyncio.run(check_live(config))


@contextmanager
def bare_triton(folder: Path, mode: str) -> Iterator[AdoptedServer]:
    """A server with an empty repository in the given model control mode."""
    repository = folder / "empty"
    repository.mkdir()
    ports = dict(zip(("grpc", "http", "metrics"), free_ports(3), strict=True))
    command = [
        str(package_folder() / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--model-control-mode={mode}",
        *(f"--{kind}-address=127.0.0.1" for kind in ports),
        *(f"--{kind}-port={port}" for kind, port in ports.items()),
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            wait_ready(ports["grpc"])
            grpc, http, metrics = (Address("127.0.0.1", port) for port in ports.values())
            yield AdoptedServer("first", grpc, http, metrics, "cpu:0", model_repository=repository)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@contextmanager
def bare_envoy(folder: Path, envoy: EnvoyConfig) -> Iterator[None]:
    """An Envoy that listens on the addresses of the settings and proxies nowhere."""
    proxy = {
        "name": "envoy.filters.network.echo",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"},
    }
    listeners = [
        {"name": str(address), "address": socket_address(address), "filter_chains": [{"filters": [proxy]}]}
        for address in (envoy.grpc_listen, envoy.http_listen)
    ]
    bootstrap = folder / "bootstrap.yaml"
    bootstrap.write_text(
        yaml.safe_dump({"admin": {"address": socket_address(envoy.admin_address)}, "static_resources": {"listeners": listeners}})
    )
    binary = Path(sys.executable).parent / "envoy"
    command = [str(binary), "-c", str(bootstrap), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]
    with (folder / "envoy.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            wait_connected(envoy.http_listen)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def socket_address(address: Address) -> dict[str, dict[str, str | int]]:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def wait_connected(address: Address) -> None:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), timeout=1):
            return
        time.sleep(0.05)
    pytest.fail(f"nothing listens on {address}")


def wait_ready(port: int) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{port}", channel_args=[("grpc.max_reconnect_backoff_ms", 100)]) as client:
        client._client_stub.ServerReady(triton.service_pb2.ServerReadyRequest(), wait_for_ready=True, timeout=30)


def test_a_server_that_holds_all_models_is_fine(tmp_path: Path, models: dict[str, ModelConfig], video_server: Server) -> None:
    findings = looked_at(configured(tmp_path, models, adopted(video_server)))
    assert not_fine(findings) == {}
    assert {finding.what for finding in findings} >= {
        "servers.first.grpc",
        "servers.first.http",
        "servers.first.metrics",
        "servers.first: model control",
        "servers.first: version",
        "servers.first: models",
        "envoy.binary",
        "envoy.grpc_listen",
        "status.address",
    }


def test_changes_that_are_dear_or_were_not_probed_are_announced(
    tmp_path: Path, models: dict[str, ModelConfig], video_server: Server
) -> None:
    """A GPU server's device list, which models of KIND_CPU may follow, no repository, and operations that only a probe allows."""
    wide = replace(adopted(video_server), device="gpu:0", reach=("gpu:1",), model_repository=None)
    strict = {name: replace(model, require_probed_operations=True) for name, model in models.items()}
    bad = not_fine(looked_at(configured(tmp_path, strict, wide)))
    assert "servers.first: model video-detector" not in bad
    assert bad["servers.first.model_repository"].found.startswith("is not set: the first change of counts reloads each model")
    assert "add_device, remove_device, rebatch were not probed" in bad["models.video-detector.require_probed_operations"].found
    assert bad["models.video-detector.require_probed_operations"].remedy.startswith("run `themis probe video-detector`")


def test_looking_changes_no_model(tmp_path: Path, models: dict[str, ModelConfig], video_server: Server) -> None:
    def index() -> dict[str, str]:
        with triton.InferenceServerClient(video_server.grpc_address.authority) as client:
            entries = client.get_model_repository_index(headers={"triton-grpc-protocol-key": str(video_server.model_control_key)}).models
        return {entry.name: entry.state for entry in entries}

    before = index()
    looked_at(configured(tmp_path, models, adopted(video_server)))
    assert index() == before
    assert before["video-detector"] == "READY"


def test_the_wrong_key_is_named(tmp_path: Path, models: dict[str, ModelConfig], video_server: Server) -> None:
    server = replace(adopted(video_server), model_control_key="wrong")
    bad = not_fine(looked_at(configured(tmp_path, models, server)))
    control = bad["servers.first: model control"]
    assert (control.severity, control.exit_code) == (Severity.ERROR, 4)
    assert "servers.first.model_control_key" in control.remedy


def test_who_else_can_load_models_on_another_machine_is_said(
    tmp_path: Path, models: dict[str, ModelConfig], video_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Address, "is_loopback", False)  # as for servers of other machines
    restricted = looked_at(configured(tmp_path, models, adopted(video_server)))
    with bare_triton(tmp_path, "explicit") as server:
        whole = [f for f in looked_at(configured(tmp_path, models, server)) if f.what == "servers.first: model control"]
    by_key = [f.found for f in restricted if f.what == "servers.first: model control" and f.severity is not Severity.OK]
    assert by_key == [f"its key travels unencrypted to {video_server.grpc_address}"]
    assert [f.severity for f in whole] == [Severity.OK, Severity.WARNING, Severity.WARNING]
    assert whole[1].found.startswith(f"any client that reaches {server.grpc_address} can load and unload models: it asks for no key")
    assert whole[2].found.startswith(f"any client that reaches {server.http_address} can load and unload models over REST")


def test_a_server_that_takes_no_loads_and_has_no_models(tmp_path: Path, models: dict[str, ModelConfig]) -> None:
    with bare_triton(tmp_path, "none") as server:
        bad = not_fine(looked_at(configured(tmp_path, models, server)))
    assert set(bad) == {"servers.first: model control", "servers.first: models", "servers.first.model_repository", "pipelines.video"}
    control = bad["servers.first: model control"]
    assert (control.severity, "--model-control-mode=explicit" in control.remedy) == (Severity.WARNING, True)
    assert control.found.startswith("the server takes no loads, so its instance counts stay as they are; its models are routed to")
    assert bad["servers.first: models"].severity is Severity.WARNING
    assert bad["servers.first: models"].found == "the server's repository has no video-classifier, video-detector"
    assert bad["pipelines.video"].found == "no adopted server holds all its models"


def test_nothing_answers_and_ports_are_taken(tmp_path: Path, models: dict[str, ModelConfig]) -> None:
    grpc, http, metrics = (Address("127.0.0.1", port) for port in free_ports(3))
    config = configured(tmp_path, models, AdoptedServer("first", grpc, http, metrics, "gpu:99", model_repository=tmp_path))
    config = replace(config, envoy=replace(config.envoy, binary=tmp_path / "no-envoy"))
    listen = config.envoy.grpc_listen
    with socket.create_server((listen.host, listen.port)):
        bad = not_fine(looked_at(config))
    assert {what: finding.exit_code for what, finding in bad.items()} == {
        "servers.first.grpc": 4,
        "servers.first.http": 4,
        "servers.first.metrics": 4,
        "servers.first.model_repository": 0,
        "servers.first.device": 3,
        "pipelines.video": 3,
        "envoy.binary": 3,
        "envoy.grpc_listen": 3,
    }
    assert "Address already in use" in bad["envoy.grpc_listen"].found
    assert all(finding.remedy for finding in bad.values())


def test_an_envoy_of_someone_else_must_answer(tmp_path: Path, models: dict[str, ModelConfig], video_server: Server) -> None:
    config = configured(tmp_path, models, adopted(video_server))
    bad = not_fine(looked_at(replace(config, envoy=replace(config.envoy, managed=False))))
    assert list(bad) == ["envoy.admin"]
    assert "start Envoy" in bad["envoy.admin"].remedy


def test_an_envoy_that_listens_on_our_addresses_is_ours(tmp_path: Path, models: dict[str, ModelConfig], video_server: Server) -> None:
    config = configured(tmp_path, models, adopted(video_server))
    with bare_envoy(tmp_path, config.envoy):
        findings = looked_at(config)
        elsewhere = replace(config, envoy=replace(config.envoy, http_listen=Address("127.0.0.1", free_ports(1)[0])))
        bad = not_fine(looked_at(elsewhere))
    assert not_fine(findings) == {}
    assert "envoy.grpc_listen" not in {finding.what for finding in findings}
    assert bad["envoy.admin"].exit_code == 4
    assert f"does not listen on {elsewhere.envoy.http_listen}" in bad["envoy.admin"].found


def test_the_command_reports_as_json_and_by_its_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = dict(zip(("grpc", "http", "metrics"), (f"127.0.0.1:{port}" for port in free_ports(3)), strict=True))
    settings = yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) | {"servers": {"first": {**server, "device": "cpu:0"}}}
    path = tmp_path / "themis.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert validate_command(path, live=True, as_json=True) == 4
    report = json.loads(capsys.readouterr().out)
    assert report["valid"]
    errors = {finding["what"] for finding in report["findings"] if finding["severity"] == "error"}
    assert errors >= {"servers.first.grpc", "servers.first.http", "servers.first.metrics"}
    assert "launch.binary" in {finding["what"] for finding in report["findings"] if finding["severity"] == "ok"}
