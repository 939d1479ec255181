from dataclasses import replace

import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, STAGES, config, server, snapshot
from themis_triton.core.action import Action, ActionKind
from themis_triton.core.address import Address
from themis_triton.core.config import ThemisConfig
from themis_triton.core.decision import Decision, Reason, Stage, Target
from themis_triton.core.fleet import ModelState, Phase, Place, Server
from themis_triton.core.observation import OpenCall, Snapshot
from themis_triton.core.routes import Endpoint, ModelRoute
from themis_triton.plan.routes import route_table
from themis_triton.plan.steps import by_retirement, plan, server_name


def states(detector: int, classifier: int = 1, max_batch: int = 8) -> dict[str, ModelState]:
    return {DETECTOR: ModelState(detector, max_batch), CLASSIFIER: ModelState(classifier, max_batch)}


def actions(target: Target | None, seen: Snapshot, cfg: ThemisConfig | None = None) -> tuple[Action, ...]:
    planned = plan(Decision("d1", NOW_S, "themis", Stage.OPTIMISE, Reason.STEADY, target), seen, cfg or config())
    assert planned.decision_id == "d1"
    assert len({action.id for action in planned.actions}) == len(planned.actions)
    assert planned.retire == (None if target is None else frozenset(target.retire))
    return planned.actions


def kinds(result: tuple[Action, ...]) -> list[tuple[ActionKind, str, str | None]]:
    return [(action.kind, action.server, action.model) for action in result]


def test_no_target_and_a_reached_one_plan_nothing() -> None:
    assert actions(None, snapshot([server("a")])) == ()
    assert plan(Decision("d1", NOW_S, "themis", Stage.HOLD, Reason.HOLD_STALE, None), snapshot(), config()).retire is None
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


def test_whole_changes_of_batches_run_side_by_side_and_those_of_counts_in_one_step() -> None:
    seen = snapshot([server("a", (4, 1), max_batch=1), server("b", (4, 1), max_batch=1)])
    desired = {name: {DETECTOR: ModelState(1, 8)} for name in ("a", "b")}
    result = actions(Target(desired, whole_changes=True), seen)
    assert [(action.server, action.after) for action in result] == [("a", ModelState(1, 8)), ("b", ModelState(1, 8))]


def test_a_reload_takes_the_wanted_count_with_it() -> None:
    (reload,) = actions(Target({"a": {DETECTOR: ModelState(3, 4)}}), snapshot([server("a", (1, 1))]))
    assert (reload.kind, reload.after) == (ActionKind.REBATCH, ModelState(3, 4))


def test_a_launch_names_its_slot_and_models_and_gets_a_name_fit_for_a_file() -> None:
    (launch,) = actions(Target(launch={"gpu:0/left": states(2)}), snapshot())
    assert (launch.kind, launch.slot, launch.models) == (ActionKind.LAUNCH, "gpu:0/left", states(2))
    assert launch.server == server_name("gpu:0/left", "d1") == "gpu0-left-d1"


def test_a_retirement_requires_every_growth_of_its_plan() -> None:
    seen = snapshot([server("a", (1, 2)), server("b"), server("c")])
    result = actions(Target({"a": states(3, 1), "b": states(4), "c": states(1)}, retire=("c",)), seen)
    grows = {action.id for action in result if action.kind is ActionKind.GROW}
    (retirement,) = [action for action in result if action.kind is ActionKind.RETIRE]
    assert len(grows) == 2
    assert set(retirement.requires) == grows
    assert result[-1] == retirement


def test_a_server_that_leaves_is_not_changed_before() -> None:
    seen = snapshot([server("a"), server("b")])
    result = actions(Target({"a": states(3), "b": states(3)}, retire=("b",)), seen)
    assert kinds(result) == [(ActionKind.GROW, "a", DETECTOR), (ActionKind.RETIRE, "b", None)]


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


