"""Selection of the (batch, instances) points to measure: few where the surface is smooth, more where it bends.

The bounds are divided into cells. A cell is smooth if bilinear interpolation of its corners, which is exact for the contention form,
predicts its centre; any other cell is split into four. The selection depends only on the measured points, so an interrupted run can resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from themis_triton.core.config import LatencyTable

Point = tuple[int, int]
"""(batch size, busy instances)."""


@dataclass(frozen=True, slots=True)
class GridPlan:
    """Bounds of the grid, the relative error of a smooth cell, and the maximum number of points."""

    max_batch: int
    max_instances: int
    tolerance: float = 0.04
    max_points: int = 40


@dataclass(frozen=True, slots=True)
class Cell:
    """A rectangle of the grid, its borders included."""

    low: Point
    high: Point

    @property
    def corners(self) -> tuple[Point, ...]:
        """Four points; fewer for a cell without width or height."""
        return tuple(dict.fromkeys((b, k) for k in (self.low[1], self.high[1]) for b in (self.low[0], self.high[0])))

    @property
    def centre(self) -> Point | None:
        """The grid point in the middle; None if the cell has only corners."""
        middle = ((self.low[0] + self.high[0]) // 2, (self.low[1] + self.high[1]) // 2)
        return None if middle in self.corners else middle

    def contains(self, point: Point) -> bool:
        """Whether the point lies in the cell or on its border."""
        return all(low <= at <= high for low, at, high in zip(self.low, point, self.high, strict=True))

    def split(self) -> tuple[Cell, ...]:
        """The cells around the centre."""
        batches = _edges(self.low[0], self.high[0])
        instances = _edges(self.low[1], self.high[1])
        return tuple(Cell((b0, k0), (b1, k1)) for k0, k1 in instances for b0, b1 in batches)

    def interpolate(self, point: Point, values: Mapping[Point, float]) -> float:
        """Bilinear between the corners."""
        x, y = (_share(low, at, high) for low, at, high in zip(self.low, point, self.high, strict=True))
        lower = values[self.low] * (1 - x) + values[self.high[0], self.low[1]] * x
        upper = values[self.low[0], self.high[1]] * (1 - x) + values[self.high] * x
        return lower * (1 - y) + upper * y


def next_points(plan: GridPlan, measured: Mapping[Point, float]) -> list[Point]:
    """Points to measure next, ordered by instances, then by batch; empty if the surface is known or `max_points` are measured.

    Args:
        plan: bounds and accuracy.
        measured: ms by point, any subset of the points that this function returned before.
    """
    required = dict.fromkeys(point for cell in _first_cells(plan) for point in cell.corners)
    for cell in _first_cells(plan):
        required |= dict.fromkeys(_required(cell, plan, measured))
    missing = [point for point in required if point not in measured]
    corners = [point for point in missing if point in _first_corners(plan)]
    left = max(0, plan.max_points - len(measured))
    return sorted(corners or missing[:left], key=lambda point: (point[1], point[0]))


def complete_table(plan: GridPlan, measured: Mapping[Point, float], fitted: Mapping[Point, float] | None = None) -> LatencyTable:
    """The measured points as a full table; other points come from the fit, or without one from the enclosing cell.

    Args:
        plan: the grid's bounds.
        measured: ms by point, the first cells' corners among them.
        fitted: ms at each point of the table's axes, or None.
    """
    batches = tuple(sorted({b for b, _ in measured}))
    instances = tuple(sorted({k for _, k in measured}))

    def value(point: Point) -> float:
        if point in measured:
            return measured[point]
        return fitted[point] if fitted is not None else interpolated(plan, measured, point)

    return LatencyTable(batches, instances, tuple(tuple(value((b, k)) for k in instances) for b in batches))


def interpolated(plan: GridPlan, measured: Mapping[Point, float], point: Point) -> float:
    """The interpolation of the smallest enclosing cell with measured corners."""
    cell = next(cell for cell in _first_cells(plan) if cell.contains(point))
    while True:
        inner = [part for part in cell.split() if part.contains(point) and part != cell and all(c in measured for c in part.corners)]
        if not inner:
            return cell.interpolate(point, measured)
        cell = inner[0]


def _required(cell: Cell, plan: GridPlan, measured: Mapping[Point, float]) -> Iterator[Point]:
    if any(corner not in measured for corner in cell.corners):
        yield from cell.corners
        return
    centre = cell.centre
    if centre is None:
        return
    yield centre
    if centre not in measured or abs(cell.interpolate(centre, measured) - measured[centre]) <= plan.tolerance * measured[centre]:
        return
    for part in cell.split():
        yield from _required(part, plan, measured)


def _first_cells(plan: GridPlan) -> tuple[Cell, ...]:
    """Four quarters: the centre of a single cell could agree by chance."""
    return Cell((1, 1), (plan.max_batch, plan.max_instances)).split()


def _first_corners(plan: GridPlan) -> frozenset[Point]:
    return frozenset(point for cell in _first_cells(plan) for point in cell.corners)


def _edges(low: int, high: int) -> list[tuple[int, int]]:
    marks = sorted({low, (low + high) // 2, high})
    return list(pairwise(marks)) or [(low, high)]


def _share(low: int, at: int, high: int) -> float:
    return (at - low) / (high - low) if high > low else 0.0
