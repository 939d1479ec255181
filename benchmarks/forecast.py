"""Every forecast on days 15 and 16 of the Twitter trace, which nothing was trained or tuned on; `train_forecast.py` trains.

`THEMIS_TRACES=folder python benchmarks/forecast.py` takes about a minute and writes `results/forecast.*`.

Moments: at each second the capacity is so many times the largest of the last five counts; it is exceeded when the true rate of one of
the next `horizon` seconds lies above it, and called when the forecast does.
Surges: the mean rate of ten seconds is at least 1.5 times that of the minute before; those within two minutes of another belong to it.
The capacity stands as it was 30 s before; it is crossed at the first second from then on at which three seconds have a mean above it;
the lead time is that from the first call within the horizon to the crossing, and 0 where none came.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from common import RESULTS, versions, write_result
from forecast_windows import DAY_S, FloatArray, in_order, rates_of_days, whole_moments
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view

from themis_triton.core.policy import ForecastName
from themis_triton.forecast.base import HISTORY_S
from themis_triton.forecast.forecast import Forecaster
from themis_triton.load.twitter import DIVISORS, PAPER_SLICE_S, WINDOW_S
from themis_triton.report.style import RUN_COLOURS

IntArray = npt.NDArray[np.int64]

EVALUATION_DAYS = (15, 16)
SEED = 7
HORIZONS_S = (5, 10, 20)
QUANTILES = (0.5, 0.9, 0.99)
SHOWN_QUANTILE = 0.9
CAPACITIES = (1.1, 1.25)
RECENT_S = 5
SWEEP = tuple(np.linspace(0.5, 0.99, 15).round(3).tolist())
SURGE_RATIO, SURGE_S, SURGE_BEFORE_S, SURGE_APART_S = 1.5, 10, 60, 120
FROZEN_S, CROSSING_S = 30, 3
SLICE_FROM_S = PAPER_SLICE_S - (EVALUATION_DAYS[0] - 1) * DAY_S
"""Of the evaluation days."""
CALLS = 3000
FORECASTER = Forecaster()


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """The days at one scale: true rates and Poisson counts of each second, and the moments at which forecasts are made."""

    rates: FloatArray
    counts: FloatArray
    moments: IntArray

    @property
    def recent(self) -> FloatArray:
        """The largest count of the last five seconds at each moment."""
        found: FloatArray = sliding_window_view(self.counts, RECENT_S).max(axis=1)[self.moments - RECENT_S]
        return found

    def largest(self, horizon_s: int) -> FloatArray:
        """The largest true rate of the horizon after each moment."""
        found: FloatArray = sliding_window_view(self.rates, horizon_s).max(axis=1)[self.moments]
        return found

    def forecast(self, name: ForecastName, horizon_s: int, quantile: float) -> FloatArray:
        """The forecast at each moment."""
        parts = in_order(self.counts, self.moments)
        return np.concatenate([FORECASTER.forecast(name)(counts, horizon_s, quantile) for _, counts in parts])


@dataclass(frozen=True, slots=True)
class Row:
    """A forecast at a horizon and a quantile; `own` marks the classifier at the threshold that training chose for recall."""

    name: ForecastName
    horizon_s: int
    quantile: float
    own: bool = False

    @property
    def label(self) -> str:
        """Its label in the table."""
        return f"{self.name.value}, P > {1 - self.quantile:.2f}" if self.own else self.name.value


def main() -> None:
    rates = rates_of_days(*EVALUATION_DAYS)
    moments = whole_moments(rates, max(HORIZONS_S))
    random = np.random.default_rng(SEED)
    scales = [Scale(rates / d, random.poisson(rates / d).astype(np.float64), moments) for d in DIVISORS.values()]
    surges = list(surge_starts(rates, moments))
    rows = [Row(name, h, q) for h in HORIZONS_S for q in QUANTILES for name in ForecastName]
    rows += [Row(ForecastName.CLASSIFIER, h, 1.0 - FORECASTER.learnt.surge_threshold(h), own=True) for h in HORIZONS_S]
    judged = [{"row": row, **judge(row, scales, surges)} for row in rows]
    speed = {name.value: call_us(name) for name in ForecastName}
    counted = {"moments": len(moments) * len(scales), "surges": len(surges) * len(scales), "surge_starts_s": surges}
    table = markdown(judged, counted, speed)
    (RESULTS / "forecast.md").write_text(table, encoding="utf-8")
    plain = [
        {**item, "row": {"forecast": r.name.value, "horizon_s": r.horizon_s, "quantile": round(r.quantile, 4), "own_threshold": r.own}}
        for item in judged
        for r in (item["row"],)
    ]
    write_result(
        "forecast",
        {
            "days": EVALUATION_DAYS,
            "divisors": DIVISORS,
            "seed": SEED,
            **counted,
            "call_us": speed,
            "versions": versions("numpy"),
            "rows": plain,
        },
    )
    picture(scales)
    print(table)


def surge_starts(rates: FloatArray, moments: IntArray) -> Iterable[int]:
    """The first second of each surge, where the minutes around it are whole."""
    totals = np.concatenate(([0.0], np.cumsum(rates)))
    after = (totals[moments + SURGE_S] - totals[moments]) / SURGE_S
    before = (totals[moments] - totals[moments - SURGE_BEFORE_S]) / SURGE_BEFORE_S
    last = -SURGE_APART_S
    whole = set(moments.tolist())
    for second in moments[after >= SURGE_RATIO * before].tolist():
        if second - last > SURGE_APART_S and whole.issuperset(range(second - FROZEN_S - max(HORIZONS_S), second + SURGE_APART_S)):
            yield second
        last = second


def in_surge(moments: IntArray, surges: list[int]) -> npt.NDArray[np.bool_]:
    """Which moments lie within the first minute of a surge."""
    since = moments[:, None] - np.array(surges)
    found: npt.NDArray[np.bool_] = ((since >= 0) & (since < SURGE_BEFORE_S)).any(axis=1)
    return found


def judge(row: Row, scales: list[Scale], surges: list[int]) -> dict[str, Any]:
    """All measures of one row, over all scales; rates as shares of the scale's mean rate."""
    found = [scale.forecast(row.name, row.horizon_s, row.quantile) for scale in scales]
    actual = [scale.largest(row.horizon_s) for scale in scales]
    means = [scale.rates[scale.moments].mean() for scale in scales]
    over = np.concatenate([(f - a) / m for f, a, m in zip(found, actual, means, strict=True)])
    surging = np.concatenate([in_surge(scale.moments, surges) for scale in scales])
    in_surges = over[surging]
    measures: dict[str, Any] = {
        "pinball": float(np.maximum(-row.quantile * over, (1.0 - row.quantile) * over).mean()),
        "covered": float((over >= 0.0).mean()),
        "over_forecast": float(np.maximum(over, 0.0).mean()),
        "under_forecast": float(np.maximum(-over, 0.0).mean()),
        "covered_in_surges": float((in_surges >= 0.0).mean()),
        "under_in_surges": float(np.maximum(-in_surges, 0.0).mean()),
        "foreseen": float(np.mean([f.mean() / m for f, m in zip(found, means, strict=True)])),
    }
    for ratio in CAPACITIES:
        measures[f"capacity_{ratio:g}"] = {
            **called(scales, found, actual, ratio),
            **leads([lead for scale, f in zip(scales, found, strict=True) for lead in surge_leads(scale, f, surges, ratio, row.horizon_s)]),
        }
    return measures


