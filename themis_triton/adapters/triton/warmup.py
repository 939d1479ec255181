"""Warm-up: real inference requests, made from what the server itself reports of a model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from themis_triton.adapters.triton.arrays import input_array, read_arrays
from themis_triton.adapters.triton.client import new_client, silence
from themis_triton.core.config import ModelInputs
from themis_triton.core.errors import LaunchFailedError, SettingsError
from themis_triton.core.fleet import ModelState, Server

_SPATIAL_RANK = 3
_SPATIAL_SIZE = 32
_TEXT = b"warm-up"


def warmup_batches(max_batch: int) -> tuple[int, ...]:
    """Batch sizes to warm up: the powers of two up to the planned largest, and that one."""
    powers = [2**exponent for exponent in range(max_batch.bit_length()) if 2**exponent < max_batch]
    return (*powers, max_batch)


def concrete_shape(shape: list[int]) -> list[int]:
    """A size for each dynamic (-1) dimension: 32 in tensors of rank 3 and more, where it is usually an image's side, else 1."""
    size = _SPATIAL_SIZE if len(shape) >= _SPATIAL_RANK else 1
    return [size if side < 0 else side for side in shape]


def make_tensor(datatype: str, shape: list[int]) -> NDArray[Any]:
    """Zeros of a Triton datatype, or short strings for BYTES."""
    if datatype == "BYTES":
        return np.full(shape, _TEXT, dtype=np.object_)
    return np.zeros(shape, dtype=triton_to_np_dtype(datatype))


class Warmup:
    """Warms up one server through one connection; use as `async with`.

    Args:
        server: a server that is ready; its `models` hold the planned states.
        rounds: how often each instance is meant to be touched at each batch size.
        timeout_s: for one request.
        inputs: by model, the configured inputs; other models get zeros, of the sizes of their `model_warmup` if they have one.
    """

    def __init__(self, server: Server, rounds: int, timeout_s: float, inputs: Mapping[str, ModelInputs] | None = None) -> None:
        self._server = server
        self._configured = inputs or {}
        self._rounds = rounds
        self._timeout_s = timeout_s
        self._client = new_client(server.grpc_address)

    async def __aenter__(self) -> Self:
        """Nothing is opened before the first call."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        await self._client.close()

    async def warm(self, model: str, state: ModelState) -> None:
        """Send the requests of one model, one batch size after the other, and check every answer.

        Raises:
            LaunchFailedError: a request failed, or an answer is empty; the message names the log file.
            ServerError: the server did not answer.
        """
        try:
            metadata = await self._client.get_model_metadata(model, client_timeout=self._timeout_s)
            config = (await self._client.get_model_config(model, client_timeout=self._timeout_s)).config
            configured = self._configured.get(model, ModelInputs())
            arrays = read_arrays(configured.file) if configured.file is not None else {}
            for batch in warmup_batches(state.max_batch):
                inputs = warmup_inputs(metadata, config, batch, configured, arrays)
                requests = (self._request(metadata, inputs) for _ in range(state.instances * self._rounds))
                await asyncio.gather(*requests)
        except SettingsError as error:
            raise self._failed(model, f"models.{model}.inputs: {error}") from error
        except InferenceServerException as error:
            if error.status() == "StatusCode.UNAVAILABLE":
                raise silence(self._server.name, self._server.grpc_address, error) from error
            raise self._failed(model, str(error.message())) from error

    async def _request(self, metadata: Any, inputs: list[InferInput]) -> None:  # noqa: ANN401 - protobuf has no types
        answer = await self._client.infer(metadata.name, inputs, client_timeout=self._timeout_s)
        if empty := _empty_outputs(metadata, answer.get_response()):
            raise self._failed(metadata.name, f"output {', '.join(empty)} came back empty; see that the backend's Python has numpy < 2")

    def _failed(self, model: str, what: str) -> LaunchFailedError:
        return LaunchFailedError(f"server {self._server.name}: warm-up of model {model} failed: {what}; log {self._server.log_file}")


def warmup_inputs(
    metadata: Any,  # noqa: ANN401 - protobuf has no types
    config: Any,  # noqa: ANN401 - protobuf has no types
    batch: int,
    configured: ModelInputs,
    arrays: dict[str, NDArray[Any]],
) -> list[InferInput]:
    """The model's required inputs at a batch size; sizes of dynamic dimensions from the model's own `model_warmup` where it has one."""
    optional = {entry.name for entry in config.input if entry.optional}
    samples = config.model_warmup[0].inputs if config.model_warmup else {}
    result = []
    for entry in metadata.inputs:
        if entry.name in optional:
            continue
        if configured.file is not None:
            value = input_array(configured.file, arrays, metadata.name, entry.name, entry.datatype)
        else:
            value = make_tensor(entry.datatype, _dims(entry, samples, configured, batched=config.max_batch_size > 0))
        if config.max_batch_size > 0:
            value = np.repeat(value[None], batch, axis=0)
        tensor = InferInput(entry.name, list(value.shape), entry.datatype)
        tensor.set_data_from_numpy(value)
        result.append(tensor)
    return result


def _dims(entry: Any, samples: Any, configured: ModelInputs, *, batched: bool) -> list[int]:  # noqa: ANN401 - protobuf has no types
    if entry.name in configured.shapes:
        return list(configured.shapes[entry.name])
    own = list(entry.shape)[1:] if batched else list(entry.shape)
    return list(samples[entry.name].dims) if entry.name in samples else concrete_shape(own)


def _empty_outputs(metadata: Any, response: Any) -> list[str]:  # noqa: ANN401 - protobuf has no types
    """Outputs that are absent, or have no bytes although their shape is not empty (a detector may find nothing)."""
    raw = {output.name: (output, content) for output, content in zip(response.outputs, response.raw_output_contents, strict=False)}
    return [entry.name for entry in metadata.outputs if entry.name not in raw or _lacks_content(*raw[entry.name])]


def _lacks_content(output: Any, content: bytes) -> bool:  # noqa: ANN401 - protobuf has no types
    return math.prod(output.shape) > 0 and not content
