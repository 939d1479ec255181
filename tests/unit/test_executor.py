import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, action, launch, retire, server
from themis_triton.act.backoff import Backoff
from themis_triton.act.executor import actuator_of
from themis_triton.act.fleet import Fleet
from themis_triton.act.launch_rests import SAME_FAILURES
from themis_triton.core.action import Action, ActionKind, Outcome, OutcomeKind, Plan
from themis_triton.core.errors import ModelFailedError, WarmupFailedError
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import ServerReading, devices_of, launch_of
from themis_triton.core.routes import RouteTable

LEAVES = ["routes ", "idle a", "stop a"]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def carried_out(bench: Bench, *actions: Action) -> tuple[Outcome, ...]:
    bench.executor.submit(Plan("d", actions))
    return await bench.settled()


def test_backoff_doubles_to_its_bound_and_a_success_forgets() -> None:
    backoff = Backoff(2.0, 10.0)
    assert [backoff.failed("a", 100.0) for _ in range(5)] == [102.0, 104.0, 108.0, 110.0, 110.0]
    assert backoff.active(109.9) == {"a": 110.0}
    assert backoff.active(110.0) == {}
    backoff.succeeded("a")
    assert backoff.active(0.0) == {}
    assert backoff.failed("a", 100.0) == 102.0


def test_backoff_stays_finite_after_thousands_of_failures() -> None:
    backoff = Backoff(2.0, 60.0)
    assert [backoff.failed("a", 0.0) for _ in range(5000)][-1] == 60.0


def test_the_fleet_remembers_launched_servers_only() -> None:
    bench = Bench(server("mine"), server("theirs", launched=False))
    assert set(bench.recorder.servers) == {"mine"}
    bench.fleet.set_model("mine", DETECTOR, ModelState(7, 8))
    bench.fleet.move("mine", Phase.DRAINING)
    assert bench.recorder.servers["mine"] == bench.fleet.get("mine")
    assert bench.fleet.get("mine").models[CLASSIFIER] == ModelState(1, 8)
    for _ in range(2):
        bench.fleet.remove("mine")
    assert bench.recorder.servers == {}
    assert [each.name for each in bench.fleet.all()] == ["theirs"]


def test_the_fleet_is_told_in_the_order_of_names() -> None:
    fleet = Fleet(Bench().recorder)
    for name in ("c", "a", "b"):
        fleet.put(server(name))
    assert [each.name for each in fleet.all()] == ["a", "b", "c"]
    with pytest.raises(KeyError):
        fleet.get("z")


def test_levers_are_named_as_the_snapshot_names_them() -> None:
    assert actuator_of(action(ActionKind.GROW)) == f"a/{DETECTOR}"
    assert actuator_of(launch("cpu:3")) == "cpu:3"
    assert actuator_of(retire("b")) == "b"


def test_a_growth_is_done_and_the_fleet_knows() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        (outcome,) = await carried_out(bench, action(ActionKind.GROW, after=4))
        assert (outcome.kind, outcome.detail) == (OutcomeKind.DONE, "")
        assert bench.fleet.get("a").models[DETECTOR] == ModelState(4, 8)
        assert bench.recorder.outcomes == [outcome]
        assert bench.executor.collect() == ()

    run(work())


def test_a_refused_growth_takes_the_servers_own_word_and_backs_off() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.control.refused.add(DETECTOR)
        bench.control.runs["a"] = {DETECTOR: ModelState(2, 8)}
        (outcome,) = await carried_out(bench, action(ActionKind.GROW, after=4))
        assert outcome.kind is OutcomeKind.REFUSED
        assert "out of memory" in outcome.detail
        assert bench.fleet.get("a").models[DETECTOR] == ModelState(2, 8)
        assert bench.executor.backoff.active(bench.clock.at_s) == {f"a/{DETECTOR}": bench.clock.at_s + 2.0}

        bench.clock.at_s += 2.0
        await carried_out(bench, action(ActionKind.GROW, after=4))
        assert bench.executor.backoff.active(bench.clock.at_s) == {f"a/{DETECTOR}": bench.clock.at_s + 4.0}
        bench.control.refused.clear()
        await carried_out(bench, action(ActionKind.GROW, after=4))
        assert bench.executor.backoff.active(bench.clock.at_s) == {}

    run(work())


