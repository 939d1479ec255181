"""Service times of single requests, from Triton's trace timestamps.

Triton's statistics are sums, so they give a mean but no percentile. Its trace holds `COMPUTE_START` and `COMPUTE_END` of each request on
this machine's monotonic clock: the time for which the request occupied an instance, which is the service time. The trace file of an adopted
server cannot be read; there, the client's time minus the mean time outside the instance is used. Its percentile includes the jitter of
client and network. No request may wait in the model's queue then, so an instance idles until the client's next request arrives.
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
# Triton writes its trace through a buffer of 8 KiB, about nine requests, which on machines with many cores may stay there without limit.
# So a file that no longer grows is accepted if no more requests are missing than fit into the buffer.
_GROWS_S = 0.5
BUFFERED = 16


def trace_arguments(file: Path) -> tuple[str, ...]:
    """The arguments of `tritonserver` that allow tracing to be switched on later."""
    return tuple(f"--trace-config={setting}" for setting in (f"triton,file={file}", "rate=1", f"level={_OFF}"))


def parse_trace(content: bytes, since_ns: int, until_ns: int) -> list[float]:
    """Service times in ms of the requests that started and ended between the two times, ordered by start.

    This excludes requests in flight while tracing is switched on or off, because the switch makes the server pause.
    """
    stamps: dict[int, dict[bytes, int]] = {}
    for number, name, at_ns in _STAMP.findall(content):
        stamps.setdefault(int(number), {})[name] = int(at_ns)
    whole = sorted((pair[b"START"], pair[b"END"]) for pair in stamps.values() if len(pair) == 2)
    return [(end - start) / 1e6 for start, end in whole if start >= since_ns and end <= until_ns]


def without_overhead(client_ms: Sequence[float], server_mean_ms: float) -> list[float]:
    """Client-side times minus the mean time outside the instance; at least 0.

    Args:
        client_ms: from send to response.
        server_mean_ms: mean compute time (input, inference, output) of the same requests, from Triton's statistics.
    """
    overhead_ms = max(0.0, sum(client_ms) / len(client_ms) - server_mean_ms)
    return [max(0.0, value - overhead_ms) for value in client_ms]


@dataclass(slots=True)
class Tracer:
    """Switches a launched server's trace on and off and reads the requests traced in between."""

    client: Any
    server: Server
    file: Path
    _since_ns: int = 0
    _until_ns: int = 0
    _offset: int = 0

    async def start(self) -> None:
        """Trace each request that starts from now on. Raises ServerError if the server refuses."""
        self._offset = self.file.stat().st_size if self.file.exists() else 0
        await self._set(_ON)
        self._since_ns = _now_ns()

    async def stop(self, min_count: int) -> list[float]:
        """Service times in ms since `start`; tracing stops. Waits a bounded time until `min_count` requests are written or buffered.

        Raises:
            ServerError: the server refuses, or more requests are missing than its buffer holds.
        """
        self._until_ns = _now_ns()
        await self._set(_OFF)
        clock = asyncio.get_running_loop()
        deadline_s, grown_s, count = clock.time() + _FLUSH_S, clock.time(), 0
        while True:
            times_ms = await asyncio.to_thread(self._read)
            if len(times_ms) > count:
                count, grown_s = len(times_ms), clock.time()
            if count >= min_count or (clock.time() - grown_s > _GROWS_S and count >= min_count - BUFFERED):
                return times_ms
            if clock.time() > deadline_s:
                raise ServerError(f"server {self.server.name}: trace {self.file} holds {count} of {min_count} served requests")
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
    """The event loop's clock: on Linux the monotonic clock of Triton's timestamps."""
    return int(asyncio.get_running_loop().time() * 1e9)
