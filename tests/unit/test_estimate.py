from dataclasses import replace

import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, route, server, snapshot
from themis_triton.core.config import ThemisConfig
from themis_triton.core.estimate import PROXY, Estimate
from themis_triton.core.fleet import Phase
from themis_triton.core.observation import ModelCounters, ServerReading, Snapshot
from themis_triton.core.policy import DemandConfig, ForecastName, PolicyConfig
from themis_triton.estimate.estimate import History, estimate

CONFIG = config()


def run(*snapshots: Snapshot, settings: ThemisConfig = CONFIG) -> Estimate:
    history, result = History(), None
    for each in snapshots:
        history, result = estimate(history, each, settings)
    assert result is not None
    return result


def steady(rps: float, seconds: int = 30, tick_s: float = 0.5) -> list[Snapshot]:
    """Detector and classifier see the same arrivals."""
    times = [index * tick_s for index in range(int(seconds / tick_s) + 1)]
    return [
        replace(
            snapshot([server("a")], NOW_S + t),
            routes=tuple(route(name, NOW_S + t, rps * t, (rps * t, rps * t, rps * t)) for name in (DETECTOR, CLASSIFIER)),
        )
        for t in times
    ]


def test_a_steady_rate_is_the_demand_at_every_scale() -> None:
    result = run(*steady(40.0))
    video = result.pipelines["video"]
    assert (video.recent_rps, video.burst_rps, video.stable_rps) == pytest.approx((40.0, 40.0, 40.0))
    assert video.growth_rps_per_s == pytest.approx(0.0, abs=1e-6)
    assert result.history_s == pytest.approx(30.0)
    assert result.stale == {}
    assert result.models[DETECTOR].in_flight == 2.0


def test_a_surge_is_recent_at_once_and_settled_slowly() -> None:
    calm = steady(10.0)
    late = [
        replace(calm[-1], at_s=calm[-1].at_s + t, routes=(route(DETECTOR, calm[-1].at_s + t, 300.0 + 100.0 * t),)) for t in (0.5, 1.0, 1.5)
    ]
    video = run(*calm, *late, settings=config(PolicyConfig(demand=DemandConfig(stable_window_s=20.0)))).pipelines["video"]
    assert video.recent_rps == pytest.approx(100.0)
    assert video.burst_rps == pytest.approx(100.0)
    assert 10.0 < video.stable_rps < 20.0
    assert video.growth_rps_per_s > 10.0


def test_the_newest_rate_never_hides_a_larger_one_of_a_moment_ago() -> None:
    """A single quiet second is not the end of a surge."""
    busy = steady(50.0)
    quiet = [replace(busy[-1], at_s=busy[-1].at_s + t, routes=(route(DETECTOR, busy[-1].at_s + t, 1500.0),)) for t in (0.5, 1.0)]
    video = run(*busy, *quiet).pipelines["video"]
    assert 20.0 < video.recent_rps < 50.0
    assert video.burst_rps == pytest.approx(50.0)


@pytest.mark.parametrize("tick_s", [0.25, 0.3, 0.5, 1.0])
def test_a_forecast_gets_a_whole_minute_of_seconds(tick_s: float) -> None:
    forecasting = replace(CONFIG, policy=replace(CONFIG.policy, demand=DemandConfig(forecast=ForecastName.QUANTILE)))
    video = run(*steady(40.0, seconds=75, tick_s=tick_s), settings=forecasting).pipelines["video"]
    assert video.per_second == pytest.approx([40.0] * 60)
    young = run(*steady(40.0, seconds=12, tick_s=tick_s), settings=forecasting).pipelines["video"]
    assert young.per_second == pytest.approx([40.0] * 12)


def test_without_a_forecast_no_seconds_are_counted() -> None:
    present = replace(CONFIG, policy=replace(CONFIG.policy, demand=DemandConfig(forecast=ForecastName.NONE)))
    assert run(*steady(40.0), settings=present).pipelines["video"].per_second == ()


def test_no_data_is_a_value() -> None:
    result = run(snapshot())
    assert result.history_s == 0.0
    assert result.pipelines["video"].recent_rps == 0.0
    assert result.pipelines["video"].p99_ms is None
    assert result.models[DETECTOR].mean_batch is None


def served(at_s: float, counters: dict[str, ModelCounters], error: str | None = None) -> Snapshot:
    names = ("a", "b")
    readings = tuple(ServerReading(name, NOW_S + at_s, {DETECTOR: counters[name]}, error) for name in names if name in counters)
    return replace(snapshot([server(name) for name in names], NOW_S + at_s), readings=readings)


def counters(n: float, *, per_batch: float = 2.0, queue_ms: float = 3.0, pending: float = 0.0) -> ModelCounters:
    """After `n` requests, each 3 ms in the queue and 10 ms in the model."""
    return ModelCounters(
        success=n,
        inferences=n,
        executions=n / per_batch,
        queue_us=n * queue_ms * 1000,
        compute_input_us=n * 1000,
        compute_infer_us=n * 8000,
        compute_output_us=n * 1000,
        pending=pending,
    )


