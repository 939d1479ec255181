"""A picture of a measured profile: service times with intervals, throughput with its knee, residuals of the fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from themis_triton.core.errors import SettingsError
from themis_triton.report import panels, style
from themis_triton.settings.measured import FitSettings, MeasuredSettings, PointSettings
from themis_triton.settings.profile import ProfileSettings, SurfaceForm, TableSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KNEE_SHARE = 0.9
_WIDTH_IN, _HEIGHT_IN = 9.0, 9.5
_RATIOS = (2.0, 2.0, 1.2)
_SPREAD = 0.06


def knee(instances: Sequence[int], throughput_rps: Sequence[float]) -> int:
    """The fewest instances that give at least 90 % of the largest throughput measured: more add little throughput and much latency."""
    enough = KNEE_SHARE * max(throughput_rps)
    return next(count for count, rate in zip(instances, throughput_rps, strict=True) if rate >= enough)


def throughput_rps(table: TableSettings, row: int) -> list[float]:
    """The throughput of a device in requests/s at one batch size, by number of instances: 1000·b·k / l(b, k)."""
    batch = table.batches[row]
    return [1000.0 * batch * count / ms for count, ms in zip(table.instances, table.latency_ms[row], strict=True)]


def draw_profile(profile: ProfileSettings, title: str, path: Path) -> None:
    """Draw a profile with its measurements, as `.png`, `.svg` or `.pdf`.

    EnvironmentCheckError without matplotlib, SettingsError if the profile was not measured or the file cannot be written.
    """
    if profile.measured is None or profile.table is None:
        raise SettingsError(f"{title}: a declared profile has no measurements. Fix: measure it with `themis profile`")
    with style.picture(path, _RATIOS, _WIDTH_IN, _HEIGHT_IN) as (figure, axes):
        figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=style.INK)
        surface, throughput, residuals = axes
        _draw_surface(surface, profile.table, profile.measured)
        _draw_throughput(throughput, profile.table)
        _draw_residuals(residuals, profile.measured)
        residuals.set_xticks(range(1, profile.table.instances[-1] + 1))
        residuals.set_xlim(0.7, profile.table.instances[-1] + 0.3)
        residuals.set_xlabel("instances busy", fontsize=9.5)


def _colour(index: int) -> str:
    return style.RUN_COLOURS[index % len(style.RUN_COLOURS)]


def _draw_surface(panel: Axes, table: TableSettings, measured: MeasuredSettings) -> None:
    counts = np.linspace(1, table.instances[-1], 60)
    kept = next((fit for fit in measured.fits if fit.kept), None)
    for index, batch in enumerate(table.batches):
        if kept is not None:
            panel.plot(counts, [fitted_ms(kept, batch, count) for count in counts], color=_colour(index), linewidth=1.0, alpha=0.6)
        else:
            panel.plot(table.instances, table.latency_ms[index], color=_colour(index), linewidth=1.0, alpha=0.6)
        points = [point for point in measured.points if point.batch == batch]
        panel.errorbar(
            [point.instances for point in points],
            [point.service_ms for point in points],
            yerr=np.array([_interval(point) for point in points]).reshape(-1, 2).T,
            fmt="o",
            markersize=4.5,
            capsize=3,
            color=_colour(index),
            label=f"b = {batch}",
        )
    panel.set_ylim(bottom=0)
    panels.heading(panel, f"Service time, p{measured.percentile:g}; lines: {'fit' if kept is not None else 'table'}", "ms")
    panels.legend(panel)


def _interval(point: PointSettings) -> tuple[float, float]:
    """The extent of the 95 % interval below and above each point; 0 on an open side."""
    low = point.service_ms - point.low_ms if point.low_ms is not None else 0.0
    high = point.high_ms - point.service_ms if point.high_ms is not None else 0.0
    return low, high


def fitted_ms(fit: FitSettings, batch: int, instances: float) -> float:
    """The fitted surface, also between integer counts."""
    scale = instances if fit.form == SurfaceForm.CONTENTION.value else 1.0 / instances
    return (fit.alpha_ms * batch + fit.gamma_ms) * scale + fit.beta_ms * batch + fit.zeta_ms


def _draw_throughput(panel: Axes, table: TableSettings) -> None:
    for index, batch in enumerate(table.batches):
        rates = throughput_rps(table, index)
        at = knee(table.instances, rates)
        panel.plot(table.instances, rates, color=_colour(index), linewidth=1.6, label=f"b = {batch}")
        panel.plot([at], [rates[table.instances.index(at)]], marker="o", markersize=9, markerfacecolor="none", color=_colour(index))
    panel.set_ylim(bottom=0)
    panels.heading(panel, "Throughput; ring: knee, 90 % of the maximum", "requests/s")


def _draw_residuals(panel: Axes, measured: MeasuredSettings) -> None:
    batches = sorted({point.batch for point in measured.points})
    fits = measured.fits
    for index, fit in enumerate(fits):
        errors = [100.0 * (fitted_ms(fit, p.batch, p.instances) / p.service_ms - 1.0) for p in measured.points]
        shift = [_SPREAD * (batches.index(p.batch) - len(batches) / 2) for p in measured.points]
        at = [p.instances + dx for p, dx in zip(measured.points, shift, strict=True)]
        label = f"{fit.form}, {'kept' if fit.kept else 'not kept'}: {100 * fit.cross_error:.1f} % cross-validation error"
        panel.plot(at, errors, linestyle="none", marker="ox"[index % 2], markersize=4.5, color=_colour(index), label=label)
    panel.axhline(0.0, color=style.MUTED, linewidth=0.8)
    panels.heading(panel, "Residuals of the fits", "%")
    panels.legend(panel)
