"""Pictures of one run, and of several runs of the same load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from themis_triton.report import panels, style
from themis_triton.report.series import Row, RunSeries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN = 10.0
WIDEST_LINE = 4.0
_TITLE_PT = 14.0
_SUBTITLE_PT = 9.5
_LINE_SPACING = 1.35


def draw_run(run: RunSeries, slo_ms: float, title: str, path: Path) -> None:
    """Draw one run: demand and capacity, actions, p99 and the SLO, servers and instances, as `.png`, `.svg` or `.pdf`.

    EnvironmentCheckError without the extra `report`, SettingsError if the file cannot be written.
    """
    kinds = len({event.kind for event in run.events})
    ratios = (2.2, 0.2 * kinds + 0.1, 1.6, 0.75, 0.9) if kinds else (2.2, 1.6, 0.75, 0.9)
    with style.picture(path, ratios, WIDTH_IN, 1.1 * sum(ratios) + 2.0) as (figure, axes):
        set_title(figure, title, _verdict(run, slo_ms))
        remaining = iter(axes)
        panels.draw_demand(next(remaining), run)
        if kinds:
            panels.draw_events(next(remaining), run.events)
        latency = next(remaining)
        panels.draw_violations(latency, run)
        panels.draw_latency(latency, [(run, style.LATENCY)], slo_ms)
        panels.draw_counts(next(remaining), *_servers(run), filled=True)
        panels.draw_counts(next(remaining), [(run.instances, style.INSTANCES, 2.0)], f"{run.counted}, all servers", filled=True)
        panels.draw_time(axes[-1], [run])


def _servers(run: RunSeries) -> tuple[list[tuple[Row, str, float]], str]:
    """The rows and the heading of the panel of servers: with their devices, where a server has more than one."""
    servers = (run.servers, style.SERVERS, 2.0)
    if not len(run.devices) or np.array_equal(panels.values(run.devices), panels.values(run.servers), equal_nan=True):
        return [servers], "Servers"
    return [(run.devices, style.INSTANCES, 2.0), servers], "Servers, and above them the devices on which they have instances"


def draw_comparison(runs: Sequence[RunSeries], slo_ms: float, title: str, path: Path) -> None:
    """Draw several runs of the same load: demand, p99, cumulative violations, servers, instances, one colour per run.

    Raises the errors of `draw_run`, and ValueError without runs.
    """
    if not runs:
        raise ValueError("a comparison needs at least one run")
    coloured = [(run, style.RUN_COLOURS[index % len(style.RUN_COLOURS)]) for index, run in enumerate(runs)]
    # Later lines are thinner, so that equal lines remain visible.
    widths = np.linspace(min(2.0 + 0.8 * (len(runs) - 1), WIDEST_LINE), 1.5, len(runs)).tolist()
    ratios = (1.0, 1.9, 1.2, 0.8, 1.0)
    with style.picture(path, ratios, WIDTH_IN, 8.8) as (figure, axes):
        demand, latency, violations, servers, instances = axes
        set_title(figure, title, "\n".join(_verdict(run, slo_ms, named=True) for run in runs))
        rate = panels.values(runs[0].rate_rps)
        demand.fill_between(np.arange(rate.size) + 0.5, rate, color=style.MUTED, alpha=0.35, linewidth=0)
        demand.set_ylim(bottom=0)
        panels.heading(demand, "Demand", "requests/s")
        panels.draw_latency(latency, coloured, slo_ms)
        for (run, colour), width in zip(coloured, widths, strict=True):
            panels.steps(violations, np.cumsum(panels.values(run.violations)), colour, "", width=width)
        violations.set_ylim(bottom=0)
        panels.heading(violations, "Requests outside the SLO, cumulative")
        panels.draw_counts(
            servers, [(run.servers, c, width) for (run, c), width in zip(coloured, widths, strict=True)], "Servers", filled=False
        )
        panels.draw_counts(
            instances,
            [(run.instances, c, width) for (run, c), width in zip(coloured, widths, strict=True)],
            f"{runs[0].counted}, all servers",
            filled=False,
        )
        panels.draw_time(axes[-1], runs)


def set_title(figure: Figure, title: str, subtitle: str) -> None:
    """Put the title above the subtitle; empty lines in the title reserve the subtitle's space."""
    lines = subtitle.count("\n") + 1
    reserved = "\n" * math.ceil(lines * _SUBTITLE_PT * _LINE_SPACING / _TITLE_PT)
    left, height_pt = 0.012, 72.0 * figure.get_figheight()
    figure.suptitle(title + reserved, x=left, ha="left", fontsize=_TITLE_PT, fontweight="bold", color=style.INK)
    figure.text(
        left,
        1.0 - 1.9 * _TITLE_PT / height_pt,
        subtitle,
        ha="left",
        va="top",
        fontsize=_SUBTITLE_PT,
        color=style.MUTED,
        linespacing=_LINE_SPACING,
    )


def _verdict(run: RunSeries, slo_ms: float, *, named: bool = False) -> str:
    requests, outside, failed = (round(np.nansum(panels.values(row))) for row in (run.rate_rps, run.violations, run.failed))
    share = 100.0 * outside / requests if requests else 0.0
    name = f"{run.label}: " if named else ""
    server_s, instance_s = np.nansum(panels.values(run.servers)), np.nansum(panels.values(run.instances))
    cost = f"{server_s:,.0f} server-seconds, {instance_s:,.0f} instance-seconds"
    return f"{name}{outside:,} of {requests:,} requests ({share:.2f} %) outside the SLO of {slo_ms:g} ms, {failed:,} failed; {cost}"
