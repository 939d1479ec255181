"""The cases of `policies.py`: policy, load and world of each run; and one such run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from common import recorded_trace, with_constants
from forecast_windows import DAY_S, FloatArray, rates_of_days

from themis_triton.commands.simulated_runs import SimulatedRun, WorldFlags, run_under
from themis_triton.core.config import ThemisConfig
from themis_triton.core.policy import ForecastName, PolicyName, QueueingModel
from themis_triton.core.recurring import RecurringRise
from themis_triton.forecast.recurring import SeenRises, recurring_rises
from themis_triton.load.trace_files import read_trace_file
from themis_triton.load.traces import Trace, TraceOptions, load_trace
from themis_triton.load.twitter import (
    DIVISORS,
    PAPER_SLICE_S,
    PAPER_TRACE_FILE,
    WINDOW,
    WINDOW_S,
    is_twitter,
    twitter_for,
)
from themis_triton.report.series import RunSeries
from themis_triton.settings import load_settings

CONFIG = Path(__file__).parents[1] / "config"
PIPELINES = ("video", "sentiment", "nlp")
FLASH_DIVISORS = {pipeline: divisor / DIVISORS["video"] for pipeline, divisor in DIVISORS.items()}
WINDOWS_SEED = 20261125
FRESH_SEED = 20261129
WINDOWS = 5
SEEN_S = (1209897, 1216152, 1222111, 1242314, 1270320, 1308697, 1315647, 1361925, 1365802)
"""Windows of days 15 and 16 that were simulated while constants were still chosen: none is drawn again."""
FIRST_DAY_S = 14 * DAY_S
SURGE = 1.5
STEEP, STEEP_S = 2.0, 60
DEPRIORITIZED = 0.6
"""The baselines': fraction of the SLO after which late requests are served last."""
MEAN_S = 10
WEEKS_S = 14 * DAY_S
TRAINING_DAYS, LEARNT_DAYS, TRAINING_RISES, RISES_SEED, RISE_AT_S = 14, 7, 6, 7, 200
AZURE, AZURE_FILE, AZURE_S = "azure", "azure-llm-code-2023.csv", 660
FLASH = "flash"


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy under a name of its own. `changes` are its settings; `batch_wait_s` 0: the queue waits for no full batch.

    `learns`: it has seen the two weeks before a window of the Twitter stream, and knows the rises that recur.
    """

    label: str
    policy: str
    changes: tuple[tuple[str, Any], ...] = ()
    batch_wait_s: float | None = None
    learns: bool = False


THEMIS, THEMIS_PAPER = Variant("themis", "themis"), Variant("themis-paper", "themis-paper")
HORIZONTAL, VERTICAL = Variant("horizontal", "horizontal"), Variant("vertical", "vertical")
LEARNING = Variant("themis, after two weeks", "themis", learns=True)
REFERENCES = (Variant("vertical-themis", "vertical-themis"), Variant("oracle", "oracle"))
"""Our decisions on replicas that are fixed for the load's known peak, and the delayed oracle: perfect rates, real levers."""
EAGER = tuple(Variant(f"{each.label}, work-conserving", each.policy, batch_wait_s=0.0) for each in (THEMIS_PAPER, HORIZONTAL, VERTICAL))
IN_TURN = Variant("themis, queues in turn", "themis", (("deprioritize_after_slo_fraction", None),))
DEPRIORITIZING = tuple(
    replace(each, label=f"{each.label}, late ones last", changes=(("deprioritize_after_slo_fraction", DEPRIORITIZED),)) for each in EAGER
)
QUICK = (Variant("vertical, work-conserving, every 0.1 s", "vertical", (("tick_s", 0.1),), 0.0),)
EVERY = (
    *(THEMIS, LEARNING, THEMIS_PAPER, HORIZONTAL, VERTICAL, IN_TURN, *EAGER, *DEPRIORITIZING, *QUICK),
    *(Variant("inferline", "inferline"), Variant("static", "static"), *REFERENCES),
)
FEW = (THEMIS, LEARNING, THEMIS_PAPER, HORIZONTAL, VERTICAL, *DEPRIORITIZING, *REFERENCES)

