"""Models that fail on a server: more of their requests fail there than those of other servers explain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from themis_triton.core.estimate import ModelFailure
from themis_triton.core.fleet import Phase, Server
from themis_triton.estimate.served import Served, ServedSeries

Readings = Sequence[tuple[float, Served]]
"""Times (s) and totals of one model on one server."""

MIN_FRACTION = 0.5
"""A smaller share of failed requests is no fault of the server."""
MAX_CHANCE = 1e-5
"""A server fails a model where chance would explain its failures, at the share of the other servers, less often than this."""
MIN_FAILED_EVERYWHERE = 5


def find_failures(served: Mapping[str, ServedSeries], servers: Iterable[Server]) -> tuple[ModelFailure, ...]:
    """The models that fail on one server while others serve them, and those that fail every request on every server.

    Each is judged over the kept readings: one server over their newest part in which its failures are beyond chance.
    """
    holders: dict[str, dict[str, Readings]] = {}
    for server in servers:
        for model in server.models if server.phase is Phase.SERVING and server.name in served else ():
            readings = served[server.name].readings(model)
            if readings:
                holders.setdefault(model, {})[server.name] = readings
    return tuple(failure for model, series in sorted(holders.items()) for failure in _failures_of(model, series))


def _failures_of(model: str, series: Mapping[str, Readings]) -> Iterator[ModelFailure]:
    kept = {name: _increase(each, 0) for name, each in sorted(series.items())}
    failed, ended = sum(each.failed for each in kept.values()), sum(each.ended for each in kept.values())
    if not failed:
        return
    if failed >= MIN_FAILED_EVERYWHERE and failed == ended:
        yield ModelFailure(model, None, failed, ended, min(each[0][0] for each in series.values()))
        return
    for name, own in kept.items():
        others_failed, others_ended = failed - own.failed, ended - own.ended
        if own.failed and others_ended > others_failed:
            share = (others_failed + 1.0) / (others_ended + 2.0)
            yield from _failure_of(model, name, series[name], share)


def _failure_of(model: str, server: str, series: Readings, share: float) -> Iterator[ModelFailure]:
    """The failure of one server, over the newest readings that show it; `share`: of the other servers' requests, those that failed."""
    for first in range(len(series) - 2, -1, -1):
        window = _increase(series, first)
        if window.failed and window.failed >= MIN_FRACTION * window.ended and _chance(window, share) < MAX_CHANCE:
            yield ModelFailure(model, server, window.failed, window.ended, series[first][0])
            return


def _increase(series: Readings, first: int) -> Served:
    """What ended between a reading and the newest one."""
    return Served._make([end - start for start, end in zip(series[first][1], series[-1][1], strict=True)])


def _chance(window: Served, share: float) -> float:
    """Bound on the probability that so many or more of the requests fail where each fails with the probability `share` (Chernoff)."""
    fraction = window.failed / window.ended
    if fraction <= share:
        return 1.0
    information = fraction * math.log(fraction / share)
    if fraction < 1.0:
        information += (1.0 - fraction) * math.log((1.0 - fraction) / (1.0 - share))
    return math.exp(-window.ended * information)
