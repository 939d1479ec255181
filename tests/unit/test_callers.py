"""A model that calls another by itself (BLS): what it waits for is not its own work, so that no plan feeds on its own queues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, model, server, snapshot, table
from themis_triton.core.config import PipelineConfig, StageCalls, ThemisConfig
from themis_triton.core.fleet import ModelState
from themis_triton.core.graph import Calls, Series
from themis_triton.core.observation import BatchCounters, ModelCounters, ServerReading, Snapshot
from themis_triton.decide.demand import Demand
from themis_triton.decide.device_share import device_share_of
from themis_triton.decide.plan_query import PlanQuery
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.estimate.busy import busy_instances
from themis_triton.estimate.callers import NO_WORK, Callee, Waits, Work, callers_of, waits_of
from themis_triton.estimate.drift import DriftHistory, compared
from themis_triton.estimate.learning import LearningHistory, observe_batches
from themis_triton.estimate.served import ServedSeries
from themis_triton.estimate.work import WorkHistory, observe

CALLER, INNER, OTHER = DETECTOR, CLASSIFIER, "other"
OWN_MS, INNER_MS = 2.0, 18.0
INNER_SURFACE = table(2.0, 4.0, 2.0, 10.0)
RATE = 20.0
BLS = PipelineConfig("bls", (CALLER, INNER), 300.0, entry=CALLER, graph=Calls(CALLER, INNER))


def bls(calls: float = 1.0) -> ThemisConfig:
    """The classifier, a model that calls it so many times for each request, and another pipeline of one model on the same servers."""
    inner = INNER_SURFACE
    rows = tuple(tuple(b * (OWN_MS + calls * ms) for ms in inner.latency_ms[0]) for b in inner.batches)
    models = {CALLER: model(CALLER, replace(inner, latency_ms=rows)), INNER: model(INNER, inner), OTHER: model(OTHER, inner)}
    pipelines = (replace(BLS, calls=(StageCalls(), StageCalls(calls))), PipelineConfig(OTHER, (OTHER,), 300.0))
    return replace(config(), models=models, pipelines=pipelines, callees={CALLER: (INNER,)})


def counters(requests: float, ms: float, queue_ms: float = 0.0) -> ModelCounters:
    batches = (BatchCounters(1, requests, 1000.0 * requests * ms),)
    times = {"queue_us": 1000.0 * requests * queue_ms, "compute_infer_us": 1000.0 * requests * ms}
    return ModelCounters(success=requests, inferences=requests, executions=requests, batches=batches, **times)


def seen(second: float, queue_ms: float, calls: float = 1.0, instances: int = 8) -> Snapshot:
    """After so many seconds, in which each call waited so long in the callee's queue, and so its caller as well."""
    requests = RATE * second
    models = {
        CALLER: counters(requests, OWN_MS + calls * (INNER_MS + queue_ms)),
        INNER: counters(calls * requests, INNER_MS, queue_ms),
        OTHER: counters(requests, INNER_MS),
    }
    holder = server("a")
    holder = replace(holder, models=dict.fromkeys(models, ModelState(instances, 8)))
    return replace(snapshot([holder], NOW_S + second), readings=(ServerReading("a", NOW_S + second, models),))


@pytest.mark.parametrize("queue_ms", [0.0, 40.0, 400.0])
def test_a_queue_at_the_callee_is_no_drift_of_the_caller(queue_ms: float) -> None:
    settings, history = bls(), DriftHistory()
    for second in range(12):
        history, drifts, events = compared(history, seen(second, queue_ms), settings)
        assert events == ()
    assert drifts[CALLER].ratio == pytest.approx(drifts[INNER].ratio, rel=0.02)
    assert drifts[CALLER].state.correction == 1.0


def test_a_caller_that_becomes_slower_itself_drifts() -> None:
    slower = replace(bls(), models=bls().models | {CALLER: model(CALLER, table(0.1, 6.0, 0.1, 2.0))})
    history = DriftHistory()
    for second in range(12):
        history, drifts, _ = compared(history, seen(second, 40.0), slower)
    assert drifts[CALLER].state.correction > 2.0


@pytest.mark.parametrize("calls", [1.0, 3.0])
def test_times_of_a_caller_are_learnt_without_its_callee_s_queue(calls: float) -> None:
    settings = bls(calls)
    guess = replace(settings.models[CALLER], profile=replace(settings.models[CALLER].profile, learnt_from=0.0))
    settings = replace(settings, models=settings.models | {CALLER: guess})
    history = LearningHistory()
    for second in range(1, 12):
        history = observe_batches(history, seen(second, 100.0, calls), settings)
    for batches in history.totals[CALLER].values():
        (batch,) = batches
        assert batch.compute_us / batch.executions == pytest.approx(1000.0 * (OWN_MS + calls * INNER_MS))


def test_a_caller_that_waits_is_not_busy_for_others_on_its_device() -> None:
    series = ServedSeries()
    for step in range(9):
        series = series.append(seen(0.5 * step, 200.0).readings[0], 10.0)
    served = {"a": series}
    busy = busy_instances(seen(4.0, 200.0), served, bls())["a"]
    assert busy[CALLER] == pytest.approx(RATE * OWN_MS / 1000.0, abs=1e-6)
    assert busy[INNER] == busy[OTHER] == pytest.approx(RATE * INNER_MS / 1000.0)
    # Without the key `calls` nothing is known of what it waits for.
    assert busy_instances(seen(4.0, 200.0), served, replace(bls(), callees={}))["a"][CALLER] == pytest.approx(RATE * 0.22)


