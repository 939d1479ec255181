"""A Triton server prepared for measurement: one model without a batcher, so that a request of b inputs runs as a batch of b."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tritonclient.utils import InferenceServerException

from themis_triton.adapters.launchers import build_launcher
from themis_triton.adapters.triton.client import KEY_HEADER, new_client, silence
from themis_triton.adapters.triton.config_files import CONFIG_FILE
from themis_triton.adapters.triton.model_config import Config, render_config, to_json
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.address import UNKNOWN_ADDRESS, Address
from themis_triton.core.config import DeviceSlot, LaunchConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.load.connection import open_stub, read_specs
from themis_triton.load.requests import ModelSpec
from themis_triton.ports import ServerLauncher
from themis_triton.profile.identity import model_config
from themis_triton.profile.trace import Tracer, trace_arguments

_STUB_TIMEOUT_S = 10.0
SERVER_NAME = "profile"


@dataclass(frozen=True, slots=True)
class LaunchTimes:
    """The phases of a launch, in s: up to the model's load, the load, from loaded to ready, warm-up."""

    process_s: float
    load_s: float
    ready_s: float
    warm_up_s: float


@dataclass(slots=True)
class Bench:
    """The measured server and its connections. `launcher`, `tracer` and `launch` are None for an adopted server.

    `config_name`: the `--model-config-name` by which the model's own file was chosen.
    """

    model: str
    server: Server
    config: Config
    spec: ModelSpec
    stub: Any
    client: Any
    control: TritonModelControl
    launcher: ServerLauncher | None = None
    tracer: Tracer | None = None
    launch: LaunchTimes | None = None
    config_name: str | None = None
    memory_bytes: dict[int, int] = field(default_factory=dict)

    @property
    def batched(self) -> bool:
        """Whether the model's shapes begin with a batch dimension."""
        return bool(self.config.max_batch_size > 0)

    async def set_instances(self, count: int) -> float:
        """The duration in s of a change of the instance count. Raises ServerError if it is refused."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        await self.control.change(self.server, self.model, ModelState(count, 1, 0))
        took_s = loop.time() - started_s
        self.memory_bytes[count] = await self.read_memory()
        return took_s

    async def set_devices(self, counts: Mapping[str, int]) -> None:
        """Change the instances by device of a server that may use several. Raises ServerError if it is refused."""
        before, state = self.server.models[self.model], ModelState(0, 1, 0).spread_over(counts)
        left = {device: count for device, count in before.by_device.items() if not state.on(device)}
        self.server = replace(self.server, models={self.model: state.plus(left)})  # Memory is read on the devices of both states.
        held = before
        try:
            held = await self.control.change(self.server, self.model, state)
        finally:
            self.server = replace(self.server, models={self.model: held})

    async def read_memory(self) -> int:
        """Device memory of the server's processes in bytes; 0 if unknown (an adopted server)."""
        return await self.launcher.read_memory(self.server) if self.launcher is not None else 0

    async def statistics(self) -> Any:  # noqa: ANN401 - protobuf has no types
        """Triton's cumulative statistics of the model. Raises ServerError if it does not answer."""
        try:
            answer = await self.client.get_inference_statistics(self.model, client_timeout=_STUB_TIMEOUT_S)
        except InferenceServerException as error:
            raise silence(self.server.name, self.server.grpc_address, error) from error
        return answer.model_stats[0]

    async def triton_version(self) -> str:
        """The server's version."""
        return str((await self.client.get_server_metadata(client_timeout=_STUB_TIMEOUT_S)).version)


@asynccontextmanager
async def launched_bench(model: str, launch: LaunchConfig, slot: DeviceSlot, state_directory: Path) -> AsyncIterator[Bench]:
    """A bench on a server launched on a slot, which is stopped on exit.

    Raises:
        ServerError: it does not start, or the model does not load.
        SettingsError: the model is not in the repository.
    """
    directory = state_directory / "profile"
    trace_file = directory / f"trace-{model}.json"
    config = model_config(launch.model_repository / model, launch.model_config_name)
    repository = _without_batcher(config, launch.model_repository / model, directory / "repository" / model)
    arguments = (*launch.arguments, *trace_arguments(trace_file))
    scratch = replace(launch, slots=(slot,), model_repository=repository, model_config_name=None, arguments=arguments)
    launcher = build_launcher(scratch, directory)
    trace_file.unlink(missing_ok=True)
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    server = await launcher.launch(SERVER_NAME, slot.name, {model: ModelState(1, 1, 0)})
    async with AsyncExitStack() as stack:
        stack.push_async_callback(launcher.stop, server)
        stack.callback(trace_file.unlink, missing_ok=True)
        server = await launcher.wait_ready(server)
        ready_s = loop.time() - started_s
        await launcher.warm_up(server)
        warm_up_s = loop.time() - started_s - ready_s
        bench = await _opened(stack, model, server, config)
        bench.launcher = launcher
        bench.config_name = launch.model_config_name
        bench.tracer = Tracer(bench.client, server, trace_file)
        bench.launch = _launch_times(Path(server.log_file or ""), model, ready_s, warm_up_s)
        yield bench