def test_a_launched_server_is_resized_before_a_growth_and_after_a_shrink_and_an_adopted_one_never() -> None:
    async def scenario() -> None:
        bench = Bench(server("a", (2, 1)), server("theirs", launched=False))
        await carried_out(bench, action(ActionKind.GROW, "a", DETECTOR, 2, 3), action(ActionKind.GROW, "theirs", DETECTOR, 1, 2))
        assert bench.launcher.sizes == [("a", {DETECTOR: 3, CLASSIFIER: 1})]
        await carried_out(bench, action(ActionKind.SHRINK, "a", DETECTOR, 3, 1))
        assert bench.launcher.sizes[1:] == [("a", {DETECTOR: 1, CLASSIFIER: 1})]
        bench.launcher.cramped.add("a")
        (refused,) = await carried_out(bench, action(ActionKind.GROW, "a", DETECTOR, 1, 2))
        assert (refused.kind, bench.fleet.get("a").models[DETECTOR].instances) == (OutcomeKind.REFUSED, 1)
        assert "no room" in refused.detail
        assert "change a/video-detector to 2" not in bench.log

    run(scenario())


def test_a_server_that_got_a_further_device_gets_a_larger_share_of_the_requests() -> None:
    async def work() -> None:
        reaching = replace(server("a"), reach=("cpu:1",))
        one, more, two = (ModelState(1, 8).spread_over(counts) for counts in ({"cpu:0": 1}, {"cpu:0": 2}, {"cpu:0": 2, "cpu:1": 1}))
        bench = Bench(replace(reaching, models={DETECTOR: one}), server("b"))
        grow = action(ActionKind.GROW)
        await bench.executor.routes.write()
        for after, weights in ((more, {}), (two, {"a": 2})):
            await carried_out(bench, replace(grow, before=bench.fleet.get("a").models[DETECTOR], after=after))
            await bench.turns()
            assert bench.routes.tables[-1].models[DETECTOR].weights == weights
        assert len(bench.routes.tables) == 2

    run(work())


def test_a_model_that_cannot_be_on_a_further_device_is_asked_once() -> None:
    async def work() -> None:
        one, two = (ModelState(1, 8).spread_over(counts) for counts in ({"cpu:0": 1}, {"cpu:0": 1, "cpu:1": 1}))
        bench = Bench(replace(server("a"), reach=("cpu:1",), models={DETECTOR: one}))
        bench.control.at_home.add(DETECTOR)
        (outcome,) = await carried_out(bench, replace(action(ActionKind.GROW), before=one, after=two))
        assert outcome.kind is OutcomeKind.REFUSED
        assert bench.executor.resting == {devices_of("a", DETECTOR): f"{DETECTOR} is of KIND_MODEL"}
        bench.fleet.remove("a")
        assert bench.executor.resting == {}

    run(work())


def test_a_server_that_does_not_answer_loses_the_action_but_not_the_belief() -> None:
    async def work() -> None:
        bench = Bench(server("a", (3, 1)))
        bench.control.silent.add("a")
        (outcome,) = await carried_out(bench, action(ActionKind.GROW, before=3, after=4))
        assert outcome.kind is OutcomeKind.LOST
        assert "a does not answer" in outcome.detail
        assert bench.fleet.get("a").models[DETECTOR].instances == 3

    run(work())


@pytest.mark.parametrize("late", [action(ActionKind.GROW), retire()])
def test_an_action_on_a_server_that_is_gone_does_not_start_and_leaves_no_back_off(late: Action) -> None:
    async def work() -> None:
        bench = Bench()
        (outcome,) = await carried_out(bench, late)
        assert (outcome.kind, outcome.detail) == (OutcomeKind.SKIPPED, "a is gone")
        assert bench.executor.backoff.failures("a") == 0
        assert bench.log == []

    run(work())


