"""Requests of any batch size for a model, from its metadata and shapes, or from a file of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from themis_triton.adapters.triton.arrays import input_array, read_arrays
from themis_triton.adapters.triton.warmup import concrete_shape
from themis_triton.adapters.triton.warmup_data import Sample, own_samples
from themis_triton.core.config import ModelInputs
from themis_triton.core.errors import SettingsError
from themis_triton.load.requests import ModelSpec, StageRequest, TensorSpec, build_chain

_UNMADE = ("BF16",)


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The source of inputs.

    `shapes`: by `MODEL.INPUT`, without the batch dimension. `file`: instead of them, an `.npz` file with one array per input, named
    `INPUT` or `MODEL.INPUT`. `sample`: instead of both, the data of the model's own `model_warmup`.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    file: Path | None = None
    seed: int = 0
    sample: Sample = field(default_factory=dict)


def build_request(spec: ModelSpec, batch: int, options: InputOptions, *, batched: bool) -> StageRequest:
    """One request of `batch` inputs; for an emulated model, with the expected response.

    Args:
        spec: the model's inputs.
        batch: the batch size.
        options: the source of the values.
        batched: whether the model's shapes begin with a batch dimension.

    Raises:
        SettingsError: a data type has no made-up values, a shape does not fit, or the file lacks an input.
    """
    if options.file is not None:
        arrays = read_arrays(options.file)
        sample = {each.name: input_array(options.file, arrays, spec.name, each.name, each.datatype) for each in spec.inputs}
        return _from_sample(spec, batch, sample, batched=batched)
    if all(tensor.name in options.sample for tensor in spec.inputs):
        return _from_sample(spec, batch, options.sample, batched=batched)
    known = {f"{spec.name}.{tensor.name}" for tensor in spec.inputs}
    if unknown := [key for key in options.shapes if key.startswith(f"{spec.name}.") and key not in known]:
        raise SettingsError(f"--shape {unknown[0]}: model {spec.name} has no such input: expected one of {', '.join(sorted(known))}")
    for tensor in spec.inputs:
        if tensor.datatype in _UNMADE or (tensor.datatype != "BYTES" and triton_to_np_dtype(tensor.datatype) is None):
            raise SettingsError(
                f"model {spec.name}: no values can be made up for input {tensor.name} of type {tensor.datatype}. "
                f"Fix: --data FILE.npz, or models.{spec.name}.inputs.file"
            )
    shapes = {f"{spec.name}.{tensor.name}": _shape(spec, tensor, batch, options, batched=batched) for tensor in spec.inputs}
    return build_chain([spec], 1, np.random.default_rng(options.seed), shapes)[0][0]


def _shape(spec: ModelSpec, tensor: TensorSpec, batch: int, options: InputOptions, *, batched: bool) -> tuple[int, ...]:
    own = tensor.shape[1:] if batched else tensor.shape
    dims = options.shapes.get(f"{spec.name}.{tensor.name}", tuple(concrete_shape(list(own))))
    if len(dims) != len(own) or any(size not in (-1, given) or given < 1 for size, given in zip(own, dims, strict=True)):
        raise SettingsError(
            f"--shape {spec.name}.{tensor.name}: {list(dims)} is invalid: expected {list(own)}, where -1 is free"
            + (", without the batch dimension" if batched else "")
        )
    return (batch, *dims) if batched else dims


def _from_sample(spec: ModelSpec, batch: int, sample: Sample, *, batched: bool) -> StageRequest:
    message = service_pb2.ModelInferRequest(model_name=spec.name)
    for tensor in spec.inputs:
        value = np.repeat(sample[tensor.name][None], batch, axis=0) if batched else sample[tensor.name]
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=value.shape)
        message.raw_input_contents.append(
            value.tobytes() if value.dtype != np.dtype(object) else bytes(serialize_byte_tensor(value).item())
        )
    return StageRequest(message)


def with_configured(
    options: InputOptions,
    model: str,
    configured: ModelInputs,
    config: Any,  # noqa: ANN401 - protobuf has no types
    folder: Path | None = None,
) -> InputOptions:
    """The options, completed by the settings' `models.NAME.inputs` and by the model's own `model_warmup`.

    The command line takes precedence over the settings, and these over `model_warmup`. `folder`: the model's, with the data of that.
    """
    if options.file is not None:
        return options
    samples = config.model_warmup[0].inputs if config.model_warmup else {}
    shapes = {f"{model}.{name}": tuple(samples[name].dims) for name in samples}
    shapes |= {f"{model}.{name}": sizes for name, sizes in configured.shapes.items()}
    own = {key: sizes for key, sizes in options.shapes.items() if key.startswith(f"{model}.")}
    chosen = own or configured.shapes or configured.file is not None
    sample = {} if chosen else next(iter(own_samples(config, folder)), {})
    return replace(options, shapes={**shapes, **options.shapes}, file=None if own else configured.file, sample=sample)


def shapes_of(request: StageRequest, *, batched: bool) -> dict[str, list[int]]:
    """The shapes of a request's inputs by name, without the batch dimension."""
    return {tensor.name: list(tensor.shape)[1 if batched else 0 :] for tensor in request.message.inputs}


def made_up_shapes(spec: ModelSpec, options: InputOptions, *, batched: bool) -> dict[str, list[int]]:
    """Inputs with free dimensions whose sizes nothing configures, with the sizes that requests get.

    An emulated model is left out: its service time does not depend on its input.
    """
    if options.file is not None or options.sample or spec.offset is not None:
        return {}
    own = {tensor.name: tensor.shape[1:] if batched else tensor.shape for tensor in spec.inputs}
    return {name: concrete_shape(list(sizes)) for name, sizes in own.items() if -1 in sizes and f"{spec.name}.{name}" not in options.shapes}