def test_servers_are_summed_before_anything_is_divided() -> None:
    """The idle server does not dilute the busy one's means, nor does its size hide in them."""
    result = run(
        *(served(float(t), {"a": counters(30.0 * t, pending=4.0), "b": counters(10.0 * t, queue_ms=7.0, pending=1.0)}) for t in range(4))
    ).models[DETECTOR]
    assert result.completion_rps == pytest.approx(40.0)
    assert result.pending == 5.0
    assert result.mean_batch == pytest.approx(2.0)
    assert result.queue_ms == pytest.approx((30 * 3 + 10 * 7) / 40)
    assert result.compute_ms == pytest.approx(10.0)
    idle = run(*(served(float(t), {"a": counters(30.0 * t), "b": counters(0.0)}) for t in range(4))).models[DETECTOR]
    assert idle.queue_ms == pytest.approx(3.0)


def test_backlog_is_what_waits_in_all_stages() -> None:
    reading = ServerReading("a", NOW_S, {DETECTOR: counters(1.0, pending=6.0), CLASSIFIER: counters(1.0, pending=2.0)})
    assert run(replace(snapshot([server("a")]), readings=(reading,))).pipelines["video"].backlog == 8.0


def test_counters_that_restart_neither_jump_nor_fall() -> None:
    readings = [counters(1000.0), counters(1020.0), counters(20.0), counters(40.0)]
    result = run(*(served(float(t), {"a": each}) for t, each in enumerate(readings))).models[DETECTOR]
    assert result.completion_rps == pytest.approx(20.0)
    assert result.queue_ms == pytest.approx(3.0)


def test_a_server_that_left_leaves_nothing_behind() -> None:
    with_both = [served(float(t), {"a": counters(10.0 * t), "b": counters(10.0 * t, pending=9.0)}) for t in range(3)]
    alone = replace(with_both[-1], at_s=NOW_S + 3.0, servers=(server("a"),), readings=())
    assert run(*with_both, alone).models[DETECTOR].pending == 0.0


def test_latency_is_that_of_the_last_seconds() -> None:
    """A thousand old requests took 100 ms; the last hundred took 10 ms."""
    old = [replace(snapshot([], NOW_S + t), routes=(route(DETECTOR, NOW_S + t, 0.0, (0.0, 1000.0, 1000.0)),)) for t in (0.0, 1.0)]
    new = [replace(snapshot([], NOW_S + t), routes=(route(DETECTOR, NOW_S + t, 0.0, (100.0, 1100.0, 1100.0)),)) for t in (8.0,)]
    result = run(*old, *new).models[DETECTOR]
    assert result.p99_ms is not None
    assert result.p99_ms <= 10.0


def test_a_pipeline_has_a_p99_once_every_stage_has_one() -> None:
    times = (0.0, 1.0)
    one = [replace(snapshot([], NOW_S + t), routes=(route(DETECTOR, NOW_S + t, 0.0, (9.0 * t,) * 3),)) for t in times]
    both = [
        replace(each, routes=(*each.routes, route(CLASSIFIER, each.at_s, 0.0, (0.0, 9.0 * t, 9.0 * t))))
        for t, each in zip(times, one, strict=True)
    ]
    assert run(*one).pipelines["video"].p99_ms is None
    result = run(*both)
    p99s = [result.models[name].p99_ms for name in (DETECTOR, CLASSIFIER)]
    assert result.pipelines["video"].p99_ms == pytest.approx(sum(p99 for p99 in p99s if p99 is not None))


def test_an_envoy_that_falls_silent_is_stale_after_a_while_and_says_why() -> None:
    seen = steady(10.0)
    silent = [replace(seen[-1], at_s=seen[-1].at_s + t, routes=(), routes_error="connection refused") for t in (1.0, 4.0)]
    assert run(*seen, silent[0]).stale == {}
    result = run(*seen, *silent)
    assert result.stale == {PROXY: "no statistics for 4.0 s: connection refused"}
    assert result.models[DETECTOR].age_s == pytest.approx(4.0)
    assert run(*seen, *silent, replace(seen[-1], at_s=silent[-1].at_s + 1)).stale == {}


def test_an_envoy_that_was_never_heard_is_stale() -> None:
    assert PROXY in run(replace(snapshot(), routes_error="connection refused")).stale


def test_a_server_that_falls_silent_is_stale_and_one_that_is_not_up_yet_is_not() -> None:
    seen = served(0.0, {"a": counters(1.0)})
    silent = [served(t, {"a": counters(1.0), "b": counters(1.0)}, "timed out") for t in (1.0, 5.0)]
    coming = replace(silent[1], servers=(server("a"), server("b", phase=Phase.LAUNCHING)))
    assert set(run(seen, silent[0]).stale) == {"b"}
    assert run(seen, *silent).stale["a"] == "no metrics for 5.0 s: timed out"
    assert set(run(seen, coming).stale) == {"a"}
