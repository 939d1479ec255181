"""Metrics that compare predictions with what was observed afterwards."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge

from themis_triton.core.prediction import PredictionScore


class PredictionMetrics:
    """Gauges of each pipeline's score; what was not observed yet is not a number."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, words: str) -> Gauge:
            return Gauge(name, words, ["pipeline"], registry=registry)

        self._hold = gauge("themis_predictions_hold", "1 while plans go by predictions, 0 while they do not hold")
        self._late_ratio = gauge("themis_prediction_late_ratio", "Late part of requests that were predicted to be in time")
        self._p99_ratio = gauge("themis_prediction_p99_ratio", "Measured over predicted p99")
        self._launch_ratio = gauge("themis_prediction_launch_ratio", "Duration of the newest launch over the predicted one")

    def show(self, scores: Iterable[PredictionScore]) -> None:
        """Set all gauges."""
        for score in scores:
            self._hold.labels(score.pipeline).set(score.holds and not score.launches_late)
            late = score.late_fraction if score.requests else None
            for gauge, value in ((self._late_ratio, late), (self._p99_ratio, score.p99_ratio), (self._launch_ratio, score.launch_ratio)):
                gauge.labels(score.pipeline).set(float("nan") if value is None else value)
