"""The requests that servers lost, as Envoy's log has them."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from themis_triton.adapters.clock import time_of_day_s
from themis_triton.adapters.envoy.addresses import resolve
from themis_triton.adapters.envoy.binary import LOG_FLUSH_MS
from themis_triton.core.encoding import parsed_json
from themis_triton.core.errors import ServerError
from themis_triton.core.fleet import Server
from themis_triton.core.incident import BrokenRequest
from themis_triton.ports import Clock

_READ_BYTES = 2**18
RECENT_S = 10.0
_PATH = re.compile(r"/v2/models/([^/]+)/")


class BrokenRequests:
    """Implements `CrashWitness` on the log of a managed Envoy."""

    def __init__(self, log_file: Path, clock: Clock) -> None:
        self._log_file = log_file
        self._clock = clock

    async def broken_requests(self, server: Server) -> tuple[BrokenRequest, ...]:
        """Each kind once: those whose last server it was, and those that went on to another server."""
        await self._clock.sleep(2.0 * LOG_FLUSH_MS / 1000.0)
        try:
            addresses = {str(await resolve(address)) for address in (server.grpc_address, server.http_address)}
            text = await asyncio.to_thread(_end_of, self._log_file)
        except (OSError, ServerError):
            return ()
        now_s = time_of_day_s()
        lost = (line for line in _lines(text) if now_s - _ended_s(line) <= RECENT_S)
        return tuple(dict.fromkeys(_request(line) for line in lost if line["last_server"] in addresses or line["attempts"] > 1))


def _end_of(log_file: Path) -> str:
    with log_file.open("rb") as log:
        log.seek(-min(_READ_BYTES, log.seek(0, os.SEEK_END)), os.SEEK_END)
        return log.read().decode(errors="replace")


def _lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if '"request_broken"' not in line:
            continue
        try:
            fields = parsed_json(line)
            _request(fields), _ended_s(fields), fields["last_server"], int(fields["attempts"])
        except (ValueError, KeyError, TypeError, AttributeError):  # cut off, or of another version
            continue
        yield fields


def _ended_s(line: dict[str, Any]) -> float:
    began = datetime.fromisoformat(line["time"])
    return (began + timedelta(milliseconds=float(line["duration_ms"]))).timestamp()


def _request(line: dict[str, Any]) -> BrokenRequest:
    named, path = line["model"], _PATH.match(line["path"] or "")
    model = named[0] if isinstance(named, list) and named else named or (unquote(path[1]) if path is not None else None)
    return BrokenRequest(model, str(line["client"]))
