"""Triton's own metrics, per model."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import httpx
from prometheus_client.parser import text_string_to_metric_families

from themis_triton.core.fleet import Server
from themis_triton.core.observation import ModelCounters, ServerReading
from themis_triton.ports import Clock

_FIELDS = {
    "nv_inference_request_success": "success",
    "nv_inference_request_failure": "failure",
    "nv_inference_count": "inferences",
    "nv_inference_exec_count": "executions",
    "nv_inference_request_duration_us": "request_us",
    "nv_inference_queue_duration_us": "queue_us",
    "nv_inference_compute_input_duration_us": "compute_input_us",
    "nv_inference_compute_infer_duration_us": "compute_infer_us",
    "nv_inference_compute_output_duration_us": "compute_output_us",
    "nv_inference_pending_request_count": "pending",
}


def parse_metrics(text: str) -> dict[str, ModelCounters]:
    """Counters by model, summed over its versions and over reasons of failure.

    Args:
        text: Prometheus text format, as Triton's `/metrics` gives it.

    Raises:
        ValueError: the text is not in that format.
    """
    sums: defaultdict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_FIELDS.values(), 0.0))
    for family in text_string_to_metric_families(text):
        if family.name not in _FIELDS:  # The family keeps Triton's name; the parser gives samples of counters the suffix `_total`.
            continue
        for sample in family.samples:
            sums[sample.labels["model"]][_FIELDS[family.name]] += sample.value
    return {model: ModelCounters(**fields) for model, fields in sums.items()}


def new_http_client(timeout_s: float) -> httpx.AsyncClient:
    """A client for servers near by: no proxy from the environment, a bound on each request."""
    return httpx.AsyncClient(timeout=timeout_s, trust_env=False)


async def fetch_metrics(client: httpx.AsyncClient, metrics_address: str) -> dict[str, ModelCounters]:
    """Read and parse one server's metrics.

    Args:
        client: from `new_http_client`.
        metrics_address: `host:port`.

    Raises:
        httpx.HTTPError: it does not answer in time, or not with 200.
        ValueError: the answer is not in Prometheus' text format.
    """
    response = await client.get(f"http://{metrics_address}/metrics")
    response.raise_for_status()
    return parse_metrics(response.text)


class TritonMetrics:
    """Reads servers' metrics. Use it from one event loop, and `close` it there.

    Args:
        clock: stamps the readings.
        timeout_s: for one server.
    """

    def __init__(self, clock: Clock, timeout_s: float = 1.0) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._client = new_http_client(timeout_s)

    async def read_servers(self, servers: Sequence[Server]) -> tuple[ServerReading, ...]:
        """All servers at once, in their order; one that does not answer is a reading with an error."""
        return tuple(await asyncio.gather(*(self._read(server) for server in servers)))

    async def _read(self, server: Server) -> ServerReading:
        try:
            async with asyncio.timeout(self._timeout_s):
                models = await fetch_metrics(self._client, server.metrics_address)
        except (httpx.HTTPError, ValueError, TimeoutError) as error:
            return ServerReading(server.name, self._clock.now_s(), error=self._sentence(server, error))
        return ServerReading(server.name, self._clock.now_s(), models)

    def _sentence(self, server: Server, error: Exception) -> str:
        what = f"no answer within {self._timeout_s:g} s" if isinstance(error, (TimeoutError, httpx.TimeoutException)) else str(error)
        return f"metrics of server {server.name} at http://{server.metrics_address}/metrics: {what or type(error).__name__}"

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
