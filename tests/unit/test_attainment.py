"""SLO attainment by request: what ended, what missed the SLO, and what is left of the error budget."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, record, snapshot
from tests.unit.status_api import tick
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.store.journal import Journal
from themis_triton.core.attainment import EndedRequests, SloWindow, slo_window
from themis_triton.core.config import PipelineConfig, StageCalls
from themis_triton.core.graph import Parallel
from themis_triton.core.history import PipelineSample
from themis_triton.core.observation import LatencyHistogram, RouteReading, Snapshot
from themis_triton.daemon.attainment import RollingCounts
from themis_triton.daemon.samples import Samples
from themis_triton.daemon.status import StatusBoard, recall_requests
from themis_triton.estimate.attainment import RequestCounter

BOUNDS_MS = (*map(float, range(10, 1001, 10)), float("inf"))
LONE = PipelineConfig("lone", ("m",), 300.0)
CHAIN = PipelineConfig("chain", ("a", "b"), 300.0)
RANDOM = np.random.default_rng(7)
FAST, SLOW = RANDOM.gamma(4.0, 25.0, 20_000), RANDOM.gamma(2.0, 60.0, 20_000)

Times = Sequence[float] | NDArray[np.float64]


def reading(model: str, at_s: float, times_ms: Times, failures: float = 0.0) -> RouteReading:
    """The proxy's reading of a model whose requests so far took these times."""
    counts = tuple(float(np.count_nonzero(np.asarray(times_ms) <= bound)) for bound in BOUNDS_MS)
    return RouteReading(model, at_s, len(times_ms), 0.0, failures, LatencyHistogram(BOUNDS_MS, counts))


def seen(at_s: float, **times_ms: Times) -> Snapshot:
    return replace(snapshot(at_s=at_s), routes=tuple(reading(model, at_s, times) for model, times in times_ms.items()))


def ended(pipeline: PipelineConfig, **times_ms: Times) -> EndedRequests:
    """What one second with these times counts."""
    counter = RequestCounter()
    assert counter.take(seen(0.0, **{model: [] for model in times_ms}), [pipeline]) == {}
    return counter.take(seen(1.0, **times_ms), [pipeline])[pipeline.name]


def test_the_requests_of_a_lone_model_are_counted_exactly_where_the_slo_is_a_bound() -> None:
    assert ended(LONE, m=[100.0] * 7 + [300.0, 301.0, 5000.0]) == EndedRequests(10.0, 2.0)


@pytest.mark.parametrize(
    ("pipeline", "total_ms"),
    [
        (CHAIN, FAST + SLOW),
        (replace(CHAIN, graph=Parallel(("a", "b"))), np.maximum(FAST, SLOW)),
        (replace(CHAIN, calls=(StageCalls(), StageCalls(2.0, sequential=True))), FAST + SLOW + RANDOM.permutation(SLOW)),
        (replace(CHAIN, calls=(StageCalls(), StageCalls(2.0))), FAST + np.maximum(SLOW, RANDOM.permutation(SLOW))),
        (replace(CHAIN, calls=(StageCalls(), StageCalls(0.5))), FAST + SLOW * (RANDOM.random(len(SLOW)) < 0.5)),
    ],
    ids=["chain", "side by side", "in turn", "at once", "half of them"],
)
def test_calls_of_several_stages_add_up_to_the_late_requests(pipeline: PipelineConfig, total_ms: NDArray[np.float64]) -> None:
    counted = ended(pipeline, a=FAST, b=SLOW)
    late = float(np.mean(total_ms > pipeline.slo_ms))
    assert counted.requests == len(FAST)
    assert 0.005 < late < 0.6
    assert counted.late / counted.requests == pytest.approx(late, abs=0.01)


@pytest.mark.parametrize("slow", range(0, 30, 3))
def test_sums_of_fractions_never_count_less_than_nothing_late(slow: int) -> None:
    counted = ended(CHAIN, a=list(range(1, 60 + slow)), b=list(range(1, 71)))
    assert 0.0 <= counted.late < 1e-6


def test_failed_requests_are_late_even_if_all_that_ended_failed() -> None:
    counter = RequestCounter()
    counter.take(replace(snapshot(at_s=0.0), routes=(reading("m", 0.0, []),)), [LONE])
    after = replace(snapshot(at_s=1.0), routes=(reading("m", 1.0, [100.0] * 8 + [400.0] * 2, failures=3.0),))
    assert counter.take(after, [LONE]) == {"lone": EndedRequests(10.0, 5.0)}
    refused = replace(snapshot(at_s=2.0), routes=(reading("m", 2.0, [100.0] * 8 + [400.0] * 2, failures=7.0),))
    assert counter.take(refused, [LONE]) == {"lone": EndedRequests(4.0, 4.0)}


def test_a_count_of_failures_that_falls_for_a_moment_makes_no_request_late() -> None:
    counter = RequestCounter()
    counter.take(replace(snapshot(at_s=0.0), routes=(reading("m", 0.0, [], failures=1000.0),)), [LONE])
    after = replace(snapshot(at_s=1.0), routes=(reading("m", 1.0, [100.0], failures=999.0),))
    assert counter.take(after, [LONE]) == {"lone": EndedRequests(1.0, 0.0)}


def test_what_rounding_leaves_of_no_request_is_none() -> None:
    assert slo_window(EndedRequests(3.7e-13, 1e-13), 99.0) == SloWindow()


