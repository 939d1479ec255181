"""Arrivals that are known in advance, as in a simulation: what a perfect forecast says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class KnownArrivals:
    """The arrival times of each pipeline's requests, ascending, on the clock of the ticks (s)."""

    times_s: Mapping[str, npt.NDArray[np.float64]]

    def largest_rps(self, pipeline: str, start_s: float, end_s: float, window_s: float) -> float:
        """The largest mean rate of a window that begins between two times; 0 where nothing arrives."""
        times = self.times_s[pipeline]
        first, last = np.searchsorted(times, (start_s, end_s))
        if first == last:
            return 0.0
        ends = np.searchsorted(times, times[first:last] + window_s)
        return float((ends - np.arange(first, last)).max()) / window_s
