import asyncio
from dataclasses import replace

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, action, config, retire, route, server
from themis_triton.core.action import ActionKind, OutcomeKind, Plan
from themis_triton.core.config import DrainState, Mode, ThemisConfig
from themis_triton.core.decision import ClampKind, Reason
from themis_triton.core.fleet import Phase
from themis_triton.core.policy import PolicyConfig, ScaleDownConfig
from themis_triton.core.record import TickRecord, sentence
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.tick import EngineState, tick


class Engine:
    """Ticks on a bench, half a second apart, under a rate that each call names."""

    def __init__(self, bench: Bench, cfg: ThemisConfig) -> None:
        self.bench = bench
        self.planner = Planner(build_rules(cfg))
        self.state = EngineState()
        self.arrivals = 0.0
        self.paused = False

    async def run(self, rps: float, ticks: int = 1) -> list[TickRecord]:
        records = []
        for _ in range(ticks):
            self.bench.clock.at_s += 0.5
            self.arrivals += 0.5 * rps
            at_s = self.bench.clock.at_s
            self.bench.observer.routes = tuple(route(name, at_s, self.arrivals) for name in (DETECTOR, CLASSIFIER))
            self.state, record = await tick(self.state, self.bench.world, self.planner, paused=self.paused)
            records.append(record)
            await self.bench.turns()
        return records

    async def close(self) -> None:
        await self.bench.executor.cancel()
        await self.bench.supervisor.close()


def test_a_surge_grows_the_server_in_place_and_the_next_tick_tells_the_outcome() -> None:
    async def work() -> None:
        bench = Bench(server("a", max_batch=1, slot="cpu:0"))
        engine = Engine(bench, config(PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=1000.0))))
        calm = await engine.run(5.0, 8)
        assert {record.decision.reason for record in calm[:3]} == {Reason.HOLD_NO_DATA, Reason.HOLD_WARMUP}
        assert bench.log == []
        surge = await engine.run(45.0, 4)
        assert bench.fleet.get("a").models[DETECTOR].instances >= 2
        grown = [action for record in surge for action in record.plan.actions]
        assert ActionKind.GROW in {action.kind for action in grown}
        outcomes = [outcome for record in [*surge, *await engine.run(45.0)] for outcome in record.outcomes]
        assert {outcome.kind for outcome in outcomes} == {OutcomeKind.DONE}
        assert {outcome.action.id for outcome in outcomes} >= {grown[0].id}
        assert [record.number for record in bench.recorder.ticks] == list(range(1, 14))
        await engine.close()

    asyncio.run(work())


def test_advice_is_shown_and_nothing_is_submitted() -> None:
    async def work() -> None:
        bench = Bench(server("a", max_batch=1, slot="cpu:0"))
        engine = Engine(bench, config(mode=Mode.ADVISORY))
        records = await engine.run(5.0, 5) + await engine.run(300.0, 10)
        planned = [record for record in records if record.plan.actions]
        assert planned
        assert all(record.advisory for record in records)
        assert all("would " in sentence(record) for record in planned)
        assert bench.log == []
        assert bench.recorder.outcomes == []
        assert bench.fleet.all() == (server("a", max_batch=1, slot="cpu:0"),)
        await engine.close()

    asyncio.run(work())


def test_from_nothing_a_server_is_launched_and_only_once() -> None:
    async def work() -> None:
        bench = Bench()
        engine = Engine(bench, config(slots=2))
        await engine.run(0.0, 6)
        assert [line for line in bench.log if line.startswith("launch")] == [f"launch {bench.fleet.all()[0].name}"]
        assert [each.phase for each in bench.fleet.all()] == [Phase.SERVING]
        assert bench.routed == (bench.fleet.all()[0].name,)
        await engine.close()

    asyncio.run(work())


def test_a_launched_server_is_no_capacity_before_the_proxy_routes_to_it() -> None:
    async def work() -> None:
        bench = Bench(server("a", max_batch=1, slot="cpu:0"))
        engine = Engine(bench, config(slots=2))
        await bench.executor.routes.write()
        bench.fleet.put(server("b", max_batch=1, slot="cpu:1", phase=Phase.WARMING))
        bench.launcher.alive.add("b")
        bench.routes.broken = True
        records = await engine.run(5.0, 4)
        assert bench.fleet.get("b").phase is Phase.SERVING
        assert [each.phase for each in records[-1].snapshot.servers] == [Phase.SERVING, Phase.WARMING]
        bench.routes.broken = False
        records = await engine.run(5.0, 3)
        assert [each.phase for each in records[-1].snapshot.servers] == [Phase.SERVING, Phase.SERVING]
        await engine.close()

    asyncio.run(work())


def test_a_server_that_dies_is_buried_and_replaced() -> None:
    async def work() -> None:
        fleet = [server(name, (8, 5), max_batch=1, slot=slot) for name, slot in (("a", "cpu:0"), ("b", "cpu:1"), ("c", "cpu:2"))]
        bench = Bench(*fleet)
        engine = Engine(
            bench, config(PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=1000.0, shrink_stabilization_s=1000.0)), slots=3)
        )
        await engine.run(130.0, 30)
        assert len(bench.fleet.all()) == 3
        bench.launcher.alive.discard("b")
        (record,) = await engine.run(130.0)
        assert record.snapshot.recently_crashed == 1
        assert record.decision.reason is Reason.REPLACE
        assert [action.slot for action in record.plan.actions if action.kind is ActionKind.LAUNCH] == ["cpu:1"]
        await engine.run(130.0, 2)
        assert [each.slot for each in bench.fleet.all() if each.phase is Phase.SERVING and each.slot == "cpu:1"] == ["cpu:1"]
        assert "b" not in bench.fleet
        await engine.close()

    asyncio.run(work())


