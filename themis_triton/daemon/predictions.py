"""Tells when predictions stop to hold, and when they hold again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from themis_triton.core.prediction import PredictionScore, prediction_words

FAILED = "predictions_failed"
RESTORED = "predictions_restored"


@dataclass(slots=True)
class PredictionWatch:
    """The pipelines whose predictions were reported not to hold."""

    failing: set[str] = field(default_factory=set)

    def follow(self, scores: tuple[PredictionScore, ...]) -> Iterator[tuple[str, str]]:
        """The kind and the sentence of each change in this tick."""
        for score in scores:
            words = prediction_words(score)
            if words and score.pipeline not in self.failing:
                self.failing.add(score.pipeline)
                yield FAILED, words
            elif not words and score.pipeline in self.failing:
                self.failing.remove(score.pipeline)
                yield RESTORED, f"predictions of {score.pipeline} hold again: plans go by them"