def test_a_model_that_a_server_is_to_hold_besides_is_loaded_on_a_launched_one_and_what_serves_is_retired_after_that() -> None:
    target, seen = Target({"a": {"other": ModelState(2, 1)}}, retire=("b",)), snapshot([server("a"), server("b")])
    load, retirement = actions(target, seen)
    assert (load.kind, load.server, load.model, load.before, load.after) == (ActionKind.RELOAD, "a", "other", None, ModelState(2, 1))
    assert (retirement.kind, retirement.requires) == (ActionKind.RETIRE, (load.id,))
    assert kinds(actions(target, replace(seen, busy=frozenset({"a/other"})))) == []
    assert kinds(actions(target, replace(seen, backing_off={"a/other": seen.at_s + 1.0}))) == []
    assert actions(replace(target, retire=()), snapshot([server("a", launched=False)])) == ()


def test_routes_hold_serving_servers_by_model_in_the_order_of_names() -> None:
    half = replace(server("b"), models={DETECTOR: ModelState(1, 1)})
    others = [server(phase.value, phase=phase) for phase in Phase if phase not in (Phase.SERVING, Phase.UNREACHABLE)]
    table = route_table([server("c"), half, *others], STAGES)
    b, c = (Endpoint(name, Address(name, 8001), Address(name, 8000)) for name in ("b", "c"))
    assert table.any == (b, c)
    assert table.models == {DETECTOR: ModelRoute((b, c)), CLASSIFIER: ModelRoute((c,))}


def test_a_model_that_the_settings_do_not_name_goes_to_the_servers_whose_index_lists_it() -> None:
    own = replace(server("a", launched=False), ready_models=("ensemble", *sorted(STAGES)), model_control_key=None)
    table = route_table([own, server("b"), replace(server("c"), ready_models=None)], STAGES)
    a, b, c = (Endpoint(name, Address(name, 8001), Address(name, 8000)) for name in ("a", "b", "c"))
    assert table.models == {"ensemble": ModelRoute((a,)), **{stage: ModelRoute((a, b, c)) for stage in STAGES}}
    assert (table.any, table.unlisted, table.index) == ((a, b, c), (a,), (a,))


def test_a_server_with_a_key_or_an_unknown_index_does_not_answer_the_index_for_clients() -> None:
    keyed, unread = server("a", launched=False), replace(server("b", launched=False), model_control_key=None, ready_models=None)
    assert route_table([keyed, unread], STAGES).index == ()


def test_a_model_that_no_server_holds_goes_to_adopted_ones_and_to_its_holders_again_once_one_has_it() -> None:
    def lacking(name: str, *, launched: bool) -> Server:
        whole = server(name, launched=launched)
        return replace(whole, models={CLASSIFIER: whole.models[CLASSIFIER]})

    def targets(*servers: Server) -> list[str]:
        return [each.server for each in route_table(servers, STAGES).models[DETECTOR].targets]

    own, away = lacking("a", launched=False), replace(lacking("b", launched=False), phase=Phase.DRAINING)
    assert targets(own, away, lacking("c", launched=True)) == ["a"]
    assert targets(own, server("c")) == ["c"]
    assert targets(lacking("c", launched=True)) == []


def test_without_servers_every_model_has_an_empty_route() -> None:
    assert [*route_table([], ("b", "c", "a")).models] == ["b", "c", "a"]
    assert route_table([], STAGES).models == {DETECTOR: ModelRoute(), CLASSIFIER: ModelRoute()}


def test_reloads_go_one_server_at_a_time_over_ticks_too_and_growth_goes_on() -> None:
    seen = snapshot([server("a", max_batch=1), server("b", max_batch=1)])
    desired = Target({name: {DETECTOR: ModelState(3, 8)} for name in ("a", "b")})
    first = actions(desired, seen)
    assert [(action.server, action.kind) for action in first] == [("a", ActionKind.REBATCH), ("b", ActionKind.GROW)]
    later = actions(desired, replace(seen, busy=frozenset({f"a/{DETECTOR}"})))
    assert [(action.server, action.kind, action.after) for action in later] == [("b", ActionKind.GROW, ModelState(3, 1))]


def test_an_instance_goes_only_once_nothing_is_added_to_its_model_or_its_server() -> None:
    seen = snapshot([server("a", (1, 3)), server("b", (3, 3)), server("c", (2, 2))])
    desired = Target({"a": states(3, 1), "b": states(1, 3), "c": states(2, 1)})
    grow = (ActionKind.GROW, "a", DETECTOR)
    assert kinds(actions(desired, seen)) == [grow, (ActionKind.SHRINK, "c", CLASSIFIER)]
    under_way = replace(seen, busy=frozenset({f"a/{DETECTOR}"}))
    assert kinds(actions(desired, under_way)) == [(ActionKind.SHRINK, "c", CLASSIFIER)]
    failed = replace(seen, backing_off={f"a/{DETECTOR}": NOW_S + 9})
    assert {action.kind for action in actions(desired, failed)} == {ActionKind.SHRINK}
    assert len(actions(desired, failed)) == 3