@pytest.mark.parametrize("mode", [Mode.ACTIVE, Mode.ADVISORY])
def test_during_a_hold_an_undrained_server_returns_to_the_routes_and_the_drained_ones_stay_out(mode: Mode) -> None:
    async def work() -> None:
        bench = Bench(*(server(name, slot=f"cpu:{number}") for number, name in enumerate("abcd")))
        bench.executor.routes.drained = frozenset("abc")
        drains = {"b": DrainState.LEFT, "c": DrainState.FORCED, "d": DrainState.FORCED}  # c has just left, and a is drained no longer
        engine = Engine(bench, replace(config(slots=4, mode=mode), drains=drains))
        (record,) = await engine.run(5.0)
        assert record.decision.reason is Reason.HOLD_NO_DATA
        assert bench.executor.routes.drained == {"b", "c"}
        assert bench.routed == ("a", "d")
        assert [clamp.sentence for clamp in record.decision.clamps if clamp.kind is ClampKind.DRAIN] == [
            f"{name} is drained once plans are made again (the proxy has no statistics of any model yet)" for name in "cd"
        ]
        await engine.close()

    asyncio.run(work())


def test_a_silent_envoy_holds_everything() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"))
        engine = Engine(bench, config())
        await engine.run(5.0, 6)
        bench.log.clear()
        records = []
        for _ in range(10):
            bench.clock.at_s += 0.5
            bench.observer.routes, bench.observer.routes_error = (), "connection refused"
            engine.state, record = await tick(engine.state, bench.world, engine.planner)
            records.append(record)
        assert records[-1].decision.reason is Reason.HOLD_STALE
        assert "connection refused" in sentence(records[-1])
        assert bench.log == []
        await engine.close()

    asyncio.run(work())


def test_a_refused_growth_is_left_alone_until_its_time_and_told() -> None:
    async def work() -> None:
        bench = Bench(server("a", max_batch=1, slot="cpu:0"))
        bench.control.refused.update((DETECTOR, CLASSIFIER))
        engine = Engine(bench, config(slots=1))
        records = await engine.run(5.0, 6) + await engine.run(45.0, 8)
        tries = [line for line in bench.log if line.startswith(f"change a/{DETECTOR}")]
        assert 1 <= len(tries) <= 3
        assert any("out of memory" in sentence(record) for record in records)
        assert bench.fleet.get("a").models[DETECTOR].instances == 1
        await engine.close()

    asyncio.run(work())


@pytest.mark.parametrize("rps", [5.0, 60.0])
@pytest.mark.parametrize("counts", [(5, 1), (1, 12), (5, 5)])
def test_counts_above_the_bounds_are_planned_from_and_brought_back_and_told(counts: tuple[int, int], rps: float) -> None:
    async def work() -> None:
        cfg = config(PolicyConfig(scale_down=ScaleDownConfig(shrink_stabilization_s=1000.0)))
        cfg = replace(cfg, models={name: replace(model, max_instances=3) for name, model in cfg.models.items()})
        bench = Bench(server("a", counts, slot="cpu:0"))
        engine = Engine(bench, cfg)
        records = await engine.run(rps, 30)
        assert all(state.instances <= 3 for state in bench.fleet.get("a").models.values())
        clamps = [clamp.sentence for record in records for clamp in record.decision.clamps if clamp.kind is ClampKind.BOUNDS]
        for name, count in zip((DETECTOR, CLASSIFIER), counts, strict=True):
            expected = f"{name} on a: {count} instances are outside its bounds, 3 kept"
            assert (expected in clamps) is (count > 3)
        await engine.close()

    asyncio.run(work())


def test_a_server_that_nothing_works_on_is_brought_in_but_not_by_advice() -> None:
    async def phase_after(mode: Mode) -> Phase:
        bench = Bench(server("a", phase=Phase.WARMING, slot="cpu:0"))
        engine = Engine(bench, config(mode=mode))
        await engine.run(5.0, 3)
        await engine.close()
        return bench.fleet.get("a").phase

    assert asyncio.run(phase_after(Mode.ACTIVE)) is Phase.SERVING
    assert asyncio.run(phase_after(Mode.ADVISORY)) is Phase.WARMING


def test_a_pause_drops_a_retirement_that_still_waits_for_growth() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"), server("b", slot="cpu:1"))
        bench.control.gate = asyncio.Event()
        grow = action(ActionKind.GROW, "b")
        bench.executor.submit(Plan("d", (grow, retire("a", (grow.id,))), frozenset({"a"})))
        engine = Engine(bench, config(mode=Mode.ADVISORY))
        await engine.run(5.0)
        bench.control.gate.set()
        (record,) = [record for record in await engine.run(5.0, 2) if record.outcomes]
        assert {outcome.action.kind: outcome.kind for outcome in record.outcomes} == {
            ActionKind.GROW: OutcomeKind.DONE,
            ActionKind.RETIRE: OutcomeKind.SKIPPED,
        }
        assert "a" in bench.fleet
        await engine.close()

    asyncio.run(work())
