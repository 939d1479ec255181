"""Triton's own metrics, per model."""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from heapq import nlargest
from typing import Any, TypeVar

from themis_triton.adapters.bounded import BoundedCalls
from themis_triton.adapters.http import HttpClient, HttpError, amount, parsed
from themis_triton.adapters.triton.gpus import gpu_readings
from themis_triton.core.address import Address
from themis_triton.core.fleet import Server
from themis_triton.core.observation import BatchCounters, DeviceReading, ModelCounters, ServerReading
from themis_triton.ports import Clock

Answer = TypeVar("Answer")
Where = tuple[str, Address, Address]
STATISTICS_EVERY_S, STATISTICS_A_CALL = 1.0, 40
"""Time between two readings of a server's executed batches, and of how many servers at a time: each takes a connection of its own."""
ALL_AT_ONCE = 100
"""Of no more servers, the metrics of all are read in each call."""
RESTING_CALLS, RESTING_S = 6, 2.0
"""Of more servers, those that rest are read once in so many calls, and no later than so long after the last time."""
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
    "nv_cache_num_hits_per_model": "cached",
}
_PREFIXES = ("nv_inference_", "nv_cache_num_hits_per_model")
_MODEL = re.compile(r'(?:^|,)model="((?:[^"\\]|\\.)*)"')
_REFUSED = re.compile(r'(?:^|,)reason="(?:REJECTED|CANCELED)"')
_ESCAPED = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n"}


def parse_metrics(text: str) -> dict[str, ModelCounters]:
    """Counters by model, summed over its versions. Failures are divided by their reason into failed and refused requests.

    Only lines of the families in use are parsed: a page has many others.

    Args:
        text: Prometheus text format, as Triton's `/metrics` gives it.

    Raises:
        ValueError: the text is not a page of Triton's metrics, or a counter has no model or no finite value.
    """
    if text and not text.startswith(("#", "nv_")):
        raise ValueError(f"expected Triton's metrics, but the response starts with {text[:20]!r}")
    sums: defaultdict[str, dict[str, Any]] = defaultdict(lambda: dict.fromkeys((*_FIELDS.values(), "refused"), 0.0))
    for line in text.splitlines():
        if not line.startswith(_PREFIXES):
            continue
        name, _, rest = line.partition("{")
        field = _FIELDS.get(name)
        if field is None and name.partition(" ")[0] in _FIELDS:
            raise ValueError(f"a counter without a model: {line[:80]!r}")
        if field is not None:
            labels, _, text_value = rest.rpartition("}")
            model, refused = _labels(labels)
            sums[model]["refused" if refused and field == "failure" else field] += _value(text_value, rest)
    return {model: ModelCounters(**fields) for model, fields in sums.items()}


@lru_cache(16_384)
def _labels(text: str) -> tuple[str, bool]:
    """The model of `model="…",…`, and whether requests were refused. A page has the same thousands of labels each time."""
    match = _MODEL.search(text)
    if match is None:
        raise ValueError(f"not a counter of a model: {text!r}")
    name = match[1]
    name = _ESCAPED.sub(lambda match: _ESCAPES.get(match[1], match[1]), name) if "\\" in name else name
    return name, _REFUSED.search(text) is not None


def _value(text: str, line: str) -> float:
    value = float(text)
    if not 0.0 <= value < math.inf:
        raise ValueError(f"not a counter of a model: {line!r}")
    return value


def parse_statistics(answer: Mapping[str, Any]) -> dict[str, tuple[BatchCounters, ...]]:
    """Executed batches by READY model and size, summed over a model's versions.

    Args:
        answer: what Triton's statistics extension gives at `/v2/models/stats`.

    Raises:
        ValueError: it is not that.
    """
    sums: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    try:
        for model in answer["model_stats"]:
            sums[model["name"]]
            for batch in model["batch_stats"]:
                entry = sums[model["name"]][int(amount(batch["batch_size"]))]
                entry[0] += amount(batch["compute_infer"]["count"])
                entry[1] += sum(amount(batch[part]["ns"]) for part in _COMPUTE) / 1000.0
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
    return parse_metrics((await client.get_at(address, _METRICS)).decode())


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
    return parse_statistics(parsed(await client.get_at(address, _STATISTICS, keep=False)))


