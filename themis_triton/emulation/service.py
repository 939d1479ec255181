"""The emulated service: a batch progresses at the speed of the device's current contention."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable

import numpy as np

from themis_triton.emulation.device import DeviceSeat
from themis_triton.emulation.surface import Surface

_SLICE_S = 0.010
_SLICE_SHARE = 1 / 16
_CARRY_SHARE = 0.2


class Service:
    """Serves batches on a seat by sleeping, so that the mean service time equals the surface's.

    The sleep is divided into slices of 10 ms, or a sixteenth of the service time if that is longer: a wake-up costs 0.1 ms of a core.
    In each slice the batch progresses by `slice / l(b, k)` with the k counted at its start, and the last slice ends with the batch.
    The lateness of a wake-up is subtracted from the next batch (at most a fifth of it), so that the mean is unbiased.

    Args:
        surface: service time in ms over (batch, busy instances).
        seat: this instance's seat at its device.
        scale: factor read at each slice.
        draw: factor drawn once per batch (noise).
        around_s: the caller's own time per batch; it is part of the service time, so the sleep is shorter by it.
    """

    def __init__(
        self, surface: Surface, seat: DeviceSeat, scale: Callable[[], float], draw: Callable[[], float], around_s: float = 0.0
    ) -> None:
        self._surface = surface
        self._seat = seat
        self._scale = scale
        self._draw = draw
        self._around_s = around_s
        self._carry_s = 0.0

    def serve(self, batch: int, begun_s: float | None = None) -> None:
        """Wait until a batch of `batch` requests that began at `begun_s` (`time.perf_counter`, by default now) is done on the device."""
        with self._seat.busy():
            noise = self._draw()
            at_s = time.perf_counter() if begun_s is None else begun_s
            duration_s = self._duration_s(batch, noise)
            left = 1.0 - min((self._carry_s + self._around_s) / duration_s, _CARRY_SHARE)
            while True:
                now_s = time.perf_counter()
                left -= (now_s - at_s) / duration_s
                at_s = now_s
                if left <= 0:
                    break
                duration_s = self._duration_s(batch, noise)
                time.sleep(min(left * duration_s, max(_SLICE_S, _SLICE_SHARE * duration_s)))
            self._carry_s = -left * duration_s

    def _duration_s(self, batch: int, noise: float) -> float:
        return self._surface.service_ms(batch, self._seat.busy_count()) * self._scale() * noise / 1000.0


def noise_factors(cv: float, instance: str) -> Callable[[], float]:
    """Lognormal factors of mean 1 and the given coefficient of variation; the sequence is the same for every instance."""
    if cv == 0:
        return lambda: 1.0
    sigma = math.sqrt(math.log1p(cv**2))
    generator = np.random.default_rng(zlib.crc32(instance.encode()))
    return lambda: float(generator.lognormal(-sigma * sigma / 2, sigma))
