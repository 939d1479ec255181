"""The identity of a measurement: the model's files, the machine, the device. A profile is stale if any of them changed."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import psutil
import pynvml
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from themis_triton.adapters.nvml import gpu_handle
from themis_triton.adapters.triton.config_files import CONFIG_FILE, CONFIG_FOLDER, config_file
from themis_triton.adapters.triton.model_config import Config, parse_config
from themis_triton.core.errors import SettingsError

SERVED = "served:"
"""Prefix of the hash of a configuration that a server reports: Triton completed it, so it differs from the hash of the file."""
_WHOLE_BYTES = 16 * 2**20
_END_BYTES = 2**20
_CPU_INFO = Path("/proc/cpuinfo")


def config_hash(config: Config) -> str:
    """The hash of a model configuration without the fields that Themis changes (instance counts, batching); a GPU placement is included."""
    bare = type(config)()
    bare.CopyFrom(config)
    for field in ("instance_group", "version_policy", "dynamic_batching", "sequence_batching", "max_batch_size", "name"):
        bare.ClearField(field)
    on_gpu = any(group.kind == ModelInstanceGroup.KIND_GPU for group in config.instance_group)
    return _short(bare.SerializeToString(deterministic=True) + (b"gpu" if on_gpu else b""))


def model_config(directory: Path, config_name: str | None = None) -> Config:
    """The configuration file of a model's folder, see `config_file`. Raises SettingsError if it is missing or invalid."""
    file = config_file(directory, config_name)
    try:
        return parse_config(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read ({error.strerror}). Fix: put the model there, or correct --repository") from error


def model_hash(directory: Path) -> str:
    """The hash of the names and contents of a model's files except its configurations; of a large file, of its size and both ends."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder) / name for folder, _, names in os.walk(directory, followlinks=True) for name in names):
        inner = path.relative_to(directory)
        if inner.name != CONFIG_FILE and inner.parts[0] != CONFIG_FOLDER and "__pycache__" not in inner.parts:
            digest.update(f"{inner}:{path.stat().st_size}:".encode())
            digest.update(_content(path))
    return digest.hexdigest()[:16]


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            return file.read()
        first = file.read(_END_BYTES)
        file.seek(size - _END_BYTES)
        return first + file.read()


def machine_name() -> str:
    """This machine's name."""
    return platform.node()


def device_name(device: str) -> str:
    """A device's kind and make: the GPU's name and memory, or the processor's name and this machine's number of cores."""
    kind, _, name = device.partition(":")
    if kind == "gpu":
        return _gpu_name(name)
    return f"cpu: {_cpu_name()}, {psutil.cpu_count()} cores"


def _gpu_name(gpu: str) -> str:
    try:
        pynvml.nvmlInit()
        try:
            handle = gpu_handle(gpu)
            name = pynvml.nvmlDeviceGetName(handle)
            total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise SettingsError(f"device gpu:{gpu}: NVML: {error}. Fix: give the device that the server runs on") from error
    return f"gpu: {name if isinstance(name, str) else name.decode()}, {total // 2**20} MiB"


def _cpu_name() -> str:
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
