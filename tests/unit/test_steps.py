from dataclasses import replace

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, STAGES, server, snapshot
from themis_triton.core.action import Action, ActionKind
from themis_triton.core.address import Address
from themis_triton.core.decision import Decision, Reason, Stage, Target
from themis_triton.core.fleet import ModelState, Phase
from themis_triton.core.observation import Snapshot
from themis_triton.core.routes import Endpoint, ModelRoute
from themis_triton.plan.routes import route_table
from themis_triton.plan.steps import plan, server_name


def states(detector: int, classifier: int = 1, max_batch: int = 8) -> dict[str, ModelState]:
    return {DETECTOR: ModelState(detector, max_batch), CLASSIFIER: ModelState(classifier, max_batch)}


def actions(target: Target | None, seen: Snapshot) -> tuple[Action, ...]:
    planned = plan(Decision("d1", NOW_S, "themis", Stage.OPTIMISE, Reason.STEADY, target), seen)
    assert planned.decision_id == "d1"
    assert len({action.id for action in planned.actions}) == len(planned.actions)
    assert planned.retire == (None if target is None else frozenset(target.retire))
    return planned.actions


def kinds(found: tuple[Action, ...]) -> list[tuple[ActionKind, str, str | None]]:
    return [(action.kind, action.server, action.model) for action in found]


def test_no_target_and_a_reached_one_plan_nothing() -> None:
    assert actions(None, snapshot([server("a")])) == ()
    assert plan(Decision("d1", NOW_S, "themis", Stage.HOLD, Reason.HOLD_STALE, None), snapshot()).retire is None
    assert actions(Target({"a": states(1)}), snapshot([server("a")])) == ()


def test_growth_goes_all_the_way_at_once() -> None:
    (grow,) = actions(Target({"a": states(5)}), snapshot([server("a", (2, 1))]))
    assert (grow.kind, grow.before, grow.after) == (ActionKind.GROW, ModelState(2, 8), ModelState(5, 8))


def test_shrinking_takes_one_instance() -> None:
    (shrink,) = actions(Target({"a": states(1)}), snapshot([server("a", (5, 1))]))
    assert (shrink.kind, shrink.before, shrink.after) == (ActionKind.SHRINK, ModelState(5, 8), ModelState(4, 8))


def test_reloads_go_one_at_a_time() -> None:
    seen = snapshot([server("a", max_batch=1), server("b", max_batch=1)])
    assert kinds(actions(Target({"a": states(1), "b": states(1)}), seen)) == [(ActionKind.REBATCH, "a", DETECTOR)]


def test_batches_that_are_formed_before_the_servers_change_side_by_side_and_counts_in_one_step() -> None:
    seen = snapshot([server("a", (4, 1), max_batch=1), server("b", (4, 1), max_batch=1)])
    wanted = {name: {DETECTOR: ModelState(1, 8)} for name in ("a", "b")}
    found = actions(Target(wanted, free_batches=True), seen)
    assert [(action.server, action.after) for action in found] == [("a", ModelState(1, 8)), ("b", ModelState(1, 8))]


def test_a_reload_takes_the_wanted_count_with_it() -> None:
    (reload,) = actions(Target({"a": {DETECTOR: ModelState(3, 4)}}), snapshot([server("a", (1, 1))]))
    assert (reload.kind, reload.after) == (ActionKind.REBATCH, ModelState(3, 4))


def test_a_launch_names_its_slot_and_models_and_gets_a_name_fit_for_a_file() -> None:
    (launch,) = actions(Target(launch={"gpu:0/left": states(2)}), snapshot())
    assert (launch.kind, launch.slot, launch.models) == (ActionKind.LAUNCH, "gpu:0/left", states(2))
    assert launch.server == server_name("gpu:0/left", "d1") == "gpu0-left-d1"


def test_a_retirement_requires_every_growth_of_its_plan() -> None:
    seen = snapshot([server("a", (1, 2)), server("b"), server("c")])
    found = actions(Target({"a": states(3, 1), "b": states(4), "c": states(1)}, retire=("c",)), seen)
    grows = {action.id for action in found if action.kind is ActionKind.GROW}
    (retirement,) = [action for action in found if action.kind is ActionKind.RETIRE]
    assert len(grows) == 2
    assert set(retirement.requires) == grows
    assert found[-1] == retirement


