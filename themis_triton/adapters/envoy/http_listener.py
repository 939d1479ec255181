"""The REST side, and what both listeners share: connection manager, retries, local replies."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from themis_triton.adapters.envoy.classes import class_filter
from themis_triton.adapters.envoy.client_auth import auth_name, discovered_filter, open_to_all, refused_words
from themis_triton.adapters.envoy.clusters import Json, file_source, socket_address, typed
from themis_triton.adapters.envoy.downstream_tls import transport_socket
from themis_triton.adapters.envoy.limits import limit_filter, limited, refusal
from themis_triton.adapters.envoy.names import Protocol, any_cluster, index_cluster, inference_stat, model_cluster, unlisted_cluster
from themis_triton.adapters.envoy.request_check import request_check, too_large
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.routes import RouteLimit, RouteTable

_VERSION = r"(/versions/[0-9]+)?"
_INFER = r"/(infer|generate|generate_stream)"
_OPEN_INFORMATION, _INFORMATION = r"(/ready)?", r"/(config|stats)"
_NAME = r"[^/]+"
_ADMINISTRATIVE = (
    r"/v2/repository(/.*)?",
    r"/v2/(system|cuda)sharedmemory(/.*)?",
    r"/v2/(trace/setting|logging)",
    rf"/v2/models/{_NAME}{_VERSION}/trace/setting",
)
_INDEX = r"/v2/repository/index"
_OPEN_SERVER = (r"/v2", r"/v2/health/(live|ready)")
_STATISTICS = r"/v2/models/stats"
REFUSED = "Themis: administrative calls (model control, shared memory, trace and log settings) are refused at the inference address"
_HIDDEN_SLASH = "Themis: a path with a percent-encoded slash is refused"
_NEVER_SENT = "connect-failure,refused-stream,reset-before-request"
_COMPRESSED = "Themis: a compressed gRPC request cannot be routed, as its model's name is inside; send it without gRPC compression"
_NO_SERVER = "Themis: no server is available for this request at the moment"
EXTRACTION = "envoy.filters.http.grpc_field_extraction"
"""The filter that finds a gRPC request's model, and the name of its metadata."""
_COUNTING = "envoy.filters.http.rbac"


def routes_file(protocol: Protocol) -> str:
    """The RDS file, relative to Envoy's directory."""
    return f"rds/{protocol}.json"


def listener(config: EnvoyConfig, protocol: Protocol, address: Address, manager: Json) -> Json:
    """One listener with one connection manager."""
    return {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": str(protocol),
        "address": socket_address(address),
        "per_connection_buffer_limit_bytes": config.max_message_bytes,
        # Otherwise a second Envoy could listen here too, and the kernel would give it half of the clients.
        "enable_reuse_port": False,
        "filter_chains": [
            {
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
                **transport_socket(config, protocol),
            }
        ],
    }


def connection_manager(
    config: EnvoyConfig, protocol: Protocol, filters: Sequence[Json], after_counting: Sequence[Json] = (), **more: object
) -> Json:
    """The connection manager of one listener, which checks clients first. Nothing is added that Triton or its client would see."""
    return typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=str(protocol),
        rds={"route_config_name": str(protocol), "config_source": file_source(config.directory / routes_file(protocol))},
        http_filters=[
            *discovered_filter(config),
            *filters,
            _counting(),
            *after_counting,
            class_filter(),
            limit_filter(),
            _router(),
        ],
        use_remote_address=True,
        skip_xff_append=True,
        generate_request_id=False,
        server_header_transformation="PASS_THROUGH",
        request_headers_timeout=f"{config.header_timeout_s:g}s",
        stream_idle_timeout=f"{config.stream_idle_timeout_s:g}s",
        common_http_protocol_options={
            "idle_timeout": f"{config.idle_timeout_s:g}s",
            **({"max_stream_duration": f"{config.max_request_s:g}s"} if config.max_request_s is not None else {}),
        },
        local_reply_config=_local_replies(config, protocol),
        access_log=[_broken_requests(protocol)],
        **more,
    )


def _counting() -> Json:
    """Empty by default: routes set the rule that counts their requests."""
    return {"name": _COUNTING, "typed_config": typed("envoy.extensions.filters.http.rbac.v3.RBAC")}


def _router() -> Json:
    config = typed("envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True)
    return {"name": "envoy.filters.http.router", "typed_config": config}


def _broken_requests(protocol: Protocol) -> Json:
    """A line in Envoy's log for each request on which a server broke the connection, or that went to a second server."""
    cel = typed("envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter", expression="upstream.request_attempt_count > 1")
    resent = {"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": cel}}
    broken = {"response_flag_filter": {"flags": ["UC", "UR", "URX"]}}
    fields = {
        "event": "request_broken",
        "time": "%START_TIME%",
        "duration_ms": "%DURATION%",
        "protocol": str(protocol),
        "path": "%PATH(NQ)%",
        "model": f"%DYNAMIC_METADATA({EXTRACTION}:model_name)%",
        "bytes": "%BYTES_RECEIVED%",
        "last_server": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "flags": "%RESPONSE_FLAGS%",
    }
    log = typed("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": fields})
    return {"name": "envoy.access_loggers.stdout", "filter": {"or_filter": {"filters": [broken, resent]}}, "typed_config": log}


