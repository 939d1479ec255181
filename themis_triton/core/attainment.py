"""SLO attainment by request: how many ended, how many of them too late, and what is left of the error budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from themis_triton.core.construction import quick_init

_ROUNDING = 1e-6
"""What may be left of a sum of fractions from which all of them were taken away."""


@quick_init
@dataclass(frozen=True, slots=True)
class EndedRequests:
    """Requests of a pipeline that ended in some time, and those of them that missed the SLO: answered too late, or with an error.

    Refused ones (`overload: shed`) are neither.
    """

    requests: float = 0.0
    late: float = 0.0

    def __add__(self, other: EndedRequests) -> EndedRequests:
        """Those of both times."""
        return EndedRequests(self.requests + other.requests, self.late + other.late)

    def __sub__(self, other: EndedRequests) -> EndedRequests:
        """Without those of a part of the time."""
        return EndedRequests(max(0.0, self.requests - other.requests), max(0.0, self.late - other.late))


Ended = Mapping[str, EndedRequests]
"""By pipeline."""
NOTHING_ENDED: Ended = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SloWindow:
    """A window of time: requests, late ones, the fraction in time, and the fraction of the error budget that is left.

    The budget is what the objective lets be late: 1 % with the percentile 99. It is negative where more were late. Null without requests.
    """

    requests: float = 0.0
    late: float = 0.0
    attainment: float | None = None
    budget_left: float | None = None


def slo_window(ended: EndedRequests, percentile: float) -> SloWindow:
    """The window of these requests, with the objective that the percentile states."""
    if ended.requests < _ROUNDING:
        return SloWindow()
    fraction = min(1.0, ended.late / ended.requests)
    return SloWindow(ended.requests, ended.late, 1.0 - fraction, 1.0 - fraction / (1.0 - percentile / 100.0))
