"""What a launched server shows: that it lives, holds its models, has nothing in flight, and its memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.utils import InferenceServerException

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.nvml import DeviceReader
from themis_triton.adapters.processes import find_process, group_members, has_clients, resident_bytes
from themis_triton.adapters.triton.metrics import fetch_metrics
from themis_triton.core.fleet import Server
from themis_triton.core.observation import ModelCounters

POLL_S = 0.05
POLL_TIMEOUT_S = 2.0
_ENDS_WITHIN_S = 3.0
_QUIET_S = 0.3
_QUIET_SERVICES = 3.0
_DRIVER_TIMEOUT_S = 30.0


def is_alive(server: Server) -> bool:
    """Whether the very process that was launched still runs."""
    return server.process is not None and find_process(server.process) is not None


async def has_ended(server: Server) -> bool:
    """Whether its process is gone, or goes within seconds: one that crashed may still write its memory to a file."""
    for _ in range(round(_ENDS_WITHIN_S / POLL_S)):
        if not is_alive(server):
            return True
        await asyncio.sleep(POLL_S)
    return False


async def holds_models(
    client: HttpClient,
    triton: Any,  # noqa: ANN401 - tritonclient has no types
    server: Server,
    ensembles: Sequence[str],
) -> bool:
    """Whether the server holds its models and shows metrics; its own readiness is lost with any failed change.

    Models are asked for over gRPC, because the path of a URL cannot hold every name of a model.
    """
    try:
        for url in (server.http_address.url("/v2/health/live"), server.metrics_address.url("/metrics")):
            await client.get(url)
        ready = [await triton.is_model_ready(model, client_timeout=POLL_TIMEOUT_S) for model in (*server.models, *ensembles)]
    except (HttpError, InferenceServerException):
        return False
    return all(ready)


async def wait_idle(server: Server, timeout_s: float) -> bool:
    """Wait until nothing is pending and no request ends any more; False after the time-out.

    Triton shows no requests that are being executed. A proxy closes its connections to a server that left the routes once their
    requests and streams have ended, so there must be none; besides, the counters must not move for three mean service times, at
    least 0.3 s.
    A server that does not answer, or whose process is gone, has nothing in flight.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    last: dict[str, ModelCounters] | None = None
    rests_since_s = loop.time()
    ports = (server.grpc_address.port, server.http_address.port)
    async with HttpClient(POLL_TIMEOUT_S) as client:
        while loop.time() < deadline_s:
            try:
                now = await fetch_metrics(client, server.metrics_address)
            except (HttpError, ValueError):
                if not is_alive(server):
                    return True
                now = None
            open_calls = server.process is not None and await asyncio.to_thread(has_clients, server.process, ports)
            if now is None or now != last or open_calls or any(counters.pending for counters in now.values()):
                rests_since_s, last = loop.time(), now
            elif loop.time() - rests_since_s >= _quiet_s(now):
                return True
            await asyncio.sleep(POLL_S)
    return False


def _quiet_s(counters: Mapping[str, ModelCounters]) -> float:
    means_us = [each.request_us / each.success for each in counters.values() if each.success > 0]
    return max(_QUIET_S, _QUIET_SERVICES * max(means_us, default=0.0) / 1e6)


async def read_memory(server: Server) -> int:
    """Bytes that the server's processes hold on its devices; 0 where that is unknown."""
    if server.process is None:
        return 0
    members = await asyncio.to_thread(group_members, server.process)
    if not server.device.startswith("gpu:"):
        return sum(resident_bytes(member) for member in members)
    reader = DeviceReader(server.devices, SystemClock(), timeout_s=_DRIVER_TIMEOUT_S)
    try:
        readings = await reader.read_devices()
    finally:
        reader.close()
    own = sum(reading.process_memory_bytes.get(member.pid, 0) for reading in readings for member in members)
    used = [reading for reading in readings if server.runs_on(reading.device)]
    return own or sum((reading.memory_total_bytes or 0) - (reading.memory_free_bytes or 0) for reading in used)
