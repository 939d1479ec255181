"""What is asked of Slurm for one server: the job's file, which the job's program reads on its node, and the options of `sbatch`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from themis_triton.adapters.envoy.binary import find_envoy
from themis_triton.adapters.local.triton_install import TritonInstall
from themis_triton.adapters.server_files import ServerFiles
from themis_triton.adapters.slurm import job
from themis_triton.adapters.slurm.jobs import job_name
from themis_triton.adapters.tls_proxy import LOOPBACK, proxy_command, proxy_files
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, SlurmLaunchConfig
from themis_triton.core.errors import LaunchFailedError
from themis_triton.core.fleet import Models, ModelState
from themis_triton.core.server_proxy import ServerProxy

PORTS = ("grpc", "http", "metrics")
_JOB_FILE, _ENDPOINT_FILE = "job.json", "endpoint.json"
_ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - the proxy and the sidecar are on other hosts
_RESTRICTED = "model-repository,shared-memory,trace,logging"
_LOAD_THREADS = 4  # Triton's own default
_PRIVATE = 0o700


@dataclass(frozen=True, slots=True)
class Order:
    """A server on a slot, with its models and the key of its model control. `launch` identifies this very launch."""

    files: ServerFiles
    slot: DeviceSlot
    models: Models
    key: str
    launch: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a job's server listens."""

    number: str
    node: str
    ports: Mapping[str, int]

    def addresses(self, host: str) -> dict[str, Address]:
        """The addresses of the ports at a host."""
        return {name: Address(host, self.ports[name]) for name in PORTS}


def submission(order: Order, config: SlurmLaunchConfig) -> tuple[str, list[str]]:
    """The job's name and the command that submits it. Only the settings' own values and paths are in it, and no key."""
    name, files = job_name(config.sidecar, order.files.name, order.launch), order.files
    asked: dict[str, object] = {
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "gres": config.gres,
        "constraint": config.constraint,
        "cpus-per-task": config.cpus,
        "mem": f"{math.ceil(config.host_memory_bytes / 2**20)}M" if config.host_memory_bytes else None,
        "time": config.time_limit_min,
    }
    asked |= config.selection_of(order.slot.name)
    return name, [
        "sbatch",
        "--parsable",
        f"--job-name={name}",
        f"--comment=Triton server {files.name} of the Themis sidecar {config.sidecar}, files in {config.directory}",
        "--nodes=1",
        "--ntasks=1",
        "--no-requeue",
        "--export=ALL",
        "--open-mode=append",
        f"--output={files.log}",
        f"--chdir={config.directory}",
        *(f"--{option}={value}" for option, value in asked.items() if value is not None),
        *config.options,
        str(Path(job.__file__).resolve()),
        str(files.directory / _JOB_FILE),
    ]


def write_order(order: Order, config: SlurmLaunchConfig, install: TritonInstall | None, *, complete: bool) -> None:
    """Write the job's file, for this user alone. Blocking. LaunchFailedError where it cannot be written."""
    files = order.files
    content = {
        "launch": order.launch,
        "slot": order.slot.name,
        "device": order.slot.device,
        "models": {name: [state.instances, state.max_batch, state.max_queue_delay_us] for name, state in order.models.items()},
        "key": order.key,
        "command": _command(order, config, install, complete=complete),
        "ports": PORTS,
        "path_prefix": str(install.path_prefix) if install is not None and install.path_prefix is not None else None,
        "proxy": _proxy(files.directory, config.proxy) if config.proxy is not None else None,
        "shared_memory": files.shared_memory_prefix,
        "log": str(files.log),
        "endpoint": str(files.directory / _ENDPOINT_FILE),
    }
    try:
        files.directory.chmod(_PRIVATE)
        file = files.directory / _JOB_FILE
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as written:
            json.dump(content, written, indent=1)
    except OSError as error:
        raise LaunchFailedError(f"server {files.name}: its files cannot be written to {files.directory}: {error}") from error


def _command(order: Order, config: SlurmLaunchConfig, install: TritonInstall | None, *, complete: bool) -> list[str]:
    """Triton's command line on the node; the ports are added there."""
    models, files = order.models, order.files
    return [
        *(_container(config) if install is None else [str(install.binary)]),
        f"--model-repository={files.models}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in (*models, *config.ensembles_of(models))),
        f"--model-load-thread-count={max(_LOAD_THREADS, len(models) + 1)}",
        *(f"--{name}-address={_ANY_ADDRESS if config.proxy is None else LOOPBACK}" for name in PORTS),
        f"--grpc-restricted-protocol={_RESTRICTED}:key={order.key}",
        f"--http-restricted-api={_RESTRICTED}:key={order.key}",
        f"--backend-config=python,shm-region-prefix-name={files.shared_memory_prefix}",
        f"--exit-timeout-secs={math.ceil(config.drain_timeout_s)}",
        *([f"--backend-directory={install.backend_directory}"] if install is not None and install.backend_directory is not None else []),
        *(["--disable-auto-complete-config"] if complete else []),
        *config.arguments,
    ]


def _proxy(folder: Path, proxy: ServerProxy) -> dict[str, Any]:
    """The proxy before Triton; the job puts the ports of its node into the files."""
    outer, inner = ({name: f"@{name}-{side}@" for name in PORTS} for side in ("outer", "inner"))
    binary = str(find_envoy(proxy.binary))
    needed = [binary, str(proxy.certificate), str(proxy.key), *([str(proxy.client_ca)] if proxy.client_ca is not None else [])]
    return {
        "files": proxy_files(folder, _ANY_ADDRESS, outer, inner, proxy),
        "folder": str(folder),
        "command": proxy_command(binary, folder),
        "needed": needed,
    }


def _container(config: SlurmLaunchConfig) -> list[str]:
    """The command that runs Triton in the container, with the folders that it must see."""
    folders = dict.fromkeys((config.directory, config.model_repository, *config.further_repositories))
    binds = [word for folder in folders for word in ("--bind", str(folder))]
    return [*config.container_command, *binds, str(config.container), "tritonserver"]


def read_order(files: ServerFiles, launch: str) -> dict[str, Any] | None:
    """The job's file of this very launch; None where it is another's, or gone. Blocking."""
    content = _read(files.directory / _JOB_FILE)
    return content if content is not None and content.get("launch") == launch else None


def models_of(content: Mapping[str, Any]) -> Models:
    """The states with which a job's models were launched."""
    return {name: ModelState(*state) for name, state in content["models"].items()}


def read_endpoint(files: ServerFiles, launch: str) -> Endpoint | None:
    """Where the server of this very launch listens; None while it is not known. Blocking.

    The folder is listed first: a network file system may remember for a minute that a file is absent, but not for a folder that is read.
    """
    try:
        if _ENDPOINT_FILE not in os.listdir(files.directory):  # noqa: PTH208 - one call, no paths
            return None
    except OSError:
        return None
    content = _read(files.directory / _ENDPOINT_FILE)
    if content is None or content.get("launch") != launch:
        return None
    return Endpoint(content["job"], content["node"], content["ports"])


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content
