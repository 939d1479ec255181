"""A real Envoy on free loopback ports for one test module, and clients and load to send through it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.e2e.triton_process import free_ports
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.envoy.stats import EnvoyStats
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.fleet import Server
from themis_triton.core.observation import RouteReading
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable

Tensor = NDArray[np.float32]


@dataclass(frozen=True)
class Gateway:
    """One running Envoy. Each call opens its own adapters, as each runs in an event loop of its own."""

    config: EnvoyConfig
    state_directory: Path

    def write(self, table: RouteTable) -> None:
        asyncio.run(write(self.config, table))

    def read(self, models: Sequence[str]) -> dict[str, RouteReading]:
        return asyncio.run(read(self.config, models))


async def write(config: EnvoyConfig, table: RouteTable) -> None:
    files = EnvoyFiles(config)
    try:
        await files.write(table)
    finally:
        await files.close()


async def read(config: EnvoyConfig, models: Sequence[str]) -> dict[str, RouteReading]:
    stats = EnvoyStats(config, models, SystemClock())
    try:
        readings, error = await stats.read_routes()
    finally:
        await stats.close()
    assert error is None
    return {reading.model: reading for reading in readings}


def free_config(directory: Path) -> EnvoyConfig:
    grpc, http = (Address("127.0.0.1", port) for port in free_ports(2))
    return EnvoyConfig(grpc, http, Address(str(directory / "envoy" / "admin" / "envoy.sock"), 0), directory / "envoy")


@contextmanager
def running_envoy(state_directory: Path, table: RouteTable) -> Iterator[Gateway]:
    config = free_config(state_directory)

    @asynccontextmanager
    async def own_process() -> AsyncIterator[EnvoyProcess]:
        process = EnvoyProcess(config, state_directory)
        try:
            yield process
        finally:
            await process.close()

    async def start() -> None:
        await write(config, table)
        async with own_process() as process:
            await process.ensure()

    async def stop() -> None:
        async with own_process() as process:
            await process.stop()

    try:
        asyncio.run(start())
        yield Gateway(config, state_directory)
    finally:
        asyncio.run(stop())


def endpoint(server: Server) -> Endpoint:
    return Endpoint(server.name, server.grpc_address, server.http_address)


def table_of(*servers: Server) -> RouteTable:
    models = sorted({model for server in servers for model in server.models})
    members = {model: ModelRoute(tuple(endpoint(server) for server in servers if model in server.models)) for model in models}
    return RouteTable(members, tuple(map(endpoint, servers)))


def tensors(module: Any, values: Tensor) -> list[Any]:
    tensor = module.InferInput("INPUT", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return [tensor]


def values(count: int = 3, seed: int = 0) -> Tensor:
    return np.random.default_rng(seed).random((1, count), dtype=np.float32)


def outcome(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the call returns, or the code and message of the error that a client of Triton sees."""
    try:
        return call(*arguments, **options)
    except InferenceServerException as error:
        return (error.status(), error.message())


@dataclass
class Load:
    """What open-loop load met: requests sent, and every error by its text."""

    sent: int = 0
    errors: Counter[str] = field(default_factory=Counter)


async def load_until(address: str, model: str, rate_rps: float, end: asyncio.Event, *, over_http: bool = False) -> Load:
    """Requests at a constant rate until the event is set; answers are checked by their shape and slope."""
    load, running = Load(), set[asyncio.Task[None]]()
    module = triton_http if over_http else triton_grpc
    client: Any = triton_http_aio.InferenceServerClient(address, conn_limit=200) if over_http else triton_aio.InferenceServerClient(address)
    tensor = values(4)

    async def one() -> None:
        try:
            answer = (await client.infer(model, tensors(module, tensor))).as_numpy("OUTPUT")
        except Exception as error:  # noqa: BLE001 - whatever a client can meet is counted, and fails the test
            load.errors[f"{type(error).__name__}: {error}"] += 1
        else:
            if not np.allclose(answer - answer[0, 0], 2 * (tensor - tensor[0, 0]), atol=1e-5):
                load.errors[f"wrong answer {answer}"] += 1

    loop = asyncio.get_running_loop()
    begin_s = loop.time()
    try:
        while not end.is_set():
            running.add(asyncio.create_task(one()))
            load.sent += 1
            await asyncio.sleep(max(0.0, begin_s + load.sent / rate_rps - loop.time()))
        await asyncio.gather(*running)
    finally:
        await client.close()
    return load


async def under_load(loads: Sequence[tuple[str, str, float, bool]], action: Callable[[], Awaitable[None]]) -> list[Load]:
    """Run the action while loads (address, model, requests/s, over HTTP) run, with traffic for a second before and after it."""
    end = asyncio.Event()
    running = [asyncio.create_task(load_until(address, model, rate, end, over_http=http)) for address, model, rate, http in loads]
    try:
        await asyncio.sleep(1.0)
        await action()
        await asyncio.sleep(1.0)
    finally:
        end.set()
        # Also when the action failed: the clients are closed by these tasks.
        results = await asyncio.gather(*running)
    return results