def test_no_instance_goes_while_a_server_that_holds_its_model_is_on_its_way() -> None:
    desired = Target({"a": states(1)})
    here = server("a", (3, 1))
    half = replace(server("b", phase=Phase.LAUNCHING), models={CLASSIFIER: ModelState(1, 8)})
    assert actions(desired, snapshot([here, server("b", phase=Phase.WARMING)])) == ()
    (early,) = actions(replace(desired, early_shrinks=True), snapshot([here, server("b", phase=Phase.WARMING)]))
    assert early.kind is ActionKind.SHRINK
    launching = replace(desired, launch={"cpu:1": states(1)}, early_shrinks=True)
    assert [action.kind for action in actions(launching, snapshot([here]))] == [ActionKind.LAUNCH, ActionKind.SHRINK]
    assert kinds(actions(desired, snapshot([here, half]))) == [(ActionKind.SHRINK, "a", DETECTOR)]
    assert [action.kind for action in actions(replace(desired, launch={"cpu:1": states(1)}), snapshot([here]))] == [ActionKind.LAUNCH]


def test_changes_of_less_than_a_tick_wait_for_nothing() -> None:
    seen = snapshot([server("a", (1, 3))])
    result = actions(Target({"a": states(3, 1)}, whole_changes=True), seen)
    assert [(action.kind, action.after) for action in result] == [
        (ActionKind.GROW, ModelState(3, 8)),
        (ActionKind.SHRINK, ModelState(1, 8)),
    ]


def test_where_the_slot_has_no_room_a_server_shrinks_before_it_grows() -> None:
    cfg = config(memory_bytes=10, slot_memory_bytes=50)
    desired = Target({"a": states(3, 1)})
    full, roomy = server("a", (1, 4), slot="cpu:0"), server("a", (1, 2), slot="cpu:0")
    (shrink,) = actions(desired, snapshot([full]), cfg)
    assert (shrink.kind, shrink.model, shrink.after) == (ActionKind.SHRINK, CLASSIFIER, ModelState(3, 8))
    assert kinds(actions(desired, snapshot([roomy]), cfg)) == [(ActionKind.GROW, "a", DETECTOR)]
    assert kinds(actions(desired, snapshot([replace(full, slot=None)]), cfg)) == [(ActionKind.GROW, "a", DETECTOR)]


def test_what_is_being_added_has_taken_its_room_already() -> None:
    cfg = config(memory_bytes=10, slot_memory_bytes=50)
    desired = Target({"a": states(3, 3)})
    seen = replace(snapshot([server("a", slot="cpu:0")]), busy=frozenset({f"a/{DETECTOR}"}))
    assert actions(desired, seen, cfg) == ()
    assert kinds(actions(desired, replace(seen, busy=frozenset()), cfg)) == [(ActionKind.GROW, "a", DETECTOR)]
    assert kinds(actions(Target({"a": states(2, 3)}), seen, cfg)) == [(ActionKind.GROW, "a", CLASSIFIER)]


def test_what_is_being_removed_keeps_its_room_until_it_is_gone() -> None:
    cfg = config(memory_bytes=10, slot_memory_bytes=50)
    seen = snapshot([server("a", (3, 1), slot="cpu:0")])
    removing = OpenCall("a", DETECTOR, ModelState(4, 8), ModelState(3, 8), seen.at_s)
    assert kinds(actions(Target({"a": states(3, 2)}), seen, cfg)) == [(ActionKind.GROW, "a", CLASSIFIER)]
    assert actions(Target({"a": states(3, 2)}), replace(seen, open_calls=(removing,), busy=frozenset({f"a/{DETECTOR}"})), cfg) == ()