def test_batches_meet_the_working_instances_and_no_waiting_caller() -> None:
    def expected_ms(queue_ms: float) -> dict[str, float]:
        history = WorkHistory()
        for second in range(8):
            history = observe(history, seen(second, queue_ms), bls())
        return {name: samples[-1].expected_ms / samples[-1].executions for name, samples in history.samples.items()}

    assert expected_ms(500.0) == pytest.approx(expected_ms(0.0))


@given(
    own_ms=st.floats(0.0, 50.0),
    queue_ms=st.floats(0.0, 500.0),
    compute_ms=st.floats(1.0, 100.0),
    calls=st.integers(1, 6),
    at_once=st.booleans(),
)
def test_what_is_left_of_a_caller_s_time_is_never_below_what_it_takes_without_queues(
    own_ms: float, queue_ms: float, compute_ms: float, calls: int, at_once: bool
) -> None:
    in_turn = 1 if at_once else calls
    whole_ms = own_ms + in_turn * (queue_ms + compute_ms)
    waits = Waits(calls * queue_ms, calls * compute_ms)
    left_ms = whole_ms * waits.without_queues(whole_ms)
    assert left_ms <= whole_ms + 1e-6
    assert left_ms >= in_turn * compute_ms - 1e-6
    if not at_once:
        assert left_ms >= own_ms + calls * compute_ms - 1e-6
        assert waits.without_calls(whole_ms) == pytest.approx(own_ms, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "per_request"),
    [
        (lambda c: c, None),
        (lambda c: replace(c, pipelines=(*c.pipelines, PipelineConfig("direct", (INNER,), 300.0))), 3.0),
        (lambda c: replace(c, callees={**c.callees, OTHER: (INNER,)}), 3.0),
    ],
)
def test_of_a_model_that_others_call_too_the_caller_has_its_part(
    change: Callable[[ThemisConfig], ThemisConfig], per_request: float | None
) -> None:
    callers = callers_of(change(bls(3.0)))
    assert callers[CALLER] == (Callee(INNER, per_request),)
    work = {CALLER: Work(10.0, 0.0, 900.0), INNER: Work(60.0, 300.0, 600.0)}
    share = 1.0 if per_request is None else 0.5
    assert waits_of({CALLER: callers[CALLER]}, lambda name: work.get(name, NO_WORK))[CALLER] == Waits(share * 300.0, share * 600.0)


class TestPlans:
    @pytest.mark.parametrize("inner", [1, 2, 4])
    @pytest.mark.parametrize("elsewhere", [0, 2, 6])
    def test_more_callers_do_not_carry_less(self, inner: int, elsewhere: int) -> None:
        """They wait beside the device on which their callee's instances work; whole busy instances of others round by some per cent."""
        planner = Planner(build_rules(bls()))
        query = PlanQuery("bls", Demand(0.0, 0.0, 1.0, 0.0), None, elsewhere)
        carried = [planner.carried(query, (1,), (callers, inner)) for callers in range(1, 9)]
        assert all(carried[more] >= 0.9 * max(carried[:more]) for more in range(1, 8))

    def test_callers_carry_what_as_many_working_instances_carry(self) -> None:
        """Four, each with a callee's instance for itself: at most four of the eight work at a time."""
        carried = Planner(build_rules(bls())).carried(PlanQuery("bls", Demand(0.0, 0.0, 1.0, 0.0), None), (1,), (4, 4))
        service_ms = OWN_MS + INNER_SURFACE.latency_ms[0][3]
        assert carried == pytest.approx(4 * 1000.0 / service_ms, rel=0.2)

    @pytest.mark.parametrize(
        ("graph", "times", "share"),
        [
            (Calls("a", "b"), (20.0, 20.0, 0.0), 1.25 / 2),
            (Calls("a", "b"), (20.0, 10.0, 0.0), (1.0 + 1.25) / 3),
            (Calls("a", "b"), (20.0, 30.0, 0.0), 1.0 - 0.75 * 2 / 5),
            (Calls("a", Calls("b", "c")), (20.0, 20.0, 20.0), 1.5 / 3),
            (Series((Calls("a", "b"), "c")), (20.0, 20.0, 40.0), (1.25 + 2.0) / 4),
            (Series(("a", "b", "c")), (20.0, 20.0, 40.0), 1.0),
        ],
    )
    def test_the_share_of_busy_instances_that_work_is_without_the_waits_of_callers(
        self, graph: Calls | Series, times: tuple[float, float, float], share: float
    ) -> None:
        names = ("a", "b", "c") if times[2] else ("a", "b")
        models = {name: model(name, table(0.0, 0.0, 0.0, ms)) for name, ms in zip(names, times, strict=False)}
        pipeline = PipelineConfig("p", names, 300.0, entry="a", graph=graph)
        stages = build_rules(replace(config(), models=models, pipelines=(replace(pipeline, graph=None),))).problems["p"].stages
        shared = device_share_of(pipeline, (pipeline,), {stage.name: stage for stage in stages})
        assert (1.0 if shared is None else shared.usual) == pytest.approx(share)
