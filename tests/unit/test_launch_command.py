"""Command line and environment of a launched server, without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.samples import server
from themis_triton.adapters.local.launch_command import server_command, server_environment
from themis_triton.adapters.local.triton_install import TritonInstall
from themis_triton.adapters.server_files import ServerFiles
from themis_triton.core.config import LocalLaunchConfig
from themis_triton.core.fleet import Server

INSTALL = TritonInstall(Path("/opt/tritonserver"), Path("/opt/backends"), Path("/venv/bin"))


def launched(device: str, *reach: str) -> Server:
    return replace(server("new", slot="left"), device=device, reach=reach, model_control_key="k", models={})


@pytest.mark.parametrize(
    ("devices", "visible"), [(("gpu:2",), "2"), (("gpu:2", "gpu:0"), "2,0"), (("gpu:MIG-a",), "MIG-a"), (("cpu:0", "cpu:1"), "")]
)
def test_a_server_sees_its_own_gpus_in_their_order_under_the_numbers_of_nvml(
    devices: tuple[str, ...], visible: str, tmp_path: Path
) -> None:
    environment = server_environment(launched(*devices), INSTALL, tmp_path, 1)
    assert environment["CUDA_VISIBLE_DEVICES"] == visible
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["PATH"].startswith("/venv/bin:")
    assert environment["THEMIS_REACH"] == " ".join(devices[1:])


def test_an_emulated_device_is_named_after_the_slot_only_where_slots_share_it(tmp_path: Path) -> None:
    names = [server_environment(launched("cpu:3"), INSTALL, tmp_path, count)["THEMIS_EMULATED_DEVICE"] for count in (1, 2)]
    assert [name.partition("@")[0] for name in names] == ["cpu-3", "left"]


def test_the_settings_own_arguments_come_last_and_control_is_restricted(tmp_path: Path) -> None:
    config = LocalLaunchConfig((), tmp_path, arguments=("--log-verbose=1",), drain_timeout_s=2.5)
    command = server_command(ServerFiles(tmp_path, "new"), launched("cpu:0"), INSTALL, config, complete=True)
    assert (command[0], command[-1]) == ("/opt/tritonserver", "--log-verbose=1")
    assert {"--exit-timeout-secs=3", "--backend-directory=/opt/backends", "--disable-auto-complete-config"} < set(command)
    assert "--grpc-restricted-protocol=model-repository,shared-memory,trace,logging:key=k" in command
    bare = server_command(ServerFiles(tmp_path, "new"), launched("cpu:0"), replace(INSTALL, backend_directory=None), config, complete=False)
    assert not [word for word in bare if word.startswith(("--backend-directory", "--disable"))]
