"""Requests for any model, from its metadata, and the check of each response's content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from themis_triton.adapters.triton.arrays import input_array, read_arrays
from themis_triton.core.config import ModelInputs
from themis_triton.core.errors import SettingsError

OFFSET_PARAMETER = "offset"
FREE_DIMENSION = 4

_NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input: its KServe data type and its full shape, -1 where it is free (the batch dimension included)."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The inputs of a model. `offset` is set for emulated models, whose response is known: OUTPUT = INPUT·2 + offset."""

    name: str
    inputs: tuple[TensorSpec, ...]
    offset: float | None = None


@dataclass(frozen=True, slots=True)
class StageRequest:
    """A request message, and the expected bytes of the response if they are known."""

    message: Any
    expected: bytes | None = None


def build_chain(
    specs: Sequence[ModelSpec],
    variants: int,
    rng: np.random.Generator,
    shapes: Mapping[str, tuple[int, ...]],
    inputs: Mapping[str, ModelInputs] | None = None,
) -> tuple[tuple[StageRequest, ...], ...]:
    """`variants` × stages: requests with different values, so that swapped responses are detected.

    A stage whose predecessor's response is known gets it as input. `shapes` fixes free dimensions, by
    `MODEL.INPUT`, and takes precedence over `inputs`, by model.
    """
    return tuple(
        _one_chain([_Source(spec, shapes, (inputs or {}).get(spec.name, ModelInputs())) for spec in specs], rng) for _ in range(variants)
    )


def wrong_answer(request: StageRequest, answer: Any) -> str | None:  # noqa: ANN401 - protobuf's generated classes have no types
    """The error of a response, or None. A response without expected bytes must have outputs, each with a shape and as many bytes."""
    outputs = answer.outputs
    contents = answer.raw_output_contents
    if not outputs or len(outputs) != len(contents):
        return f"{len(outputs)} outputs with {len(contents)} contents"
    if request.expected is None:
        return next((problem for o, raw in zip(outputs, contents, strict=True) if (problem := _malformed(o, raw))), None)
    if contents[0] == request.expected:
        return None
    return _difference(request.expected, contents[0])


@dataclass(frozen=True, slots=True)
class _Source:
    """A model and the source of its values: `shapes` by `MODEL.INPUT` with the batch dimension, or the configured inputs without it."""

    spec: ModelSpec
    shapes: Mapping[str, tuple[int, ...]]
    configured: ModelInputs

    def values(self, tensor: TensorSpec, rng: np.random.Generator) -> NDArray[Any]:
        """The array of the file; else small integers, exact in every type, and their digits as text."""
        key = f"{self.spec.name}.{tensor.name}"
        file = self.configured.file
        if file is not None and key not in self.shapes:
            value = input_array(file, read_arrays(file), self.spec.name, tensor.name, tensor.datatype)
            return value[None] if _is_batched(tensor) else value
        shape = self._shape(tensor, key)
        if tensor.datatype == "BYTES":
            return np.array([str(number).encode() for number in rng.integers(0, 100, int(np.prod(shape)))], dtype=object).reshape(shape)
        if tensor.datatype not in _NUMPY_TYPES:
            raise SettingsError(
                f"model {self.spec.name}: no values can be made up for input {tensor.name} of type {tensor.datatype}: "
                f"expected {', '.join(_NUMPY_TYPES)} or BYTES. Fix: models.{self.spec.name}.inputs.file in the settings"
            )
        return rng.integers(0, 100, shape).astype(_NUMPY_TYPES[tensor.datatype])

    def _shape(self, tensor: TensorSpec, key: str) -> tuple[int, ...]:
        leading = (1,) if _is_batched(tensor) else ()
        option, shape = f"--shape {key}", self.shapes.get(key)
        if shape is not None and leading and len(shape) == len(tensor.shape) - 1:
            shape = leading + shape
        if shape is None and tensor.name in self.configured.shapes:
            option, shape = f"models.{self.spec.name}.inputs.shapes.{tensor.name}", leading + self.configured.shapes[tensor.name]
        if shape is None:
            return leading + tuple(FREE_DIMENSION if size < 0 else size for size in tensor.shape[len(leading) :])
        fits = len(shape) == len(tensor.shape) and all(
            size in (-1, given) and given > 0 for size, given in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            raise SettingsError(f"{option}: {list(shape)} is invalid: expected {list(tensor.shape)}, where -1 is free")
        return shape


def _is_batched(tensor: TensorSpec) -> bool:
    return tensor.shape[:1] == (-1,) and len(tensor.shape) > 1


def _one_chain(sources: Sequence[_Source], rng: np.random.Generator) -> tuple[StageRequest, ...]:
    chain: list[StageRequest] = []
    previous: NDArray[np.float32] | None = None
    for source in sources:
        spec = source.spec
        if spec.offset is None:
            values = [source.values(tensor, rng) for tensor in spec.inputs]
            chain.append(StageRequest(_message(spec, [value.shape for value in values], [_raw(value) for value in values])))
            previous = None
            continue
        value = source.values(spec.inputs[0], rng).astype(np.float32) if previous is None else previous
        previous = value * np.float32(2.0) + np.float32(spec.offset)
        chain.append(StageRequest(_message(spec, [value.shape], [value.tobytes()]), previous.tobytes()))
    return tuple(chain)


def _message(spec: ModelSpec, shapes: Sequence[tuple[int, ...]], contents: Sequence[bytes]) -> Any:  # noqa: ANN401 - as above
    message = service_pb2.ModelInferRequest(model_name=spec.name)
    for tensor, shape in zip(spec.inputs, shapes, strict=True):
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
    message.raw_input_contents.extend(contents)
    return message


def _raw(value: NDArray[Any]) -> bytes:
    if value.dtype != np.dtype(object):
        return value.tobytes()
    return bytes(serialize_byte_tensor(value).item())


def _malformed(output: Any, raw: bytes) -> str | None:  # noqa: ANN401 - as above
    if not output.shape:
        return f"output '{output.name}' has no shape"
    size = _NUMPY_TYPES[output.datatype].itemsize * int(np.prod(output.shape)) if output.datatype in _NUMPY_TYPES else None
    if size is not None and size != len(raw):
        return f"output '{output.name}' of shape {list(output.shape)} has {len(raw)} bytes, not {size}"
    return None


def _difference(expected: bytes, raw: bytes) -> str | None:
    """The difference, with a tolerance for servers that compute in double precision."""
    if len(raw) != len(expected):
        return f"{len(raw)} bytes, expected {len(expected)}"
    got, right = np.frombuffer(raw, "<f4"), np.frombuffer(expected, "<f4")
    if np.allclose(got, right, rtol=1e-6, atol=1e-6):
        return None
    return f"{got[:4].tolist()}, expected {right[:4].tolist()}"