def called(scales: list[Scale], found: list[FloatArray], actual: list[FloatArray], ratio: float) -> dict[str, float | None]:
    """Recall and precision over all moments; None where nothing was called."""
    capacity = [ratio * scale.recent for scale in scales]
    calls = np.concatenate([f > c for f, c in zip(found, capacity, strict=True)])
    truth = np.concatenate([a > c for a, c in zip(actual, capacity, strict=True)])
    right = float((calls & truth).sum())
    return {
        "exceeded": float(truth.mean()),
        "recall": right / float(truth.sum()),
        "precision": right / float(calls.sum()) if calls.any() else None,
    }


def surge_leads(scale: Scale, found: FloatArray, surges: list[int], ratio: float, horizon_s: int) -> Iterable[int]:
    """Seconds from the first call within the horizon to the crossing, for each surge that crosses the capacity; 0 without a call."""
    for start in surges:
        frozen = start - FROZEN_S
        capacity = ratio * scale.counts[frozen - RECENT_S : frozen].max()
        ahead = sliding_window_view(scale.rates[frozen : start + SURGE_APART_S], CROSSING_S).mean(axis=1)
        crossings = np.flatnonzero(ahead > capacity)
        if not crossings.size:
            continue
        crossing = frozen + int(crossings[0])
        first = int(np.searchsorted(scale.moments, crossing - horizon_s))
        calls = np.flatnonzero(found[first : first + horizon_s] > capacity)
        yield horizon_s - int(calls[0]) if calls.size else 0


def leads(found: list[int]) -> dict[str, float]:
    return {
        "surges_crossing": len(found),
        "surge_recall": float(np.mean([lead > 0 for lead in found])),
        "mean_lead_s": float(np.mean(found)),
    }