SLOW_ACTUATION = Variant(
    "themis, constants for slow levers",
    "themis",
    (
        ("headroom_sigmas", 0.5),
        ("slow_actuation_headroom_sigmas", 2.5),
        ("server_headroom_sigmas", 1.0),
        ("slo_margin_fraction", 0.4),
        ("deprioritize_after_slo_fraction", 0.35),
    ),
)
"""Chosen by hand on eight windows of days 1 to 14 with in-place changes of 1.2 s, at a cost of 1.25."""

ABLATIONS: tuple[Variant, ...] = (
    THEMIS,
    Variant("decisions every 0.5 s", "themis", (("tick_s", 0.5),)),
    Variant("decisions every 1 s", "themis", (("tick_s", 1.0),)),
    Variant("no backlog in the demand", "themis", (("backlog_drain_s", 1e9),)),
    Variant("no headroom for chance", "themis", (("headroom_sigmas", 0.0),)),
    Variant("no room for a surge", "themis", (("burst_headroom_factor", 1.0),)),
    Variant("cores held for 10 s", "themis", (("shrink_stabilization_s", 10.0),)),
    Variant("scale-in after 10 s", "themis", (("scale_in_stabilization_s", 10.0),)),
    Variant("10 % of the SLO for waits", "themis", (("slo_margin_fraction", 0.1),)),
    Variant("growth of the rate counts for cores", "themis", (("growth_sigmas", 1.0),)),
    Variant("trend of the rate counts for replicas", "themis", (("trend_sigmas", 2.0),)),
    Variant("equal cores on all replicas, waits predicted", "themis", (("queueing", QueueingModel.CENTRAL_QUEUE),)),
    Variant("with the linear forecast", "themis", (("forecast", ForecastName.LINEAR),)),
    Variant("with the classifier's forecast", "themis", (("forecast", ForecastName.CLASSIFIER),)),
    Variant("with the quantile forecast", "themis", (("forecast", ForecastName.QUANTILE),)),
    Variant("waits for full batches, 50 ms", "themis", batch_wait_s=0.05),
)
"""Each feature of policy themis switched off alone, and each forecast switched on."""
SLOW_ABLATIONS: tuple[Variant, ...] = (
    THEMIS,
    Variant("no headroom for the levers' time", "themis", (("slow_actuation_headroom_sigmas", 0.0),)),
    replace(IN_TURN, label="queues in turn"),
)
"""Features without effect where cores change in a tick and waits are short: evaluated with slower changes, and in overload."""
PUBLISHED: tuple[Variant, ...] = (
    HORIZONTAL,
    Variant("horizontal, newest rate alone", "horizontal", (("burst_window_s", 1.0),)),
    Variant("horizontal, every 2 s", "horizontal", (("tick_s", 2.0),)),
    Variant("inferline", "inferline"),
    Variant("inferline, largest rate of 5 s", "inferline", (("burst_window_s", 5.0),)),
    Variant("inferline, every 2 s", "inferline", (("tick_s", 2.0),)),
)
"""Interpretations of the published baselines, for comparison with others' figures."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run. `setting` is the row group of a table that it counts in; `drawn`: its series are kept. `rise_s`: see `around_rise`."""

    setting: str
    load: str
    pipeline: str
    variant: Variant
    seed: int
    flags: WorldFlags = field(default_factory=WorldFlags)
    drawn: bool = False
    rise_s: int = WINDOW_S


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The result of a case."""

    case: Case
    run: SimulatedRun


@lru_cache
def surges() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First seconds of five windows of days 15 and 16 with a mild surge, and of five with a steep one, drawn by a fixed seed.

    Each is of its kind and has no hole, and none meets another, the paper's slice or one that was seen before.
    """
    return _drawn(WINDOWS_SEED, SEEN_S)


