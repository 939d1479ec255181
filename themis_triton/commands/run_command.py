"""`themis run`."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import resource
import sys
from functools import partial
from pathlib import Path
from typing import TextIO, cast

import structlog

from themis_triton.adapters.exposure import readable_secrets
from themis_triton.commands.options import LogFormat
from themis_triton.core.config import ThemisConfig, ThroughputRule
from themis_triton.core.errors import SettingsError
from themis_triton.core.printable import printable
from themis_triton.daemon.service import run_daemon
from themis_triton.daemon.settings_watch import SettingsFile
from themis_triton.profile.stale import refuse_stale
from themis_triton.settings import load_settings
from themis_triton.settings.files import stamp_of

MAX_FILES = 65_536


def run_command(path: Path, log: LogFormat = LogFormat.AUTO, *, standby: bool = False) -> None:
    """Run the sidecar until a signal. Logs go to standard error."""
    configure_logging(log)
    config = runnable_settings(path)
    for secret in readable_secrets(config, path):
        structlog.get_logger().warning("secret_exposed", message=f"{secret.what}: {secret.found}. Fix: {secret.remedy}")
    if config.envoy.managed:  # one that runs as another user must be able to read its files
        os.umask(0o077)
    _allow_many_files()
    asyncio.run(run_daemon(config, SettingsFile(partial(runnable_settings, path), partial(stamp_of, path)), standby=standby))


def _allow_many_files() -> None:
    """Servers inherit the limit: each connection takes a descriptor, and any user of the machine can open some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def runnable_settings(path: Path) -> ThemisConfig:
    """The settings, if a sidecar can run with them. SettingsError otherwise."""
    config = load_settings(path)
    if config.planning.throughput is ThroughputRule.CORES:
        raise SettingsError(
            f"{path}: planning.throughput: cores cannot run live: expected instances. "
            "Fix: use `themis plan` or `themis simulate`, or set it to instances"
        )
    if not config.servers and config.launch is None:
        raise SettingsError(
            f"{path}: neither `servers` nor `launch` is set: expected at least one of them. "
            "Fix: add slots under `launch:`, or use `themis plan` or `themis simulate`"
        )
    for sentence in refuse_stale(config):
        structlog.get_logger().warning("stale_profile_used", message=sentence)
    return config


def configure_logging(log: LogFormat = LogFormat.AUTO) -> None:
    """Log to standard error: readable lines, or one JSON object per line; the same for libraries' logs."""
    terminal = sys.stderr.isatty() if log is LogFormat.AUTO else log is LogFormat.CONSOLE
    console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    renderer: structlog.typing.Processor = console if terminal else structlog.processors.JSONRenderer()
    # JSON escapes control characters by itself.
    tracebacks: list[structlog.typing.Processor] = [_escape] if terminal else [structlog.processors.format_exc_info]
    stamps: list[structlog.typing.Processor] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso")]
    structlog.configure(
        processors=[*stamps, *tracebacks, renderer], logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Unfailing(sys.stderr)))
    )
    handler = logging.StreamHandler(sys.stderr)
    first: list[structlog.typing.Processor] = [structlog.stdlib.add_logger_name, *stamps]
    last: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tracebacks, renderer]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=last, foreign_pre_chain=first))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class _Unfailing(io.TextIOBase):
    """A stream that loses what cannot be written: a full disk under the log must not end the sidecar."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or not."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _escape(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Text from outside must not control the terminal; the renderer quotes values of other types itself."""
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}
