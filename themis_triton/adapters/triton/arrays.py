"""Input arrays from `.npz` files, in the data types of a model's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import triton_to_np_dtype

from themis_triton.core.errors import SettingsError

_BF16_BYTES = 2


def read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file by name. Raises SettingsError if it cannot be read."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        raise SettingsError(f"{file}: cannot be read ({error}): expected an .npz file. Fix: write it with numpy.savez") from error


def input_array(file: Path, arrays: dict[str, NDArray[Any]], model: str, name: str, datatype: str) -> NDArray[Any]:
    """The array `MODEL.INPUT` or `INPUT` in the input's data type, without a batch dimension; strings become bytes.

    Raises:
        SettingsError: the file has no such array, or its type cannot be converted.
    """
    key = f"{model}.{name}" if f"{model}.{name}" in arrays else name
    if key not in arrays:
        raise SettingsError(
            f"{file}: no array for input {name} of model {model}: expected {name} or {model}.{name}, found {', '.join(arrays) or 'none'}. "
            "Fix: add it with numpy.savez"
        )
    value = arrays[key]
    if datatype == "BYTES":
        return np.array([str(text).encode() for text in value.ravel()], dtype=object).reshape(value.shape)
    dtype = triton_to_np_dtype(datatype)
    if datatype == "BF16" and np.dtype(dtype).itemsize != _BF16_BYTES:
        raise SettingsError(f"{file}: the installed tritonclient cannot write {name}'s type BF16. Fix: update tritonclient")
    if dtype is None or not np.can_cast(value.dtype, dtype, casting="same_kind"):
        raise SettingsError(f"{file}: array {key} is {value.dtype}: expected {datatype}. Fix: convert it before saving")
    return value.astype(dtype, copy=False)