def test_a_server_that_dies_during_its_change_stays_gone() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.control.gate = asyncio.Event()
        bench.executor.submit(Plan("d", (action(ActionKind.GROW),)))
        await bench.turns()
        bench.fleet.remove("a")
        bench.control.gate.set()
        await bench.settled()
        assert "a" not in bench.fleet

    run(work())


def test_a_busy_lever_takes_no_second_action_and_others_go_on() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.control.gate = asyncio.Event()
        bench.executor.submit(Plan("d", (action(ActionKind.GROW, after=2),)))
        bench.executor.submit(Plan("e", (action(ActionKind.GROW, after=3), action(ActionKind.GROW, model_name=CLASSIFIER))))
        assert bench.executor.busy == {f"a/{DETECTOR}", f"a/{CLASSIFIER}"}
        await bench.turns()
        assert bench.log == [f"change a/{DETECTOR} to 2", f"change a/{CLASSIFIER} to 2"]
        (skipped,) = bench.executor.collect()
        assert (skipped.action.after, skipped.kind) == (ModelState(3, 8), OutcomeKind.SKIPPED)
        assert skipped.detail == f"a/{DETECTOR} is busy with d/a/{DETECTOR}"
        assert bench.recorder.outcomes == [skipped]
        assert bench.executor.backoff.active(bench.clock.at_s) == {}
        bench.control.gate.set()
        assert len(await bench.settled()) == 2

    run(work())


def test_outcomes_carry_their_times() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.control.gate = asyncio.Event()
        bench.executor.submit(Plan("d", (action(ActionKind.GROW),)))
        await bench.turns()
        bench.clock.at_s += 1.5
        bench.control.gate.set()
        (outcome,) = await bench.settled()
        assert outcome.duration_s == 1.5

    run(work())


def test_a_new_server_is_ready_then_warm_then_routed() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        (outcome,) = await carried_out(bench, launch())
        assert outcome.kind is OutcomeKind.DONE
        assert bench.log == ["launch new", "ready new", "warm new", "routes a,new"]
        assert bench.fleet.get("new").phase is Phase.SERVING
        assert bench.recorder.servers["new"].phase is Phase.SERVING

    run(work())


@pytest.mark.parametrize("stage", ["ready", "warm"])
def test_a_server_that_does_not_come_up_is_disposed_of_and_never_routed(stage: str) -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.launcher.failing.add(stage)
        (outcome,) = await carried_out(bench, launch())
        assert outcome.kind is OutcomeKind.REFUSED
        assert "see new.log" in outcome.detail
        assert bench.log[-1] == "stop new"
        assert bench.routes.tables == []
        assert "new" not in bench.fleet
        assert set(bench.recorder.servers) == {"a"}
        assert set(bench.executor.backoff.active(bench.clock.at_s)) == {"cpu:1"}

    run(work())


def test_a_failed_launch_that_is_being_stopped_is_not_retired_too() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.launcher.failing.add("ready")
        bench.launcher.stop_gate = asyncio.Event()
        bench.executor.submit(Plan("d", (launch(),)))
        await bench.turns()
        assert bench.fleet.get("new").phase is Phase.STOPPING
        bench.supervisor.resume()
        bench.executor.submit(Plan("e", (retire("new"), action(ActionKind.GROW, "new"))))
        await bench.turns()
        skipped = bench.executor.collect()
        assert [(each.kind, each.detail) for each in skipped] == [(OutcomeKind.SKIPPED, f"new is busy with {launch().id}")] * 2
        bench.launcher.stop_gate.set()
        (outcome,) = await bench.settled()
        assert (outcome.action.kind, outcome.kind) == (ActionKind.LAUNCH, OutcomeKind.REFUSED)
        assert bench.log == ["launch new", "ready new", "stop new"]
        assert "new" not in bench.fleet
        assert set(bench.executor.backoff.active(bench.clock.at_s)) == {"cpu:1"}

    run(work())


