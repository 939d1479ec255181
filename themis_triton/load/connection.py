"""The connection to a server: a gRPC channel, and the inputs of its models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from themis_triton.adapters.triton.tls import credentials, name_options
from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.load.requests import OFFSET_PARAMETER, ModelSpec, TensorSpec

# Reconnects to a restarted server within a second; gRPC's default waits up to two minutes.
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.enable_http_proxy", 0),
)


class _WithBearer(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Sends an API key or JSON Web Token with each call."""

    def __init__(self, secret: str) -> None:
        self._header = ("authorization", f"Bearer {secret}")

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:  # noqa: ANN401 - as above
        metadata = grpc.aio.Metadata(*(details.metadata or ()), self._header)
        return await continuation(details._replace(metadata=metadata), request)


@asynccontextmanager
async def open_stub(address: str | Address, timeout_s: float, bearer_file: Path | None = None) -> AsyncIterator[Any]:
    """The KServe-v2 stub of a connected channel. `bearer_file`: the API key or JSON Web Token that calls carry.

    Raises SettingsError for a malformed address or a file that cannot be read, ServerError if no server answers.
    """
    async with _channel(address, await asyncio.to_thread(_interceptors, bearer_file)) as channel:
        try:
            async with asyncio.timeout(timeout_s):
                await channel.channel_ready()
        except TimeoutError as error:
            raise ServerError(
                f"{address}: no gRPC server answered within {timeout_s:g} s. Fix: check the address and that the server runs"
            ) from error
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def _interceptors(bearer_file: Path | None) -> list[grpc.aio.ClientInterceptor]:
    try:
        return [_WithBearer(bearer_file.read_text(encoding="ascii").strip())] if bearer_file is not None else []
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--bearer-file: {bearer_file} cannot be read: expected a file with an API key or a JSON Web Token") from error


def _channel(address: str | Address, interceptors: Sequence[grpc.aio.ClientInterceptor]) -> Any:  # noqa: ANN401 - grpc has no types
    if isinstance(address, str) and address.startswith("tls://"):
        address = Address.parse(address)
    if isinstance(address, str):
        host, _, port = address.rpartition(":")
        if "/" in address or not host or not port.isdigit():
            raise SettingsError(f"--address: {address} is invalid: expected HOST:PORT of a gRPC service, such as 127.0.0.1:8001")
        return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS, interceptors=interceptors)
    secret = credentials(address)
    if secret is None:
        return grpc.aio.insecure_channel(address.authority, options=_CHANNEL_OPTIONS, interceptors=interceptors)
    options = (*_CHANNEL_OPTIONS, *name_options(address))
    return grpc.aio.secure_channel(address.authority, secret, options=options, interceptors=interceptors)


async def read_specs(stub: Any, models: Sequence[str], timeout_s: float) -> dict[str, ModelSpec]:  # noqa: ANN401 - generated stubs have no types
    """The inputs of each model, from its metadata and configuration. Raises ServerError with the server's error if it refuses."""
    return {model: await _read_spec(stub, model, timeout_s) for model in dict.fromkeys(models)}


async def _read_spec(stub: Any, model: str, timeout_s: float) -> ModelSpec:  # noqa: ANN401 - as above
    try:
        metadata = await stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=model), timeout=timeout_s)
        config = (await stub.ModelConfig(service_pb2.ModelConfigRequest(name=model), timeout=timeout_s)).config
    except grpc.aio.AioRpcError as error:
        raise ServerError(
            f"model '{model}': the server answered {error.code().name}: {error.details()}. "
            "Fix: check the model's name and that it is loaded"
        ) from error
    inputs = tuple(TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in metadata.inputs)
    return ModelSpec(model, inputs, _known_offset(inputs, config))


def _known_offset(inputs: Sequence[TensorSpec], config: Any) -> float | None:  # noqa: ANN401 - as above
    """The `offset` of an emulated model, which has one FP32 input INPUT with free dimensions; else None."""
    emulated = len(inputs) == 1 and inputs[0].name == "INPUT" and inputs[0].datatype == "FP32" and set(inputs[0].shape) == {-1}
    if not emulated or OFFSET_PARAMETER not in config.parameters:
        return None
    return float(config.parameters[OFFSET_PARAMETER].string_value)
