"""Service times of single requests, from the time stamps that Triton writes.

Triton's statistics are sums, so they give a mean and no percentile. Its trace holds each request's own `COMPUTE_START` and `COMPUTE_END`
on this machine's monotonic clock: the time for which the request held an instance. That is the service time here. Where a server's trace
file cannot be read (an adopted one), the client's time less the mean time spent outside the instance stands in for it: the percentile then
holds the jitter of client and network too, and errs on the safe side.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.utils import InferenceServerException

from themis_triton.adapters.triton.client import KEY_HEADER
from themis_triton.core.errors import ServerError
from themis_triton.core.fleet import Server

_STAMP = re.compile(rb'\{"id":(\d+),"timestamps":\[\{"name":"COMPUTE_(START|END)","ns":(\d+)\}\]\}')
_ON, _OFF = "TIMESTAMPS", "OFF"
_POLL_S = 0.02
_FLUSH_S = 5.0
# Triton writes its trace through a buffer of 8 KiB, nine requests or so, and on machines with many cores keeps the last ones there for as
# long as it likes. So a file that no longer grows is taken as it is when no more than a buffer's worth is missing.
_GROWS_S = 0.5
BUFFERED = 16


def trace_arguments(file: Path) -> tuple[str, ...]:
    """What `tritonserver` must be started with, so that tracing can be switched on later."""
    return tuple(f"--trace-config={setting}" for setting in (f"triton,file={file}", "rate=1", f"level={_OFF}"))


def parse_trace(content: bytes, since_ns: int, until_ns: int) -> list[float]:
    """Service times in ms of the requests that began to compute and ended between the two times, by their beginning.

    Requests under way while tracing is switched on or off are so left out: the switch itself makes the server pause.
    """
    stamps: dict[int, dict[bytes, int]] = {}
    for number, name, at_ns in _STAMP.findall(content):
        stamps.setdefault(int(number), {})[name] = int(at_ns)
    whole = sorted((pair[b"START"], pair[b"END"]) for pair in stamps.values() if len(pair) == 2)
    return [(end - start) / 1e6 for start, end in whole if start >= since_ns and end <= until_ns]


def without_overhead(client_ms: Sequence[float], server_mean_ms: float) -> list[float]:
    """Client-side times less the mean time outside the instance; never below 0.

    Args:
        client_ms: from send to answer.
        server_mean_ms: mean compute time (input, inference, output) of the same requests, as Triton's statistics tell.
    """
    overhead_ms = max(0.0, sum(client_ms) / len(client_ms) - server_mean_ms)
    return [max(0.0, value - overhead_ms) for value in client_ms]


@dataclass(slots=True)
class Tracer:
    """Switches a launched server's trace on and off and reads what it wrote in between."""

    client: Any
    server: Server
    file: Path
    _since_ns: int = 0
    _until_ns: int = 0
    _offset: int = 0

    async def start(self) -> None:
        """Trace each request that begins from now on. ServerError when the server refuses."""
        self._offset = self.file.stat().st_size if self.file.exists() else 0
        await self._set(_ON)
        self._since_ns = _now_ns()

    async def stop(self, least: int) -> list[float]:
        """Stop tracing; service times in ms since `start`. Waits, bounded, until so many are written, but for those in a buffer.

        Raises:
            ServerError: the server refuses, or more are missing than the server's buffer holds.
        """
        self._until_ns = _now_ns()
        await self._set(_OFF)
        clock = asyncio.get_running_loop()
        deadline_s, grown_s, most = clock.time() + _FLUSH_S, clock.time(), 0
        while True:
            found = await asyncio.to_thread(self._read)
            if len(found) > most:
                most, grown_s = len(found), clock.time()
            if len(found) >= least or (clock.time() - grown_s > _GROWS_S and len(found) >= least - BUFFERED):
                return found
            if clock.time() > deadline_s:
                raise ServerError(f"server {self.server.name}: trace {self.file} holds {len(found)} requests of {least} that were served")
            await asyncio.sleep(_POLL_S)

    def _read(self) -> list[float]:
        if not self.file.exists():
            return []
        with self.file.open("rb") as content:
            content.seek(self._offset)
            return parse_trace(content.read(), self._since_ns, self._until_ns)

    async def _set(self, level: str) -> None:
        headers = {KEY_HEADER: self.server.model_control_key} if self.server.model_control_key else None
        try:
            await self.client.update_trace_settings(settings={"trace_level": [level]}, headers=headers)
        except InferenceServerException as error:
            raise ServerError(f"server {self.server.name}: trace level {level}: {error.message()}; see {self.server.log_file}") from error


def _now_ns() -> int:
    """The event loop's clock, which on Linux is the monotonic one that Triton stamps with."""
    return int(asyncio.get_running_loop().time() * 1e9)