def test_a_retirement_that_waited_does_not_begin_while_its_server_is_started() -> None:
    async def work() -> None:
        bench = Bench(server("b"), server("new", phase=Phase.LAUNCHING))
        bench.control.gate, bench.launcher.stop_gate = asyncio.Event(), asyncio.Event()
        bench.launcher.failing.add("ready")
        grow = action(ActionKind.GROW, "b")
        bench.executor.submit(Plan("d", (grow, retire("new", (grow.id,))), frozenset({"new"})))
        bench.executor.submit(Plan("e", (launch(),)))
        await bench.turns()
        bench.control.gate.set()
        await bench.turns()
        kinds = {each.action.kind: (each.kind, each.detail) for each in bench.executor.collect()}
        assert kinds[ActionKind.RETIRE] == (OutcomeKind.SKIPPED, f"new is busy with {launch().id}")
        bench.launcher.stop_gate.set()
        await bench.settled()
        assert "new" not in bench.fleet

    run(work())


def test_the_back_off_of_a_change_ends_with_its_server() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.control.gate = asyncio.Event()
        bench.control.silent.add("a")
        bench.executor.submit(Plan("d", (action(ActionKind.GROW),)))
        await bench.turns()
        bench.launcher.alive.discard("a")
        await bench.supervisor.reap_dead_servers()
        bench.control.gate.set()
        (outcome,) = await bench.settled()
        assert outcome.kind is OutcomeKind.LOST
        assert bench.executor.backoff.active(bench.clock.at_s) == {}
        assert bench.executor.backoff.failures(f"a/{DETECTOR}") == 0

    run(work())


def test_a_process_that_cannot_be_started_leaves_nothing_to_stop() -> None:
    async def work() -> None:
        bench = Bench()
        bench.launcher.failing.add("launch")
        (outcome,) = await carried_out(bench, launch())
        assert outcome.kind is OutcomeKind.REFUSED
        assert bench.log == ["launch new"]

    run(work())


def test_a_launch_that_an_earlier_daemon_began_is_brought_up_and_not_started_twice() -> None:
    async def work() -> None:
        bench = Bench(server("new", phase=Phase.LAUNCHING))
        await carried_out(bench, launch())
        assert bench.log == ["ready new", "warm new", "routes new"]

    run(work())


def test_without_a_launch_section_nothing_is_launched() -> None:
    async def work() -> None:
        bench = Bench(launcher=False)
        (outcome,) = await carried_out(bench, launch())
        assert outcome.kind is OutcomeKind.LOST
        assert "`launch`" in outcome.detail

    run(work())


def test_a_server_leaves_the_routes_before_it_is_idle_before_it_is_stopped() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        (outcome,) = await carried_out(bench, retire())
        assert (outcome.kind, outcome.detail) == (OutcomeKind.DONE, "")
        assert bench.log == LEAVES
        assert "a" not in bench.fleet
        assert bench.recorder.servers == {}

    run(work())


def test_a_drain_that_runs_out_of_time_says_so() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.launcher.idle = False
        (outcome,) = await carried_out(bench, retire())
        assert outcome.kind is OutcomeKind.DONE
        assert "in flight" in outcome.detail
        assert bench.log == LEAVES

    run(work())


def test_a_server_that_cannot_leave_the_routes_is_not_stopped_and_serves_on() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.routes.broken = True
        (outcome,) = await carried_out(bench, retire())
        assert outcome.kind is OutcomeKind.LOST
        assert "stop a" not in bench.log
        assert bench.fleet.get("a").phase is Phase.SERVING
        assert set(bench.executor.backoff.active(bench.clock.at_s)) == {"a"}

    run(work())


def test_a_server_that_never_served_is_not_routed_when_it_cannot_be_taken_down_at_once() -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("half", phase=Phase.STOPPING))
        bench.routes.broken = True
        await carried_out(bench, retire("half"))
        bench.routes.broken = False
        await bench.executor.routes.write()
        assert bench.log[-1] == "routes a"

    run(work())


def test_a_server_that_neither_comes_up_nor_stops_tells_both() -> None:
    async def work() -> None:
        bench = Bench()
        bench.launcher.failing |= {"ready", "stop"}
        (outcome,) = await carried_out(bench, launch())
        assert outcome.kind is OutcomeKind.REFUSED
        assert "see new.log" in outcome.detail
        assert "nor could it be stopped: " in outcome.detail

    run(work())


