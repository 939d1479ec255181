"""Has Envoy read the PEM files of servers with TLS again when they change."""

from __future__ import annotations

import asyncio

import structlog

from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.xds.routes import SharedRoutes
from themis_triton.core.errors import ThemisError

log = structlog.get_logger()
CHECK_EVERY_S = 2.0


async def keep_certificates(routes: EnvoyFiles | SharedRoutes) -> None:
    """Check until cancelled."""
    while True:
        try:
            if await routes.renew_certificates():
                log.info("certificates_renewed", message="Envoy has read the PEM files of servers with TLS again")
        except (ThemisError, OSError) as error:
            log.error("certificates_refused", error=str(error), message="Envoy goes on with those that it has read before")  # noqa: TRY400
        await asyncio.sleep(CHECK_EVERY_S)
