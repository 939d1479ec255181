"""A call that adds instances and has not returned: what executes counts, and the call is reported as what it is."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, action, config, server, snapshot
from themis_triton.core.action import ActionKind, Plan
from themis_triton.core.decision import ClampKind, Target
from themis_triton.core.fleet import ModelState
from themis_triton.core.observation import ModelCounters, OpenCall, ServerReading, Snapshot
from themis_triton.decide.guards import guard
from themis_triton.estimate.executing import with_executing
from themis_triton.estimate.served import ServedSeries

INIT_S = 0.5
CALL = OpenCall("a", DETECTOR, ModelState(1, 8), ModelState(4, 8), NOW_S)


def served(busy: float, until_s: float, batch: int = 1) -> dict[str, ServedSeries]:
    """Readings every 0.1 s of batches that keep `busy` instances busy from the end of the initialisation on, and one before it."""
    series, at_s, spent_us, executions = ServedSeries(), 0.0, 0.0, 0.0
    while at_s <= until_s + 1e-9:
        counters = ModelCounters(inferences=executions * batch, executions=executions, compute_infer_us=spent_us * batch)
        series = series.append(ServerReading("a", NOW_S + at_s, {DETECTOR: counters}), 10.0)
        at_s += 0.1
        rate = 1.0 if at_s <= INIT_S + 1e-9 else busy
        spent_us += 0.1e6 * rate
        executions += 0.1e6 * rate / 40_000.0
    return {"a": series}


def at(age_s: float, call: OpenCall = CALL) -> Snapshot:
    return replace(snapshot([server("a")], NOW_S + age_s), open_calls=(call,))


@pytest.mark.parametrize(("busy", "batch", "count"), [(4.0, 1, 4), (3.7, 4, 4), (2.0, 1, 2), (0.6, 1, 1), (9.0, 1, 4)])
def test_after_one_initialisation_instances_count_as_their_batches_show(busy: float, batch: int, count: int) -> None:
    models = with_executing(at(1.5), served(busy, 1.5, batch), config()).servers[0].models
    assert models == {DETECTOR: ModelState(count, 8), CLASSIFIER: ModelState(1, 8)}


def test_before_the_initialisation_has_ended_no_added_instance_counts() -> None:
    assert with_executing(at(0.4), served(1.0, 0.4), config()).servers[0].models[DETECTOR].instances == 1


@pytest.mark.parametrize(("busy", "age_s", "count"), [(4.0, 3.0, 4), (2.0, 3.0, 3), (3.4, 3.0, 3), (4.0, 0.1, 3)])
def test_instances_to_be_removed_count_only_while_batches_show_them_at_work(busy: float, age_s: float, count: int) -> None:
    shrinks = OpenCall("a", DETECTOR, ModelState(4, 8), ModelState(3, 8), NOW_S)
    assert with_executing(at(age_s, shrinks), served(busy, age_s), config()).servers[0].models[DETECTOR].instances == count


def test_the_executor_names_open_calls_and_a_new_action_on_another_model_starts() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.control.gate = asyncio.Event()
        bench.executor.submit(Plan("d", (action(ActionKind.GROW, "a", DETECTOR, 1, 4),)))
        await bench.turns()
        assert bench.executor.open_calls == (OpenCall("a", DETECTOR, ModelState(1, 8), ModelState(4, 8), bench.clock.now_s()),)
        bench.executor.submit(Plan("e", (action(ActionKind.GROW, "a", CLASSIFIER, 1, 2),)))
        await bench.turns()
        assert [call.model for call in bench.executor.open_calls] == [DETECTOR, CLASSIFIER]
        bench.control.gate.set()
        await bench.settled()
        assert not bench.executor.open_calls

    asyncio.run(work())


def test_an_open_call_says_on_which_devices_instances_start() -> None:
    async def work() -> None:
        wide = replace(server("a"), reach=("cpu:1", "cpu:2"))
        bench = Bench(wide)
        bench.control.gate = asyncio.Event()
        before = wide.models[DETECTOR]
        after = before.spread_over({wide.device: before.instances + 1, "cpu:2": 2})
        grow = replace(action(ActionKind.GROW, "a", DETECTOR, 1, 4), before=before, after=after)
        bench.executor.submit(Plan("d", (grow,)))
        await bench.turns()
        (call,) = bench.executor.open_calls
        assert call.after.added(call.before) == {wide.device: 1, "cpu:2": 2}
        bench.control.gate.set()
        await bench.settled()

    asyncio.run(work())


def test_a_call_that_makes_all_instances_anew_is_named_apart_with_its_devices() -> None:
    """Its instances are not counted as those of a growth, which begin to serve before the call returns."""

    async def work() -> None:
        wide = replace(server("a"), reach=("cpu:1",))
        joint = replace(wide.models[DETECTOR].spread_over({wide.device: 1, "cpu:1": 1}), joint=True)
        bench = Bench(replace(wide, models=wide.models | {DETECTOR: joint}))
        bench.control.gate = asyncio.Event()
        divide = replace(action(ActionKind.REBATCH, "a", DETECTOR, 2, 3), before=joint, after=joint.plus({"cpu:1": 1}))
        bench.executor.submit(Plan("d", (divide,)))
        await bench.turns()
        assert bench.executor.open_calls == ()
        (call,) = bench.executor.reloads
        assert call.after.spread == ((wide.device, 1), ("cpu:1", 2))
        bench.control.gate.set()
        await bench.settled()
        assert bench.executor.reloads == ()

    asyncio.run(work())


def test_shutdown_does_not_wait_for_an_open_call() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.control.gate = asyncio.Event()
        bench.executor.submit(Plan("d", (action(ActionKind.GROW, "a", DETECTOR, 1, 4),)))
        await bench.turns()
        await asyncio.wait_for(bench.executor.cancel(), 5.0)
        assert bench.executor.open_calls == ()
        assert bench.executor.busy == frozenset()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("age_s", "executing", "call", "sentence"),
    [
        (0.6, 1, CALL, None),
        (12.0, 4, CALL, "1→4: call open for 12 s: the queue has not been empty; new instances answer"),
        (2.0, 1, CALL, "1→4: call open for 2 s: the queue has not been empty; new instances do not answer yet"),
        (
            9.0,
            4,
            OpenCall("a", DETECTOR, ModelState(4, 8), ModelState(3, 8), NOW_S),
            "4→3: call open for 9 s: the queue has not been empty; no instance is removed before",
        ),
    ],
)
def test_a_call_that_has_not_returned_is_reported_as_what_it_is(age_s: float, executing: int, call: OpenCall, sentence: str | None) -> None:
    running = server("a", (executing, 1))
    seen = replace(snapshot([running], NOW_S + age_s), open_calls=(call,), busy=frozenset({f"a/{DETECTOR}"}))
    _, clamps = guard(Target({"a": dict(running.models)}), seen, config())
    assert [clamp.sentence for clamp in clamps] == ([f"{DETECTOR} on a {sentence}"] if sentence else [])
    assert all(clamp.kind is ClampKind.OPEN_CALL for clamp in clamps)
