"""Addresses, command line and environment of a launched `tritonserver`."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from themis_triton.adapters.local.discovery import DEVICE_VARIABLE, KEY_VARIABLE, REACH_VARIABLE, SERVER_VARIABLE, SLOT_VARIABLE
from themis_triton.adapters.local.triton_install import TritonInstall
from themis_triton.adapters.processes import EMULATED_HOST_VARIABLE, OWNER_VARIABLE, owner_mark, short_hash
from themis_triton.adapters.server_files import ServerFiles
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import ModelState, Phase, Server

_EMULATED_VARIABLE = "THEMIS_EMULATED_DEVICE"
_RESTRICTED = "model-repository,shared-memory,trace,logging"
_LOAD_THREADS = 4  # Triton's own default


def server_command(files: ServerFiles, server: Server, install: TritonInstall, config: LocalLaunchConfig, *, complete: bool) -> list[str]:
    """The command line: its addresses, restricted model control, and last the settings' own arguments.

    `complete`: the models' configurations are complete, so that Triton need not ask the backends to complete them.
    """
    return [
        str(install.binary),
        f"--model-repository={files.models}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in (*server.models, *config.ensembles_of(server.models))),
        # A growth under a backlog holds a thread until the model's queue has been empty; the other models' changes must not wait for it.
        f"--model-load-thread-count={max(_LOAD_THREADS, len(server.models) + 1)}",
        f"--grpc-address={server.grpc_address.host}",
        f"--grpc-port={server.grpc_address.port}",
        f"--http-address={server.http_address.host}",
        f"--http-port={server.http_address.port}",
        f"--metrics-address={server.metrics_address.host}",
        f"--metrics-port={server.metrics_address.port}",
        f"--grpc-restricted-protocol={_RESTRICTED}:key={server.model_control_key}",
        f"--http-restricted-api={_RESTRICTED}:key={server.model_control_key}",
        f"--backend-config=python,shm-region-prefix-name={files.shared_memory_prefix}",
        f"--exit-timeout-secs={math.ceil(config.drain_timeout_s)}",
        *([f"--backend-directory={install.backend_directory}"] if install.backend_directory is not None else []),
        *(["--disable-auto-complete-config"] if complete else []),
        *config.arguments,
    ]


def server_environment(server: Server, install: TritonInstall, state_directory: Path, slots_on_device: int) -> dict[str, str]:
    """The daemon's own environment, with the variables that place the server and mark it."""
    gpus = [device.removeprefix("gpu:") for device in server.devices if device.startswith("gpu:")]
    environment = dict(os.environ)
    if install.path_prefix is not None:
        environment["PATH"] = os.pathsep.join([str(install.path_prefix), environment.get("PATH", os.defpath)])
    return environment | {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML numbers devices so, CUDA by itself does not.
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        OWNER_VARIABLE: owner_mark(state_directory),
        SERVER_VARIABLE: server.name,
        SLOT_VARIABLE: server.slot or "",
        DEVICE_VARIABLE: server.device,
        REACH_VARIABLE: " ".join(server.reach),
        KEY_VARIABLE: server.model_control_key or "",
        _EMULATED_VARIABLE: _emulated_device(server, state_directory, slots_on_device),
    }


def _emulated_device(server: Server, state_directory: Path, slots_on_device: int) -> str:
    """A slot with a device of its own is named after it, as other servers name that device when they grow onto it."""
    name = server.device.replace(":", "-") if slots_on_device == 1 else server.slot
    return f"{name}@{os.environ.get(EMULATED_HOST_VARIABLE) or short_hash(state_directory)}"


def planned_server(files: ServerFiles, slot: DeviceSlot, models: Mapping[str, ModelState], config: LocalLaunchConfig) -> Server:
    """The server before its process: on free ports, with a key of its own."""
    grpc, http, metrics = (Address(config.host, port) for port in free_ports(3, config.host))
    return Server(
        files.name,
        slot.device,
        grpc,
        http,
        metrics,
        Phase.LAUNCHING,
        launched=True,
        slot=slot.name,
        model_control_key=secrets.token_urlsafe(24),
        log_file=str(files.log),
        model_repository=str(files.models),
        models=dict(models),
        reach=config.reach_from(slot.device),
    )
