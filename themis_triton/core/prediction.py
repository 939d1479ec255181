"""Predictions of a pipeline against what was observed afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from themis_triton.core.construction import quick_init


@quick_init
@dataclass(frozen=True, slots=True)
class PredictionScore:
    """How the predictions of one pipeline compare with what was observed in the last minutes.

    `holds`: whether Themis plans by them; else since `failing_since_s` it takes nothing away from the pipeline. Scored are the `seconds`
    in which fewer requests arrived than the predicted capacity, so that at most `allowed_fraction` of them was predicted to be late:
    `requests` ended, `late` of them late or failed, at rates up to `rate_rps`, with capacities of at least `capacity_rps`.
    `p99_ratio`: measured over predicted p99 in that time. `launch_ratio`: observed over predicted duration of the newest launch.
    `launches_late`: the newest launches took so much longer that no server is given up. Null: not observed yet.
    """

    pipeline: str
    holds: bool
    allowed_fraction: float
    failing_since_s: float | None = None
    seconds: float = 0.0
    requests: float = 0.0
    late: float = 0.0
    rate_rps: float = 0.0
    capacity_rps: float = 0.0
    p99_ratio: float | None = None
    launch_ratio: float | None = None
    launches_late: bool = False

    @property
    def late_fraction(self) -> float:
        """The part of the scored requests that was late."""
        return self.late / self.requests if self.requests else 0.0


def prediction_words(score: PredictionScore) -> str:
    """What does not hold, and what follows; empty while predictions hold."""
    parts = []
    if not score.holds:
        kept = f"at most {100 * score.allowed_fraction:.3g} % were predicted to be; what serves it is kept until predictions hold"
        parts.append(f"predictions of {score.pipeline} do not hold: {_observed_words(score)}, {kept}")
    if score.launches_late:
        ratio = f"{score.launch_ratio:.1f} times as long as predicted" if score.launch_ratio is not None else "longer than predicted"
        parts.append(f"launches for {score.pipeline} take {ratio}; no server of it retires until they do not")
    return "; ".join(parts)


def _observed_words(score: PredictionScore) -> str:
    if not score.requests:
        return "requests were late"
    late = f"{100 * score.late_fraction:.1f} % of {score.requests:.0f} requests were late"
    return f"{late} at up to {score.rate_rps:.0f}/s of a capacity of {score.capacity_rps:.0f}/s"
