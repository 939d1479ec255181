"""Closed forms of a latency surface, fitted to measured points: contention and cores (the paper's).

Both are bilinear in the batch size and in u, with u = c (contention) or u = 1/c (cores). Such a function is positive on a rectangle if
it is positive at the four corners. So the fit's variables are the values at the corners, bounded from below, and no grid point is negative.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.profile.grid import Point
from themis_triton.settings.profile import SurfaceForm

FloatArray = npt.NDArray[np.float64]

FITTED_FORMS = (SurfaceForm.CONTENTION, SurfaceForm.CORES)
KEPT_BELOW = 0.05
_ROBUST_SCALE = 0.02
_LEAST_SHARE = 1e-3
_FEWEST_POINTS = 5


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted form: its coefficients in ms, and its errors.

    `error` holds (fitted − measured) / measured by point; `cross_error` is the mean absolute error at points excluded from the fit.
    """

    form: SurfaceForm
    alpha_ms: float
    beta_ms: float
    gamma_ms: float
    zeta_ms: float
    error: dict[Point, float]
    cross_error: float

    def at(self, point: Point) -> float:
        """Service time in ms."""
        return float(_terms([point], self.form)[0] @ self._coefficients)

    @property
    def _coefficients(self) -> FloatArray:
        return np.array([self.alpha_ms, self.beta_ms, self.gamma_ms, self.zeta_ms])


def best_fit(measured: Mapping[Point, float]) -> tuple[Fit | None, tuple[Fit, ...]]:
    """The better form, and both fits; None if neither predicts excluded points within 5 % on average.

    Fewer than five points are not fitted, because the forms have four coefficients.

    Raises:
        EnvironmentCheckError: scipy, the extra `profile`, is not installed.
    """
    if len(measured) < _FEWEST_POINTS:
        return None, ()
    fits = tuple(fit_form(measured, form) for form in FITTED_FORMS)
    better = min(fits, key=lambda fit: fit.cross_error)
    return (better if better.cross_error <= KEPT_BELOW else None), fits


def fit_form(measured: Mapping[Point, float], form: SurfaceForm) -> Fit:
    """One form, fitted by least squares of relative errors with a soft-L1 loss, with leave-one-out cross-validation."""
    points = list(measured)
    values = np.array([measured[point] for point in points])
    coefficients = _solve(points, values, form)
    fitted = _terms(points, form) @ coefficients
    left_out = [_error_without(index, points, values, form) for index in range(len(points))]
    return Fit(
        form=form,
        alpha_ms=float(coefficients[0]),
        beta_ms=float(coefficients[1]),
        gamma_ms=float(coefficients[2]),
        zeta_ms=float(coefficients[3]),
        error=dict(zip(points, ((fitted - values) / values).tolist(), strict=True)),
        cross_error=float(np.mean(left_out)),
    )


def _error_without(index: int, points: Sequence[Point], values: FloatArray, form: SurfaceForm) -> float:
    others = [point for place, point in enumerate(points) if place != index]
    coefficients = _solve(others, np.delete(values, index), form, bounds=points)
    return float(abs(_terms([points[index]], form)[0] @ coefficients - values[index]) / values[index])


def _solve(points: Sequence[Point], values: FloatArray, form: SurfaceForm, bounds: Sequence[Point] | None = None) -> FloatArray:
    """Coefficients (α, β, γ, ζ) of a surface that is positive on the rectangle of the points (or of `bounds`)."""
    corners = _corners(bounds or points)
    basis = _basis(corners, form)
    relative = (_terms(points, form) @ basis) / values[:, None]
    start = np.full(basis.shape[1], float(np.median(values)))
    scipy: Any = _scipy()
    solution = scipy.least_squares(
        lambda corner_values: relative @ corner_values - 1.0,
        start,
        jac=lambda _: relative,
        bounds=(_LEAST_SHARE * float(values.min()), np.inf),
        loss="soft_l1",
        f_scale=_ROBUST_SCALE,
        x_scale=float(np.median(values)),
    )
    return np.asarray(basis @ solution.x, dtype=np.float64)


def _basis(corners: Sequence[Point], form: SurfaceForm) -> FloatArray:
    """One column per corner: coefficients of the surface that is 1 there and 0 at the other corners. An axis of one value has no slope."""
    terms = _terms(corners, form)
    used = [_column(index, corners) for index in range(terms.shape[1])]
    chosen = [index for index, is_used in enumerate(used) if is_used]
    basis = np.zeros((terms.shape[1], len(corners)))
    basis[chosen] = np.linalg.inv(terms[:, chosen])
    return basis


def _column(index: int, corners: Sequence[Point]) -> bool:
    several = len({b for b, _ in corners}) > 1, len({k for _, k in corners}) > 1
    needs_batch, needs_instances = ((True, True), (True, False), (False, True), (False, False))[index]
    return (several[0] or not needs_batch) and (several[1] or not needs_instances)


def _corners(points: Sequence[Point]) -> list[Point]:
    batches = sorted({min(b for b, _ in points), max(b for b, _ in points)})
    instances = sorted({min(k for _, k in points), max(k for _, k in points)})
    return [(b, k) for b in batches for k in instances]


def _terms(points: Sequence[Point], form: SurfaceForm) -> FloatArray:
    """Rows (b·u, b, u, 1)."""
    batch = np.array([b for b, _ in points], dtype=np.float64)
    count = np.array([k for _, k in points], dtype=np.float64)
    u = count if form is SurfaceForm.CONTENTION else 1.0 / count
    return np.column_stack([batch * u, batch, u, np.ones_like(batch)])


def _scipy() -> Any:  # noqa: ANN401 - an optional module
    try:
        return importlib.import_module("scipy.optimize")
    except ImportError as error:
        raise EnvironmentCheckError("scipy is not installed: expected for fits. Fix: pip install 'themis-triton[profile]'") from error