def test_nothing_is_kept_of_a_server_that_is_gone() -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("ab"))
        for actuator in ("a", f"a/{DETECTOR}", "ab", "cpu:1"):
            bench.executor.backoff.failed(actuator, bench.clock.at_s)
        await carried_out(bench, retire())
        assert bench.control.forgotten == ["a"]
        assert set(bench.executor.backoff.active(bench.clock.at_s)) == {"ab", "cpu:1"}

    run(work())


def test_make_before_break() -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("b"))
        bench.control.gate = asyncio.Event()
        grow = action(ActionKind.GROW, "b")
        bench.executor.submit(Plan("d", (grow, retire("a", (grow.id,))), frozenset({"a"})))
        await bench.turns()
        assert bench.log == [f"change b/{DETECTOR} to 2"]
        assert bench.fleet.get("a").phase is Phase.SERVING
        bench.control.gate.set()
        assert [outcome.kind for outcome in await bench.settled()] == [OutcomeKind.DONE, OutcomeKind.DONE]
        assert bench.log[1:] == ["routes b", "idle a", "stop a"]

    run(work())


@pytest.mark.parametrize("newest", [frozenset(), frozenset({"b"})])
def test_a_retirement_that_waited_is_dropped_when_the_server_is_needed_again(newest: frozenset[str]) -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("b"))
        bench.control.gate = asyncio.Event()
        grow = action(ActionKind.GROW, "b")
        bench.executor.submit(Plan("d", (grow, retire("a", (grow.id,))), frozenset({"a"})))
        await bench.turns()
        bench.executor.submit(Plan("e", retire=newest))
        bench.control.gate.set()
        done, dropped = await bench.settled()
        assert (done.kind, dropped.kind, dropped.detail) == (OutcomeKind.DONE, OutcomeKind.SKIPPED, "the newest target keeps the server")
        assert bench.fleet.get("a").phase is Phase.SERVING
        assert bench.executor.busy == frozenset()

    run(work())


def test_what_requires_an_action_that_could_not_start_does_not_start_either() -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("b"))
        bench.control.gate = asyncio.Event()
        grow = action(ActionKind.GROW, "b")
        bench.executor.submit(Plan("d", (grow,)))
        again = replace(grow, id="e/b", decision_id="e")
        bench.executor.submit(Plan("e", (again, retire("a", (again.id,)))))
        assert bench.executor.busy == {f"b/{DETECTOR}"}
        busy, waiting = bench.executor.collect()
        assert (busy.kind, busy.detail) == (OutcomeKind.SKIPPED, f"b/{DETECTOR} is busy with d/b/{DETECTOR}")
        assert (waiting.kind, waiting.detail) == (OutcomeKind.SKIPPED, "it requires e/b, which did not start")
        bench.control.gate.set()
        await bench.settled()
        assert "a" in bench.fleet

    run(work())


@pytest.mark.parametrize(
    ("newest", "kind"), [(None, OutcomeKind.DONE), (frozenset({"a"}), OutcomeKind.DONE), (frozenset(), OutcomeKind.SKIPPED)]
)
def test_a_plan_without_a_target_leaves_a_waiting_retirement_as_it_is(newest: frozenset[str] | None, kind: OutcomeKind) -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("b"))
        bench.control.gate = asyncio.Event()
        grow = action(ActionKind.GROW, "b")
        bench.executor.submit(Plan("d", (grow, retire("a", (grow.id,))), frozenset({"a"})))
        await bench.turns()
        bench.executor.submit(Plan("e", retire=newest))
        bench.control.gate.set()
        assert [outcome.kind for outcome in await bench.settled()] == [OutcomeKind.DONE, kind]

    run(work())


def test_what_requires_a_failed_action_is_skipped_without_backoff() -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("b"))
        bench.control.refused.add(DETECTOR)
        grow = action(ActionKind.GROW, "b")
        result = await carried_out(bench, grow, retire("a", (grow.id,)))
        assert [outcome.kind for outcome in result] == [OutcomeKind.REFUSED, OutcomeKind.SKIPPED]
        assert bench.fleet.get("a").phase is Phase.SERVING
        assert set(bench.executor.backoff.active(bench.clock.at_s)) == {f"b/{DETECTOR}"}

    run(work())