def _local_replies(config: EnvoyConfig, protocol: Protocol) -> Json:
    """The proxy's own answers, in Triton's form and with messages that name the cause."""
    common = [_mapper({"response_flag_filter": {"flags": ["UH"]}}, _NO_SERVER), refusal(protocol), *_unknown_client(config)]
    if protocol is Protocol.GRPC:
        invalid = {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": 400, "runtime_key": "themis.invalid"}}}}
        encoded = {"header_filter": {"header": {"name": "grpc-encoding", "present_match": True}}}
        return {"mappers": [*common, _mapper({"and_filter": {"filters": [invalid, encoded]}}, _COMPRESSED)]}
    large = {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": 413, "runtime_key": "themis.too_large"}}}}
    return {"mappers": [*common, _mapper(large, too_large(config))], "body_format": {"json_format": {"error": "%LOCAL_REPLY_BODY%"}}}


def _unknown_client(config: EnvoyConfig) -> list[Json]:
    """The mapper for requests without a valid key or token, where one is needed."""
    if auth_name(config) is None:
        return []
    unknown = {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": 401, "runtime_key": "themis.unknown"}}}}
    return [_mapper(unknown, refused_words(config))]


def _mapper(condition: Json, message: str) -> Json:
    return {"filter": condition, "body": {"inline_string": message}}


def retry_policy(config: EnvoyConfig, *more: str) -> Json:
    """Retries at another server if there is one, after milliseconds.

    What was sent may be what broke the connection, by killing its server: it is sent to others only if the settings say so.
    """
    retry_on = ",".join((_NEVER_SENT, *(["reset"] if config.resend_broken else []), *more))
    kind = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {
        "retry_on": retry_on,
        "num_retries": 5,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.1s"},
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": typed(kind)}],
        "host_selection_retry_max_attempts": 5,
    }


def http_listener(config: EnvoyConfig) -> Json:
    """The one REST address of all models."""
    manager = connection_manager(
        config,
        Protocol.HTTP,
        filters=[request_check(config)],
        codec_type="HTTP1",
    )
    return listener(config, Protocol.HTTP, config.http_listen, manager)


def http_routes(config: EnvoyConfig, table: RouteTable) -> list[Json]:
    """Routes in the order in which Envoy tries them: refusals, models, requests without a model or with an unknown one, everything else."""
    # Triton takes a path as it stands; what hides a slash is refused all the same, in case a later Triton decodes it.
    hidden = _answer(_path(".*%(2[fF]|5[cC]).*"), 400, _HIDDEN_SLASH)
    refused = [hidden, *(_answer(_path(pattern), 403, REFUSED) for pattern in _ADMINISTRATIVE)]
    index = [_forward(config, _path(_INDEX), index_cluster)] if table.index else []
    server = [{**_forward(config, _path(pattern), any_cluster), **open_to_all(config)} for pattern in _OPEN_SERVER]
    server.append(_forward(config, _path(_STATISTICS), any_cluster))
    models = [route for model in sorted(table.models) for route in _model_routes(config, model, table.models[model].limit)]
    base = f"/v2/models/{_NAME}{_VERSION}"
    unknown = [
        _forward(config, _path(f"{base}({_INFER}|{_INFORMATION})"), unlisted_cluster),
        {**_forward(config, _path(base + _OPEN_INFORMATION), unlisted_cluster), **open_to_all(config)},
    ]
    return [*index, *refused, *server, *models, *unknown, _answer({"prefix": "/"}, 404, "Not Found")]


def _path(pattern: str) -> Json:
    return {"safe_regex": {"regex": pattern}}


def _answer(match: Json, status: int, message: str) -> Json:
    return {"match": match, "direct_response": {"status": status, "body": {"inline_string": message}}}


def _forward(config: EnvoyConfig, match: Json, cluster: Callable[[Protocol], str]) -> Json:
    return {"match": match, "route": _action(config, cluster(Protocol.HTTP))}


def _action(config: EnvoyConfig, cluster: str) -> Json:
    return {"cluster": cluster, "timeout": "0s", "retry_policy": retry_policy(config)}


def _model_routes(config: EnvoyConfig, model: str, limit: RouteLimit | None) -> list[Json]:
    base = f"/v2/models/{re.escape(model)}{_VERSION}"
    action = _action(config, model_cluster(Protocol.HTTP, model))
    stat = inference_stat(model)
    infer = {
        "match": _path(base + _INFER),
        "route": action,
        "stat_prefix": stat,
        "typed_per_filter_config": count_arrivals({stat: {"any": True}}),
    }
    return [
        limited(infer, Protocol.HTTP, model, limit, config.concurrency),
        {"match": _path(base + _INFORMATION), "route": action},
        {"match": _path(base + _OPEN_INFORMATION), "route": action, **open_to_all(config)},
    ]


def count_arrivals(counters: Mapping[str, Json]) -> Json:
    """Counts requests as they arrive, before any retry: rules that allow all of them, each with a counter, by the counters' names."""
    policies = {name: {"permissions": [rule], "principals": [{"any": True}]} for name, rule in counters.items()}
    rbac = {"rules": {"action": "ALLOW", "policies": policies}, "track_per_rule_stats": True}
    return {_COUNTING: typed("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", rbac=rbac)}
