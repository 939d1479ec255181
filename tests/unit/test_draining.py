"""Servers that an operator drains: what is planned, when they leave the routes, and when that is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, STAGES, config, decided, estimate, record, retire, server, snapshot
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.store.journal import Journal
from themis_triton.core.action import Action
from themis_triton.core.config import DrainState, Overload, ThemisConfig
from themis_triton.core.decision import ClampKind, Decision, Reason
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import ServerReading
from themis_triton.core.overrides import Drain, overridden
from themis_triton.daemon.components import Components, build_observer
from themis_triton.daemon.loop import Loop
from themis_triton.daemon.overrides import OverrideKeeper
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.draining import refusal
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.plan.routes import route_table
from themis_triton.plan.steps import plan

WAITING = {"a": DrainState.WAITING}
ADOPTED, LAUNCHED = replace(server("a", (4, 4)), launched=False), server("a", (4, 4), slot="cpu:0")


def other(counts: tuple[int, int] = (4, 4), name: str = "b", slot: str = "cpu:1") -> Server:
    return server(name, counts, slot=slot)


def decision_of(
    servers: Sequence[Server], rps: float, drains: Mapping[str, DrainState], settings: ThemisConfig | None = None
) -> tuple[Decision, ThemisConfig]:
    drained = replace(settings or config(slots=3), drains=drains)
    return decided(PolicyState(), PolicyInput(snapshot(servers), estimate(rps)), Planner(build_rules(drained)))[1], drained


@pytest.mark.parametrize(("drained", "retired"), [(ADOPTED, ()), (LAUNCHED, ("a",))])
def test_a_server_leaves_the_routes_once_the_others_carry_the_demand_and_retires_if_it_was_launched(
    drained: Server, retired: tuple[str, ...]
) -> None:
    decision, _ = decision_of([drained, other()], 5.0, WAITING)
    assert decision.target is not None
    assert (decision.target.drained, decision.target.retire) == (("a",), retired)
    assert "a" not in decision.target.servers


@pytest.mark.parametrize("drained", [ADOPTED, LAUNCHED])
def test_a_server_whose_load_the_others_do_not_carry_is_replaced_first(drained: Server) -> None:
    decision, drains = decision_of([drained, other((1, 1))], 60.0, WAITING)
    assert decision.target is not None
    assert (decision.target.drained, decision.target.retire) == ((), ())
    assert decision.target.launch
    assert decision.target.servers["b"][DETECTOR].instances > 1
    (clamp,) = [clamp for clamp in decision.clamps if clamp.kind is ClampKind.DRAIN]
    assert clamp.sentence.startswith("a is drained once the other servers of video carry 60/s: they carry ")
    assert clamp.sentence.endswith("another one is on its way")
    actions = plan(decision, snapshot([drained, other((1, 1))]), drains).actions
    assert {action.kind.value for action in actions} == {"launch", "grow"}


def test_without_a_free_slot_it_serves_on_as_capacity_until_it_is_forced() -> None:
    settings = replace(config(slots=2), pipelines=(replace(config().pipelines[0], overload=Overload.SHED),))
    servers = [LAUNCHED, other((16, 16))]
    decision, _ = decision_of(servers, 90.0, WAITING, settings)
    assert decision.target is not None
    assert (decision.target.drained, decision.target.launch) == ((), {})
    (clamp,) = [clamp for clamp in decision.clamps if clamp.kind is ClampKind.DRAIN]
    assert clamp.sentence.endswith("and no slot is free for another one (--force drains a at once)")
    plain, _ = decision_of(servers, 90.0, {}, settings)
    assert (decision.admissions, decision.evidence[0].capacity_rps) == (plain.admissions, plain.evidence[0].capacity_rps)
    assert decision.evidence[0].servers_now == 2
    assert decision.reason is not Reason.INFEASIBLE
    forced, _ = decision_of(servers, 90.0, {"a": DrainState.FORCED}, settings)
    assert forced.target is not None
    assert (forced.target.drained, forced.target.retire) == (("a",), ("a",))


@pytest.mark.parametrize("state", [DrainState.WAITING, DrainState.FORCED])
def test_the_last_server_of_a_model_stays_in_the_routes_until_another_serves(state: DrainState) -> None:
    coming = replace(other(), phase=Phase.WARMING)
    decision, _ = decision_of([ADOPTED, coming], 1.0, {"a": state})
    assert decision.target is not None
    assert decision.target.drained == ()
    decision, _ = decision_of([ADOPTED, other()], 1.0, {"a": state})
    assert decision.target is not None
    assert decision.target.drained == ("a",)


def test_a_drained_server_stays_out_of_the_routes_however_the_demand_grows() -> None:
    decision, _ = decision_of([ADOPTED, other((1, 1))], 200.0, {"a": DrainState.LEFT})
    assert decision.target is not None
    assert decision.target.drained == ("a",)
    assert decision.evidence[0].servers_now == 1


@pytest.mark.parametrize("state", [DrainState.LEFT, DrainState.FORCED])
@pytest.mark.parametrize(
    ("b", "error", "words"),
    [
        (replace(other(), phase=Phase.UNRESPONSIVE), None, f"once another server holds {CLASSIFIER}, {DETECTOR}"),
        (replace(other(), phase=Phase.WARMING), None, f"once another server holds {CLASSIFIER}, {DETECTOR}"),
        (other(), "no answer in 1 s", "a is drained, and retires once the metrics of b can be read"),
    ],
)
def test_a_drained_server_does_not_retire_while_no_other_one_surely_serves(
    state: DrainState, b: Server, error: str | None, words: str
) -> None:
    readings = tuple(ServerReading(name, NOW_S, error=error if name == "b" else None) for name in "ab")
    settings = replace(config(slots=2), drains={"a": state})
    seen = replace(snapshot([LAUNCHED, b]), readings=readings)
    decision = decided(PolicyState(), PolicyInput(seen, estimate(5.0)), Planner(build_rules(settings)))[1]
    assert decision.target is not None
    assert decision.target.retire == ()
    assert "retire" not in {action.kind.value for action in plan(decision, seen, settings).actions}
    (clamp,) = [clamp for clamp in decision.clamps if clamp.kind is ClampKind.DRAIN]
    assert clamp.sentence.endswith(words)


def test_the_routes_lead_to_no_drained_server_but_for_models_that_no_other_holds() -> None:
    lone = replace(other(), models={DETECTOR: other().models[DETECTOR]}, ready_models=(DETECTOR,))
    table = route_table([ADOPTED, lone], STAGES, drained={"a"})
    assert [endpoint.server for endpoint in table.models[DETECTOR].endpoints] == ["b"]
    assert [endpoint.server for endpoint in table.models[CLASSIFIER].endpoints] == ["a"]
    assert ([endpoint.server for endpoint in table.any], table.unlisted) == (["b"], ())


@pytest.mark.parametrize(
    ("servers", "settings", "force", "words"),
    [
        ([ADOPTED, other()], config(slots=2), False, None),
        ([ADOPTED], config(slots=2), False, None),
        ([ADOPTED], config(slots=2), True, "so that requests would fail. Fix: leave out --force"),
        ([ADOPTED], config(slots=0), False, f"a is the only server that holds {CLASSIFIER}, {DETECTOR}, and no slot is free"),
        ([LAUNCHED], config(slots=1), False, "no slot is free to launch another one. Fix: add a slot to launch.slots"),
        ([replace(ADOPTED, ready_models=("else",)), other()], config(slots=2), False, "holds else. Fix: load it on another server first"),
        ([replace(ADOPTED, pinned=(DETECTOR,)), other()], config(slots=2), True, f"a has the open sequences of {DETECTOR}"),
        ([replace(LAUNCHED, phase=Phase.WARMING), other()], config(slots=2), False, "a is warming: only a server that serves"),
        ([other(), other(name="c")], config(slots=2), False, "server: 'a' is invalid: expected b or c"),
    ],
)
def test_what_would_leave_a_model_without_a_server_is_refused(
    servers: Sequence[Server], settings: ThemisConfig, *, force: bool, words: str | None
) -> None:
    reason = refusal("a", snapshot(servers), settings, force=force)
    assert reason is None if words is None else reason is not None and words in reason


def test_a_drain_is_kept_over_a_restart_told_at_each_step_and_ends_with_its_server(tmp_path: Path) -> None:
    keeper, seen = OverrideKeeper(tmp_path), snapshot([LAUNCHED, other()])
    keeper.drain(Drain("a", NOW_S, launched=False, by="alice", why="new driver"), seen, config())
    with pytest.raises(SettingsError, match="that is in force already"):
        keeper.drain(Drain("a", NOW_S, launched=False), seen, config())
    with pytest.raises(SettingsError, match="b is the only server that holds"):
        keeper.drain(Drain("b", NOW_S, launched=False, force=True), seen, config())
    keeper.note_fleet((), ("a", "b"))
    assert overridden(config(), keeper.overrides).drains == WAITING
    keeper.note_fleet(("a",), ("a", "b"))
    again = OverrideKeeper(tmp_path)
    assert again.overrides.out_of_routes == {"a"}
    assert overridden(config(), again.overrides).drains == {"a": DrainState.LEFT}
    again.note_fleet(("a",), ("b",))
    assert again.overrides.drains == ()
    assert [*keeper.take_events(NOW_S), *again.take_events(NOW_S)] == [
        ("drain_requested", "a is to be drained by alice: new driver"),
        ("drained", "a is drained by alice: new driver (it retires)"),
        ("drain_ended", "the drain of a has ended: it is gone"),
    ]


@pytest.mark.parametrize(
    ("phase", "actions", "refused"),
    [
        (Phase.SERVING, (), False),
        (Phase.DRAINING, (), True),
        (Phase.STOPPING, (), True),
        (Phase.SERVING, (retire("a"),), True),
        (Phase.SERVING, (retire("b"),), False),
    ],
)
def test_a_server_that_retires_already_cannot_be_undrained(
    tmp_path: Path, phase: Phase, actions: tuple[Action, ...], *, refused: bool
) -> None:
    keeper = OverrideKeeper(tmp_path)
    keeper.drain(Drain("a", NOW_S, launched=False), snapshot([LAUNCHED, other()]), config())
    last = record(*actions, seen=snapshot([replace(LAUNCHED, phase=phase), other()]))
    with pytest.raises(SettingsError, match="a retires already") if refused else nullcontext():
        keeper.undrain("a", "bob", "done", last)
    assert bool(keeper.overrides.drains) is refused


def test_a_server_is_drained_only_once_the_proxy_routes_to_it_no_more(tmp_path: Path) -> None:
    settings = replace(config(slots=2), state_directory=tmp_path)

    async def scenario() -> None:
        bench, clock, journal = Bench(ADOPTED, other()), SystemClock(), Journal(tmp_path / "journal.sqlite")
        observer, envoy = build_observer(settings, clock), EnvoyProcess(settings.envoy, tmp_path)
        ports = bench.world, bench.control, bench.launcher
        components = Components(settings, *ports, journal, envoy, EnvoyFiles(settings.envoy), clock, observer)
        loop = Loop(components, Planner(build_rules(settings)), StatusBoard(settings, NOW_S), Exporter())
        loop.keeper = OverrideKeeper(tmp_path)
        loop.keeper.drain(Drain("a", NOW_S, launched=False), snapshot([ADOPTED, other()]), settings)
        await bench.executor.routes.write()
        bench.routes.broken = True
        bench.executor.routes.set_drained(frozenset("a"))
        for _ in range(2):  # a write that is under way, and one that failed
            loop.apply_overrides()
            assert loop.planner.rules.config.drains == WAITING
            await bench.turns()
        bench.routes.broken = False
        bench.executor.routes.reconcile()
        await bench.turns()
        assert bench.routed == ("b",)
        loop.apply_overrides()
        assert loop.planner.rules.config.drains == {"a": DrainState.LEFT}
        for _ in range(3):
            await loop.tick()
            bench.clock.at_s += 5.0
        assert [event.kinds for event in loop.board.events] == [("drain_requested",), ("drained",), ("drained_rests",)]
        await bench.executor.cancel()
        await observer.close()
        await envoy.close()
        journal.close()

    asyncio.run(scenario())


def test_a_drain_ends_when_it_is_told_to(tmp_path: Path) -> None:
    keeper = OverrideKeeper(tmp_path)
    keeper.drain(Drain("a", NOW_S, launched=False), snapshot([ADOPTED, other()]), config())
    keeper.undrain("a", "bob", "done")
    assert keeper.overrides.drains == ()
    assert keeper.take_events(NOW_S)[-1] == ("drain_ended", "a is no longer drained by bob: done")