def test_cancelling_leaves_servers_as_they_are() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.control.gate = asyncio.Event()
        bench.executor.submit(Plan("d", (action(ActionKind.GROW),)))
        await bench.turns()
        await bench.executor.cancel()
        assert bench.executor.busy == frozenset()
        assert bench.fleet.get("a").models[DETECTOR].instances == 1
        assert "stop a" not in bench.log

    run(work())


def test_a_dead_server_is_buried_its_routes_go_and_it_counts_as_lost_for_a_minute() -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("b"))
        assert await bench.supervisor.reap_dead_servers() == ()
        bench.launcher.alive.discard("a")
        (dead,) = await bench.supervisor.reap_dead_servers()
        await bench.settled()
        assert (dead.name, bench.supervisor.recently_crashed, bench.routed) == ("a", 1, ("b",))
        assert sorted(bench.log) == ["routes b", "stop a"]
        assert "a" not in bench.fleet
        assert set(bench.recorder.servers) == {"b"}
        bench.clock.at_s += 61.0
        await bench.supervisor.reap_dead_servers()
        assert bench.supervisor.recently_crashed == 0

    run(work())


def test_routes_that_could_not_be_written_are_written_by_a_later_tick_and_told_until_then() -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("b"))
        bench.routes.broken = True
        bench.launcher.alive.discard("a")
        await bench.supervisor.reap_dead_servers()
        for _ in range(5):
            await asyncio.sleep(0)
        assert bench.executor.routes.unwritten == "the proxy does not answer"
        bench.routes.broken = False
        await bench.supervisor.reap_dead_servers()
        await bench.settled()
        assert bench.executor.routes.unwritten is None
        assert bench.routed == ("b",)

    run(work())


def test_routes_are_written_again_when_the_fleet_changed_during_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        write = bench.routes.write

        async def slow_write(table: RouteTable) -> None:
            await write(table)
            if "b" not in bench.fleet:
                bench.fleet.put(server("b"))
                bench.launcher.alive.add("b")

        monkeypatch.setattr(bench.routes, "write", slow_write)
        await bench.executor.routes.write()
        assert list(bench.routed) == ["a"]
        assert bench.executor.routes.unwritten == "the fleet changed during the last write"
        await bench.supervisor.reap_dead_servers()
        await bench.settled()
        assert list(bench.routed) == ["a", "b"]

    run(work())


def test_servers_of_others_and_those_on_their_way_out_are_never_buried() -> None:
    async def work() -> None:
        bench = Bench(server("a", launched=False), server("b", phase=Phase.STOPPING))
        bench.launcher.alive.clear()
        assert await bench.supervisor.reap_dead_servers() == ()
        assert bench.supervisor.recently_crashed == 0

    run(work())


@pytest.mark.parametrize("phase", [Phase.LAUNCHING, Phase.WARMING, Phase.DRAINING, Phase.STOPPING])
def test_a_server_that_nothing_works_on_is_brought_to_its_end(phase: Phase) -> None:
    async def work() -> None:
        bench = Bench(server("a", phase=phase, slot="cpu:0"), server("b"))
        bench.supervisor.resume()
        bench.supervisor.resume()
        (outcome,) = await bench.settled()
        assert outcome.kind is OutcomeKind.DONE
        arrives = phase in (Phase.LAUNCHING, Phase.WARMING)
        assert ("a" in bench.fleet) is arrives
        assert bench.routed == (("a", "b") if arrives else ("b",))

    run(work())


def reading(bench: Bench, error: str | None) -> ServerReading:
    return ServerReading("a", bench.clock.at_s, error=error)


def test_an_adopted_server_is_unreachable_after_three_silent_readings_but_stays_routed_and_comes_back() -> None:
    async def work() -> None:
        bench = Bench(server("a", launched=False), server("b"))
        phases = []
        for error in ("refused", None, "refused", "refused", "refused", "refused", None):
            bench.clock.at_s += 0.5
            await bench.supervisor.update_reachability([reading(bench, error)])
            await bench.settled()
            phases.append(bench.fleet.get("a").phase)
        serving, unreachable = Phase.SERVING, Phase.UNREACHABLE
        assert phases == [serving, serving, serving, serving, unreachable, unreachable, serving]
        assert set(bench.log) == {"routes a,b"}
        await bench.supervisor.close()

    run(work())


