"""The gRPC side: a listener that finds the model's name inside the request, and routes by it."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable
from functools import cache

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tritonclient.grpc import service_pb2

from themis_triton.adapters.envoy.client_auth import open_to_all
from themis_triton.adapters.envoy.clusters import Json, http2_options, typed
from themis_triton.adapters.envoy.deadlines import LATE_HEADER, refusing_filter, routing_filter
from themis_triton.adapters.envoy.http_listener import EXTRACTION, REFUSED, connection_manager, count_arrivals, listener, retry_policy
from themis_triton.adapters.envoy.limits import limited
from themis_triton.adapters.envoy.names import (
    Protocol,
    any_cluster,
    index_cluster,
    inference_stat,
    late_stat,
    model_cluster,
    stream_stat,
    unlisted_cluster,
)
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.routes import RouteLimit, RouteTable

SERVICE = "inference.GRPCInferenceService"
INFERENCE_METHODS = ("ModelInfer", "ModelStreamInfer")
_MODEL_METHODS = ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
_OPEN_MODEL_METHODS = frozenset({"ModelReady", "ModelMetadata"})
_SERVER_METHODS = ("ServerLive", "ServerReady", "ServerMetadata")
_ADMINISTRATIVE_PREFIXES = ("Repository", "SystemSharedMemory", "CudaSharedMemory", "TraceSetting", "LogSettings")
_INDEX_METHOD = "RepositoryIndex"
_HEALTH_PREFIX = "/grpc.health.v1.Health/"

_UNKNOWN_METHOD = "Themis: this method is not part of the KServe inference service"
# Messages of a server that cannot run the model, whatever the load: another server may run it.
_ELSEWHERE = "(Request for unknown model|has no available versions|is not ready|stopped accepting new inference requests)"


@cache
def descriptor_set() -> bytes:
    """The serialized FileDescriptorSet of the KServe inference service and of all that it imports, dependencies first."""
    files_by_name: dict[str, FileDescriptor] = {}
    queue = deque([service_pb2.DESCRIPTOR])
    while queue:
        current = queue.popleft()
        files_by_name.pop(current.name, None)
        files_by_name[current.name] = current
        queue.extend(current.dependencies)
    files = FileDescriptorSet()
    for file in reversed(files_by_name.values()):
        file.CopyToProto(files.file.add())
    return bytes(files.SerializeToString(deterministic=True))


def grpc_listener(config: EnvoyConfig) -> Json:
    """The one gRPC address of all models."""
    filters = [_field_extraction(), routing_filter(), _stats()]
    manager = connection_manager(
        config,
        Protocol.GRPC,
        filters,
        [refusing_filter()],
        codec_type="HTTP2",
        http2_protocol_options={
            **http2_options(config),
            "max_concurrent_streams": config.max_streams,
            # Detects clients that disappeared without closing the connection, so that no idle time-out has to cut a silent stream.
            "connection_keepalive": {"interval": "30s", "timeout": "20s"},
        },
    )
    return listener(config, Protocol.GRPC, config.grpc_listen, manager)


def _field_extraction() -> Json:
    fields = {f"{SERVICE}.{name}": "model_name" for name in INFERENCE_METHODS} | {f"{SERVICE}.{name}": "name" for name in _MODEL_METHODS}
    config = typed(
        "envoy.extensions.filters.http.grpc_field_extraction.v3.GrpcFieldExtractionConfig",
        descriptor_set={"inline_bytes": base64.b64encode(descriptor_set()).decode()},
        extractions_by_method={method: {"request_field_extractions": {field: {}}} for method, field in fields.items()},
    )
    return {"name": EXTRACTION, "typed_config": config}


def _stats() -> Json:
    """Counts each call's gRPC status, and each message of a stream before any retry."""
    config = typed(
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        individual_method_stats_allowlist={"services": [{"name": SERVICE, "method_names": list(INFERENCE_METHODS)}]},
    )
    return {"name": "envoy.filters.http.grpc_stats", "typed_config": config}


