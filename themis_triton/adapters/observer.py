"""The Observer port over Triton's metrics, Envoy's statistics and NVML. Devices of other machines are read from Triton's metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from themis_triton.adapters.envoy.stats import EnvoyStats
from themis_triton.adapters.envoy.xds.stats import SummedStats
from themis_triton.adapters.nvml import DeviceReader
from themis_triton.adapters.triton.metrics import TritonMetrics
from themis_triton.core.fleet import Server
from themis_triton.core.observation import Readings


@dataclass(frozen=True, slots=True)
class LiveObserver:
    """Implements `Observer`. Use it from one event loop, and `close` it there. `free_places`: of the last reading of nodes."""

    metrics: TritonMetrics
    stats: EnvoyStats | SummedStats
    devices: DeviceReader
    free_places: Callable[[], dict[str, int]] = dict

    async def read(self, servers: Sequence[Server], resting: Collection[str] = ()) -> Readings:
        """All sources at once. A slow server or proxy is waited for as long as its reader says; its answer is used by a later call."""
        readings, (routes, routes_error), devices = await asyncio.gather(
            self.metrics.read_servers(servers, resting), self.stats.read_routes(), self.devices.read_devices()
        )
        return Readings(readings, routes, routes_error, (*devices, *self.metrics.remote_devices()), self.free_places())

    async def count_arrivals(self) -> float | None:
        """All inference requests that came in so far, at a fraction of the cost of `read`. None when the proxy does not answer."""
        return await self.stats.count_arrivals()

    async def close(self) -> None:
        """Close the connections and the driver."""
        await self.metrics.close()
        await self.stats.close()
        self.devices.close()