def test_a_reload_needs_room_for_old_and_new_instances_and_shrinks_until_there_is() -> None:
    desired = Target({"a": {DETECTOR: ModelState(1, 8), CLASSIFIER: ModelState(1, 1)}})
    tight, roomy = (config(memory_bytes=10, slot_memory_bytes=10 * instances) for instances in (4, 5))
    seen = snapshot([server("a", (3, 1), max_batch=1, slot="cpu:0")])
    assert kinds(actions(desired, seen, tight)) == [(ActionKind.SHRINK, "a", DETECTOR)]
    assert kinds(actions(desired, seen, roomy)) == [(ActionKind.REBATCH, "a", DETECTOR)]


def test_growth_while_a_reload_waits_for_its_turn_leaves_room_for_the_reload() -> None:
    seen = replace(
        snapshot([server("a", max_batch=1, slot="cpu:0"), server("b", max_batch=1, slot="cpu:1")]), busy=frozenset({f"a/{DETECTOR}"})
    )
    desired = Target({name: {DETECTOR: ModelState(2, 8)} for name in ("a", "b")})
    tight, roomy = (config(memory_bytes=10, slot_memory_bytes=10 * instances) for instances in (4, 5))
    assert actions(desired, seen, tight) == ()
    assert kinds(actions(desired, seen, roomy)) == [(ActionKind.GROW, "b", DETECTOR)]


def test_a_retirement_requires_the_reloads_of_its_plan_and_waits_for_those_whose_turn_comes_later() -> None:
    one, two = server("a", max_batch=1), server("b", max_batch=1)
    desired = {name: {DETECTOR: ModelState(1, 8)} for name in ("a", "b")}
    reload, retirement = actions(Target({"a": desired["a"]}, retire=("c",)), snapshot([one, server("c")]))
    assert (reload.kind, retirement.kind, retirement.requires) == (ActionKind.REBATCH, ActionKind.RETIRE, (reload.id,))
    both = Target(desired, retire=("c",))
    assert kinds(actions(both, snapshot([one, two, server("c")]))) == [(ActionKind.REBATCH, "a", DETECTOR)]
    under_way = replace(snapshot([one, two, server("c")]), busy=frozenset({f"a/{DETECTOR}"}))
    assert actions(both, under_way) == ()


def test_a_reload_in_back_off_stops_neither_the_next_reload_nor_a_retirement() -> None:
    seen = replace(snapshot([server("a", max_batch=1), server("b", max_batch=1), server("c")]), backing_off={f"a/{DETECTOR}": NOW_S + 9})
    desired = Target({name: {DETECTOR: ModelState(1, 8)} for name in ("a", "b")}, retire=("c",))
    assert kinds(actions(desired, seen)) == [(ActionKind.REBATCH, "b", DETECTOR), (ActionKind.RETIRE, "c", None)]


def test_a_retirement_requires_the_launches_that_hold_its_models_and_waits_for_such_servers_on_their_way() -> None:
    here = [server("a"), server("b")]
    launch, retirement = actions(Target({"a": states(1)}, {"cpu:1": states(1)}, ("b",)), snapshot(here))
    assert (launch.kind, retirement.kind, retirement.requires) == (ActionKind.LAUNCH, ActionKind.RETIRE, (launch.id,))
    (_, free) = actions(Target({"a": states(1)}, {"cpu:1": {"other": ModelState(1, 1)}}, ("b",)), snapshot(here))
    assert (free.kind, free.requires) == (ActionKind.RETIRE, ())
    assert actions(Target({"a": states(1)}, retire=("b",)), snapshot([*here, server("c", phase=Phase.WARMING)])) == ()


def test_servers_are_kept_in_one_order_adopted_ones_first_then_the_largest() -> None:
    servers = [server("a"), server("b", (3, 1)), server("c", launched=False), server("d")]
    assert [each.name for each in by_retirement((Place(each, "", each.models) for each in servers), None)] == ["c", "b", "a", "d"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_retirement_waits_for_a_reload_under_way_unless_changes_are_whole(*, whole: bool) -> None:
    seen = replace(snapshot([server("a", max_batch=1), server("b")]), busy=frozenset({f"a/{DETECTOR}"}))
    result = actions(Target({"a": {DETECTOR: ModelState(1, 8)}}, retire=("b",), whole_changes=whole), seen)
    assert kinds(result) == ([(ActionKind.RETIRE, "b", None)] if whole else [])
