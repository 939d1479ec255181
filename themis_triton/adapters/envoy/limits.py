"""Admission limits in Envoy: a token bucket on the routes of a model's single requests, one for each protocol."""

from __future__ import annotations

from dataclasses import asdict

from themis_triton.adapters.envoy.classes import class_metadata, refused_class
from themis_triton.adapters.envoy.clusters import Json, typed
from themis_triton.adapters.envoy.deadlines import deadline_metadata
from themis_triton.adapters.envoy.names import Protocol, refusal_stat
from themis_triton.core.routes import RouteLimit

RETRY_AFTER_S = 1
_FILTER = "envoy.filters.http.local_ratelimit"
_KIND = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_METADATA, _REASON, _MODEL = "themis", "reason", "model"
_MIN_FRACTION = 0.1
"""The smallest part of a limit that either protocol has, so that its first requests pass."""
# Envoy refills continuously with `tokens_per_fill`, a whole number, per `fill_interval`.
_FILL_S = 100


def limit_filter() -> Json:
    """Without a limit by default: routes have theirs."""
    return {"name": _FILTER, "typed_config": typed(_KIND, stat_prefix="unlimited")}


def limited(route: Json, protocol: Protocol, model: str, limit: RouteLimit | None, workers: int = 1) -> Json:
    """A route of a model's single requests, with its limit. `workers`: Envoy's threads."""
    if limit is None:
        return route
    tokens, rate_rps = _share(protocol, limit)
    filters = {**route.get("typed_per_filter_config", {}), _FILTER: _limit(protocol, model, limit)}
    known = {_METADATA: {_MODEL: model, **asdict(limit)}, **deadline_metadata(model, limit)}
    known |= class_metadata(model, limit, tokens, rate_rps, workers)
    return {**route, "typed_per_filter_config": filters, "metadata": {"filter_metadata": known}}


def written_limits(route_configuration: Json) -> dict[str, RouteLimit]:
    """The limits of a rendered route configuration, by model: those of all Envoys together."""
    routes = (route for host in route_configuration["virtual_hosts"] for route in host["routes"])
    written = (route["metadata"]["filter_metadata"][_METADATA] for route in routes if "metadata" in route)
    return {each[_MODEL]: _read(each) for each in written}


def _read(written: Json) -> RouteLimit:
    fields = {key: value for key, value in written.items() if key != _MODEL}
    return RouteLimit(**fields | {"classes": tuple(fields.get("classes", ())), "share": 1.0})


def _share(protocol: Protocol, limit: RouteLimit) -> tuple[int, float]:
    """The tokens and the rate of a protocol at this Envoy."""
    fraction = limit.share * max(_MIN_FRACTION, limit.rest_fraction if protocol is Protocol.HTTP else 1.0 - limit.rest_fraction)
    return max(1, round(fraction * limit.burst)), fraction * limit.requests_per_s


def _limit(protocol: Protocol, model: str, limit: RouteLimit) -> Json:
    tokens, rate_rps = _share(protocol, limit)
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return typed(
        _KIND,
        stat_prefix=refusal_stat(protocol, model),
        token_bucket={
            "max_tokens": tokens,
            "tokens_per_fill": max(1, round(_FILL_S * rate_rps)),
            "fill_interval": f"{_FILL_S}s",
        },
        filter_enabled={**always, "runtime_key": "themis.limited"},
        filter_enforced={**always, "runtime_key": "themis.enforced"},
        **refused_class(limit),
        rate_limited_as_resource_exhausted=True,
        response_headers_to_add=[
            {"header": {"key": "retry-after", "value": str(RETRY_AFTER_S)}},
            *([{"header": {"key": "grpc-retry-pushback-ms", "value": str(1000 * RETRY_AFTER_S)}}] if protocol is Protocol.GRPC else []),
        ],
    )


def refusal(protocol: Protocol) -> Json:
    """The mapper of local replies that puts the limit's reason into the answer of a refused request."""
    reason = f"%METADATA(ROUTE:{_METADATA}:{_REASON})%"
    form: Json = {"json_format": {"error": reason}} if protocol is Protocol.HTTP else {"text_format_source": {"inline_string": reason}}
    refused = {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": 429, "runtime_key": "themis.refused"}}}}
    return {"filter": refused, "body_format_override": form}
