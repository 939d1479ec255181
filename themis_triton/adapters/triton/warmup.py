"""Warm-up: real inference requests, made from what the server itself reports of a model."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.model_config_pb2 import TYPE_STRING, ModelSequenceBatching
from tritonclient.utils import InferenceServerException

from themis_triton.adapters.triton.arrays import input_array, read_arrays
from themis_triton.adapters.triton.client import new_client, silence
from themis_triton.adapters.triton.config_files import model_folder
from themis_triton.adapters.triton.warmup_data import Sample, own_samples, zeros
from themis_triton.core.config import ModelInputs
from themis_triton.core.errors import SettingsError, WarmupFailedError
from themis_triton.core.fleet import ModelState, Server

_SPATIAL_RANK = 3
_SPATIAL_SIZE = 32
_ID_BITS = 63
_LIVE_TIMEOUT_S = 2.0
_FULL_QUEUE = re.compile("Exceeds maximum queue size|Request timeout expired")
_QUEUE_REMEDY = "raise max_queue_size or default_timeout_microseconds in the queue policy of its config.pbtxt"


def warmup_batches(max_batch: int) -> tuple[int, ...]:
    """Batch sizes to warm up: the powers of two up to the planned largest, and that one."""
    powers = [2**exponent for exponent in range(max_batch.bit_length()) if 2**exponent < max_batch]
    return (*powers, max_batch)


def concrete_shape(shape: list[int]) -> list[int]:
    """A size for each dynamic (-1) dimension: 32 in tensors of rank 3 and more, where it is usually an image's side, else 1."""
    size = _SPATIAL_SIZE if len(shape) >= _SPATIAL_RANK else 1
    return [size if side < 0 else side for side in shape]


class QueueFullError(WarmupFailedError):
    """A queue of the model, or of one that it calls, refused a request, or let it wait too long."""


