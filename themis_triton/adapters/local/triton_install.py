"""Finding `tritonserver`: the binary and backends of the `local` extra (PyPI's `nvidia-pytriton`), or those that the settings name."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from themis_triton.core.errors import EnvironmentCheckError

_EXTRA = "the `local` extra: pip install 'themis-triton[local]'"
_STUB = "triton_python_backend_stub"
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_LINKER_ERROR = "error while loading shared libraries"
_STUB_TIMEOUT_S = 10.0
_FIRST_BAD_NUMPY = 2
_PROBE = "import sys, numpy; print(*sys.version_info[:2], numpy.__version__)"
# The backend embeds Python without heeding PYTHONPATH and its like, and so does the probe (-E).
_PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class TritonInstall:
    """How to start Triton.

    Attributes:
        binary: the `tritonserver` executable.
        backend_directory: what to pass as `--backend-directory`; None leaves the binary's own default.
        path_prefix: what PATH must begin with, so that the Python backend runs the right Python; None leaves PATH alone.
    """

    binary: Path
    backend_directory: Path | None = None
    path_prefix: Path | None = None


def find_triton(state_directory: Path, binary: Path | None = None, backend_directory: Path | None = None) -> TritonInstall:
    """The Triton to launch; prepares the extra's backends in the state directory where they are used. Blocking; safe to call at any time.

    Args:
        state_directory: a writable folder.
        binary: a configured `tritonserver`, which uses its own backends and the Python that PATH gives; None: the extra's.
        backend_directory: configured backends; None: the extra's, or the configured binary's default.

    Raises:
        EnvironmentCheckError: a part is missing or incompatible; the message has the fix.
    """
    if binary is not None:
        return TritonInstall(_executable(binary), _directory(backend_directory))
    root = _extra_root()
    path_prefix = Path(sys.executable).parent
    check_stub(_stub_of(root))
    check_python(path_prefix)
    backends = _directory(backend_directory) or prepare_backends(root, state_directory)
    return TritonInstall(_executable(root / "bin" / "tritonserver"), backends, path_prefix)


def _executable(binary: Path) -> Path:
    if not (binary.is_file() and os.access(binary, os.X_OK)):
        raise EnvironmentCheckError(
            f"launch.binary: {binary} is not an executable file. Fix: give the path of `tritonserver`, or leave it out and install {_EXTRA}"
        )
    return binary


def _directory(backends: Path | None) -> Path | None:
    if backends is not None and not backends.is_dir():
        raise EnvironmentCheckError(
            f"launch.backend_directory: {backends} is not a folder. Fix: give the folder that holds one folder per backend, or leave it out"
        )
    return backends


def _extra_root() -> Path:
    """The folder `pytriton/tritonserver`, located without importing the package, because its import has side effects."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentCheckError(f"no `tritonserver` is installed. Fix: install {_EXTRA}, or set launch.binary")
    root = Path(spec.submodule_search_locations[0]) / "tritonserver"
    if not root.is_dir():
        raise EnvironmentCheckError(f"{root} is missing from the installed package nvidia-pytriton. Fix: reinstall {_EXTRA}")
    return root


def _stub_of(root: Path) -> Path:
    """The program that runs Python models for this version of Python."""
    stub = root / "python_backend_stubs" / _VERSION / _STUB
    if not stub.is_file():
        present = ", ".join(sorted(path.parent.name for path in root.glob(f"python_backend_stubs/*/{_STUB}")))
        raise EnvironmentCheckError(
            f"{stub} is missing: the installed Triton runs Python models on Python {present}, and this is {_VERSION}. "
            "Fix: run Themis on one of these"
        )
    return stub


