"""`themis run`."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import structlog

from themis_triton.core.config import Placement
from themis_triton.core.errors import SettingsError
from themis_triton.daemon.service import run_daemon
from themis_triton.profile.stale import refuse_stale
from themis_triton.settings import load_settings


def run_command(path: Path) -> None:
    """Run the sidecar until a signal; logs go to standard error, as JSON where that is no terminal."""
    config = load_settings(path)
    if config.planning.placement is Placement.SEPARATE:
        raise SettingsError(
            f"{path}: planning.placement: separate is for themis plan and simulate; allowed here: colocated; "
            "run with settings whose servers hold all stages"
        )
    _configure_logging()
    for sentence in refuse_stale(config):
        structlog.get_logger().warning("profile_stale", says=sentence)
    asyncio.run(run_daemon(config))


def _configure_logging() -> None:
    terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    tracebacks = [] if terminal else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            *tracebacks,
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    # It warns, outside the log's format, of each tick that a slow one makes it skip; the status tells how long ticks take.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
