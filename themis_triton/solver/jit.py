"""The one way in which kernels are compiled: typed for mypy, cached on disk, without the interpreter lock."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def kernel(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile with Numba on first use; the result is cached beside the module, or in the user's cache where that is read-only."""
    return cast("Callable[Parameters, Result]", numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def _cache_beside_sources() -> None:
    """Keep compiled kernels under a digest of all solver sources.

    Numba notices a change of the file that holds a kernel, but not of the files whose kernels it calls. NUMBA_CACHE_DIR wins.
    """
    config: Any = numba.config
    if config.CACHE_DIR:
        return
    folder = Path(__file__).parent
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()[:16]
    caches = folder / "__pycache__" / "kernels"
    for stale in caches.glob("*") if caches.is_dir() else ():
        if stale.name != digest:
            shutil.rmtree(stale, ignore_errors=True)  # another process may be removing it too
    config.CACHE_DIR = str(caches / digest)


_cache_beside_sources()