def test_counts_wait_for_the_later_stage_and_start_anew_with_the_proxy() -> None:
    counter = RequestCounter()
    assert counter.take(seen(0.0, a=[], b=[]), [CHAIN]) == {}
    assert counter.take(seen(0.5, a=[10.0], b=[]), [CHAIN]) == {}
    assert counter.take(seen(1.5, a=[10.0], b=[]), [CHAIN]) == {}
    assert counter.take(seen(2.0, a=[10.0], b=[900.0]), [CHAIN]) == {"chain": EndedRequests(1.0, 1.0)}
    assert counter.take(seen(2.5), [CHAIN]) == {}, "the proxy does not answer"
    assert counter.take(seen(4.0, a=[10.0] * 3, b=[900.0, 10.0]), [CHAIN])["chain"].requests == 2.0
    assert counter.take(seen(6.0, a=[10.0], b=[10.0]), [CHAIN])["chain"].requests == 1.0, "the counters began at 0 again"


def test_a_rolling_sum_has_the_requests_of_its_window() -> None:
    counts = RollingCounts(60.0, 10.0)
    for at_s in range(0, 100, 5):
        counts.add(float(at_s), EndedRequests(1.0, 0.5))
    assert counts.at(99.0) == EndedRequests(12.0, 6.0)
    assert counts.at(500.0) == EndedRequests()


@pytest.mark.parametrize(
    ("counted", "percentile", "attainment", "left"),
    [
        (EndedRequests(1000.0, 4.0), 99.0, 0.996, 0.6),
        (EndedRequests(100.0, 3.0), 99.0, 0.97, -2.0),
        (EndedRequests(100.0, 3.0), 95.0, 0.97, 0.4),
    ],
)
def test_the_budget_is_what_the_percentile_lets_be_late(counted: EndedRequests, percentile: float, attainment: float, left: float) -> None:
    window = slo_window(counted, percentile)
    assert window.attainment == pytest.approx(attainment)
    assert window.budget_left == pytest.approx(left)
    assert slo_window(EndedRequests(), percentile) == SloWindow()


def test_status_metrics_and_journal_agree_also_after_a_restart(tmp_path: Path) -> None:
    board, samples, exporter, path = StatusBoard(config(), NOW_S), Samples(), Exporter(), tmp_path / "journal.sqlite"
    counted = {"video": EndedRequests(50.0, 1.0)}
    with closing(Journal(path)) as journal:
        for second in range(120):
            record = tick(NOW_S - 120.0 + second)
            board.take(record, 1.0, counted)
            journal.record_samples(samples.take(record, config(), counted))
            exporter.count_requests(config().pipelines, counted)
        assert journal.flush()
    (video,) = board.status().pipelines
    assert (video.slo_minute.requests, video.slo_hour.requests, video.slo_day.late) == (3000.0, 6000.0, 120.0)
    assert video.slo_hour.attainment == pytest.approx(0.98)
    assert video.slo_hour.budget_left == pytest.approx(-1.0)
    text = exporter.text().decode()
    for metric, value in (("requests_total", "6000.0"), ("late_requests_total", "120.0"), ("objective_ratio", "0.99")):
        assert f'themis_slo_{metric}{{pipeline="video"}} {value}\n' in text
    again = StatusBoard(config(), NOW_S)
    recall_requests(again, path, NOW_S)
    again.take(tick(NOW_S), 1.0)
    assert again.status().pipelines[0].slo_hour.requests == pytest.approx(6000.0, abs=300.0), "a sample of 5 s was not complete"
    recall_requests(again, tmp_path / "none.sqlite", NOW_S)


def test_a_snapshot_without_a_pipelines_models_counts_nothing() -> None:
    assert RequestCounter().take(seen(0.0, other=[1.0]), config().pipelines) == {}
    assert config().pipelines[0].client_calls == (DETECTOR, CLASSIFIER)


def test_samples_count_requests_whose_end_was_found_after_a_gap() -> None:
    samples, counted = Samples(), {config().pipelines[0].name: EndedRequests(7.0, 2.0)}
    rows: list[PipelineSample] = []
    for at_s, ended_then in ((0.0, {}), (1.0, {}), (14.0, counted), (15.0, {}), (21.0, {})):
        rows += samples.take(record(seen=snapshot(at_s=at_s)), config(), ended_then)
    assert [(row.at_s, row.requests, row.late_requests) for row in rows] == [(0.0, 0.0, 0.0), (15.0, 7.0, 2.0)]


def test_of_many_pipelines_each_is_counted_within_seconds_and_no_request_twice() -> None:
    pipelines = [replace(LONE, name=f"p{n}", stages=(f"m{n}",)) for n in range(300)]
    counter, counted, last_s, at_once, longest_s = (
        RequestCounter(),
        dict.fromkeys([p.name for p in pipelines], 0.0),
        dict[str, float](),
        0,
        0.0,
    )
    for number in range(41):
        at_s = 0.25 * number
        latency = LatencyHistogram(BOUNDS_MS, tuple(float(number) if bound >= 100.0 else 0.0 for bound in BOUNDS_MS))
        routes = tuple(RouteReading(pipeline.front, at_s, float(number), 0.0, 0.0, latency) for pipeline in pipelines)
        now = counter.take(replace(snapshot(at_s=at_s), routes=routes), pipelines)
        at_once = max(at_once, len(now))
        for name, each in now.items():
            counted[name] += each.requests
            longest_s, last_s[name] = max(longest_s, at_s - last_s.get(name, 0.0)), at_s
    assert at_once <= 100
    assert longest_s <= 2.25
    assert all(counted[name] == last_s[name] / 0.25 for name in counted)