def test_a_server_that_answers_for_the_first_time_holds_only_the_devices_that_it_runs_on() -> None:
    async def work() -> None:
        runs = replace(server("a", launched=False), reach=("cpu:8", "cpu:9")).models
        silent = replace(server("a", launched=False), reach=("cpu:8", "cpu:9"), models={}, unread_devices=("cpu:9",))
        bench = Bench(replace(silent, phase=Phase.UNREACHABLE))
        bench.control.runs["a"] = runs
        assert bench.fleet.get("a").runs_on("cpu:9"), "until its models are read"
        await bench.supervisor.update_reachability([reading(bench, None)])
        await bench.turns()
        assert bench.fleet.get("a").models == runs
        assert not bench.fleet.get("a").runs_on("cpu:9")
        await bench.supervisor.close()

    run(work())


def test_a_launched_server_without_metrics_stays_routed_while_it_answers_health_checks() -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("b"))
        for _ in range(5):
            await bench.supervisor.update_reachability([reading(bench, "refused"), ServerReading("b", bench.clock.at_s)])
            bench.clock.at_s += 1.0
            await bench.turns()
        assert bench.fleet.get("a").phase is Phase.SERVING
        await bench.supervisor.close()

    run(work())


def test_a_reading_of_an_unknown_server_changes_nothing() -> None:
    async def work() -> None:
        bench = Bench()
        await bench.supervisor.update_reachability([reading(bench, None)])
        assert bench.log == []
        await bench.supervisor.close()

    run(work())


def test_counts_that_someone_else_changed_are_found() -> None:
    async def work() -> None:
        bench = Bench(server("a", launched=False), server("b", launched=False))
        bench.control.runs["a"] = {DETECTOR: ModelState(6, 8)}
        await bench.supervisor.update_reachability([])
        await bench.turns()
        assert bench.fleet.get("a").models == {DETECTOR: ModelState(6, 8)}
        assert [each.server for each in bench.routes.tables[-1].models[CLASSIFIER].targets] == ["b"]
        await bench.supervisor.close()

    run(work())


def test_a_server_with_a_change_under_way_is_not_read_meanwhile() -> None:
    async def work() -> None:
        bench = Bench(server("a"))
        bench.control.gate = asyncio.Event()
        bench.control.runs["a"] = {DETECTOR: ModelState(6, 8)}
        bench.executor.submit(Plan("d", (action(ActionKind.GROW),)))
        await bench.supervisor.update_reachability([])
        await bench.turns()
        assert bench.fleet.get("a").models[DETECTOR] == ModelState(1, 8)
        bench.control.gate.set()
        await bench.settled()
        await bench.supervisor.close()

    run(work())


def test_the_index_of_a_server_with_a_change_under_way_is_read_and_its_routes_follow() -> None:
    async def work() -> None:
        bench = Bench(server("a", launched=False))
        bench.control.gate = asyncio.Event()
        bench.executor.submit(Plan("d", (action(ActionKind.GROW),)))
        bench.control.others["a"] = {"ensemble"}
        await bench.supervisor.update_reachability([])
        await bench.turns()
        assert "ensemble" in bench.routes.tables[-1].models
        assert bench.fleet.get("a").models[DETECTOR] == ModelState(1, 8)
        bench.control.others["a"] = set()
        bench.clock.at_s += 5.0
        await bench.supervisor.update_reachability([])
        await bench.turns()
        assert "ensemble" not in bench.routes.tables[-1].models
        bench.control.gate.set()
        await bench.settled()
        await bench.supervisor.close()

    run(work())


