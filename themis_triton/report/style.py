"""The style of pictures, and the only import of matplotlib."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from themis_triton.core.errors import EnvironmentCheckError, SettingsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2933"
MUTED = "#7b8794"
GRID = "#e4e7eb"
DEMAND = "#2563eb"
CAPACITY = "#059669"
LATENCY = "#7c3aed"
LIMIT = "#dc2626"
SERVERS = "#d97706"
INSTANCES = "#0891b2"
RUN_COLOURS = ("#2563eb", "#d97706", "#7c3aed", "#059669", "#db2777", "#475569", "#111827", "#65a30d", "#0891b2")

_SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.solid_capstyle": "round",
}


def require_matplotlib() -> None:
    """EnvironmentCheckError with the name of the extra if matplotlib is not installed."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise EnvironmentCheckError("pictures need matplotlib, which is not installed. Fix: pip install 'themis-triton[report]'") from error


@contextmanager
def picture(path: Path, height_ratios: tuple[float, ...], width_in: float, height_in: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """Panels in a column with a shared time axis, written to `path` at the end of the block.

    The figure has its own canvas and does not use pyplot's global state. The file type follows the name (`.png`, `.svg`, `.pdf`).
    SettingsError if the file cannot be written.
    """
    require_matplotlib()
    figure_module = importlib.import_module("matplotlib.figure")
    with importlib.import_module("matplotlib").rc_context(_SETTINGS):
        figure: Figure = figure_module.Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
        panels = figure.subplots(len(height_ratios), 1, sharex=True, height_ratios=height_ratios, squeeze=False)[:, 0]
        for panel in panels:
            panel.tick_params(length=0)
            panel.margins(x=0)
        yield figure, list(panels)
        try:
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{path}: the picture cannot be written ({error}): expected a .png, .svg or .pdf file in an existing folder"
            ) from error
