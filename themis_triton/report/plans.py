"""A picture of plans by arrival rate: servers, instances, batches, predicted p99 and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from themis_triton.report import panels, style
from themis_triton.report.pictures import WIDTH_IN, set_title
from themis_triton.solver.plans import StageSize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Sequence[float] | Sequence[float | None]


@dataclass(frozen=True, slots=True)
class PlanSeries:
    """One plan per rate, in ascending order of `rate_rps`. `stages` has one row per stage. None: p99 is unbounded."""

    rate_rps: Sequence[float]
    feasible: Sequence[bool]
    p99_ms: Row
    cost: Sequence[float]
    stages: Sequence[Sequence[StageSize]]


def draw_plans(plans: PlanSeries, slo_ms: float, title: str, path: Path) -> None:
    """Draw panels for servers, instances and batch per stage, p99 and the SLO, and cost. Infeasible rates are shaded.

    EnvironmentCheckError without the extra `report`, SettingsError if the file cannot be written.
    """
    ratios = (1.1, 1.1, 1.1, 1.4, 1.2)
    with style.picture(path, ratios, WIDTH_IN, 9.6) as (figure, axes):
        servers, instances, batches, latency, cost = axes
        set_title(figure, title, _verdict(plans, slo_ms))
        for panel in axes:
            _shade_infeasible(panel, plans)
        _draw_stages(servers, plans, lambda stage: stage.servers, "Servers")
        _draw_stages(instances, plans, lambda stage: stage.instances, "Instances or cores per server")
        _draw_stages(batches, plans, lambda stage: stage.batch, "Maximum batch size")
        panels.legend(servers)
        _line(latency, plans, plans.p99_ms, style.LATENCY, "p99")
        latency.axhline(slo_ms, color=style.LIMIT, linewidth=1.3, linestyle=(0, (5, 3)), label=f"SLO {slo_ms:g} ms")
        _line(cost, plans, plans.cost, style.SERVERS, "")
        for panel, name, unit in ((latency, "Predicted p99", "ms"), (cost, "Cost", "per second, in the prices' unit")):
            panel.set_ylim(bottom=0, top=1.12 * panel.get_ylim()[1])
            panels.heading(panel, name, unit)
        panels.legend(latency)
        _draw_rates(cost, plans)


def _draw_stages(panel: Axes, plans: PlanSeries, value: Callable[[StageSize], int], name: str) -> None:
    """Draw one line per stage. Later lines are thinner, so that equal lines remain visible."""
    rows = [[value(size) for size in stage] for stage in plans.stages]
    for index, (stage, row) in enumerate(zip(plans.stages, rows, strict=True)):
        colour = style.RUN_COLOURS[index % len(style.RUN_COLOURS)]
        _line(panel, plans, row, colour, stage[0].name, width=2.0 + 0.8 * (len(rows) - 1 - index))
    panel.set_ylim(0, 1.2 * max(max(row) for row in rows) + 0.3)
    panel.locator_params(axis="y", integer=True, nbins=4)
    panels.heading(panel, name)


def _line(panel: Axes, plans: PlanSeries, row: Row, colour: str, label: str, *, width: float = 2.0) -> None:
    """Draw a marker at each planned rate, unless the markers would touch."""
    marker = "o" if len(plans.rate_rps) <= 60 else ""
    panel.plot(plans.rate_rps, panels.values(row), color=colour, linewidth=width, marker=marker, markersize=3.5, label=label or None)


def _shade_infeasible(panel: Axes, plans: PlanSeries) -> None:
    rates = np.asarray(plans.rate_rps, dtype=np.float64)
    middles = (rates[1:] + rates[:-1]) / 2.0
    edges = np.concatenate([rates[:1], middles, rates[-1:]])
    for index, feasible in enumerate(plans.feasible):
        if not feasible:
            panel.axvspan(edges[index], edges[index + 1], color=style.LIMIT, alpha=0.12, linewidth=0, zorder=0)


def _draw_rates(panel: Axes, plans: PlanSeries) -> None:
    first, last = plans.rate_rps[0], plans.rate_rps[-1]
    beside = 1.0 if first == last else 0.01 * (last - first)
    panel.set_xlim(first - beside, last + beside)
    panel.set_xlabel("arrival rate, requests/s", fontsize=9.5)


def _verdict(plans: PlanSeries, slo_ms: float) -> str:
    feasible = sum(plans.feasible)
    shaded = "; shaded: infeasible, the plan with the largest rate is shown" if feasible < len(plans.feasible) else ""
    return f"{feasible} of {len(plans.feasible)} rates have a plan inside the SLO of {slo_ms:g} ms{shaded}"
