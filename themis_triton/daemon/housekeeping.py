"""Bounds what the sidecar leaves on the disk, beside the ticks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from themis_triton.adapters.log_files import bound_logs
from themis_triton.daemon.components import Components

log = structlog.get_logger()
EVERY_S = 60.0


async def keep_logs_bounded(components: Callable[[], Components]) -> None:
    """Bound the logs of servers and Envoy until cancelled, by the settings of then."""
    while True:
        await bound_logs_once(components())
        await asyncio.sleep(EVERY_S)


async def bound_logs_once(components: Components) -> None:
    """Bound the logs of servers and Envoy, off the loop. Errors are logged: nothing depends on them."""
    bounds, envoy_log = components.config.retention, components.envoy.log_file
    in_use = {Path(server.log_file) for server in components.world.executor.fleet.all() if server.log_file is not None} | {envoy_log}
    try:
        failures = await asyncio.to_thread(bound_logs, envoy_log.parent, in_use, bounds.log_bytes, bounds.max_old_logs)
    except OSError as error:
        failures = [error]
    for failure in failures:
        log.warning("logs_not_bounded", directory=str(envoy_log.parent), error=str(failure))