class TritonMetrics:
    """Reads servers' metrics. Use it from one event loop, and `close` it there.

    Args:
        clock: stamps the readings.
        timeout_s: for one server.
        wait_s: for how long one call of `read_servers` waits; None: for the time-out.
    """

    def __init__(self, clock: Clock, timeout_s: float = 1.0, wait_s: float | None = None) -> None:
        self._clock = clock
        self._client = HttpClient(timeout_s)
        self._calls: BoundedCalls[Where, ServerReading] = BoundedCalls(wait_s)
        self._newest: dict[str, ServerReading] = {}
        self._gpus: dict[str, tuple[DeviceReading, ...]] = {}
        self._asked_s: dict[str, float] = {}

    async def read_servers(self, servers: Sequence[Server], resting: Collection[str] = ()) -> tuple[ServerReading, ...]:
        """The readings of all servers, in their order; one that does not answer is a reading with an error.

        Executed batches, which only drift and learning need, are read of each server about once a second, of `STATISTICS_A_CALL` servers
        at most, in turn. Of more than `ALL_AT_ONCE` servers, the `resting` ones that answer are read in turn as a whole: the others have
        their previous reading. So has a server that has not answered within `wait_s`, until it answers or the time-out comes.
        """
        asked = servers if len(servers) <= ALL_AT_ONCE else self._in_turn(servers, resting)
        due = self._due(servers, {server.name for server in asked})
        read = await self._calls.read({_where(server): partial(self._read, server, batches=server.name in due) for server in asked})
        self._newest = {server.name: self._newest[server.name] for server in servers if server.name in self._newest}
        self._newest |= {reading.server: reading for reading in read.values()}
        self._gpus = {name: gpus for name, gpus in self._gpus.items() if name in self._newest}
        return tuple(self._newest.get(server.name) or self._unread(server) for server in servers)

    def _in_turn(self, servers: Sequence[Server], resting: Collection[str]) -> list[Server]:
        """The servers to read now: of those that rest and answer, the ones that were read longest ago."""
        answering = {name: reading.at_s for name, reading in self._newest.items() if name in resting and reading.error is None}
        before_s, count = self._clock.now_s() - RESTING_S, -(-len(answering) // RESTING_CALLS)
        later = set(nlargest(len(answering) - count, answering, key=answering.__getitem__))
        under_way = self._calls.under_way
        return [s for s in servers if s.name not in later or answering[s.name] <= before_s or _where(s) in under_way]

    def _due(self, servers: Sequence[Server], asked: Collection[str]) -> frozenset[str]:
        """The servers whose executed batches are read now: new ones, and those that were asked longest ago."""
        names, asked_before_s = {server.name for server in servers}, asyncio.get_running_loop().time() - STATISTICS_EVERY_S
        self._asked_s = {name: at_s for name, at_s in self._asked_s.items() if name in names}
        due = [name for name, at_s in self._asked_s.items() if at_s <= asked_before_s and name in asked]
        return frozenset(due[:STATISTICS_A_CALL]) | (names - self._asked_s.keys())

    def _unread(self, server: Server) -> ServerReading:
        """The reading of a server that has never been read."""
        return ServerReading(server.name, self._clock.now_s(), error=f"{_metrics_of(server)}: no answer yet")

    async def _read(self, server: Server, *, batches: bool) -> ServerReading:
        """The metrics decide whether there is a reading; only drift needs the batches."""
        if not batches:
            models, error = await self._attempt(self._counters(server))
            if models is None:
                return ServerReading(server.name, self._clock.now_s(), error=f"{_metrics_of(server)}: {error}")
            before = self._newest.get(server.name)
            known = before.batches_error if before is not None else None
            return ServerReading(server.name, self._clock.now_s(), models, batches_error=known, batches_skipped=True)
        self._asked_s.pop(server.name, None)  # in the order of asking
        self._asked_s[server.name] = asyncio.get_running_loop().time()
        return await self._read_both(server)

    async def _read_both(self, server: Server) -> ServerReading:
        """The reading with the executed batches."""
        (models, error), (batches, batches_error) = await asyncio.gather(
            self._attempt(self._counters(server)),
            self._attempt(fetch_statistics(self._client, server.http_address)),
        )
        now_s = self._clock.now_s()
        if models is None:
            return ServerReading(server.name, now_s, error=f"{_metrics_of(server)}: {error}")
        if batches is None:
            where = f"statistics of server {server.name} at {server.http_address.url('/v2/models/stats')}"
            return ServerReading(server.name, now_s, models, batches_error=f"{where}: {batches_error}")
        complete = {name: replace(each, batches=batches.get(name, ())) for name, each in models.items()}
        return ServerReading(server.name, now_s, complete, ready=frozenset(batches))

    async def _counters(self, server: Server) -> dict[str, ModelCounters]:
        page = (await self._client.get_at(server.metrics_address, _METRICS)).decode()
        counters = parse_metrics(page)
        if server.node is not None:
            self._gpus[server.name] = gpu_readings(page, self._clock.now_s())
        return counters

    def remote_devices(self) -> tuple[DeviceReading, ...]:
        """The GPUs of servers on other machines, each once, as the servers that were read last show them."""
        readable = [name for name, reading in self._newest.items() if reading.error is None]
        return tuple({gpu.device: gpu for name in readable for gpu in self._gpus.get(name, ())}.values())

    async def _attempt(self, answer: Coroutine[Any, Any, Answer]) -> tuple[Answer | None, str]:
        """The answer, or the reason why there is none."""
        try:
            return await answer, ""
        except (HttpError, ValueError) as error:
            return None, str(error) or type(error).__name__

    async def close(self) -> None:
        """End the calls under way and close the connections."""
        await self._calls.close()
        await self._client.close()


def _where(server: Server) -> Where:
    """What identifies a call: a server that was started again on other ports is another one."""
    return server.name, server.metrics_address, server.http_address


def _metrics_of(server: Server) -> str:
    return f"metrics of server {server.name} at {server.metrics_address.url(_METRICS)}"
