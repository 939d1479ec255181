"""Fits of both forms."""

from __future__ import annotations

import numpy as np
import pytest

from themis_triton.profile.fit import best_fit, fit_form
from themis_triton.profile.grid import Point
from themis_triton.settings.profile import SurfaceForm

POINTS: tuple[Point, ...] = tuple((b, k) for b in (1, 2, 4, 8) for k in (1, 2, 4, 8))


def contention(point: Point) -> float:
    return 4.0 * point[0] * point[1] + 8.0 * point[0] + 4.0 * point[1] + 20.0


def cores(point: Point) -> float:
    return 30.0 * point[0] / point[1] + 5.0 * point[0] + 3.0 / point[1] + 4.0


def test_each_form_is_told_from_the_other_and_recovered() -> None:
    kept, fits = best_fit({point: contention(point) for point in POINTS})
    assert kept is not None
    assert kept.form is SurfaceForm.CONTENTION
    assert (kept.alpha_ms, kept.beta_ms, kept.gamma_ms, kept.zeta_ms) == pytest.approx((4.0, 8.0, 4.0, 20.0), rel=1e-4)
    assert {fit.form for fit in fits} == {SurfaceForm.CONTENTION, SurfaceForm.CORES}
    kept, _ = best_fit({point: cores(point) for point in POINTS})
    assert kept is not None
    assert kept.form is SurfaceForm.CORES
    assert (kept.alpha_ms, kept.beta_ms, kept.gamma_ms, kept.zeta_ms) == pytest.approx((30.0, 5.0, 3.0, 4.0), rel=1e-4)


def test_neither_is_kept_of_a_surface_that_is_neither() -> None:
    kept, fits = best_fit({(b, k): 10.0 * b * max(1.0, k / 2.0) * (1.0 + (b == 4)) + 5.0 for b, k in POINTS})
    assert kept is None
    assert len(fits) == 2


def test_noise_and_an_outlier_do_not_carry_it_away() -> None:
    rng = np.random.default_rng(3)
    values = {point: contention(point) * float(rng.normal(1.0, 0.01)) for point in POINTS}
    values[4, 4] *= 2.0
    fit = fit_form(values, SurfaceForm.CONTENTION)
    worst = max(abs(fit.at(point) / contention(point) - 1.0) for point in POINTS)
    assert worst < 0.08
    assert fit.error[4, 4] < -0.4


def test_no_grid_point_is_negative_even_where_least_squares_alone_would_be() -> None:
    steep = {(b, k): 0.01 + 0.5 * max(0, b - 3) * k for b, k in POINTS}
    for form in (SurfaceForm.CONTENTION, SurfaceForm.CORES):
        fit = fit_form(steep, form)
        assert min(fit.at((b, k)) for b in range(1, 9) for k in range(1, 9)) > 0


@pytest.mark.parametrize("points", [[(b, 1) for b in range(1, 7)], [(1, k) for k in range(1, 7)]])
def test_one_axis_alone_is_fitted_without_the_other(points: list[Point]) -> None:
    kept, _ = best_fit({point: contention(point) for point in points})
    assert kept is not None
    assert max(abs(error) for error in kept.error.values()) < 1e-4
    assert kept.alpha_ms == 0.0


def test_few_points_are_not_fitted() -> None:
    assert best_fit({(1, 1): 1.0, (2, 1): 2.0, (1, 2): 2.0, (2, 2): 4.0}) == (None, ())
