"""Models that servers lose without an action of Themis: out of the routes, loaded again, or else the server is replaced."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, STAGES, config, server
from tests.unit.test_tick import Engine
from themis_triton.act.repairs import Repairs
from themis_triton.core.action import ActionKind, OutcomeKind
from themis_triton.core.config import Mode
from themis_triton.core.fleet import ModelState, Phase
from themis_triton.core.incident import IncidentKind
from themis_triton.core.record import TickRecord, sentence


def unload(bench: Bench, name: str, model: str = DETECTOR) -> None:
    """What another client does; the readings of the next tick show it."""
    held = bench.fleet.get(name).models
    bench.control.runs[name] = {each: state for each, state in held.items() if each != model}
    bench.observer.ready[name] = frozenset(bench.control.runs[name])


def told(records: list[TickRecord]) -> list[IncidentKind]:
    return [incident.kind for record in records for incident in record.snapshot.incidents]


def routed(bench: Bench, model: str = DETECTOR) -> list[str]:
    return [endpoint.server for endpoint in bench.routes.tables[-1].models[model].targets]


def test_a_model_that_another_client_unloads_is_out_of_the_routes_at_the_next_tick_and_loaded_again() -> None:
    async def work() -> None:
        bench = Bench(server("a", (3, 2), launched=False), server("b", (3, 2), slot="cpu:1"))
        engine = Engine(bench, config(slots=2))
        await engine.run(5.0, 6)
        bench.control.runs.clear()
        expected = bench.fleet.get("a").models[DETECTOR]
        unload(bench, "a")
        lost = await engine.run(5.0)
        assert (routed(bench), routed(bench, CLASSIFIER)) == (["b"], ["a", "b"])
        again = await engine.run(5.0)
        assert "reload a/video-detector" in bench.log
        assert bench.control.runs["a"][DETECTOR] == expected
        bench.observer.ready.clear()
        again += await engine.run(5.0, 2)
        assert routed(bench) == ["a", "b"]
        assert told(lost + again) == [IncidentKind.MODEL_UNLOADED, IncidentKind.MODEL_RESTORED]
        words = "video-detector is not READY on a any more, and Themis did not unload it"
        assert any(
            f"{words}; only other servers that hold it answer its requests until it is loaded again" in sentence(record) for record in again
        )
        assert any(record.snapshot.faults == (f"{words}: it is to be loaded again",) for record in again)
        assert again[-1].snapshot.faults == ()
        assert not [line for line in bench.log if line.startswith(("launch", "stop"))], "no server is launched for a reload"
        await engine.close()

    asyncio.run(work())


def test_a_launched_server_on_which_reloads_fail_is_replaced_and_an_adopted_one_serves_its_other_models() -> None:
    async def work(*, launched: bool) -> tuple[Bench, list[TickRecord]]:
        bench = Bench(server("a", launched=launched, slot="cpu:0" if launched else None), server("b", slot="cpu:1"))
        engine = Engine(bench, config(slots=2))
        await engine.run(5.0, 6)
        bench.control.refused.add(DETECTOR)
        unload(bench, "a")
        records = await engine.run(5.0, 20)
        await engine.close()
        return bench, records

    bench, records = asyncio.run(work(launched=True))
    ends = [(o.action.kind, o.kind) for record in records for o in record.outcomes if o.action.server == "a"]
    refused = (ActionKind.RELOAD, OutcomeKind.REFUSED)
    assert ends == [refused, refused, (ActionKind.RETIRE, OutcomeKind.DONE)]
    assert "a" not in bench.fleet
    bench, records = asyncio.run(work(launched=False))
    assert bench.fleet.get("a").models.keys() == {CLASSIFIER}
    assert routed(bench, CLASSIFIER) == ["a", "b"]
    (fault,) = records[-1].snapshot.faults
    assert fault.endswith("loading it again failed 3 times")


def test_the_only_server_of_its_other_models_is_not_retired() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"))
        engine = Engine(bench, config(slots=1))
        await engine.run(5.0, 6)
        bench.control.refused.add(DETECTOR)
        unload(bench, "a")
        await engine.run(5.0, 30)
        assert bench.fleet.get("a").phase is Phase.SERVING
        assert routed(bench, CLASSIFIER) == ["a"]
        await engine.close()

    asyncio.run(work())


def test_a_reloaded_model_of_a_launched_server_gets_requests_only_after_its_warm_up() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"), server("b", slot="cpu:1"))
        engine = Engine(bench, config(slots=2))
        await engine.run(5.0, 6)
        bench.launcher.failing.add("warm")
        unload(bench, "a")
        await engine.run(5.0, 4)
        assert "warm a" in bench.log
        bench.observer.ready.clear()
        bench.clock.at_s += 5.0
        await engine.run(5.0)
        assert routed(bench) == ["b"], "it is READY there and has not been warmed up"
        await engine.close()

    asyncio.run(work())


def test_advice_and_pauses_load_nothing() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"), server("b", slot="cpu:1"))
        engine = Engine(bench, config(mode=Mode.ADVISORY))
        await engine.run(5.0, 6)
        unload(bench, "a")
        await engine.run(5.0, 4)
        assert set(bench.log) == {"routes a,b"}
        await engine.close()

    asyncio.run(work())


def test_a_slow_server_does_not_delay_the_reading_of_others() -> None:
    async def work() -> None:
        bench, hangs = Bench(server("a", launched=False), server("b", launched=False)), asyncio.Event()
        read = bench.control.read_models

        async def slow(each: object, models: object) -> dict[str, ModelState]:
            if getattr(each, "name", "") == "a":
                await hangs.wait()
            return await read(each, models)  # type: ignore[arg-type]

        bench.control.read_models = slow  # type: ignore[method-assign,assignment]
        bench.control.runs["b"] = {name: ModelState(7, 8) for name in STAGES}
        await bench.supervisor.update_reachability([])
        await bench.turns()
        assert bench.fleet.get("b").models[DETECTOR] == ModelState(7, 8)
        await bench.supervisor.close()

    asyncio.run(work())


def test_counts_that_another_client_changed_are_told_once_and_planned_from() -> None:
    async def work() -> None:
        bench = Bench(server("a", (1, 1), launched=False))
        engine = Engine(bench, config(slots=1))
        before = await engine.run(5.0, 6)
        held = bench.fleet.get("a").models
        changed = replace(held[DETECTOR], instances=held[DETECTOR].instances + 3)
        bench.control.runs["a"] = {**held, DETECTOR: changed}
        after = await engine.run(5.0, 8)
        assert told(before + after) == [IncidentKind.COUNTS_CHANGED]
        instances = held[DETECTOR].instances
        words = f"video-detector has {instances + 3} instances on a instead of {instances} instance{'s' * (instances > 1)}"
        assert any(f"{words}, without an action of Themis; plans start from this" in sentence(record) for record in after)
        assert any(record.snapshot.servers[0].models[DETECTOR] == changed for record in after)
        await engine.run(5.0, 40)
        assert bench.fleet.get("a").models[DETECTOR].instances < changed.instances, "what the demand does not need is taken back"
        assert bench.control.runs["a"] == bench.fleet.get("a").models
        await engine.close()

    asyncio.run(work())


def test_a_model_whose_first_load_into_a_server_failed_gets_no_requests_there_until_one_succeeds() -> None:
    async def work() -> None:
        bench, both = Bench(server("a", (1, 1))), dict(server("a", (1, 1)).models)
        repairs = Repairs(bench.executor, [])
        bench.fleet.put(replace(bench.fleet.get("a"), models={CLASSIFIER: both[CLASSIFIER]}))
        assert repairs.trusted("a", both) == both
        bench.executor.backoff.failed(f"a/{DETECTOR}", 0.0)
        assert set(repairs.trusted("a", both)) == {CLASSIFIER}
        bench.executor.backoff.succeeded(f"a/{DETECTOR}")
        assert repairs.trusted("a", both) == both

    asyncio.run(work())


def test_an_ensemble_is_loaded_into_a_launched_server_that_has_its_members_and_again_after_a_failure() -> None:
    async def work() -> None:
        bench = Bench(replace(server("a", slot="cpu:0"), ready_models=STAGES), server("b", launched=False))
        bench.launcher.ensembles = {"both": set(STAGES), "other": {"missing"}}
        bench.control.refused.add("both")
        engine = Engine(bench, config(slots=2))
        await engine.run(5.0, 2)
        loads = ["add a/both", "load a/both"]
        assert [line for line in bench.log if line in loads] == loads, "it waits for the end of its back-off"
        bench.control.refused.clear()
        bench.clock.at_s += 5.0
        await engine.run(5.0, 2)
        assert [line for line in bench.log if line in loads] == 2 * loads
        assert bench.fleet.get("a").ready_models == tuple(sorted((*STAGES, "both")))
        assert [endpoint.server for endpoint in bench.routes.tables[-1].models["both"].targets] == ["a"]
        await engine.close()

    asyncio.run(work())
