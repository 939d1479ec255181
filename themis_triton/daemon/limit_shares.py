"""Splits admission limits over several Envoys anew when clients move between them."""

from __future__ import annotations

import asyncio

import structlog

from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.xds.routes import SharedRoutes
from themis_triton.core.errors import ThemisError

log = structlog.get_logger()
EVERY_S = 2.0


async def keep_limits_shared(routes: EnvoyFiles | SharedRoutes) -> None:
    """Split them until cancelled. A failure is logged; the tick writes routes that are not in place, and the next turn tries again."""
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            await routes.share_limits()
        except (ThemisError, OSError) as error:
            log.warning("limits_not_shared", error=str(error), message="Envoys keep the parts of the limits that they have")
