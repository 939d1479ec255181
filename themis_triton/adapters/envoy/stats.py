"""Envoy's statistics: every model's arrivals, requests in flight, failures and latency, as clients see them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

from themis_triton.adapters.envoy.admin import EnvoyAdmin
from themis_triton.adapters.envoy.grpc_listener import SERVICE
from themis_triton.adapters.envoy.names import Protocol, inference_stat, model_cluster
from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError
from themis_triton.core.observation import LatencyHistogram, RouteReading
from themis_triton.ports import Clock

_PATTERN = (
    r"^(http\.(grpc|http)\.rbac\.policy\.infer_[^.]*\.allowed"
    r"|cluster\.model_[^.]*\.(upstream_rq_active|upstream_rq_pending_active)"
    rf"|cluster\.model_[^.]*\.grpc\.{SERVICE.replace('.', '[.]')}\.(ModelInfer\.failure|ModelStreamInfer\.(failure|request_message_count))"
    r"|vhost\.http\.route\.infer_[^.]*\.upstream_rq_[45]xx"
    r"|vhost\.(grpc|http)\.route\.infer_[^.]*\.upstream_rq_time)$"
)
_ARRIVALS_PATTERN = (
    r"^(http\.(grpc|http)\.rbac\.policy\.infer_[^.]*\.allowed"
    rf"|cluster\.model_[^.]*\.grpc\.{SERVICE.replace('.', '[.]')}\.ModelStreamInfer\.request_message_count)$"
)
_ROUNDING_MS = 1e-6

Bins = Sequence[Mapping[str, Any]]

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


class EnvoyStats:
    """Reads the named models' statistics. Counters start at 0 with Envoy. Close it when done."""

    def __init__(self, admin_address: Address, models: Sequence[str], clock: Clock) -> None:
        self._admin = EnvoyAdmin(admin_address)
        self._models = tuple(models)
        self._clock = clock

    async def close(self) -> None:
        """Close the connection."""
        await self._admin.close()

    async def count_arrivals(self) -> float | None:
        """The sum of all models' `arrivals`, at a fraction of the cost of `read_routes`. None when Envoy does not answer."""
        try:
            entries = await self._admin.stats(_ARRIVALS_PATTERN, usedonly="")
        except ServerError:
            return None
        values = {entry["name"]: float(entry["value"]) for entry in entries if "name" in entry}
        return sum(_reading(model, 0.0, values, {}).arrivals for model in self._models)

    async def read_routes(self) -> tuple[tuple[RouteReading, ...], str | None]:
        """One reading per model, or why there are none.

        `arrivals`: inference requests as they arrived, over gRPC and REST, each once however often it was retried; each message of a
        gRPC stream counts. `in_flight`: those with a server or waiting for a connection; an open stream counts as one.
        `failures`: answers that are errors, the proxy's own included (a stream that broke off counts as one).
        `latency`: from the request's last byte to the answer's last, retries included; streams have none.
        """
        try:
            entries = await self._admin.stats(_PATTERN, usedonly="", histogram_buckets="detailed")
        except ServerError as error:
            return (), str(error)
        at_s = self._clock.now_s()
        values = {entry["name"]: float(entry["value"]) for entry in entries if "name" in entry}
        histograms = {detail["name"]: detail["totals"] for entry in entries for detail in entry.get("histograms", {}).get("details", ())}
        return tuple(_reading(model, at_s, values, histograms) for model in self._models), None


def _reading(model: str, at_s: float, values: Mapping[str, float], histograms: Mapping[str, Bins]) -> RouteReading:
    infer = inference_stat(model)
    calls = f"cluster.{model_cluster(Protocol.GRPC, model)}.grpc.{SERVICE}"
    stream = f"{calls}.ModelStreamInfer"
    clusters = [f"cluster.{model_cluster(protocol, model)}" for protocol in Protocol]

    def total(names: Iterable[str]) -> float:
        return sum(values.get(name, 0.0) for name in names)

    return RouteReading(
        model=model,
        at_s=at_s,
        arrivals=total(
            [*(f"http.{each}.rbac.policy.{infer}.allowed" for each in Protocol), f"{calls}.ModelStreamInfer.request_message_count"]
        ),
        in_flight=total(f"{cluster}.upstream_rq_{state}" for cluster in clusters for state in ("active", "pending_active")),
        failures=total(
            [f"{calls}.ModelInfer.failure", f"{stream}.failure"]
            + [f"vhost.http.route.{infer}.upstream_rq_{kind}" for kind in ("4xx", "5xx")]
        ),
        latency=_summed(histograms.get(f"vhost.{each}.route.{infer}.upstream_rq_time", ()) for each in Protocol),
    )


def _summed(histograms: Iterable[Bins]) -> LatencyHistogram:
    counts = [0.0] * len(BOUNDS_MS)
    for bin_ in chain.from_iterable(histograms):
        # Envoy rounds down to whole ms, so a narrower bin holds requests of up to one ms more.
        end_ms = bin_["lower_bound"] + max(1.0, bin_["width"])
        counts[bisect_left(BOUNDS_MS, end_ms - _ROUNDING_MS)] += bin_["count"]
    return LatencyHistogram(BOUNDS_MS, tuple(accumulate(counts)))
