"""A model that fails on one server leaves the routes there, is loaded anew, and then its server is replaced."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, config, server
from tests.unit.test_repairs import routed, told
from tests.unit.test_tick import Engine
from themis_triton.core.action import ActionKind
from themis_triton.core.config import Mode
from themis_triton.core.estimate import ModelFailure
from themis_triton.core.incident import IncidentKind
from themis_triton.core.observation import ModelCounters, ServerReading
from themis_triton.core.record import TickRecord, sentence
from themis_triton.estimate.failures import find_failures
from themis_triton.estimate.served import ServedSeries

EACH_S = 0.5


def series(*ended: tuple[int, int]) -> ServedSeries:
    """(Answered, failed) requests of each half second; nothing ended before."""
    built, answered, failed = counted(ServedSeries(), 0.0, ModelCounters()), 0, 0
    for number, (more, wrong) in enumerate(ended, 1):
        answered, failed = answered + more, failed + wrong
        built = counted(built, EACH_S * number, ModelCounters(success=answered, failure=failed))
    return built


def counted(series: ServedSeries, at_s: float, counters: ModelCounters) -> ServedSeries:
    return series.append(ServerReading("a", at_s, {DETECTOR: counters}), 100.0)


def found(**by_server: ServedSeries) -> tuple[ModelFailure, ...]:
    return find_failures(by_server, [server(name) for name in by_server])


GOOD = [(5, 0)] * 10


@pytest.mark.parametrize(
    ("own", "others", "failed"),
    [
        ([(0, 1)] * 3, GOOD, 3.0),
        ([(0, 1)] * 2, GOOD, None),
        ([*GOOD, (0, 3)], GOOD, 3.0),
        ([*GOOD, (0, 1), (1, 0), (0, 1)], GOOD, None),
        ([(0, 3)], [(1, 0)], None),
        ([(1, 1)] * 10, GOOD, 5.0),
        ([(4, 1)] * 10, GOOD, None),
        ([(0, 1)] * 4, [(3, 2)] * 10, None),
        ([(0, 1)] * 13, [(3, 2)] * 10, 13.0),
    ],
    ids=[
        "all requests since the start",
        "chance",
        "all requests since a moment ago",
        "some answered",
        "others had too few requests to judge by",
        "half of the requests",
        "a fifth of the requests",
        "clients send as much to the others that fails",
        "clients send less to the others that fails",
    ],
)
def test_a_server_fails_a_model_where_chance_does_not_explain_it(
    own: list[tuple[int, int]], others: list[tuple[int, int]], failed: float | None
) -> None:
    failures = found(a=series(*own), b=series(*others))
    assert [(f.server, f.failed) for f in failures] == ([("a", failed)] if failed is not None else [])


def test_a_model_that_every_server_fails_is_no_fault_of_a_server() -> None:
    assert found(a=series((0, 3)), b=series((0, 2))) == (ModelFailure(DETECTOR, None, 5.0, 5.0, 0.0),)
    assert found(a=series((0, 9))) == (ModelFailure(DETECTOR, None, 9.0, 9.0, 0.0),)
    assert found(a=series((1, 8))) == ()
    assert found(a=series((0, 9)), b=series((0, 0))) == (ModelFailure(DETECTOR, None, 9.0, 9.0, 0.0),)
    assert found(a=series((0, 2)), b=series((0, 2))) == ()


def test_refused_and_cancelled_requests_are_no_failures_and_failed_ones_are_not_completed() -> None:
    seen = counted(counted(ServedSeries(), 0.0, ModelCounters()), 2.0, ModelCounters(success=6, failure=3, refused=8))
    assert seen.completion_rps(10.0) == {DETECTOR: 3.0}
    assert (seen.increases(0.0, 2.0)[DETECTOR].failed, seen.increases(0.0, 2.0)[DETECTOR].ended) == (3.0, 17.0)


class Failing:
    """Ticks in which each server answers or fails three requests of the detector."""

    def __init__(self, bench: Bench, mode: Mode = Mode.ACTIVE) -> None:
        self.bench = bench
        self.engine = Engine(bench, config(slots=2, mode=mode))
        self.failing: set[str] = set()
        self.counts: dict[str, list[int]] = {}

    async def run(self, ticks: int = 1) -> list[TickRecord]:
        records = []
        for _ in range(ticks):
            for each in self.bench.fleet.all():
                counted = self.counts.setdefault(each.name, [0, 0])
                counted[each.name in self.failing] += 3 * (DETECTOR in each.models)
                self.bench.observer.counters[each.name] = {DETECTOR: ModelCounters(success=counted[0], failure=counted[1])}
            records += await self.engine.run(5.0)
        return records


def test_it_leaves_the_routes_at_once_and_is_loaded_anew_and_where_it_fails_again_its_server_is_replaced() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"), server("b", slot="cpu:1"))
        load = Failing(bench)
        await load.run(20)
        load.failing = {"a"}
        records = await load.run()
        assert "reload a/video-detector" in bench.log
        without = bench.log.index("reload a/video-detector")
        assert bench.log[without - 2 : without] == ["routes a,b", "add a/video-detector×1"]
        assert [each.server for each in bench.routes.tables[0].models[DETECTOR].targets] == ["b"]
        assert [each.server for each in bench.routes.tables[0].models[CLASSIFIER].targets] == ["a", "b"]
        load.failing = set()
        records += await load.run(4)
        assert routed(bench) == ["a", "b"]
        assert told(records) == [IncidentKind.MODEL_EJECTED, IncidentKind.MODEL_RESTORED]
        words = "video-detector failed 3 of 3 requests on a, and other servers serve it"
        assert any(f"{words}; it leaves the routes there until it is loaded anew" in sentence(record) for record in records)
        load.failing = {"a"}
        again = await load.run(8)
        assert [o.action.kind for r in again for o in r.outcomes if o.action.server == "a"] == [ActionKind.RETIRE]
        assert "a" not in bench.fleet
        assert any("until its server is replaced" in sentence(record) for record in again)
        await load.engine.close()

    asyncio.run(work())


def test_an_adopted_server_on_which_it_fails_again_serves_its_other_models_and_is_not_reloaded_in_a_loop() -> None:
    async def work() -> None:
        bench = Bench(server("a", launched=False), server("b", slot="cpu:1"))
        load = Failing(bench)
        await load.run(8)
        load.failing = {"a"}
        records = await load.run(40)
        assert bench.log.count("reload a/video-detector") == 1
        assert (routed(bench), routed(bench, CLASSIFIER)) == (["b"], ["a", "b"])
        assert len(records[-1].snapshot.faults) == 1
        await load.engine.close()

    asyncio.run(work())


def test_it_returns_to_the_routes_where_no_other_server_serves_it_any_more() -> None:
    async def work() -> None:
        bench = Bench(server("a", launched=False), server("b", launched=False))
        bench.control.refused.add(DETECTOR)
        load = Failing(bench)
        await load.run(8)
        load.failing = {"a"}
        await load.run(2)
        assert routed(bench) == ["b"]
        bench.observer.silent.add("b")
        bench.control.silent.add("b")
        await load.run(8)
        assert routed(bench) == ["a"]
        await load.engine.close()

    asyncio.run(work())


def test_one_that_fails_everywhere_stays_where_it_is_and_is_told_until_it_answers() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"), server("b", slot="cpu:1"))
        load = Failing(bench)
        load.failing = {"a", "b"}
        records = await load.run(8)
        assert "reload a/video-detector" not in bench.log
        assert told(records) == [IncidentKind.MODEL_BROKEN]
        assert "video-detector is broken: every server that got requests for it failed them, " in records[-1].snapshot.faults[0]
        load.failing = set()
        records = await load.run(3)
        assert told(records) == [IncidentKind.MODEL_RECOVERED]
        assert records[-1].snapshot.faults == ()
        await load.engine.close()

    asyncio.run(work())


def test_advice_ejects_nothing() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"), server("b", slot="cpu:1"))
        load = Failing(bench, Mode.ADVISORY)
        await load.run(8)
        load.failing = {"a"}
        await load.run(4)
        assert bench.log == []
        await load.engine.close()

    asyncio.run(work())
