"""The inputs of a model's own `model_warmup`: data files in its folder `warmup`, random data, or zeros."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import DataType
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from themis_triton.core.errors import SettingsError

Sample: TypeAlias = dict[str, NDArray[Any]]
"""The arrays of one request by input, without the batch dimension."""
WARMUP_FOLDER = "warmup"
_TEXT = b"warm-up"
_BYTES = "BYTES"
_BF16_BYTES = 2


def zeros(datatype: str, shape: list[int]) -> NDArray[Any]:
    """Zeros of a Triton datatype, or short strings for BYTES."""
    if datatype == _BYTES:
        return np.full(shape, _TEXT, dtype=np.object_)
    return np.zeros(shape, dtype=triton_to_np_dtype(datatype))


def own_samples(config: Any, folder: Path | None) -> tuple[Sample, ...]:  # noqa: ANN401 - protobuf has no types
    """The samples with data of their own: those with at least one data file or random data.

    Samples of zeros only give shapes; see `warmup.warmup_inputs`.

    Args:
        config: the model's configuration.
        folder: the model's folder; None where it cannot be read here: then samples with data files are left out.

    Raises:
        SettingsError: a data file cannot be read, or is shorter than its input.
    """
    samples = [each.inputs for each in config.model_warmup if any(not value.zero_data for value in each.inputs.values())]
    readable = [each for each in samples if folder is not None or not any(value.input_data_file for value in each.values())]
    return tuple({name: _values(name, each[name], folder) for name in sorted(each)} for each in readable)


def _values(name: str, entry: Any, folder: Path | None) -> NDArray[Any]:  # noqa: ANN401 - protobuf has no types
    datatype, shape = datatype_of(entry.data_type), list(entry.dims)
    if entry.input_data_file and folder is not None:
        return _from_file(folder / WARMUP_FOLDER / entry.input_data_file, name, datatype, shape)
    return _random(datatype, shape) if entry.random_data else zeros(datatype, shape)


def datatype_of(number: int) -> str:
    """The datatype of a request, such as FP32, of a configuration's `data_type`."""
    name = str(DataType.Name(number)).removeprefix("TYPE_")
    return _BYTES if name == "STRING" else name


def _random(datatype: str, shape: list[int]) -> NDArray[Any]:
    """Fractions of 1, small integers, or short strings: Triton's own random bytes may be no number at all."""
    random, base = np.random.default_rng(0), zeros(datatype, shape)
    if datatype in (_BYTES, "BOOL"):
        return base
    values = random.integers(0, 100, shape) if np.issubdtype(base.dtype, np.integer) else random.random(shape)
    return np.asarray(values).astype(base.dtype)


def _from_file(file: Path, name: str, datatype: str, shape: list[int]) -> NDArray[Any]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{file}: cannot be read ({error.strerror}): expected model_warmup data of {name}. Fix: add the file"
        ) from error
    count = math.prod(shape)
    if datatype == _BYTES:
        return _strings(file, content, name, count).reshape(shape)
    dtype = np.dtype(triton_to_np_dtype(datatype))
    if datatype == "BF16" and dtype.itemsize != _BF16_BYTES:
        raise SettingsError(f"{file}: the installed tritonclient cannot read {name}'s type BF16. Fix: update tritonclient")
    if len(content) < count * dtype.itemsize:
        expected = f"{count * dtype.itemsize} for input {name} of {datatype} {shape}"
        raise SettingsError(f"{file}: {len(content)} bytes: expected {expected}. Fix: write the whole array")
    return np.frombuffer(content, dtype, count).reshape(shape)


def _strings(file: Path, content: bytes, name: str, count: int) -> NDArray[Any]:
    """The first strings of the file."""
    try:
        values: NDArray[Any] = deserialize_bytes_tensor(content)
    except struct.error as error:
        expected = f"{count} strings for input {name}, each after its length as four bytes"
        raise SettingsError(f"{file}: not serialized strings ({error}): expected {expected}. Fix: write them so") from error
    if len(values) < count:
        raise SettingsError(f"{file}: {len(values)} strings: expected {count} for input {name}. Fix: add the missing ones")
    return values[:count]
