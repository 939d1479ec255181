"""Triton's own metrics, per model."""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.core.address import Address
from themis_triton.core.fleet import Server
from themis_triton.core.observation import BatchCounters, ModelCounters, ServerReading
from themis_triton.ports import Clock

Answer = TypeVar("Answer")
_METRICS, _STATISTICS = "/metrics", "/v2/models/stats"
_COMPUTE = ("compute_input", "compute_infer", "compute_output")
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
_MODEL = re.compile(r'(?:^|,)model="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n"}


def parse_metrics(text: str) -> dict[str, ModelCounters]:
    """Counters by model, summed over its versions and over reasons of failure.

    Only lines of the families in use are parsed: a page has many others.

    Args:
        text: Prometheus text format, as Triton's `/metrics` gives it.

    Raises:
        ValueError: the text is not a page of Triton's metrics, or a counter has no model or no finite value.
    """
    if text and not text.startswith(("#", "nv_")):
        raise ValueError(f"expected Triton's metrics, but the response starts with {text[:20]!r}")
    sums: defaultdict[str, dict[str, Any]] = defaultdict(lambda: dict.fromkeys(_FIELDS.values(), 0.0))
    for line in text.splitlines():
        if not line.startswith("nv_inference_"):
            continue
        name, _, rest = line.partition("{")
        field = _FIELDS.get(name)
        if field is not None:
            model, value = _sample(rest)
            sums[model][field] += value
    return {model: ModelCounters(**fields) for model, fields in sums.items()}


def _sample(text: str) -> tuple[str, float]:
    """Model and value of `model="…",…} VALUE`."""
    match = _MODEL.search(text)
    value = float(text[text.rindex("}") + 1 :])
    if match is None or not 0.0 <= value < math.inf:
        raise ValueError(f"not a counter of a model: {text!r}")
    name = match[1]
    return (_ESCAPED.sub(lambda match: _ESCAPES.get(match[1], match[1]), name) if "\\" in name else name), value


def parse_statistics(answer: Mapping[str, Any]) -> dict[str, tuple[BatchCounters, ...]]:
    """Executed batches by model and size, summed over a model's versions.

    Args:
        answer: what Triton's statistics extension gives at `/v2/models/stats`.

    Raises:
        ValueError: it is not that.
    """
    sums: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    try:
        for model in answer["model_stats"]:
            for batch in model["batch_stats"]:
                entry = sums[model["name"]][int(batch["batch_size"])]
                entry[0] += batch["compute_infer"]["count"]
                entry[1] += sum(batch[part]["ns"] for part in _COMPUTE) / 1000.0
    except (KeyError, TypeError) as error:
        raise ValueError(f"no statistics of batches in the answer ({error!r})") from error
    return {model: tuple(BatchCounters(size, *entry) for size, entry in sorted(sizes.items())) for model, sizes in sums.items()}


async def fetch_metrics(client: HttpClient, address: Address) -> dict[str, ModelCounters]:
    """Read and parse one server's metrics.

    Args:
        client: the connections to use.
        address: the server's metrics address.

    Raises:
        HttpError: it does not answer in time, or with an error.
        ValueError: the answer is not a page of Triton's metrics.
    """
    return parse_metrics((await client.get(address.url(_METRICS))).decode())


async def fetch_statistics(client: HttpClient, address: Address) -> dict[str, tuple[BatchCounters, ...]]:
    """Read and parse one server's executed batches.

    Args:
        client: the connections to use.
        address: the server's HTTP address.

    Raises:
        HttpError: it does not answer in time, or with an error.
        ValueError: the answer is something else.
    """
    # Not kept: Triton waits at its end for open connections of its HTTP service (18.9 s instead of 2.9 s), not for those of its metrics.
    return parse_statistics(await client.get_json(address.url(_STATISTICS), keep=False))


class TritonMetrics:
    """Reads servers' metrics. Use it from one event loop, and `close` it there.

    Args:
        clock: stamps the readings.
        timeout_s: for one server.
    """

    def __init__(self, clock: Clock, timeout_s: float = 1.0) -> None:
        self._clock = clock
        self._client = HttpClient(timeout_s)

    async def read_servers(self, servers: Sequence[Server]) -> tuple[ServerReading, ...]:
        """All servers at once, in their order; one that does not answer is a reading with an error."""
        return tuple(await asyncio.gather(*(self._read(server) for server in servers)))

    async def _read(self, server: Server) -> ServerReading:
        """The metrics decide whether there is a reading; only drift needs the batches."""
        (models, error), (batches, batches_error) = await asyncio.gather(
            self._attempt(fetch_metrics(self._client, server.metrics_address)),
            self._attempt(fetch_statistics(self._client, server.http_address)),
        )
        now_s = self._clock.now_s()
        if models is None:
            where = f"metrics of server {server.name} at {server.metrics_address.url(_METRICS)}"
            return ServerReading(server.name, now_s, error=f"{where}: {error}")
        if batches is None:
            where = f"statistics of server {server.name} at {server.http_address.url('/v2/models/stats')}"
            return ServerReading(server.name, now_s, models, batches_error=f"{where}: {batches_error}")
        return ServerReading(server.name, now_s, {name: replace(each, batches=batches.get(name, ())) for name, each in models.items()})

    async def _attempt(self, answer: Coroutine[Any, Any, Answer]) -> tuple[Answer | None, str]:
        """The answer, or the reason why there is none."""
        try:
            return await answer, ""
        except (HttpError, ValueError) as error:
            return None, str(error) or type(error).__name__

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
