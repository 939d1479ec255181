"""The results of a load run: one row per request, and the statistics of the rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

OK = 0
WRONG_ANSWER = 100
UNFINISHED = 101

MAX_MESSAGES, MAX_MESSAGE_LENGTH = 100, 200

# gRPC's status codes, whose numbers are part of its protocol; our codes are above them.
ERROR_NAMES = {
    1: "cancelled",
    2: "unknown",
    3: "invalid_argument",
    4: "deadline_exceeded",
    5: "not_found",
    6: "already_exists",
    7: "permission_denied",
    8: "resource_exhausted",
    9: "failed_precondition",
    10: "aborted",
    11: "out_of_range",
    12: "unimplemented",
    13: "internal",
    14: "unavailable",
    15: "data_loss",
    16: "unauthenticated",
    WRONG_ANSWER: "wrong_answer",
    UNFINISHED: "unfinished",
}


@dataclass(frozen=True, slots=True, eq=False)
class LoadResult:
    """Every request of one pipeline, in the order of the intended send times; arrays of one length.

    `intended_s`: seconds from the load's start. `latency_ms`: from the intended send time to the last stage's response, or to the
    failure. `error`: 0, or a key of `ERROR_NAMES`. `lateness_ms`: delay of the real send time after the intended one.
    `message`: of a failed request, an index into `messages`, whose first is empty and whose last stands for any beyond `MAX_MESSAGES`.
    """

    pipeline: str
    slo_ms: float
    intended_s: FloatArray
    latency_ms: FloatArray
    error: NDArray[np.uint8]
    lateness_ms: FloatArray
    message: NDArray[np.uint8]
    messages: tuple[str, ...]
    first_messages: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which requests got a correct response."""
        answered: NDArray[np.bool_] = self.error == OK
        return answered


class Messages:
    """Each different message once, shortened: of a run in which every request fails only so many are kept."""

    def __init__(self) -> None:
        self._indices = {"": 0}

    def index(self, message: str) -> int:
        """The message's place in `all`; that of "(other messages)" once there are `MAX_MESSAGES`."""
        known = message[:MAX_MESSAGE_LENGTH]
        if known not in self._indices and len(self._indices) >= MAX_MESSAGES:
            known = "(other messages)"
        return self._indices.setdefault(known, len(self._indices))

    @property
    def all(self) -> tuple[str, ...]:
        """The messages in the order of their places."""
        return tuple(self._indices)


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """One pipeline's run. A failed request counts against `slo_attainment` (a fraction); percentiles are of answered requests.

    `errors` counts the failed requests by kind, `first_messages` shows the first message of each kind.
    """

    pipeline: str
    requests: int
    failed: int
    slo_ms: float
    slo_attainment: float
    p50_ms: float | None
    p99_ms: float | None
    max_lateness_ms: float
    p99_lateness_ms: float
    errors: dict[str, int] = field(default_factory=dict)
    first_messages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SecondStats:
    """One pipeline's figures of the second that ended at `at_s`: requests sent in it, and requests that ended in it."""

    pipeline: str
    at_s: float
    sent: int
    ok: int
    failed: int
    violations: int
    in_flight: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class SecondSeries:
    """One pipeline's run by the second of the INTENDED send time; entry s covers [s, s+1). None without a response."""

    sent: tuple[int, ...]
    failed: tuple[int, ...]
    violations: tuple[int, ...]
    p50_ms: tuple[float | None, ...]
    p99_ms: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A whole run. `summaries` and `series` are in the order of the requested pipelines; `cpu_s` is the load's own CPU time."""

    duration_s: int
    summaries: tuple[LoadSummary, ...]
    series: tuple[SecondSeries, ...]
    cpu_s: float
    stopped_early: bool = False


def summarise(result: LoadResult) -> LoadSummary:
    """The run in one row."""
    count = int(result.error.size)
    answered = result.latency_ms[result.ok]
    met = int(np.count_nonzero(answered <= result.slo_ms))
    kinds, counts = np.unique(result.error[~result.ok], return_counts=True)
    return LoadSummary(
        pipeline=result.pipeline,
        requests=count,
        failed=count - int(answered.size),
        slo_ms=result.slo_ms,
        slo_attainment=met / count if count else 1.0,
        p50_ms=percentile_ms(answered, 50.0),
        p99_ms=percentile_ms(answered, 99.0),
        max_lateness_ms=float(result.lateness_ms.max(initial=0.0)),
        p99_lateness_ms=percentile_ms(result.lateness_ms, 99.0) or 0.0,
        errors={ERROR_NAMES[int(kind)]: int(number) for kind, number in zip(kinds, counts, strict=True)},
        first_messages=dict(result.first_messages),
    )


def by_second(result: LoadResult, duration_s: int) -> SecondSeries:
    """The run as series of `duration_s` entries; a violation is a failed request or one answered later than the SLO."""
    second = np.minimum(result.intended_s.astype(np.int64), duration_s - 1)
    violated = ~result.ok | (result.latency_ms > result.slo_ms)
    inside, order = second[result.ok], np.argsort(second[result.ok], kind="stable")
    ends = np.searchsorted(inside[order], np.arange(1, duration_s))
    answered = np.split(result.latency_ms[result.ok][order], ends)
    return SecondSeries(
        sent=_counts(second, duration_s),
        failed=_counts(second[~result.ok], duration_s),
        violations=_counts(second[violated], duration_s),
        p50_ms=tuple(percentile_ms(values, 50.0) for values in answered),
        p99_ms=tuple(percentile_ms(values, 99.0) for values in answered),
    )


def percentile_ms(values: FloatArray, percent: float) -> float | None:
    """The smallest value that `percent` % of the values do not exceed; None without values."""
    if values.size == 0:
        return None
    return float(np.percentile(values, percent, method="inverted_cdf"))


def _counts(seconds: IntArray, duration_s: int) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(seconds, minlength=duration_s))