@pytest.mark.parametrize("ends_before_the_answer", [True, False])
def test_counts_that_were_read_before_a_change_began_do_not_replace_its_result(
    *, ends_before_the_answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        bench, answer = Bench(server("a")), asyncio.Event()

        async def slow_read(server: Server, models: Sequence[str]) -> dict[str, ModelState]:
            await answer.wait()
            return {name: ModelState(9, 8) for name in models}

        monkeypatch.setattr(bench.control, "read_models", slow_read)
        bench.control.gate = asyncio.Event()
        await bench.supervisor.update_reachability([])
        await bench.turns()
        bench.executor.submit(Plan("d", (action(ActionKind.GROW, after=4),)))
        await bench.turns()
        for event in (bench.control.gate, answer) if ends_before_the_answer else (answer, bench.control.gate):
            event.set()
            await bench.turns()
        assert bench.fleet.get("a").models == {DETECTOR: ModelState(4, 8), CLASSIFIER: ModelState(1, 8)}
        await bench.supervisor.close()

    run(work())


def refusal(cause: str = "X must be a positive size (request 7)") -> WarmupFailedError:
    return WarmupFailedError(f"warm-up failed: {cause}", DETECTOR, cause, "set models.video-detector.warmup")


async def failed_launches(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.launcher.refusing = refusal(f"X must be a positive size (request {number})")
        (outcome,) = await carried_out(bench, launch("cpu:1"))
        assert outcome.kind is OutcomeKind.REFUSED
        bench.clock.at_s += 100.0


def test_launches_rest_after_warm_ups_that_failed_with_the_same_cause() -> None:
    async def work() -> None:
        bench = Bench()
        await failed_launches(bench, SAME_FAILURES - 1)
        assert bench.executor.rests.reasons == {}
        assert bench.executor.backing_off(bench.clock.at_s) == {}
        await failed_launches(bench, 1)
        (words,) = bench.executor.rests.reasons.values()
        assert words == (
            f"warm-up of model {DETECTOR} failed 3 times with the same cause (X must be a positive size (request 0)); "
            "launches with it rest until its settings, its files or those of the models launched with it change, `launch` and `calls` "
            "with a restart. Fix: set models.video-detector.warmup"
        )
        bench.clock.at_s += 3600.0
        assert list(bench.executor.backing_off(bench.clock.at_s)) == [launch_of("cpu:1", DETECTOR)], "the slot is free for others"

    run(work())


def test_other_causes_and_a_success_begin_the_count_anew() -> None:
    async def work() -> None:
        bench = Bench()
        await failed_launches(bench, SAME_FAILURES - 1)
        bench.launcher.refusing = refusal("out of memory")
        await carried_out(bench, launch("cpu:1"))
        await failed_launches(bench, SAME_FAILURES - 1)
        bench.launcher.refusing = None
        await carried_out(bench, launch("cpu:1"))
        bench.fleet.remove(launch("cpu:1").server)
        await failed_launches(bench, SAME_FAILURES - 1)
        assert bench.executor.rests.reasons == {}

    run(work())


def test_launches_rest_after_loads_that_failed_with_the_same_cause() -> None:
    async def work() -> None:
        bench = Bench()
        for name in ("cpu-1-abc", "cpu-1-xyz", "cpu-1-uvw"):
            bench.launcher.unloadable = ModelFailedError("", DETECTOR, f"{name}/model.py: No module named 'x'", "correct its files")
            await carried_out(bench, launch("cpu:1", name))
            bench.clock.at_s += 100.0
        (words,) = bench.executor.resting.values()
        assert words.startswith(f"loading of model {DETECTOR} failed 3 times with the same cause (cpu-1-uvw/model.py: No module named 'x')")
        assert words.endswith("Fix: correct its files")

    run(work())


def test_a_rest_ends_when_files_of_the_launched_models_change() -> None:
    async def work() -> None:
        bench = Bench()
        await failed_launches(bench, SAME_FAILURES)
        await bench.supervisor.update_reachability([])
        await bench.turns()
        assert list(bench.executor.rests.reasons) == [launch_of("cpu:1", DETECTOR)]
        bench.launcher.versions[CLASSIFIER] = "second"  # a model that is launched with it, such as one that it calls
        bench.clock.at_s += 60.0
        await bench.supervisor.update_reachability([])
        await bench.turns()
        assert bench.executor.rests.reasons == {}
        assert bench.executor.backing_off(bench.clock.at_s) == {}

    run(work())
