"""The one way in which kernels are compiled: typed for mypy, cached on disk, without the interpreter lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from numba import njit

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def kernel(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile with Numba on first use, cached beside the module (or in the user's cache where that is read-only)."""
    return cast("Callable[Parameters, Result]", njit(cache=True, nogil=True, error_model="numpy")(function))
