"""Requests of any batch size for a model: made from its metadata, or from a file of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from themis_triton.adapters.triton.warmup import concrete_shape
from themis_triton.core.errors import SettingsError
from themis_triton.load.requests import ModelSpec, StageRequest, TensorSpec, build_chain

_UNMADE = ("BF16",)
_BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class InputOptions:
    """Where inputs come from.

    `shapes`, by `MODEL.INPUT` and without the batch dimension; or `file`, an `.npz` with an array an input, by its name or `MODEL.INPUT`.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    file: Path | None = None
    seed: int = 0


def build_request(spec: ModelSpec, batch: int, options: InputOptions, *, batched: bool) -> StageRequest:
    """One request of `batch` inputs; the emulated models' answers are known and can be checked.

    Args:
        spec: what the model takes.
        batch: its batch size.
        options: where the values come from.
        batched: whether the model's shapes begin with a batch dimension.

    Raises:
        SettingsError: a data type cannot be made up, a shape does not fit, or the file lacks an input.
    """
    if options.file is not None:
        return _from_file(spec, batch, options.file, batched=batched)
    known = {f"{spec.name}.{tensor.name}" for tensor in spec.inputs}
    if unknown := [key for key in options.shapes if key.startswith(f"{spec.name}.") and key not in known]:
        raise SettingsError(f"--shape {unknown[0]}: model {spec.name} has no such input; allowed are {', '.join(sorted(known))}")
    for tensor in spec.inputs:
        if tensor.datatype in _UNMADE or (tensor.datatype != "BYTES" and triton_to_np_dtype(tensor.datatype) is None):
            raise SettingsError(
                f"model {spec.name}: input {tensor.name} has the type {tensor.datatype}, for which no values can be made up; "
                "give some with --data FILE.npz"
            )
    shapes = {f"{spec.name}.{tensor.name}": _shape(spec, tensor, batch, options, batched=batched) for tensor in spec.inputs}
    return build_chain([spec], 1, np.random.default_rng(options.seed), shapes)[0][0]


def _shape(spec: ModelSpec, tensor: TensorSpec, batch: int, options: InputOptions, *, batched: bool) -> tuple[int, ...]:
    own = tensor.shape[1:] if batched else tensor.shape
    dims = options.shapes.get(f"{spec.name}.{tensor.name}", tuple(concrete_shape(list(own))))
    if len(dims) != len(own) or any(size not in (-1, given) or given < 1 for size, given in zip(own, dims, strict=True)):
        raise SettingsError(
            f"--shape {spec.name}.{tensor.name}: found {list(dims)}; the model takes {list(own)}, where -1 is free"
            + (", without the batch dimension" if batched else "")
        )
    return (batch, *dims) if batched else dims


def _from_file(spec: ModelSpec, batch: int, file: Path, *, batched: bool) -> StageRequest:
    message = service_pb2.ModelInferRequest(model_name=spec.name)
    arrays = read_arrays(file)
    for tensor in spec.inputs:
        own = f"{spec.name}.{tensor.name}"
        name = own if own in arrays else tensor.name
        if name not in arrays:
            raise SettingsError(
                f"--data {file}: no array {tensor.name} or {own}; model {spec.name} takes {', '.join(each.name for each in spec.inputs)}, "
                f"and the file holds {', '.join(arrays) or 'nothing'}"
            )
        value = _typed(arrays[name], tensor, file)
        value = np.repeat(value[None], batch, axis=0) if batched else value
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=value.shape)
        message.raw_input_contents.append(
            value.tobytes() if value.dtype != np.dtype(object) else bytes(serialize_byte_tensor(value).item())
        )
    return StageRequest(message)


def read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file by name. SettingsError where it cannot be read."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        raise SettingsError(f"--data {file}: cannot be read ({error}); give an .npz file as numpy.savez writes it") from error


def _typed(value: NDArray[Any], tensor: TensorSpec, file: Path) -> NDArray[Any]:
    """The array in the input's own type; text becomes bytes."""
    if tensor.datatype == "BYTES":
        return np.array([str(each).encode() for each in value.ravel()], dtype=object).reshape(value.shape)
    wanted = triton_to_np_dtype(tensor.datatype)
    if tensor.datatype == "BF16" and np.dtype(wanted).itemsize != _BF16_BYTES:
        raise SettingsError(f"--data {file}: the installed tritonclient cannot write {tensor.name}'s type BF16; update it")
    if wanted is None or not np.can_cast(value.dtype, wanted, casting="same_kind"):
        raise SettingsError(
            f"--data {file}: array {tensor.name} is {value.dtype}; the model takes {tensor.datatype}; convert it before saving"
        )
    return value.astype(wanted, copy=False)
