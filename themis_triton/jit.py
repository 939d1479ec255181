"""Decorators that compile kernels, and the cache of compiled code. Importing this module has no side effects; `use_cache` has."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import llvmlite.binding
import numba
from numba import types
from numba.core.dispatcher import Dispatcher

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

PACKAGE = Path(__file__).parent
SOURCES = (
    *("jit.py", "estimate/counter_kernels.py", "sim/dispatch.py", "sim/kernels.py", "sim/service.py", "sim/state.py"),
    *("solver/colocated.py", "solver/dominance.py", "solver/fleet_kernels.py", "solver/join_kernels.py", "solver/kernels.py"),
    *("solver/label_bounds.py", "solver/label_setting.py", "solver/queueing.py", "solver/rate_search.py", "solver/separate.py"),
    *("solver/slot_kernels.py", "solver/stage_kernels.py"),
)
INTEGER, REAL = types.int64, types.float64
FLOATS, FLOATS_2D, FLOATS_3D = (types.Array(REAL, dimensions, "C") for dimensions in (1, 2, 3))
INTS, INTS_2D, INTS_3D = (types.Array(INTEGER, dimensions, "C") for dimensions in (1, 2, 3))
BOOLS_2D, SEEDS = types.Array(types.boolean, 2, "C"), types.Array(types.uint64, 1, "C")


class Group(StrEnum):
    """The user of an entry: the daemon's tick, plans of separate stages (`plan` and `simulate`), or the simulator."""

    TICK = "tick"
    SEPARATE = "separate"
    SIMULATOR = "simulator"


@dataclass(frozen=True, slots=True)
class Entry:
    """A kernel that Python calls, with its only signature."""

    group: Group
    function: Callable[..., Any]
    signature: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Module and function."""
        return f"{self.function.__module__.removeprefix('themis_triton.')}.{self.function.__name__}"

    def compile(self) -> None:
        """Load the entry from the cache or compile it; a second call does nothing."""
        compiler: Any = self.function
        if isinstance(compiler, Dispatcher):  # not with NUMBA_DISABLE_JIT
            compiler.compile(self.signature)


def kernel(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile with Numba on first use, without the interpreter lock. Entries are cached once `use_cache` was called.

    Integer and boolean constants as arguments would have it compiled for each constant: pass variables, `int(np.int64(0))` for a zero.
    """
    return _compiled(function)


def inlined(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A kernel that becomes part of its caller: one compilation less, for functions with few callers."""
    return _compiled(function, inline="always")


def flat_kernel(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A kernel that allocates nothing: without reference counts it runs up to four times as fast, and it compiles faster."""
    return _compiled(function, _nrt=False)


def merged(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A flat kernel that becomes part of its callers' machine code, for what happens often: a call copies the headers of all arrays.

    Unlike one that is `inlined`, it is compiled once.
    """
    return _compiled(function, _nrt=False, forceinline=True)


def _compiled(function: Callable[Parameters, Result], **options: object) -> Callable[Parameters, Result]:
    compiler: Any = numba.njit
    return cast("Callable[Parameters, Result]", compiler(nogil=True, error_model="numpy", **options)(function))


def use_cache(entries: Sequence[Entry], directory: Path) -> None:
    """Keep the compiled code of the entries in a directory, and load it from there."""
    with _numba_cache(directory):
        for entry in entries:
            compiler: Any = entry.function
            if isinstance(compiler, Dispatcher):
                compiler.enable_caching()


def interpret_kernels() -> Callable[[], None]:
    """Have Python run the kernels of all modules that are loaded, slowly and with the same results; returns what undoes it.

    Compiled code that runs now is not changed: call both between computations.
    """
    modules = [module for name, module in sys.modules.items() if name.startswith("themis_triton.") and module is not None]
    compiled = [(module, name, value) for module in modules for name, value in vars(module).items() if isinstance(value, Dispatcher)]
    for module, name, value in compiled:
        setattr(module, name, value.py_func)

    def restore() -> None:
        for module, name, value in compiled:
            setattr(module, name, value)

    return restore


def cache_directory(environment: Mapping[str, str] | None = None, package: Path = PACKAGE, fallback: Path | None = None) -> Path | None:
    """A writable directory for the kernels of these sources, created if needed; None where there is none.

    NUMBA_CACHE_DIR wins; then the package, systemd's CACHE_DIRECTORY, the user's cache directory and the fallback. A digest of all
    sources names it, because Numba does not notice a change in a file whose kernels are only called.
    """
    variables = os.environ if environment is None else environment
    beside = package / "__pycache__" / "kernels"
    configured, user = variables.get("NUMBA_CACHE_DIR"), _user_cache(variables)
    services = [Path(each) for each in variables.get("CACHE_DIRECTORY", "").split(":") if each]  # systemd may name several
    places = [
        beside,
        *(service / "kernels" for service in services),
        user / "themis-triton" / "kernels" if user is not None else None,
        fallback,
    ]
    parents = [Path(configured)] if configured else [place for place in places if place is not None]
    digest = _sources_digest(package)
    directory = next((parent / digest for parent in parents if _is_writable(parent / digest)), None)
    if directory is not None and directory.parent == beside:
        _remove_stale(directory)
    return directory


def marker(directory: Path, group: Group) -> Path:
    """The file that exists once all entries of a group are in the cache, for this machine's processor and these versions."""
    machine = (numba.__version__, platform.python_version(), llvmlite.binding.get_host_cpu_name(), os.environ.get("NUMBA_OPT", ""))
    return directory / f"{group.value}-{hashlib.sha256(repr(machine).encode()).hexdigest()[:16]}.complete"


def _user_cache(variables: Mapping[str, str]) -> Path | None:
    configured = variables.get("XDG_CACHE_HOME")
    if configured:
        return Path(configured)
    with suppress(RuntimeError):  # a user without a home directory
        return Path(variables["HOME"] if variables.get("HOME") else Path.home()) / ".cache"
    return None


def _sources_digest(package: Path) -> str:
    return hashlib.sha256(b"".join((package / source).read_bytes() for source in SOURCES)).hexdigest()[:16]


def _is_writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def _remove_stale(directory: Path) -> None:
    """Caches of earlier sources; another process may be removing them too."""
    for other in directory.parent.iterdir():
        if other.name != directory.name:
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _numba_cache(directory: Path) -> Iterator[None]:
    """Numba reads its global setting when a kernel's cache is enabled; other packages keep theirs."""
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(directory)
    try:
        yield
    finally:
        config.CACHE_DIR = before