def test_a_server_that_leaves_is_not_changed_before() -> None:
    seen = snapshot([server("a"), server("b")])
    found = actions(Target({"a": states(3), "b": states(3)}, retire=("b",)), seen)
    assert kinds(found) == [(ActionKind.GROW, "a", DETECTOR), (ActionKind.RETIRE, "b", None)]


def test_no_server_leaves_while_the_growth_that_it_requires_cannot_start() -> None:
    seen = snapshot([server("a"), server("b")])
    target = Target({"a": states(3), "b": states(1)}, retire=("b",))
    for taken in ("a", f"a/{DETECTOR}"):
        assert actions(target, replace(seen, busy=frozenset({taken}))) == ()
        assert actions(target, replace(seen, backing_off={taken: NOW_S + 5})) == ()


def test_busy_and_held_levers_are_left_alone() -> None:
    seen = snapshot([server("a"), server("b")])
    target = Target({"a": states(3, 3), "b": states(3, 3)}, {"cpu:1": states(1), "cpu:2": states(1)})
    seen = replace(seen, busy=frozenset({f"a/{DETECTOR}", "b", "cpu:1"}), backing_off={f"a/{CLASSIFIER}": NOW_S + 1, "cpu:2": NOW_S - 1})
    assert kinds(actions(target, seen)) == [(ActionKind.LAUNCH, "cpu2-d1", None)]


def test_a_server_that_is_being_changed_does_not_leave() -> None:
    seen = replace(snapshot([server("a"), server("b")]), busy=frozenset({f"b/{CLASSIFIER}"}))
    assert actions(Target({"a": states(1)}, retire=("b",)), seen) == ()
    assert kinds(actions(Target({"a": states(1)}, retire=("b",)), replace(seen, busy=frozenset()))) == [(ActionKind.RETIRE, "b", None)]


def test_only_launched_serving_servers_leave_and_only_serving_ones_are_changed() -> None:
    seen = snapshot([server("a", launched=False), server("b", phase=Phase.WARMING), server("c", phase=Phase.DRAINING)])
    target = Target({name: states(4) for name in ("b", "c", "unknown")}, retire=("a", "b", "c", "unknown"))
    assert actions(target, seen) == ()


def test_a_model_that_a_server_does_not_hold_is_not_loaded_by_the_way() -> None:
    assert actions(Target({"a": {"other": ModelState(2, 1)}}), snapshot([server("a")])) == ()


def test_routes_hold_serving_servers_by_model_in_the_order_of_names() -> None:
    half = replace(server("b"), models={DETECTOR: ModelState(1, 1)})
    others = [server(phase.value, phase=phase) for phase in Phase if phase not in (Phase.SERVING, Phase.UNREACHABLE)]
    table = route_table([server("c"), half, *others], STAGES)
    b, c = (Endpoint(name, Address(name, 8001), Address(name, 8000)) for name in ("b", "c"))
    assert table.any == (b, c)
    assert table.models == {DETECTOR: ModelRoute((b, c)), CLASSIFIER: ModelRoute((c,))}


def test_without_servers_every_model_has_an_empty_route() -> None:
    assert route_table([], STAGES).models == {DETECTOR: ModelRoute(), CLASSIFIER: ModelRoute()}


def test_reloads_go_one_server_at_a_time_over_ticks_too_and_growth_goes_on() -> None:
    seen = snapshot([server("a", max_batch=1), server("b", max_batch=1)])
    wanted = Target({name: {DETECTOR: ModelState(3, 8)} for name in ("a", "b")})
    first = actions(wanted, seen)
    assert [(action.server, action.kind) for action in first] == [("a", ActionKind.REBATCH), ("b", ActionKind.GROW)]
    later = actions(wanted, replace(seen, busy=frozenset({f"a/{DETECTOR}"})))
    assert [(action.server, action.kind, action.after) for action in later] == [("b", ActionKind.GROW, ModelState(3, 1))]