def grpc_routes(config: EnvoyConfig, table: RouteTable) -> list[Json]:
    """Routes in the order in which Envoy tries them: refusals, models, requests without a model or with an unknown one, everything else.

    A stream is routed by its first message: later ones that name other models go to the same server, which answers for what it holds.
    """
    index = [_forward(config, {"path": f"/{SERVICE}/{_INDEX_METHOD}"}, index_cluster)] if table.index else []
    refused = [_answer({"prefix": f"/{SERVICE}/{name}"}, 403, REFUSED) for name in _ADMINISTRATIVE_PREFIXES]
    models = [route for model in sorted(table.models) for route in _model_routes(config, model, table.models[model].limit)]
    # Whether a call needs a key is decided by the route that its headers have: those below, which name no model.
    for_all = open_to_all(config)
    unlisted = [
        {**_forward(config, {"path": f"/{SERVICE}/{name}"}, unlisted_cluster), **(for_all if name in _OPEN_MODEL_METHODS else {})}
        for name in INFERENCE_METHODS + _MODEL_METHODS
    ]
    server = [{**_forward(config, {"path": f"/{SERVICE}/{name}"}, any_cluster), **for_all} for name in _SERVER_METHODS]
    health = {**_forward(config, {"prefix": _HEALTH_PREFIX}, any_cluster), **for_all}
    return [*index, *refused, *models, *unlisted, *server, health, _answer({"prefix": "/"}, 404, _UNKNOWN_METHOD)]


def _answer(match: Json, status: int, message: str) -> Json:
    """A local answer; Envoy makes it the gRPC status that belongs to the HTTP status (403: PERMISSION_DENIED, 404: UNIMPLEMENTED)."""
    return {"match": match, "direct_response": {"status": status, "body": {"inline_string": message}}}


def _model_routes(config: EnvoyConfig, model: str, limit: RouteLimit | None) -> list[Json]:
    infer, stream = ({"path": f"/{SERVICE}/{name}", **_named("model_name", model)} for name in INFERENCE_METHODS)
    information = {"prefix": f"/{SERVICE}/Model", **_named("name", model)}
    stat = inference_stat(model)
    late = {"header": {"name": LATE_HEADER, "present_match": True}}
    counted = count_arrivals({stat: {"not_rule": late}, late_stat(model): late})
    return [
        limited(
            _to_model(config, infer, model, stat_prefix=stat, typed_per_filter_config=counted),
            Protocol.GRPC,
            model,
            limit,
            config.concurrency,
        ),
        _to_model(config, stream, model, stat_prefix=stream_stat(model)),
        _to_model(config, information, model),
    ]


def _named(field: str, model: str) -> Json:
    """Matches the name that was extracted from the message, which no header can imitate."""
    value = {"list_match": {"one_of": {"string_match": {"exact": model}}}}
    return {"dynamic_metadata": [{"filter": EXTRACTION, "path": [{"key": field}], "value": value}]}


def _to_model(config: EnvoyConfig, match: Json, model: str, **more: object) -> Json:
    action = {"cluster": model_cluster(Protocol.GRPC, model), "timeout": "0s", "retry_policy": _model_retry_policy(config)}
    return {"match": match, "route": action, **more}


def _model_retry_policy(config: EnvoyConfig) -> Json:
    """A refusal by a full queue is not retried: retries would multiply an overload."""
    elsewhere = {"name": "grpc-message", "string_match": {"safe_regex": {"regex": f".*{_ELSEWHERE}.*"}}}
    return {**retry_policy(config, "retriable-headers"), "retriable_headers": [elsewhere]}


def _forward(config: EnvoyConfig, match: Json, cluster: Callable[[Protocol], str]) -> Json:
    # Triton answers UNAVAILABLE for an unknown model: this is an answer for the client, not a reason to retry.
    return {"match": match, "route": {"cluster": cluster(Protocol.GRPC), "timeout": "0s", "retry_policy": retry_policy(config)}}