@lru_cache
def fresh_surges() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ten more such windows: none meets one of `surges`."""
    mild, steep = surges()
    return _drawn(FRESH_SEED, (*SEEN_S, *mild, *steep))


@lru_cache
def training_rises() -> tuple[int, ...]:
    """First seconds of six windows of days 8 to 14 with a sharp rise 200 s after it, drawn by a fixed seed."""
    rises = [second for second in _windows_of_rises(1, TRAINING_DAYS) if second > LEARNT_DAYS * DAY_S]
    drawn: list[int] = []
    for second in np.random.default_rng(RISES_SEED).permutation(rises).tolist():
        if all(abs(second - other) > WINDOW_S for other in drawn):
            drawn.append(second)
    return tuple(drawn[:TRAINING_RISES])


@lru_cache
def unseen_rises() -> tuple[int, ...]:
    """The same for the sharp rises of days 15 and 16 that no window above has, nor one that was seen before: there are three."""
    seen = [PAPER_SLICE_S, *SEEN_S, *(second for kinds in (surges(), fresh_surges()) for kind in kinds for second in kind)]
    rises = _windows_of_rises(TRAINING_DAYS + 1, TRAINING_DAYS + 2)
    return tuple(second for second in rises if not any(0 <= second + RISE_AT_S - other <= WINDOW_S for other in seen))


def _windows_of_rises(first_day: int, last_day: int) -> list[int]:
    rates, start_s = rates_of_days(first_day, last_day), (first_day - 1) * DAY_S
    rises = [at_s - RISE_AT_S for at_s in SeenRises().with_counts(np.where(rates > 0.0, rates, np.nan), start_s).at_s]
    return [second for second in rises if rates[second - start_s : second - start_s + WINDOW_S].min() > 0.0]


def _drawn(seed: int, seen: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rates, rng = rates_of_days(15, 16), np.random.default_rng(seed)
    order, taken, drawn = rng.permutation(rates.size - WINDOW_S), [PAPER_SLICE_S, *seen], list[tuple[int, ...]]()
    for kind in (has_surge, doubles_in_a_minute):
        found: list[int] = []
        for offset in order.tolist():
            second = FIRST_DAY_S + offset
            window = rates[offset : offset + WINDOW_S]
            apart = all(abs(second - other) >= WINDOW_S for other in (*taken, *found))
            if apart and window.min() > 0.0 and kind(np.convolve(window, np.full(MEAN_S, 1.0 / MEAN_S), mode="valid")):
                found.append(second)
            if len(found) == WINDOWS:
                break
        taken += found
        drawn.append(tuple(sorted(found)))
    return drawn[0], drawn[1]


def has_surge(means: FloatArray) -> bool:
    """The largest mean of 10 s is at least 1.5 times the smallest: what the constants were tuned on, too."""
    return bool(means.max() >= SURGE * means.min())


def doubles_in_a_minute(means: FloatArray) -> bool:
    """Some mean of 10 s is at least twice one that lies no more than a minute before."""
    before = np.lib.stride_tricks.sliding_window_view(means, STEEP_S + 1).min(axis=1)
    return bool((means[STEEP_S:] >= STEEP * before).any())


def window_names(seconds: Sequence[int]) -> tuple[str, ...]:
    """The windows as traces."""
    return tuple(f"{WINDOW}{second}" for second in seconds)


def run_case(case: Case) -> Outcome:
    """Simulate one case."""
    config = changed(settings(case.pipeline), PolicyName(case.variant.policy), dict(case.variant.changes))
    flags = replace(case.flags, batch_wait_s=case.variant.batch_wait_s)
    traces = {case.pipeline: trace_of(case.load, case.pipeline, case.seed, case.rise_s)}
    recurring = {case.pipeline: recurring_before(case.load, case.pipeline, case.rise_s)} if case.variant.learns else None
    run = run_under(config, traces, flags, 0 if case.drawn else None, (case.variant.policy, case.seed), recurring)
    return Outcome(case, run if case.drawn else replace(run, series=NOTHING))


NOTHING = RunSeries("", [], [], [], [], [], [], [])


@lru_cache
def settings(pipeline: str) -> ThemisConfig:
    """`config/paper-PIPELINE.yaml`."""
    return load_settings(CONFIG / f"paper-{pipeline}.yaml")


def changed(config: ThemisConfig, policy: PolicyName, changes: Mapping[str, Any]) -> ThemisConfig:
    """With other constants of a policy."""
    if not changes:
        return config
    own = with_constants(config.under(policy).policy, changes)
    return replace(config, policies=config.policies | {policy: own})


def trace_of(load: str, pipeline: str, seed: int, rise_s: int = WINDOW_S) -> Trace:
    """A load by name: a trace of the Twitter stream, the production service's, or a shape of the generator at the pipeline's scale."""
    if load == AZURE:
        return _azure()
    if is_twitter(load):
        return load_trace(around_rise(TraceOptions(twitter_for(load, pipeline)), rise_s), seed)
    return load_trace(TraceOptions(load, scale=1.0 / FLASH_DIVISORS[pipeline]), seed)


def recurring_before(load: str, pipeline: str, rise_s: int) -> tuple[RecurringRise, ...]:
    """The rises that recur in the two weeks before a window of the Twitter stream, from its first second on; for other loads none."""
    if not is_twitter(load):
        return ()
    second = int(load.removeprefix(WINDOW)) if load.startswith(WINDOW) else PAPER_SLICE_S
    return recurring_until(second + (around_rise(TraceOptions(twitter_for(load, pipeline)), rise_s).from_s or 0), pipeline, WEEKS_S)


def recurring_until(first_s: int, pipeline: str, history_s: int) -> tuple[RecurringRise, ...]:
    """The rises that recur in so much of the Twitter stream before its second `first_s`, from that second on."""
    start_s = max(0, first_s - history_s)
    seen = SeenRises().with_counts(arrivals_between(start_s, first_s, pipeline), start_s)
    return tuple(rise.shifted(-first_s) for rise in recurring_rises(seen))


def arrivals_between(start_s: int, end_s: int, pipeline: str) -> FloatArray:
    """The Twitter stream's arrivals of each second at a pipeline's scale; NaN in its holes, the seconds without any request."""
    counts = read_trace_file(recorded_trace(PAPER_TRACE_FILE))[0][start_s:end_s] / DIVISORS[pipeline]
    return np.where(counts > 0.0, counts, np.nan)


def around_rise(trace: TraceOptions, rise_s: int) -> TraceOptions:
    """The part of a window around its largest rise within a minute, which it contains after 110 s if the window allows."""
    if rise_s >= WINDOW_S:
        return trace
    rates = load_trace(trace, 0).rates_rps
    means = np.convolve(rates, np.full(MEAN_S, 1.0 / MEAN_S), mode="valid")
    steepest = max(range(STEEP_S, means.size), key=lambda second: means[second] / means[second - STEEP_S : second].min())
    first = min(max(0, steepest - 110), WINDOW_S - rise_s)
    return replace(trace, from_s=first, to_s=first + rise_s)


def _azure() -> Trace:
    """Its hour at 2.5 requests/s in 660 s: times divided, so that every arrival stays and bursts keep their shape."""
    whole = load_trace(TraceOptions(str(recorded_trace(AZURE_FILE))))
    if whole.times_s is None:
        raise ValueError(f"{AZURE_FILE}: no time stamps")
    times = whole.times_s * (AZURE_S / whole.duration_s)
    return Trace(AZURE, np.bincount(times.astype(np.int64), minlength=AZURE_S).astype(np.float64), times)


def seeds_of(load: str, seeds: int) -> range:
    """Recorded arrivals are the same under every seed."""
    return range(1 if load == AZURE else seeds)