def call_us(name: ForecastName) -> float:
    """Processor time of one call of the front door, in µs."""
    counts = tuple(np.random.default_rng(1).poisson(50.0, HISTORY_S).astype(float).tolist())
    FORECASTER.rate(name, counts, 10.0, SHOWN_QUANTILE)
    start_s = time.process_time()
    for _ in range(CALLS):
        FORECASTER.rate(name, counts, 10.0, SHOWN_QUANTILE)
    return round((time.process_time() - start_s) / CALLS * 1e6, 1)


def markdown(judged: list[dict[str, Any]], counted: dict[str, Any], speed: dict[str, float]) -> str:
    """One table for the shown quantile and the classifier's own threshold, one for the other quantiles."""
    shown, others = (
        [item for item in judged if (item["row"].quantile == SHOWN_QUANTILE or item["row"].own) is main] for main in (True, False)
    )
    parts = (
        (
            f"Days 15 and 16, {counted['moments']:,} moments and {counted['surges']} surges over three scales (rates / "
            f"{', '.join(f'{d:g}' for d in DIVISORS.values())}; counts Poisson around them). Trained on days 1 to 14."
        ),
        (
            "Recall and precision: of the moments at which capacity (1.1 and 1.25 times the largest of the last five counts) is exceeded "
            "within the horizon. Surges: how many were called before they crossed it, and the mean lead time, 0 for those that were not. "
            "Pinball loss, over-forecast and under-forecast: shares of the mean rate; covered: how often the forecast was enough; "
            "in surges: in their first minute. Exact definitions: `benchmarks/forecast.py`."
        ),
        f"## At the quantile {SHOWN_QUANTILE:g}",
        rows_markdown(shown),
        "## At other quantiles",
        rows_markdown(others),
        "One call: " + ", ".join(f"{name} {us:.0f} µs" for name, us in speed.items()) + ".",
    )
    return "\n\n".join(parts) + "\n"


def rows_markdown(items: list[dict[str, Any]]) -> str:
    lines = [
        (
            "| horizon s | quantile | forecast | recall 1.1 | precision 1.1 | recall 1.25 | precision 1.25 | surges 1.25 | lead s 1.1 "
            "| lead s 1.25 | pinball | covered | over | under | covered in surges | under in surges |"
        ),
        "| --- " * 16 + "|",
    ]
    for item in sorted(items, key=lambda item: item["row"].horizon_s):
        row, low, high = item["row"], *(item[f"capacity_{ratio:g}"] for ratio in CAPACITIES)
        cells = (
            row.horizon_s,
            f"{row.quantile:.2f}",
            row.label,
            share(low["recall"]),
            share(low["precision"]),
            share(high["recall"]),
            share(high["precision"]),
            share(high["surge_recall"]),
            f"{low['mean_lead_s']:.1f}",
            f"{high['mean_lead_s']:.1f}",
            f"{item['pinball']:.4f}",
            share(item["covered"]),
            share(item["over_forecast"]),
            share(item["under_forecast"]),
            share(item["covered_in_surges"]),
            share(item["under_in_surges"]),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def picture(scales: list[Scale]) -> None:
    """Precision over recall as the quantile goes from 0.5 to 0.99, and the paper's slice with its forecasts."""
    figure = Figure(figsize=(12.0, 4.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.7))
    actual = [scale.largest(10) for scale in scales]
    video = scales[0]
    inside = (video.moments >= SLICE_FROM_S) & (video.moments < SLICE_FROM_S + WINDOW_S)
    seconds = video.moments[inside] - SLICE_FROM_S
    right.plot(seconds, actual[0][inside], color="#1f2933", linewidth=1.6, label="largest second of the next ten")
    for name, colour in zip(ForecastName, RUN_COLOURS, strict=False):
        right.plot(seconds, video.forecast(name, 10, SHOWN_QUANTILE)[inside], color=colour, linewidth=0.9, label=name.value)
        if name is ForecastName.NONE:
            continue
        curve = [called(scales, [scale.forecast(name, 10, q) for scale in scales], actual, 1.25) for q in SWEEP]
        drawn = [(point["recall"], point["precision"]) for point in curve if point["precision"] is not None]
        left.plot(*zip(*drawn, strict=True), color=colour, marker="o", markersize=3, label=name.value)
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    left.set_title("1.25 × the recent peak exceeded within 10 s", loc="left", fontweight="bold")
    right.set(xlabel="time (s)", ylabel="requests/s", ylim=(0, None))
    right.set_title(f"The paper's slice, quantile {SHOWN_QUANTILE:g}, 10 s ahead", loc="left", fontweight="bold")
    left.legend()
    right.legend()
    figure.savefig(RESULTS / "forecast.png")


if __name__ == "__main__":
    main()
