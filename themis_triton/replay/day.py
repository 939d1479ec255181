"""Compares a day with what the settings would have made of its arrivals, hour by hour, within a bounded time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from themis_triton.core.config import Mode, ThemisConfig
from themis_triton.core.day_report import DayAccount, DayReport, report_sentence
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import Models
from themis_triton.core.history import TrafficMinute, UsageMinute
from themis_triton.decide.policy import Load
from themis_triton.replay.otherwise import arrival_times, measured_account
from themis_triton.sim.result import SimResult, used_between
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions
from themis_triton.sim.starts import prepared

BUDGET_S = 1800.0
"""Processor time of a report that a user asks for; hours that it does not suffice for are left out, evenly over the day."""
PIECE_S, LEAD_S = 3600.0, 300.0
"""An hour is simulated by itself, after a lead in which the servers that it needs are started; the lead does not count."""
OBSERVED = 0.9
"""An hour is compared if at least this fraction of it was observed."""


@dataclass(frozen=True, slots=True)
class DayData:
    """A local day from the journal, with the traffic of `LEAD_S` before it, and the models of the servers at a start."""

    day: str
    start_s: float
    end_s: float
    usage: Sequence[UsageMinute]
    traffic: Sequence[TrafficMinute]
    first: tuple[Models, ...]


def day_report(
    data: DayData,
    config: ThemisConfig,
    at_s: float,
    spent_s: Callable[[], float],
    piece_s: float = PIECE_S,
    *,
    budget_s: float = BUDGET_S,
) -> DayReport:
    """The report of a day. `spent_s`: the processor time used so far, of `budget_s`."""
    observed_s = sum(minute.seconds for minute in data.usage)
    pieces = [each for each in _in_turn(data, piece_s) if _observed(data, each, piece_s) >= OBSERVED * piece_s]
    done, results, missing = [], list[SimResult](), _missing(config, data, observed_s, len(pieces))
    for start_s in () if missing else pieces:
        if results and spent_s() * (1.0 + 1.0 / len(results)) > budget_s:
            break
        try:
            results.append(_simulated(data, config, start_s, piece_s))
        except SettingsError as error:
            missing = str(error)
            break
        done.append(start_s)
    within = [each for each in data.usage if any(start_s <= each.at_s < start_s + piece_s for start_s in done or [data.start_s])]
    minutes = {each.at_s for each in (within if done else data.usage)}
    had = measured_account("", [u for u in data.usage if u.at_s in minutes], [t for t in data.traffic if t.at_s in minutes], None)
    measured = DayAccount(had.requests, had.late, had.server_hours, had.instance_hours, had.cost, dict(had.late_by_pipeline))
    simulated = _joined(results) if results and not missing else None
    report = DayReport(data.day, at_s, config.mode.value, len(done), observed_s / 3600.0, measured, simulated, missing)
    return replace(report, sentence=report_sentence(report))


def _missing(config: ThemisConfig, data: DayData, observed_s: float, pieces: int) -> str:
    """Why a day cannot be compared; empty where it can."""
    unknown = [pipeline.name for pipeline in config.pipelines if not config.knows(pipeline)]
    if unknown:
        return f"the service times of {', '.join(unknown)} are not known yet"
    if not pieces:
        return f"{observed_s / 60.0:.0f} minutes were observed, and no whole hour"
    if not any(sum(minute.arrivals) for minute in data.traffic):
        return "no request arrived"
    return ""


def _in_turn(data: DayData, piece_s: float) -> list[float]:
    """The starts of the day's pieces, so that the first few of them are spread over the day."""
    count = max(1, round((data.end_s - data.start_s) / piece_s))
    bits = max(1, (count - 1).bit_length())
    turned = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return [data.start_s + piece_s * number for number in turned if number < count]


def _observed(data: DayData, start_s: float, piece_s: float) -> float:
    return sum(minute.seconds for minute in data.usage if start_s <= minute.at_s < start_s + piece_s)


def _simulated(data: DayData, config: ThemisConfig, start_s: float, piece_s: float) -> SimResult:
    """What the settings, in force, would have made of a piece, without its lead."""
    times = arrival_times(data.traffic, start_s - LEAD_S, piece_s + LEAD_S)
    seconds = [np.bincount(each.astype(np.int64)) for each in times.values() if each.size]
    largest_rps = max((float(counts.max()) for counts in seconds), default=0.0)
    active = replace(config, mode=Mode.ACTIVE)
    own = prepared(active, active.policy.name, Load(largest_rps, largest_rps))
    result = simulate(own, times, piece_s + LEAD_S, SimOptions(servers=data.first or None, keep_ticks=False))
    runs = tuple(
        replace(run, arrival_s=run.arrival_s[late], latency_ms=run.latency_ms[late], failed=run.failed[late], refused=run.refused[late])
        for run in result.pipelines
        for late in (run.arrival_s >= LEAD_S,)
    )
    from_s = result.start_s + LEAD_S
    usage = used_between(result.usage, from_s, from_s + piece_s)
    return replace(result, pipelines=runs, usage=usage, start_s=from_s, duration_s=piece_s)


def _joined(results: Sequence[SimResult]) -> DayAccount:
    violated, count = dict[str, int](), dict[str, int]()
    for run in (run for result in results for run in result.pipelines):
        violated[run.name] = violated.get(run.name, 0) + int(np.count_nonzero(run.violated))
        count[run.name] = count.get(run.name, 0) + run.arrival_s.size
    total = sum(count.values())
    return DayAccount(
        requests=total,
        late=sum(violated.values()) / total if total else None,
        server_hours=sum(result.server_seconds for result in results) / 3600.0,
        instance_hours=sum(result.instance_seconds for result in results) / 3600.0,
        cost=sum(result.cost for result in results),
        late_by_pipeline={name: violated[name] / requests for name, requests in count.items() if requests},
    )
