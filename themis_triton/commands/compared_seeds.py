"""Several seeds of a comparison as one: means, and the interval in which the true mean of the late requests lies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from themis_triton.commands.compared_runs import ComparedRun, RunFigures
from themis_triton.commands.host_use import HostUse
from themis_triton.core.server_kind import mean_seconds

STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantiles of Student's distribution with 1, 2, … degrees of freedom; for more, nearly the last."""


def pooled(runs: Sequence[ComparedRun]) -> ComparedRun:
    """All runs of one policy as one: sums of requests, failures and actions, means of the rest, and the series of the first run."""
    measured, simulated = [run.measured for run in runs], [run.simulated for run in runs]
    busy = [run.host.busy_cores for run in runs if run.host.busy_cores is not None]
    return replace(
        runs[0],
        measured=_mean_figures(measured),
        simulated=_mean_figures(simulated),
        bound_cost=fmean(run.bound_cost for run in runs),
        load_average=(runs[0].load_average[0], runs[-1].load_average[1]),
        host=HostUse(runs[0].host.cores, max(busy) if busy else None),
        seeds=sum(run.seeds for run in runs),
        violations_error=halfwidth([run.violations for run in measured]),
        references={name: _mean_figures([run.references[name] for run in runs]) for name in runs[0].references},
    )


def halfwidth(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    return STUDENT_95[min(len(values) - 1, len(STUDENT_95)) - 1] * stdev(values) / math.sqrt(len(values))


def _mean_figures(figures: Sequence[RunFigures]) -> RunFigures:
    actions = Counter[str]()
    for each in figures:
        actions.update(each.actions)
    return RunFigures(
        requests=sum(each.requests for each in figures),
        failed=sum(each.failed for each in figures),
        violations=fmean(each.violations for each in figures),
        p50_ms=_mean(each.p50_ms for each in figures),
        p99_ms=_mean(each.p99_ms for each in figures),
        cost=fmean(each.cost for each in figures),
        server_seconds=fmean(each.server_seconds for each in figures),
        instance_seconds=fmean(each.instance_seconds for each in figures),
        max_servers=max(each.max_servers for each in figures),
        actions=dict(actions),
        server_seconds_by_kind=mean_seconds([each.server_seconds_by_kind for each in figures]),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
