"""Adaptive points and the full table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from themis_triton.profile.grid import GridPlan, Point, complete_table, interpolated, next_points


def contention(point: Point) -> float:
    batch, count = point
    return 4.0 * batch * count + 8.0 * batch + 4.0 * count + 20.0


def bent(point: Point) -> float:
    """Two cores: flat up to two instances, then contention."""
    batch, count = point
    return 10.0 * batch * max(1.0, count / 2.0) + 5.0


def measured(plan: GridPlan, surface: Callable[[Point], float]) -> dict[Point, float]:
    values: dict[Point, float] = {}
    while desired := next_points(plan, values):
        assert not set(desired) & set(values), "a point was asked for twice"
        values[desired[0]] = surface(desired[0])
    return values


def test_a_smooth_surface_needs_few_points() -> None:
    assert len(measured(GridPlan(8, 8), contention)) == 13


def test_a_bend_draws_points() -> None:
    values = measured(GridPlan(8, 8), bent)
    assert len(values) > 13
    assert (8, 2) in values, "the bend itself"


@pytest.mark.parametrize("surface", [contention, bent])
def test_what_lies_between_is_known_within_the_tolerance(surface: Callable[[Point], float]) -> None:
    plan = GridPlan(8, 8, tolerance=0.04, max_points=64)
    values = measured(plan, surface)
    worst = max(abs(interpolated(plan, values, (b, k)) / surface((b, k)) - 1.0) for b in range(1, 9) for k in range(1, 9))
    assert worst <= 0.08


def test_the_most_points_are_not_exceeded() -> None:
    assert len(measured(GridPlan(8, 8, tolerance=0.0001, max_points=20), bent)) == 20


@pytest.mark.parametrize(("max_batch", "max_instances"), [(1, 1), (1, 5), (6, 1), (2, 2), (16, 3)])
def test_the_bounds_are_always_measured(max_batch: int, max_instances: int) -> None:
    plan = GridPlan(max_batch, max_instances)
    values = measured(plan, contention)
    assert {(1, 1), (max_batch, max_instances), (1, max_instances), (max_batch, 1)} <= set(values)
    table = complete_table(plan, values)
    for row, batch in zip(table.latency_ms, table.batches, strict=True):
        for value, count in zip(row, table.instances, strict=True):
            assert value == pytest.approx(contention((batch, count)))


def test_measured_points_stay_and_the_fit_fills_the_rest() -> None:
    plan = GridPlan(8, 8)
    values = measured(plan, contention)
    axes = {(b, k) for b in {b for b, _ in values} for k in {k for _, k in values}}
    table = complete_table(plan, values, dict.fromkeys(axes, 1.0))
    got = {(b, k): table.latency_ms[i][j] for i, b in enumerate(table.batches) for j, k in enumerate(table.instances)}
    assert all(got[point] == (values.get(point, 1.0)) for point in axes)
    assert len(axes) > len(values)