@asynccontextmanager
async def adopted_bench(model: str, server: Server, state_directory: Path) -> AsyncIterator[Bench]:
    """A bench on a running server; the model's configuration is replaced, and restored on exit.

    Raises:
        ServerError: it does not answer, does not hold the model, or refuses the change.
    """
    directory = state_directory / "profile" / "repository" / model
    async with AsyncExitStack() as stack:
        client = new_client(server.grpc_address)
        stack.push_async_callback(client.close)
        try:
            config = (await client.get_model_config(model, client_timeout=_STUB_TIMEOUT_S)).config
        except InferenceServerException as error:
            raise ServerError(f"model {model} on {server.grpc_address}: {error.message()}. Fix: check the address and the name") from error
        repository = _without_batcher(config, None, directory)
        stack.push_async_callback(_restore, client, server, model, config)
        bench = await _opened(
            stack, model, replace(server, model_repository=str(repository), further_repositories=(), model_config_name=None), config
        )
        bench.config_name = server.model_config_name
        yield bench


async def _restore(client: Any, server: Server, model: str, config: Config) -> None:  # noqa: ANN401 - tritonclient has no types
    headers = {KEY_HEADER: server.model_control_key} if server.model_control_key else None
    try:
        await client.load_model(model, headers=headers, config=to_json(config))
    except InferenceServerException as error:
        raise ServerError(
            f"server {server.grpc_address}: model {model} could not be restored ({error.message()}). Fix: load it again"
        ) from error


def adopted_server(address: Address, device: str, key: str | None, config_name: str | None = None) -> Server:
    """A server with only a gRPC address."""
    bare = Server(str(address), device, address, UNKNOWN_ADDRESS, UNKNOWN_ADDRESS, Phase.SERVING, launched=False)
    return replace(bare, model_control_key=key, model_config_name=config_name)


async def live_models(address: Address, watch_s: float) -> list[str]:
    """The models of a running server that answered requests within `watch_s` seconds. Raises ServerError if it does not answer."""
    client = new_client(address)
    try:
        before = await _counts(client)
        await asyncio.sleep(watch_s)
        after = await _counts(client)
    except InferenceServerException as error:
        raise silence(str(address), address, error) from error
    finally:
        await client.close()
    return sorted(name for name, count in after.items() if count > before.get(name, 0))


async def _counts(client: Any) -> dict[str, int]:  # noqa: ANN401 - tritonclient has no types
    stats = (await client.get_inference_statistics(client_timeout=_STUB_TIMEOUT_S)).model_stats
    return {each.name: each.inference_stats.success.count + each.inference_stats.fail.count for each in stats}


async def _opened(stack: AsyncExitStack, model: str, server: Server, config: Config) -> Bench:
    client = new_client(server.grpc_address)
    stack.push_async_callback(client.close)
    control = TritonModelControl()
    stack.push_async_callback(control.close)
    stub = await stack.enter_async_context(open_stub(server.grpc_address, _STUB_TIMEOUT_S))
    spec = (await read_specs(stub, [model], _STUB_TIMEOUT_S))[model]
    return Bench(model, server, config, spec, stub, client, control)


def _without_batcher(config: Config, source: Path | None, target: Path) -> Path:
    """The repository of a model folder with links to the model's files and a configuration without batching."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    bare = type(config)()
    bare.CopyFrom(config)
    bare.ClearField("dynamic_batching")
    bare.ClearField("sequence_batching")
    (target / CONFIG_FILE).write_text(render_config(bare), encoding="utf-8")
    for path in source.iterdir() if source is not None else ():
        if path.name != CONFIG_FILE:
            (target / path.name).symlink_to(path.resolve())
    return target.parent


def _launch_times(log_file: Path, model: str, ready_s: float, warm_up_s: float) -> LaunchTimes:
    """The phases, from the times in the server's log; without them the whole launch counts as `ready_s`."""
    text = log_file.read_text(encoding="utf-8", errors="replace")
    first, loading, loaded = (_log_time(text, mark) for mark in ("", f'"loading: {model}:', f"successfully loaded '{model}'"))
    if first is None or loading is None or loaded is None:
        return LaunchTimes(0.0, 0.0, ready_s, warm_up_s)
    load_s = (loaded - loading).total_seconds()
    process_s = (loading - first).total_seconds()
    return LaunchTimes(process_s, load_s, max(0.0, ready_s - process_s - load_s), warm_up_s)


def _log_time(text: str, mark: str) -> datetime | None:
    """The time of the last line with the mark; of the first line without a mark."""
    lines = [line for line in text.splitlines() if mark in line and re.match(r"[IWE]\d{4} ", line)]
    line = (lines[-1] if mark else lines[0]) if lines else ""
    stamp = re.match(r"[IWE](\d{4} \d\d:\d\d:\d\d\.\d+)", line)
    return datetime.strptime(f"2000{stamp[1]}+0000", "%Y%m%d %H:%M:%S.%f%z") if stamp else None
