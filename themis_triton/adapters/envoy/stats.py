"""Envoy's statistics: every model's arrivals, requests in flight, failures and latency, as clients see them."""

from __future__ import annotations

import asyncio
import math
import ssl
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any, NamedTuple

from themis_triton.adapters.bounded import BoundedCalls
from themis_triton.adapters.envoy.admin import EnvoyAdmin
from themis_triton.adapters.envoy.grpc_listener import SERVICE
from themis_triton.adapters.envoy.names import Protocol, inference_stat, late_stat, model_cluster, refusal_stat, safe_name
from themis_triton.adapters.http import MAX_BYTES, amount
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.observation import LatencyHistogram, RouteReading
from themis_triton.ports import Clock

_COUNTERS = (
    r"^(http\.(grpc|http)\.rbac\.policy\.(infer|late)_[^.]*\.allowed"
    r"|cluster\.model_[^.]*\.(upstream_rq_active|upstream_rq_pending_active)"
    rf"|cluster\.model_[^.]*\.grpc\.{SERVICE.replace('.', '[.]')}\.(ModelInfer\.failure|ModelStreamInfer\.(failure|request_message_count))"
    r"|limit_(grpc|http)_[^.]*\.http_local_rate_limit\.enforced"
    r"|vhost\.http\.route\.infer_[^.]*\.upstream_rq_[45]xx"
)
_LATENCY = r"|vhost\.(grpc|http)\.route\.infer_[^.]*LAST\.upstream_rq_time)$"
MANY_MODELS, TURNS, LAST_CHARACTERS = 200, 4, 16
"""Of more models, the latency histograms of a part are read in a call, each in one of so many."""
_ARRIVALS_PATTERN = (
    r"^(http\.(grpc|http)\.rbac\.policy\.(infer|late)_[^.]*\.allowed"
    rf"|cluster\.model_[^.]*\.grpc\.{SERVICE.replace('.', '[.]')}\.ModelStreamInfer\.request_message_count)$"
)
_ROUNDING_MS = 1e-6

_BYTES_PER_MODEL = 65_536
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)

Entries = Sequence[Mapping[str, Any]]
Bins = Sequence[Mapping[str, Any]]
Routes = tuple[tuple[RouteReading, ...], str | None]
"""Readings, and the reason why there are none."""

_DECADE = ((100, 200, 10), (200, 400, 20), (400, 1000, 50))
BOUNDS_MS = (
    *map(float, range(1, 20)),
    *map(float, range(20, 40, 2)),
    *map(float, range(40, 100, 5)),
    *(scale * each for scale in (1.0, 10.0, 100.0) for steps in _DECADE for each in range(*steps)),
    100_000.0,
    math.inf,
)
"""Bounds of the latency histogram in ms: what took less. From 10 ms no step exceeds an eighth, and none cuts one of Envoy's own bins,
which keep two significant digits."""
_NOTHING = LatencyHistogram(BOUNDS_MS, (0.0,) * len(BOUNDS_MS))


