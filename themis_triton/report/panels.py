"""The panels of pictures. Each function draws into the given axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from themis_triton.report import style
from themis_triton.report.series import EventKind, Row, RunEvent, RunSeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]

LOG_SCALE_FROM = 5.0

_MARKERS = {
    EventKind.GROW: ("^", style.INSTANCES, "more instances"),
    EventKind.SHRINK: ("v", style.MUTED, "fewer instances"),
    EventKind.REBATCH: ("s", style.LATENCY, "batch size changed"),
    EventKind.LAUNCH: ("P", style.SERVERS, "server launched"),
    EventKind.RETIRE: ("X", style.INK, "server retired"),
    EventKind.FAULT: ("*", style.LIMIT, "fault"),
    EventKind.DRIFT: ("D", style.DEMAND, "drift"),
}


def values(row: Row) -> FloatArray:
    """A row as an array, with NaN for unknown values: lines have gaps there."""
    return np.array([np.nan if value is None else value for value in row], dtype=np.float64)


def heading(panel: Axes, text: str, unit: str = "") -> None:
    """Put the panel's name at its upper left, instead of a rotated axis label."""
    panel.set_title(f"{text}  ({unit})" if unit else text, loc="left", fontsize=10, fontweight="bold", color=style.INK)


def legend(panel: Axes) -> None:
    """Put the legend in one row at the upper right, beside the heading."""
    handles, _ = panel.get_legend_handles_labels()
    if handles:
        panel.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles), borderaxespad=0.1, columnspacing=1.2, handlelength=1.4
        )


def steps(panel: Axes, row: FloatArray, colour: str, label: str, *, width: float = 2.0, filled: bool = False) -> None:
    """Draw a row as steps: each value is constant for its second."""
    edges = np.arange(row.size + 1)
    repeated = np.append(row, row[-1:])
    if filled:
        panel.fill_between(edges, repeated, step="post", color=colour, alpha=0.18, linewidth=0)
    panel.step(edges, repeated, where="post", color=colour, linewidth=width, label=label)


def draw_demand(panel: Axes, run: RunSeries) -> None:
    """Draw arrivals as an area under the capacity's steps, red where they exceed it."""
    rate, capacity = values(run.rate_rps), values(run.capacity_rps)
    middle = np.arange(rate.size) + 0.5
    panel.fill_between(middle, rate, color=style.DEMAND, alpha=0.16, linewidth=0)
    panel.plot(middle, rate, color=style.DEMAND, linewidth=1.6, label="arrivals")
    if np.isfinite(capacity).any():
        over = rate > capacity
        label = "above capacity" if over.any() else None
        panel.fill_between(middle, capacity, rate, where=over, step="mid", color=style.LIMIT, alpha=0.35, linewidth=0, label=label)
        steps(panel, capacity, style.CAPACITY, "capacity within the SLO")
    panel.set_ylim(0, 1.18 * max(1.0, rate.max(initial=0.0), np.nanmax(capacity, initial=0.0)))
    heading(panel, "Demand and capacity", "requests/s")
    legend(panel)


def draw_events(panel: Axes, events: Sequence[RunEvent]) -> None:
    """Draw events as markers in a narrow band; launched and retired servers also have a label."""
    kinds = [kind for kind in _MARKERS if any(event.kind is kind for event in events)]
    for row, kind in enumerate(kinds):
        marker, colour, _ = _MARKERS[kind]
        at_s = [event.at_s for event in events if event.kind is kind]
        panel.plot(
            at_s, [row] * len(at_s), linestyle="none", marker=marker, markersize=7, color=colour, markeredgecolor="white", clip_on=False
        )
    panel.set_yticks(range(len(kinds)), [_MARKERS[kind][2] for kind in kinds], fontsize=9)
    panel.set_ylim(len(kinds) - 0.4, -0.6)
    heading(panel, "Actions")


def draw_latency(panel: Axes, runs: Sequence[tuple[RunSeries, str]], slo_ms: float) -> None:
    """Draw p99 per second and the SLO, one colour per run, with a logarithmic axis if p99 is far above the SLO."""
    highest = slo_ms
    for depth, (run, colour) in enumerate(runs):
        p99 = values(run.p99_ms)
        panel.plot(
            np.arange(p99.size) + 0.5,
            p99,
            color=colour,
            linewidth=1.5,
            zorder=3 - 0.1 * depth,
            label="p99" if len(runs) == 1 else run.label,
        )
        highest = max(highest, float(np.nanmax(p99, initial=0.0)))
    panel.axhline(slo_ms, color=style.LIMIT, linewidth=1.3, linestyle=(0, (5, 3)), label=f"SLO {slo_ms:g} ms")
    heading(panel, "p99 latency", "ms")
    legend(panel)
    if highest > LOG_SCALE_FROM * slo_ms:
        panel.set_yscale("log", subs=[])
        panel.locator_params(axis="y", subs=(1.0, 2.0, 5.0))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_ylim(top=1.3 * highest)
    else:
        panel.set_ylim(0, 1.12 * highest)


def draw_violations(panel: Axes, run: RunSeries) -> None:
    """Draw red bands behind seconds with late responses, darker bands behind seconds with failed requests."""
    for second, (late, failed) in enumerate(zip(run.violations, run.failed, strict=True)):
        if late or failed:
            panel.axvspan(second, second + 1, color=style.LIMIT, alpha=0.35 if failed else 0.12, linewidth=0, zorder=0)


def draw_counts(panel: Axes, runs: Sequence[tuple[Row, str, float]], name: str, *, filled: bool) -> None:
    """Draw counts over time as steps from zero: one row, colour and line width per run."""
    highest = 1.0
    for row, colour, width in runs:
        steps(panel, values(row), colour, "", width=width, filled=filled)
        highest = max(highest, float(np.nanmax(values(row), initial=0.0)))
    panel.set_ylim(0, highest * 1.2 + 0.3)
    panel.locator_params(axis="y", integer=True, nbins=4)
    heading(panel, name)


def draw_time(panel: Axes, runs: Sequence[RunSeries]) -> None:
    """Draw the time axis of the lowest panel: the longest run, including events after its last second."""
    panel.set_xlim(0, max(at_s for run in runs for at_s in (run.duration_s, *(event.at_s for event in run.events))))
    panel.set_xlabel("seconds", fontsize=9.5)
