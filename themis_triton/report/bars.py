"""Bar charts of measured and simulated violations, percentiles and cost by policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from themis_triton.report import panels, style
from themis_triton.report.pictures import WIDTH_IN, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR_WIDTH = 0.36
_SERIES = (("measured", style.DEMAND), ("simulated", style.SERVERS))


@dataclass(frozen=True, slots=True)
class BarFigure:
    """One panel: one measured and one simulated value per policy. `form` formats a value; None (no response) has no bar."""

    name: str
    unit: str
    form: str
    measured: Sequence[float | None]
    simulated: Sequence[float | None]
    limit: float | None = None


def draw_bars(policies: Sequence[str], figures: Sequence[BarFigure], title: str, subtitle: str, path: Path) -> None:
    """Draw one panel per figure, with a pair of bars per policy.

    EnvironmentCheckError without the extra `report`, SettingsError if the file cannot be written.
    """
    with style.picture(path, (1.0,) * len(figures), WIDTH_IN, 1.9 * len(figures) + 1.2) as (figure, axes):
        set_title(figure, title, subtitle)
        for panel, each in zip(axes, figures, strict=True):
            _draw_pairs(panel, each)
        panels.legend(axes[0])
        axes[-1].set_xticks(range(len(policies)), policies)
        axes[-1].set_xlim(-0.6, len(policies) - 0.4)


def _draw_pairs(panel: Axes, figure: BarFigure) -> None:
    for side, (name, colour) in enumerate(_SERIES):
        row = panels.values(figure.measured if side == 0 else figure.simulated)
        at = np.arange(row.size) + (side - 0.5) * BAR_WIDTH
        bars = panel.bar(at, row, BAR_WIDTH * 0.94, color=colour, label=name)
        panel.bar_label(bars, [figure.form.format(value) if np.isfinite(value) else "–" for value in row], fontsize=8.5, padding=2)
    if figure.limit is not None:
        panel.axhline(figure.limit, color=style.LIMIT, linewidth=1.3, linestyle=(0, (5, 3)))
    panel.grid(visible=False, axis="x")
    panel.set_ylim(0, 1.2 * max(panel.get_ylim()[1], 1e-9))
    panels.heading(panel, figure.name, figure.unit)
