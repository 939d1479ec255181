"""Servers that answer neither metrics nor health checks: out of the routes and of the capacity, killed where Themis launched them."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import config, server, snapshot
from tests.unit.test_tick import Engine
from themis_triton.adapters.exporter import Exporter
from themis_triton.core.action import ActionKind, OutcomeKind
from themis_triton.core.config import Mode
from themis_triton.core.decision import ClampKind, Reason, Target
from themis_triton.core.fleet import Phase
from themis_triton.core.incident import IncidentKind
from themis_triton.core.observation import ServerReading
from themis_triton.core.policy import PolicyConfig, ScaleDownConfig
from themis_triton.core.record import TickRecord, sentence
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.guards import guard
from themis_triton.plan.routes import route_table


def hang(bench: Bench, *names: str) -> None:
    """Their processes live, and answer nothing."""
    bench.observer.silent.update(names)
    bench.control.silent.update(names)


def answer(bench: Bench, *names: str) -> None:
    bench.observer.silent.difference_update(names)
    bench.control.silent.difference_update(names)


def incidents(records: list[TickRecord]) -> list[tuple[IncidentKind, str | None]]:
    return [(incident.kind, incident.server) for record in records for incident in record.snapshot.incidents]


def test_a_launched_one_is_out_within_three_seconds_and_killed_and_its_slot_gets_another() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"), server("b", slot="cpu:1"))
        engine = Engine(bench, config(slots=2))
        await engine.run(5.0, 6)
        hang(bench, "a")
        records = await engine.run(5.0, 5)
        assert "kill a" not in bench.log, "2.5 s of silence are not enough"
        records += await engine.run(5.0, 2)
        assert "kill a" in bench.log
        assert "a" not in bench.fleet
        assert "a" not in bench.routed
        assert "b" in bench.routed
        assert "retire b" not in "".join(sentence(record) for record in records)
        board, exporter = StatusBoard(config(slots=2), 0.0), Exporter()
        for record in records:
            board.take(record, 1.0)
            exporter.take(record, 0.001)
        assert ("incident", "server_ejected") in [event.kinds for event in board.status().events]
        assert b'themis_incidents_total{kind="server_ejected"} 1.0' in exporter.text()
        ((kind, name),) = incidents(records)
        assert (kind, name) == (IncidentKind.SERVER_EJECTED, "a")
        told = next(sentence(record) for record in records if record.snapshot.incidents)
        assert "a has answered neither metrics nor health checks for 3.0 s (connection refused); it is out of the routes" in told
        (fault,) = next(record.snapshot.faults for record in records if record.snapshot.incidents)
        assert fault in told
        kills = [outcome for record in [*records, *await engine.run(5.0)] for outcome in record.outcomes]
        assert [(o.action.kind, o.kind) for o in kills if o.action.server == "a"] == [(ActionKind.KILL, OutcomeKind.DONE)]
        await engine.close()

    asyncio.run(work())


def test_after_a_time_in_which_the_sidecar_itself_stood_still_a_silent_server_is_watched_anew() -> None:
    """A suspended machine, or a stopped sidecar: the first readings and checks afterwards are silent, whatever the servers do."""

    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"), server("b", slot="cpu:1"))
        engine = Engine(bench, config(PolicyConfig(scale_down=ScaleDownConfig(scale_in_stabilization_s=1000.0)), slots=2))
        await engine.run(5.0, 6)
        hang(bench, "a")
        await engine.run(5.0)
        bench.clock.at_s += 60.0
        await engine.run(5.0, 3)
        assert (bench.fleet.get("a").phase, bench.log.count("kill a")) == (Phase.SERVING, 0)
        answer(bench, "a")
        records = await engine.run(5.0, 4)
        assert (bench.fleet.get("a").phase, incidents(records)) == (Phase.SERVING, [])
        hang(bench, "a")
        await engine.run(5.0, 7)
        assert "kill a" in bench.log, "one that stays silent is killed all the same"
        await engine.close()

    asyncio.run(work())


def test_an_adopted_one_is_taken_out_and_never_killed_and_comes_back() -> None:
    async def work() -> None:
        bench = Bench(server("a", launched=False), server("b", launched=False))
        engine = Engine(bench, config(slots=0))
        await engine.run(5.0, 6)
        hang(bench, "a")
        records = await engine.run(5.0, 9)
        assert (bench.fleet.get("a").phase, bench.routed) == (Phase.UNRESPONSIVE, ("b",))
        answer(bench, "a")
        records += await engine.run(5.0, 2)
        assert (bench.fleet.get("a").phase, bench.routed) == (Phase.SERVING, ("a", "b"))
        assert incidents(records) == [(IncidentKind.SERVER_EJECTED, "a"), (IncidentKind.SERVER_RECOVERED, "a")]
        assert "kill a" not in bench.log
        assert records[-1].snapshot.faults == ()
        await engine.close()

    asyncio.run(work())


def test_where_no_server_answers_none_is_killed_and_all_stay_routed_until_another_one_does() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"))
        engine = Engine(bench, config(slots=2))
        await engine.run(5.0, 6)
        hang(bench, "a")
        alone = await engine.run(5.0, 8)
        assert "kill a" not in bench.log[: bench.log.index(next(line for line in bench.log if line.startswith("launch")))]
        assert any("it stays in the routes, because no other server answers" in fault for r in alone for fault in r.snapshot.faults)
        await engine.run(5.0, 4)
        assert "kill a" in bench.log
        assert [each.slot for each in bench.fleet.all() if each.phase is Phase.SERVING] == ["cpu:1"]
        await engine.close()

    asyncio.run(work())


def test_one_that_survives_its_killing_keeps_its_slot_and_is_killed_again_after_the_back_off() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"), server("b", slot="cpu:1"))
        bench.launcher.failing.add("kill")
        engine = Engine(bench, config(slots=2))
        await engine.run(5.0, 6)
        hang(bench, "a")
        records = await engine.run(5.0, 8)
        assert bench.fleet.get("a").phase is Phase.UNRESPONSIVE
        assert bench.log.count("kill a") == 1
        assert not [line for line in bench.log if line.startswith("launch")]
        assert any("kill a refused: a: kill failed" in sentence(record) for record in records)
        bench.launcher.failing.clear()
        await engine.run(5.0, 6)
        assert "a" not in bench.fleet
        await engine.close()

    asyncio.run(work())


def test_advice_takes_it_out_of_the_routes_and_kills_nothing() -> None:
    async def work() -> None:
        bench = Bench(server("a", slot="cpu:0"), server("b", slot="cpu:1"))
        engine = Engine(bench, config(slots=2, mode=Mode.ADVISORY))
        await engine.run(5.0, 6)
        hang(bench, "a")
        await engine.run(5.0, 10)
        assert (bench.fleet.get("a").phase, bench.routed) == (Phase.UNRESPONSIVE, ("b",))
        assert set(bench.log) == {"routes b"}
        await engine.close()

    asyncio.run(work())


@pytest.mark.parametrize(("error", "retired"), [("timed out", ()), (None, ("b",))])
def test_no_server_retires_while_one_that_would_stay_is_silent(error: str | None, retired: tuple[str, ...]) -> None:
    a, b = server("a"), server("b")
    seen = snapshot([a, b])
    readings = (ServerReading("a", seen.at_s, error=error), ServerReading("b", seen.at_s))
    target = Target({"a": a.models, "b": b.models}, retire=("b",))
    kept, clamps = guard(target, type(seen)(seen.at_s, seen.servers, readings), config())
    assert kept.retire == retired
    assert [clamp.sentence for clamp in clamps if clamp.kind is ClampKind.SURVIVORS] == (
        ["b stays until the metrics of a can be read"] if error else []
    )


def test_the_replacement_of_one_that_is_killed_is_called_so() -> None:
    async def work() -> None:
        fleet = [server(name, (8, 5), max_batch=1, slot=slot) for name, slot in (("a", "cpu:0"), ("b", "cpu:1"), ("c", "cpu:2"))]
        bench = Bench(*fleet)
        engine = Engine(bench, config(slots=3))
        await engine.run(130.0, 30)
        hang(bench, "b")
        records = await engine.run(130.0, 10)
        assert Reason.REPLACE in {record.decision.reason for record in records}
        assert "b" not in bench.fleet
        await engine.close()

    asyncio.run(work())


def test_an_unresponsive_server_is_no_endpoint() -> None:
    table = route_table([server("a", phase=Phase.UNRESPONSIVE), server("b")], ())
    assert [endpoint.server for endpoint in table.any] == ["b"]
