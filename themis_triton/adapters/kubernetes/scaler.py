"""KEDA's external scaler over gRPC: the number of servers wanted, as a metric of which each replica has one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from themis_triton.adapters.grpc_tls import server_credentials
from themis_triton.core.address import Address
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.listener_tls import ListenerTls

SERVICE = "externalscaler.ExternalScaler"
METRIC = "servers"
_STREAM_POLL_S = 0.2
_UNKNOWN = "the pods are not known yet; keep the number of replicas"
_FIELD = descriptor_pb2.FieldDescriptorProto
_MESSAGES: dict[str, tuple[tuple[str, int, int, str | None], ...]] = {
    "ScaledObjectRef": (
        ("name", 1, _FIELD.TYPE_STRING, None),
        ("namespace", 2, _FIELD.TYPE_STRING, None),
        ("scalerMetadata", 3, 0, "Entry"),
    ),
    "IsActiveResponse": (("result", 1, _FIELD.TYPE_BOOL, None),),
    "MetricSpec": (
        ("metricName", 1, _FIELD.TYPE_STRING, None),
        ("targetSize", 2, _FIELD.TYPE_INT64, None),
        ("targetSizeFloat", 3, _FIELD.TYPE_DOUBLE, None),
    ),
    "GetMetricSpecResponse": (("metricSpecs", 1, 0, "MetricSpec"),),
    "GetMetricsRequest": (("scaledObjectRef", 1, _FIELD.TYPE_MESSAGE, "ScaledObjectRef"), ("metricName", 2, _FIELD.TYPE_STRING, None)),
    "MetricValue": (
        ("metricName", 1, _FIELD.TYPE_STRING, None),
        ("metricValue", 2, _FIELD.TYPE_INT64, None),
        ("metricValueFloat", 3, _FIELD.TYPE_DOUBLE, None),
    ),
    "GetMetricsResponse": (("metricValues", 1, 0, "MetricValue"),),
}
"""Fields of KEDA's messages: name, number, type (0: repeated messages), and the message that they hold."""


def _message_classes() -> dict[str, Any]:
    """The classes of KEDA's messages, without generated code."""
    file = descriptor_pb2.FileDescriptorProto(name="themis/externalscaler.proto", package="externalscaler", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, inner in fields:
            added = message.field.add(name=field, number=number, type=kind or _FIELD.TYPE_MESSAGE, label=_FIELD.LABEL_OPTIONAL)
            if kind == 0:
                added.label = _FIELD.LABEL_REPEATED
            if inner is not None:
                added.type_name = f".externalscaler.{name}.ScalerMetadataEntry" if inner == "Entry" else f".externalscaler.{inner}"
    entry = file.message_type[0].nested_type.add(name="ScalerMetadataEntry")
    entry.options.map_entry = True
    for field, number in (("key", 1), ("value", 2)):
        entry.field.add(name=field, number=number, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"externalscaler.{name}")) for name in _MESSAGES}


MESSAGES = _message_classes()


class ScalerService:
    """Answers KEDA with `wanted()`: the servers wanted, or None while that is not known, which is UNAVAILABLE: KEDA then changes nothing.

    Use it from one event loop, and `close` it there. `tls`: the listener's; None: it has none.
    """

    def __init__(self, listen: Address, wanted: Callable[[], int | None], tls: ListenerTls | None = None) -> None:
        self._listen = listen
        self._tls = tls
        self._wanted = wanted
        self._server: Any = None
        self.port = listen.port

    async def start(self) -> None:
        """Listen; does nothing when it listens already. EnvironmentCheckError where the address is taken or a PEM file is unreadable."""
        if self._server is not None:
            return
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        calls = {
            "IsActive": (grpc.unary_unary_rpc_method_handler, self._is_active, "ScaledObjectRef", "IsActiveResponse"),
            "StreamIsActive": (grpc.unary_stream_rpc_method_handler, self._stream_is_active, "ScaledObjectRef", "IsActiveResponse"),
            "GetMetricSpec": (grpc.unary_unary_rpc_method_handler, self._metric_spec, "ScaledObjectRef", "GetMetricSpecResponse"),
            "GetMetrics": (grpc.unary_unary_rpc_method_handler, self._metrics, "GetMetricsRequest", "GetMetricsResponse"),
        }
        handlers = {
            name: kind(call, MESSAGES[request].FromString, MESSAGES[response].SerializeToString)
            for name, (kind, call, request, response) in calls.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address = self._listen.authority
        credentials = server_credentials(self._tls, "launch.kubernetes.keda.tls") if self._tls is not None else None
        try:
            self.port = server.add_secure_port(address, credentials) if credentials is not None else server.add_insecure_port(address)
        except RuntimeError as error:
            fix = "stop what listens there, or choose another port"
            raise EnvironmentCheckError(f"launch.kubernetes.keda.listen: {self._listen} cannot be listened on. Fix: {fix}") from error
        await server.start()
        self._server = server

    async def _known(self, context: Any) -> int:  # noqa: ANN401 - grpc has no types
        wanted = self._wanted()
        if wanted is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, _UNKNOWN)
        return wanted or 0

    async def _is_active(self, _request: Any, context: Any) -> Any:  # noqa: ANN401 - grpc and protobuf have no types
        return MESSAGES["IsActiveResponse"](result=await self._known(context) > 0)

    async def _stream_is_active(self, _request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: ANN401 - as above
        """The activity now, and each change of it."""
        last: bool | None = None
        while True:
            wanted = self._wanted()
            active = wanted > 0 if wanted is not None else last
            if active is not None and active != last:
                last = active
                yield MESSAGES["IsActiveResponse"](result=active)
            await asyncio.sleep(_STREAM_POLL_S)

    async def _metric_spec(self, _request: Any, _context: Any) -> Any:  # noqa: ANN401 - as above
        return MESSAGES["GetMetricSpecResponse"](metricSpecs=[{"metricName": METRIC, "targetSize": 1, "targetSizeFloat": 1.0}])

    async def _metrics(self, request: Any, context: Any) -> Any:  # noqa: ANN401 - as above
        wanted = await self._known(context)
        value = {"metricName": request.metricName or METRIC, "metricValue": wanted, "metricValueFloat": float(wanted)}
        return MESSAGES["GetMetricsResponse"](metricValues=[value])

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None
