"""What policies ask the planner, and how it is rounded, so that one answer serves many ticks."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

from themis_triton.decide.demand import Demand

DISPERSION_STEP = 0.25
FINE_RPS, FINE_FRACTION = 0.5, 0.01
BUSY_EXACT = 16


class PlanQuery(NamedTuple):
    """A demand on a pipeline; `batch_caps` None: any batch of the settings. `free_instances`: only servers have a price.

    `min_servers` stay whatever the plan, because they were adopted. `extra_places` of the places share the queue of one of `processes`
    servers.
    """

    pipeline: str
    demand: Demand
    batch_caps: tuple[int, ...] | None
    busy_elsewhere: int = 0
    free_instances: bool = False
    min_servers: int = 1
    processes: int = 0
    extra_places: int = 0

    def rounded(self) -> Self:
        """With a demand of half requests/s, or of steps of one per cent where that is more, and the dispersion in quarters.

        Exact demands as they are.
        """
        demand = self.demand
        if demand.exact:
            return self
        dispersion = math.ceil(demand.dispersion / DISPERSION_STEP - 1e-9) * DISPERSION_STEP
        return self._replace(
            busy_elsewhere=rounded_busy(self.busy_elsewhere),
            demand=Demand(
                rounded_up_rps(demand.rate_rps),
                rounded_up_rps(demand.extra_rps),
                dispersion,
                demand.sigmas,
                other_rps=tuple(rounded_up_rps(rps) for rps in demand.other_rps),
            ),
        )

    @property
    def load(self) -> tuple[float, ...]:
        """The numbers that never make fewer servers enough as they rise."""
        return (self.demand.rate_rps, self.demand.extra_rps, self.demand.dispersion, self.busy_elsewhere)

    def unloaded(self) -> Self:
        """What else is asked."""
        return self._replace(demand=self.demand._replace(rate_rps=0.0, extra_rps=0.0, dispersion=1.0), busy_elsewhere=0)


def rounded_up_rps(rate_rps: float, fraction: float = FINE_FRACTION) -> float:
    """A rate rounded up to a step of `fraction` of its power of two, of half a request/s at least; 0 for less than nothing."""
    if rate_rps <= 0.0:
        return 0.0
    step = max(FINE_RPS, fraction * 2.0 ** math.floor(math.log2(rate_rps)))
    return math.ceil(rate_rps / step - 1e-9) * step


def rounded_busy(instances: int) -> int:
    """Busy instances of others, rounded up to a sixteenth of their power of two: many of them differ by some at every tick."""
    step = max(1, 2 ** (instances.bit_length() - 5)) if instances > BUSY_EXACT else 1
    return -(-instances // step) * step