class EnvoyStats:
    """Reads the named models' statistics. Counters start at 0 with Envoy. Close it when done.

    Args:
        config: Envoy's.
        models: their names.
        clock: stamps the readings.
        wait_s: for how long one call of `read_routes` waits; None: for the time-out of the admin address.
        tls: with which an admin address with TLS is called.
    """

    def __init__(
        self, config: EnvoyConfig, models: Sequence[str], clock: Clock, wait_s: float | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._admin = EnvoyAdmin(config, MAX_BYTES + _BYTES_PER_MODEL * len(models), tls)
        self._models = tuple(models)
        self._clock = clock
        self._wait_s = wait_s
        self._calls: BoundedCalls[None, Routes] = BoundedCalls(wait_s)
        self._parts = _parts(self._models) if len(self._models) > MANY_MODELS else [""]
        self._latencies: dict[str, LatencyHistogram] = {}
        self._count = 0

    async def close(self) -> None:
        """End the call under way and close the connection."""
        await self._calls.close()
        await self._admin.close()

    async def count_arrivals(self) -> float | None:
        """The sum of all models' `arrivals`, at a fraction of the cost of `read_routes`. None when Envoy does not answer."""
        try:
            async with asyncio.timeout(self._wait_s):
                values = _values(await self._admin.stats(_ARRIVALS_PATTERN, usedonly=""))
        except (ServerError, TimeoutError, *_MALFORMED):
            return None
        return sum(_total(values, _names(model).arrivals) for model in self._models)

    async def read_routes(self) -> Routes:
        """One reading per model, or why there are none. An answer that comes after `wait_s` is returned by a later call.

        `arrivals`: inference requests as they arrived, over gRPC and REST, each once however often it was retried; each message of a
        gRPC stream counts. `in_flight`: those with a server or waiting for a connection; an open stream counts as one.
        `failures`: answers that are errors, the proxy's own included (a stream that broke off counts as one), but no refusals by a limit or
        for a deadline.
        `latency`: from the request's last byte to the answer's last, retries included; streams have none. Of more than `MANY_MODELS`
        models it is as of one of the last `TURNS` calls.
        """
        read = await self._calls.read({None: self._read_routes})
        return read.get(None) or ((), f"Envoy at {self._admin.address}: no answer yet after {self._wait_s or 0.0:g} s")

    async def _read_routes(self) -> Routes:
        last = self._parts[self._count % len(self._parts)] if self._latencies else ""
        self._count += 1
        try:
            entries = await self._admin.stats(_COUNTERS + _LATENCY.replace("LAST", last), usedonly="", histogram_buckets="detailed")
        except ServerError as error:
            return (), str(error)
        at_s = self._clock.now_s()
        try:
            values = _values(entries)
            details = [detail for entry in entries for detail in entry.get("histograms", {}).get("details", ())]
            histograms = {detail["name"]: detail["totals"] for detail in details}
            latencies = {model: _latency(model, histograms) for model in self._models} if histograms else {}
            self._latencies |= {model: latency for model, latency in latencies.items() if latency is not None}
            return tuple([_reading(model, at_s, values, self._latencies.get(model, _NOTHING)) for model in self._models]), None
        except _MALFORMED as error:
            return (), f"Envoy's admin address {self._admin.address}: statistics that cannot be read ({error!r})"


def _values(entries: Entries) -> dict[str, float]:
    """Counters and gauges by name. ValueError or KeyError when one is not a finite number of at least 0."""
    return {entry["name"]: amount(entry["value"]) for entry in entries if "name" in entry}


class _Names(NamedTuple):
    """The statistics that make up each figure of a model's reading."""

    arrivals: tuple[str, ...]
    in_flight: tuple[str, ...]
    failures: tuple[str, ...]
    latency: tuple[str, ...]
    refused: tuple[str, ...]
    refused_calls: tuple[str, ...]
    rest_arrivals: tuple[str, ...]


@lru_cache(4096)
def _names(model: str) -> _Names:
    infer = inference_stat(model)
    arrivals = {each: f"http.{each}.rbac.policy.{infer}.allowed" for each in Protocol}
    refused = {each: f"{refusal_stat(each, model)}.http_local_rate_limit.enforced" for each in Protocol}
    late = f"http.{Protocol.GRPC}.rbac.policy.{late_stat(model)}.allowed"
    calls = f"cluster.{model_cluster(Protocol.GRPC, model)}.grpc.{SERVICE}"
    stream = f"{calls}.ModelStreamInfer"
    clusters = [f"cluster.{model_cluster(protocol, model)}" for protocol in Protocol]
    return _Names(
        arrivals=(*arrivals.values(), late, f"{stream}.request_message_count"),
        in_flight=tuple(f"{cluster}.upstream_rq_{state}" for cluster in clusters for state in ("active", "pending_active")),
        failures=(
            f"{calls}.ModelInfer.failure",
            f"{stream}.failure",
            *(f"vhost.http.route.{infer}.upstream_rq_{kind}" for kind in ("4xx", "5xx")),
        ),
        latency=tuple(f"vhost.{each}.route.{infer}.upstream_rq_time" for each in Protocol),
        refused=(*refused.values(), late),
        refused_calls=(refused[Protocol.GRPC], late),
        rest_arrivals=(arrivals[Protocol.HTTP],),
    )


def _parts(models: Sequence[str]) -> list[str]:
    """Ends of expressions for names, each of about as many of the models: by the character from the end that divides them best."""
    names = [safe_name(model) for model in models]
    every = [_parts_at(names, from_end) for from_end in range(min(LAST_CHARACTERS, *map(len, names)))]
    best: dict[str, int] = min(every, key=lambda parts: max(parts.values()))
    return list(best)


def _parts_at(names: Sequence[str], from_end: int) -> dict[str, int]:
    """The parts, with the number of models in each."""
    counts = Counter(name[-1 - from_end] for name in names)
    parts: list[list[str]] = [[] for _ in range(min(TURNS, len(counts)))]
    for character, _ in counts.most_common():
        min(parts, key=lambda part: sum(counts[each] for each in part)).append(character)
    classes = ["".join(sorted(part, key="-".__eq__)) for part in parts]  # a hyphen at the end stands for itself
    return {f"[{each}][^.]{{{from_end}}}": sum(counts[c] for c in part) for each, part in zip(classes, parts, strict=True)}


def _latency(model: str, histograms: Mapping[str, Bins]) -> LatencyHistogram | None:
    """The histogram over both protocols; None where none was read."""
    found = [histograms[name] for name in _names(model).latency if name in histograms]
    return _summed(found) if found else None


def _reading(model: str, at_s: float, values: Mapping[str, float], latency: LatencyHistogram) -> RouteReading:
    names = _names(model)
    return RouteReading(
        model=model,
        at_s=at_s,
        arrivals=_total(values, names.arrivals),
        in_flight=_total(values, names.in_flight),
        # Envoy counts a call that it refuses itself as one with an error.
        failures=max(0.0, _total(values, names.failures) - _total(values, names.refused_calls)),
        latency=latency,
        refused=_total(values, names.refused),
        rest_arrivals=_total(values, names.rest_arrivals),
    )


def _total(values: Mapping[str, float], names: Iterable[str]) -> float:
    return sum(values.get(name, 0.0) for name in names)


def _summed(histograms: Sequence[Bins]) -> LatencyHistogram:
    counts = [0.0] * len(BOUNDS_MS)
    for bin_ in chain.from_iterable(histograms):
        counts[_bucket(bin_["lower_bound"], bin_["width"])] += amount(bin_["count"])
    return LatencyHistogram(BOUNDS_MS, tuple(accumulate(counts)))


@lru_cache(4096, typed=True)
def _bucket(lower_bound: object, width: object) -> int:
    """The bucket of one of Envoy's bins, of which there are a few hundred."""
    # Envoy rounds down to whole ms, so a narrower bin holds requests of up to one ms more.
    return bisect_left(BOUNDS_MS, amount(lower_bound) + max(1.0, amount(width)) - _ROUNDING_MS)
