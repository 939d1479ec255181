"""What a running server shows over the network, wherever it runs: that it holds its models, and that nothing is in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tritonclient.utils import InferenceServerException

from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.triton.metrics import fetch_metrics
from themis_triton.core.fleet import Server
from themis_triton.core.observation import ModelCounters

POLL_S = 0.05
POLL_TIMEOUT_S = 2.0
_QUIET_S = 0.3
_QUIET_SERVICES = 3.0


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
        for address, path in ((server.http_address, "/v2/health/live"), (server.metrics_address, "/metrics")):
            await client.get_at(address, path)
        ready = [await triton.is_model_ready(model, client_timeout=POLL_TIMEOUT_S) for model in (*server.models, *ensembles)]
    except (HttpError, InferenceServerException):
        return False
    return all(ready)


async def _unknown() -> bool:
    return False


async def wait_idle(
    server: Server, timeout_s: float, has_ended: Callable[[], Awaitable[bool]], has_clients: Callable[[], Awaitable[bool]] = _unknown
) -> bool:
    """Wait until nothing is pending and no request ends any more; False after the time-out.

    Triton shows no requests that are being executed. A proxy closes its connections to a server that left the routes once their
    requests and streams have ended, so there must be none, where they can be seen (`has_clients`); besides, the counters must not move
    for three mean service times, at least 0.3 s.
    A server that does not answer, and `has_ended`, has nothing in flight.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    last: dict[str, ModelCounters] | None = None
    rests_since_s = loop.time()
    async with HttpClient(POLL_TIMEOUT_S) as client:
        while loop.time() < deadline_s:
            try:
                now = await fetch_metrics(client, server.metrics_address)
            except (HttpError, ValueError):
                if await has_ended():
                    return True
                now = None
            open_calls = await has_clients()
            if now is None or now != last or open_calls or any(counters.pending for counters in now.values()):
                rests_since_s, last = loop.time(), now
            elif loop.time() - rests_since_s >= _quiet_s(now):
                return True
            await asyncio.sleep(POLL_S)
    return False


def _quiet_s(counters: Mapping[str, ModelCounters]) -> float:
    means_us = [each.request_us / each.success for each in counters.values() if each.success > 0]
    return max(_QUIET_S, _QUIET_SERVICES * max(means_us, default=0.0) / 1e6)