def check_stub(stub: Path) -> None:
    """Check, in milliseconds, that the stub finds Python's shared library: without it no Python model ever becomes ready.

    Raises:
        EnvironmentCheckError: the dynamic linker does not find a library, or the stub cannot be started.
    """
    try:
        result = subprocess.run([str(stub)], capture_output=True, text=True, errors="replace", timeout=_STUB_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentCheckError(f"{stub} cannot be started ({error}). Fix: reinstall {_EXTRA}") from error
    if _LINKER_ERROR not in result.stderr:
        return  # Started without arguments it prints its usage and ends.
    missing = result.stderr.partition(_LINKER_ERROR)[2].strip(": \n")
    folder = Path(str(sysconfig.get_config_var("LIBDIR")))
    name = f"libpython{_VERSION}.so.1.0"
    remedy = (
        f"start Themis with LD_LIBRARY_PATH={folder}" if (folder / name).is_file() else f"use a Python built with --enable-shared ({name})"
    )
    raise EnvironmentCheckError(f"Triton's Python backend cannot start: {missing}. Fix: {remedy}")


def check_python(bin_directory: Path) -> None:
    """Check the Python that the extra's Python backend will run, the `python3` in the folder that PATH begins with.

    With numpy 2 this backend answers OK with EMPTY outputs, so numpy must be older than 2.

    Raises:
        EnvironmentCheckError: there is no such Python, it is of another version than this one, or its numpy is missing or too new.
    """
    python = bin_directory / "python3"
    major, minor, numpy = _probe(python).split()
    if f"{major}.{minor}" != _VERSION:
        raise EnvironmentCheckError(
            f"{python} is Python {major}.{minor}, and Themis runs on {_VERSION}. Fix: run Themis from a virtual environment"
        )
    if int(numpy.partition(".")[0]) >= _FIRST_BAD_NUMPY:
        raise EnvironmentCheckError(
            f"{python} has numpy {numpy}, with which this Triton's Python backend answers with empty outputs: "
            f"expected numpy < {_FIRST_BAD_NUMPY}. Fix: {python} -m pip install 'numpy>=1.26,<2'"
        )


def _probe(python: Path) -> str:
    try:
        done = subprocess.run([str(python), "-E", "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=True)
    except FileNotFoundError as error:
        raise EnvironmentCheckError(
            f"{python} does not exist, and Triton's Python backend needs it. Fix: run Themis from a virtual environment"
        ) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentCheckError(f"{python} cannot import numpy ({last}). Fix: {python} -m pip install 'numpy>=1.26,<2'") from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentCheckError(
            f"{python} did not import numpy within {_PROBE_TIMEOUT_S:.0f} s. Fix: run it by hand and see where it hangs"
        ) from error
    return done.stdout


def prepare_backends(root: Path, state_directory: Path) -> Path:
    """A backends folder whose Python backend has this Python's stub beside it, as links to the installed files.

    The folder is named after what it links to, made aside and moved into place, so that callers at the same time, or after the
    environment was moved or upgraded, each find a whole and right one.

    Raises:
        EnvironmentCheckError: the package carries no stub for this Python, or the state directory cannot be written.
    """
    stub = _stub_of(root)
    target = state_directory / "backends" / f"{_release()}-py{_VERSION}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"
    if not target.is_dir():
        _link_backends(root / "backends", stub, target)
    return target


def _release() -> str:
    try:
        return importlib.metadata.version("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _link_backends(source: Path, stub: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        for backend in source.iterdir():
            _link_backend(backend, aside / backend.name)
        (aside / "python" / _STUB).symlink_to(stub)
        _move_into_place(aside, target)
    except OSError as error:
        raise EnvironmentCheckError(f"state_directory: Triton's backends cannot be prepared in {target.parent}: {error}") from error


def _link_backend(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        if path.name != "__pycache__":
            (target / path.name).symlink_to(path)


def _move_into_place(aside: Path, target: Path) -> None:
    """Rename; the folder of a concurrent caller that was first is just as good."""
    try:
        aside.rename(target)
    except OSError:
        shutil.rmtree(aside)
        if not target.is_dir():
            raise