class Warmup:
    """Warms up one server through one connection; use as `async with`.

    The inputs of a model are the data of its own `model_warmup`, else those of the settings, else zeros.

    Args:
        server: a server that is ready; its `models` hold the planned states.
        rounds: how often each instance is meant to be touched at each batch size.
        timeout_s: for one request.
        inputs: by model, the inputs of the settings.
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

    async def warm_all(self, models: Mapping[str, ModelState]) -> None:
        """Warm up models side by side; where a queue was too full then, such as one that others call, alone and one request at a time.

        Raises:
            As `warm`.
        """
        results = await asyncio.gather(*(self.warm(model, state) for model, state in models.items()), return_exceptions=True)
        for (model, state), result in zip(models.items(), results, strict=True):
            if isinstance(result, QueueFullError):
                await self.warm(model, state, 1)
            elif result is not None:
                raise result

    async def warm(self, model: str, state: ModelState, at_once: int | None = None) -> None:
        """Send the requests of one model, to each version one batch size after the other, and check every answer.

        `at_once`: requests at a time; None: one for each instance, as far as the model's queue has room for them.

        Raises:
            WarmupFailedError: a request failed, or an answer is empty; the message names the log file.
            ServerError: the server did not answer.
        """
        configured = self._configured.get(model, ModelInputs())
        fix = remedy(model, configured, own=False)
        try:
            metadata = await self._client.get_model_metadata(model, client_timeout=self._timeout_s)
            config = (await self._client.get_model_config(model, client_timeout=self._timeout_s)).config
            own = self._own_samples(metadata.name, config)
            fix = remedy(model, configured, own=bool(own))
            samples = own or (file_sample(configured.file, metadata, config) if configured.file is not None else {},)
            sequences = config.HasField("sequence_batching")
            send, rounds = (self._sequence, self._rounds * state.max_batch) if sequences else (self._request, self._rounds)
            width = at_once or (state.instances * state.max_batch if sequences else int(min(state.instances, queue_room(config))))
            batches = (1,) if sequences else warmup_batches(state.max_batch)
            for version, batch in product(_versions(metadata), batches):
                made = [warmup_inputs(metadata, config, batch, configured, sample) for sample in samples]
                count = max(state.instances * rounds, len(made)) if self._rounds else 0
                calls = [partial(send, metadata, config, made[number % len(made)], model_version=version) for number in range(count)]
                await _at_once(width, calls)
        except SettingsError as error:
            raise self._failed(model, f"{error}", "") from error
        except InferenceServerException as error:
            cause = str(error.message())
            if error.status() == "StatusCode.UNAVAILABLE" and not await self._is_live():
                raise silence(self._server.name, self._server.grpc_address, error) from error
            if _FULL_QUEUE.search(cause):
                raise QueueFullError(self._words(model, cause), model, cause, _QUEUE_REMEDY) from error
            raise self._failed(model, cause, _missing_callee(model, cause) or fix) from error

    async def _is_live(self) -> bool:
        """Whether the server answers now: Triton itself refuses requests with the status of a server that cannot be reached."""
        try:
            return bool(await self._client.is_server_live(client_timeout=_LIVE_TIMEOUT_S))
        except InferenceServerException:
            return False

    def _own_samples(self, model: str, config: Any) -> tuple[Sample, ...]:  # noqa: ANN401 - protobuf has no types
        return own_samples(config, model_folder(self._server, model))

    async def _sequence(self, metadata: Any, config: Any, inputs: list[InferInput], **more: Any) -> None:  # noqa: ANN401 - protobuf has no types
        """A whole sequence of its own, because a model with sequences takes no other call; no client can have its id."""
        identity = secrets.randbits(_ID_BITS) | 1
        named = more | {"sequence_id": f"themis-{identity:x}" if _has_text_ids(config) else identity}
        await self._request(metadata, config, inputs, **named, sequence_start=True, sequence_end=False)
        await self._request(metadata, config, inputs, **named, sequence_start=False, sequence_end=True)

    async def _request(self, metadata: Any, config: Any, inputs: list[InferInput], **more: Any) -> None:  # noqa: ANN401 - as above
        """One request; `more`: the version and the sequence."""
        if config.model_transaction_policy.decoupled:
            await self._stream(metadata.name, inputs, more)
            return
        answer = await self._client.infer(metadata.name, inputs, client_timeout=self._timeout_s, **more)
        if empty := _empty_outputs(metadata, answer.get_response()):
            fix = "see that the backend's Python has numpy < 2"
            raise self._failed(metadata.name, f"output {', '.join(empty)} came back empty", fix)

    async def _stream(self, model: str, inputs: list[InferInput], more: dict[str, Any]) -> None:
        """One request of a decoupled model, which answers over a stream only, with any number of responses, until the stream ends."""

        async def request() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model, "inputs": inputs, **more}

        async for _, error in self._client.stream_infer(request(), stream_timeout=self._timeout_s):
            if error is not None:
                raise error

    def _failed(self, model: str, cause: str, fix: str) -> WarmupFailedError:
        return WarmupFailedError(self._words(model, cause), model, cause, fix)

    def _words(self, model: str, cause: str) -> str:
        return f"server {self._server.name}: warm-up of model {model} failed: {cause}; log {self._server.log_file}"


def _versions(metadata: Any) -> tuple[str, ...]:  # noqa: ANN401 - protobuf has no types
    """The versions that are served, each with instances of its own; "" where there is just one."""
    return tuple(metadata.versions) if len(metadata.versions) > 1 else ("",)


async def _at_once(width: int, calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Make the calls, so many at a time; the first failure ends them."""
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            await call()

    workers = [asyncio.create_task(work()) for _ in range(min(width, len(calls)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()


def queue_room(config: Any) -> float:  # noqa: ANN401 - protobuf has no types
    """The requests that wait in the smallest queue of the model's policies; infinite where none is bounded."""
    batching = config.dynamic_batching
    policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
    return min([policy.max_queue_size for policy in policies if policy.max_queue_size], default=math.inf)


def _missing_callee(model: str, cause: str) -> str:
    """The remedy where the model called one that the server lacks; empty: it did not."""
    lacking = re.search(r"[Mm]odel (?:'([^']+)'|([^\s',]+)) is not ready", cause)
    callee = lacking[1] or lacking[2] if lacking is not None else model
    return f"name it under `calls:`, as `calls: {{{model}: [{callee}]}}`, and in `models:`" if callee != model else ""


def file_sample(file: Path, metadata: Any, config: Any) -> Sample:  # noqa: ANN401 - protobuf has no types
    """The model's required inputs from an `.npz` file. SettingsError if it lacks one, or has another data type."""
    arrays, optional = read_arrays(file), _optional(config)
    return {
        entry.name: input_array(file, arrays, metadata.name, entry.name, entry.datatype)
        for entry in metadata.inputs
        if entry.name not in optional
    }


def warmup_inputs(metadata: Any, config: Any, batch: int, configured: ModelInputs, sample: Sample) -> list[InferInput]:  # noqa: ANN401 - protobuf has no types
    """The model's inputs at a batch size: the sample's, and the required ones that it lacks as zeros.

    The sizes of zeros are those of the settings, else of the model's own `model_warmup`, else 1 or 32 for free dimensions.
    """
    optional, batched = _optional(config), config.max_batch_size > 0
    result = []
    for entry in metadata.inputs:
        if entry.name not in sample and entry.name in optional:
            continue
        value = sample[entry.name] if entry.name in sample else zeros(entry.datatype, _dims(entry, config, configured))
        if batched:
            value = np.repeat(value[None], batch, axis=0)
        tensor = InferInput(entry.name, list(value.shape), entry.datatype)
        tensor.set_data_from_numpy(value)
        result.append(tensor)
    return result


def _optional(config: Any) -> frozenset[str]:  # noqa: ANN401 - protobuf has no types
    return frozenset(entry.name for entry in config.input if entry.optional)


def _dims(entry: Any, config: Any, configured: ModelInputs) -> list[int]:  # noqa: ANN401 - protobuf has no types
    if entry.name in configured.shapes:
        return list(configured.shapes[entry.name])
    own = list(entry.shape)[1:] if config.max_batch_size > 0 else list(entry.shape)
    samples = config.model_warmup[0].inputs if config.model_warmup else {}
    return list(samples[entry.name].dims) if entry.name in samples else concrete_shape(own)


def remedy(model: str, configured: ModelInputs, *, own: bool) -> str:
    """What to do about a model that refuses its warm-up."""
    if own:
        return "correct the data of its model_warmup"
    if configured.file is not None:
        return f"correct the arrays of {configured.file}"
    return f"set models.{model}.warmup to an .npz file with real inputs, or give the model model_warmup data"


def _has_text_ids(config: Any) -> bool:  # noqa: ANN401 - protobuf has no types
    """Whether the model takes correlation ids as text."""
    controls = [control for entry in config.sequence_batching.control_input for control in entry.control]
    return any(
        control.kind == ModelSequenceBatching.Control.CONTROL_SEQUENCE_CORRID and control.data_type == TYPE_STRING for control in controls
    )


def _empty_outputs(metadata: Any, response: Any) -> list[str]:  # noqa: ANN401 - protobuf has no types
    """Outputs that are absent, or have no bytes although their shape is not empty (a detector may find nothing)."""
    raw = {output.name: (output, content) for output, content in zip(response.outputs, response.raw_output_contents, strict=False)}
    return [entry.name for entry in metadata.outputs if entry.name not in raw or _lacks_content(*raw[entry.name])]


def _lacks_content(output: Any, content: bytes) -> bool:  # noqa: ANN401 - protobuf has no types
    return math.prod(output.shape) > 0 and not content
