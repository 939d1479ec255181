"""Requests for any model, built from its metadata, and the check of every answer's content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

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
    """What a model takes. `offset` is set for the emulated models, whose answer is known: OUTPUT = INPUT·2 + offset."""

    name: str
    inputs: tuple[TensorSpec, ...]
    offset: float | None = None


@dataclass(frozen=True, slots=True)
class StageRequest:
    """A request message ready to send, and the answer's bytes where they are known."""

    message: Any
    expected: bytes | None = None


def build_chain(
    specs: Sequence[ModelSpec], variants: int, rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[StageRequest, ...], ...]:
    """`variants` × stages: requests of different values, so that answers mixed up between requests are noticed.

    A stage whose predecessor's answer is known gets that answer as its input. `shapes` fixes free dimensions, by `MODEL.INPUT`.
    """
    return tuple(_one_chain(specs, rng, shapes) for _ in range(variants))


def wrong_answer(request: StageRequest, answer: Any) -> str | None:  # noqa: ANN401 - protobuf's generated classes have no types
    """Why the answer is wrong, or None. Unknown answers must have outputs, each with a shape and just the bytes it tells."""
    outputs = answer.outputs
    contents = answer.raw_output_contents
    if not outputs or len(outputs) != len(contents):
        return f"{len(outputs)} outputs with {len(contents)} contents"
    if request.expected is None:
        return next((problem for o, raw in zip(outputs, contents, strict=True) if (problem := _malformed(o, raw))), None)
    if contents[0] == request.expected:
        return None
    return _difference(request.expected, contents[0])


def _one_chain(specs: Sequence[ModelSpec], rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> tuple[StageRequest, ...]:
    chain: list[StageRequest] = []
    previous: NDArray[np.float32] | None = None
    for spec in specs:
        if spec.offset is None:
            chain.append(_generic(spec, rng, shapes))
            previous = None
            continue
        value = _values(spec.inputs[0], spec, rng, shapes).astype(np.float32) if previous is None else previous
        previous = value * np.float32(2.0) + np.float32(spec.offset)
        chain.append(StageRequest(_message(spec, [value.shape], [value.tobytes()]), previous.tobytes()))
    return tuple(chain)


def _generic(spec: ModelSpec, rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> StageRequest:
    values = [_values(tensor, spec, rng, shapes) for tensor in spec.inputs]
    return StageRequest(_message(spec, [value.shape for value in values], [_raw(value) for value in values]))


def _values(tensor: TensorSpec, spec: ModelSpec, rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> NDArray[Any]:
    """Small whole numbers, exact in every type; text is their digits."""
    shape = _shape(tensor, f"{spec.name}.{tensor.name}", shapes)
    if tensor.datatype == "BYTES":
        return np.array([str(number).encode() for number in rng.integers(0, 100, int(np.prod(shape)))], dtype=object).reshape(shape)
    if tensor.datatype not in _NUMPY_TYPES:
        allowed = ", ".join([*_NUMPY_TYPES, "BYTES"])
        raise SettingsError(f"model '{spec.name}': input '{tensor.name}' has the type {tensor.datatype}; load can make {allowed}")
    return rng.integers(0, 100, shape).astype(_NUMPY_TYPES[tensor.datatype])


def _shape(tensor: TensorSpec, key: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    wanted = shapes.get(key)
    if wanted is None:
        leading = (1,) if tensor.shape[:1] == (-1,) and len(tensor.shape) > 1 else ()
        return leading + tuple(FREE_DIMENSION if size < 0 else size for size in tensor.shape[len(leading) :])
    fits = len(wanted) == len(tensor.shape) and all(
        size in (-1, given) and given > 0 for size, given in zip(tensor.shape, wanted, strict=True)
    )
    if not fits:
        raise SettingsError(f"--shape {key}: found {list(wanted)}; the model takes {list(tensor.shape)}, where -1 is free")
    return wanted


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
    """A server that computes in double precision may differ in the last bit; anything else is wrong."""
    if len(raw) != len(expected):
        return f"{len(raw)} bytes, expected {len(expected)}"
    got, right = np.frombuffer(raw, "<f4"), np.frombuffer(expected, "<f4")
    if np.allclose(got, right, rtol=1e-6, atol=1e-6):
        return None
    return f"found {got[:4].tolist()}, expected {right[:4].tolist()}"
