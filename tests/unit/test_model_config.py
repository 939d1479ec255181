"""Model configurations, without a server."""

from __future__ import annotations

import json

import pytest

from themis_triton.adapters.triton.model_base import base_of, differing_fields
from themis_triton.adapters.triton.model_config import (
    Config,
    for_launch,
    is_complete,
    is_reload,
    parse_config,
    render_config,
    state_of,
    to_json,
    with_state,
)
from themis_triton.core.errors import ChangeRefusedError, SettingsError
from themis_triton.core.fleet import ModelState

TEXT = """
name: "detector"
backend: "onnxruntime"
max_batch_size: 8
input { name: "IN" data_type: TYPE_FP32 dims: -1 }
output { name: "OUT" data_type: TYPE_FP32 dims: 3 }
instance_group { name: "main" count: 2 kind: KIND_GPU gpus: 1 }
dynamic_batching { preferred_batch_size: [2, 8] max_queue_delay_microseconds: 5000 }
parameters { key: "precision" value { string_value: "fp16" } }
"""


def config(text: str = TEXT) -> Config:
    return parse_config(text, "repository/detector/config.pbtxt")


def test_the_state_of_a_file() -> None:
    assert state_of(config()) == ModelState(2, 8, 5000)
    assert state_of(config('name: "m"')) == ModelState(1, 1, 0)
    assert state_of(config("max_batch_size: 8")) == ModelState(1, 1, 0)  # Nothing forms batches there.
    assert state_of(config("max_batch_size: 8 sequence_batching {}")) == ModelState(1, 8, 0)
    assert state_of(config("ensemble_scheduling {}")).instances == 0
    assert (
        state_of(config("instance_group { count: 3 kind: KIND_GPU gpus: [0, 1] } instance_group { count: 9 passive: true }")).instances == 6
    )


def test_a_change_of_counts_changes_nothing_else() -> None:
    override = json.loads(to_json(with_state(config(), ModelState(5, 8, 5000))))
    expected = json.loads(to_json(config()))
    expected["instance_group"] = [{"name": "main", "count": 5, "kind": "KIND_GPU", "gpus": [1]}]
    assert override == expected
    assert set(override) == {
        "name", "backend", "max_batch_size", "input", "output", "instance_group", "dynamic_batching", "parameters",
    }  # fmt: skip


def test_a_file_without_groups_gets_one_that_leaves_the_kind_to_triton() -> None:
    override = json.loads(to_json(with_state(config('name: "m"'), ModelState(3, 1))))
    assert override == {"name": "m", "instance_group": [{"count": 3}]}


def test_the_base_is_left_alone() -> None:
    base = config()
    with_state(base, ModelState(7, 2, 1))
    assert base == config()


def test_batching_changes_where_it_differs() -> None:
    rebatched = with_state(config(), ModelState(2, 8, 100))
    assert rebatched.max_batch_size == 8
    assert rebatched.dynamic_batching.max_queue_delay_microseconds == 100
    assert list(rebatched.dynamic_batching.preferred_batch_size) == list(config().dynamic_batching.preferred_batch_size)
    assert state_of(rebatched) == ModelState(2, 8, 100)


def test_smaller_batches_refuse_no_larger_request() -> None:
    limited = with_state(config(), ModelState(2, 4))
    assert limited.max_batch_size == 8
    assert list(limited.dynamic_batching.preferred_batch_size) == [1, 2, 3, 4]
    assert state_of(limited) == ModelState(2, 4)
    again = with_state(limited, ModelState(2, 8))
    assert list(again.dynamic_batching.preferred_batch_size) == []
    assert state_of(again) == ModelState(2, 8)
    # Triton keeps to no limit where requests may wait for a batch.
    assert state_of(with_state(config(), ModelState(2, 4, 100))) == ModelState(2, 8, 100)


def test_a_batcher_is_added_where_batches_are_wanted() -> None:
    file = config('name: "m" max_batch_size: 8')
    assert with_state(file, ModelState(1, 1)).HasField("dynamic_batching") is False
    assert state_of(with_state(file, ModelState(1, 8, 50))) == ModelState(1, 8, 50)
    completed = config('name: "m" max_batch_size: 4 dynamic_batching {} instance_group { count: 1 }')
    assert state_of(with_state(config('name: "m"'), ModelState(1, 4), completed)) == ModelState(1, 4)


@pytest.mark.parametrize(
    ("text", "state", "words"),
    [
        ('name: "e" ensemble_scheduling {}', ModelState(2, 1), "model e is an ensemble"),
        ('name: "m"', ModelState(1, 4), "max_batch_size 0: batches of 4 are impossible"),
        ('name: "s" max_batch_size: 8 sequence_batching {}', ModelState(1, 4), "batches sequences"),
    ],
)
def test_what_cannot_be_done_is_refused(text: str, state: ModelState, words: str) -> None:
    with pytest.raises(ChangeRefusedError, match=words):
        with_state(config(text), state)


@pytest.mark.parametrize(
    ("groups", "instances", "counts"),
    [
        ([(1, []), (1, [])], 4, [2, 2]),
        ([(3, []), (1, [])], 8, [6, 2]),
        ([(3, []), (1, [])], 2, [1, 1]),
        ([(3, []), (1, [])], 1, [1]),
        ([(1, [0, 1])], 4, [2]),
        ([(1, [0, 1])], 5, [2]),
        ([(1, [0, 1])], 1, [1]),
        ([(1, [0, 1]), (1, [])], 3, [1, 1]),
    ],
)
def test_several_groups_share_the_instances(groups: list[tuple[int, list[int]]], instances: int, counts: list[int]) -> None:
    text = "".join(
        f"instance_group {{ count: {count} {f'kind: KIND_GPU gpus: {gpus}' if gpus else 'kind: KIND_CPU'} }}" for count, gpus in groups
    )
    spread = with_state(config(text), ModelState(instances, 1))
    assert [group.count for group in spread.instance_group] == counts


RATES = 'rate_limiter { resources [ { name: "lane" count: 1 }, { name: "bus" global: true count: 2 } ] priority: 3 }'
GPU_GROUPS = {
    "each GPU a group": f'{{ name: "a" count: 2 kind: KIND_GPU gpus: [0] profile: ["p"] {RATES} }} {{ count: 1 kind: KIND_GPU gpus: [1] }}',
    "a group over several GPUs": f'{{ name: "a" count: 1 kind: KIND_GPU gpus: [0, 1] host_policy: "near" {RATES} }}',
    "a second device": "{ count: 1 kind: KIND_GPU gpus: [0] secondary_devices: [ { kind: KIND_NVDLA device_id: 1 } ] }",
    "KIND_MODEL": '{ name: "whole" count: 1 kind: KIND_MODEL }',
    "a passive group": '{ count: 1 kind: KIND_GPU gpus: [0] } { name: "spare" count: 3 kind: KIND_GPU gpus: [1] passive: true }',
}


@pytest.mark.parametrize("groups", GPU_GROUPS.values(), ids=GPU_GROUPS)
def test_all_fields_of_groups_on_gpus_but_their_counts_are_sent_as_they_are(groups: str) -> None:
    """What a real server would get; a launched one sees its own GPU alone, so that its groups name none."""
    text = "".join(f" instance_group {group}" for group in groups.replace("} {", "}\n{").split("\n"))
    own = config(TEXT.replace('instance_group { name: "main" count: 2 kind: KIND_GPU gpus: 1 }', text))
    state = state_of(own)
    grown = with_state(own, ModelState(2 * state.instances, state.max_batch, state.max_queue_delay_us))
    launched = for_launch(own, state, "detector")
    assert without_counts(grown) == without_counts(own)
    assert sum(group.count for group in grown.instance_group if not group.passive) > sum(
        group.count for group in own.instance_group if not group.passive
    )
    for group in own.instance_group:
        group.ClearField("gpus")
    assert without_counts(launched) == without_counts(own)


def without_counts(whole: Config) -> dict[str, object]:
    fields: dict[str, object] = json.loads(to_json(whole))
    groups = fields["instance_group"]
    assert isinstance(groups, list)
    return fields | {"instance_group": [{key: value for key, value in group.items() if key != "count"} for group in groups]}


def test_passive_groups_stay() -> None:
    spread = with_state(config('instance_group { name: "p" passive: true count: 2 } instance_group { count: 1 }'), ModelState(3, 1))
    assert [(group.passive, group.count) for group in spread.instance_group] == [(True, 2), (False, 3)]


def test_the_servers_report_tells_how_many_gpus_a_group_stands_on() -> None:
    served = config("instance_group { count: 1 kind: KIND_GPU gpus: [0, 1] }")
    assert with_state(config("instance_group { count: 1 }"), ModelState(4, 1), served).instance_group[0].count == 2


def test_only_batching_makes_a_reload() -> None:
    assert not is_reload(ModelState(1, 8, 5), ModelState(4, 8, 5))
    assert is_reload(ModelState(1, 8, 5), ModelState(1, 4, 5))
    assert is_reload(ModelState(1, 8, 5), ModelState(1, 8, 6))


def test_a_launched_servers_file_sees_one_device() -> None:
    launched = for_launch(config(TEXT.replace('name: "detector"', "")), ModelState(3, 4), "detector")
    assert launched.name == "detector"
    assert list(launched.instance_group[0].gpus) == []
    assert launched.instance_group[0].name == "main"
    assert parse_config(render_config(launched), "view") == launched
    assert state_of(launched) == ModelState(3, 4)


def test_a_patient_queue_delays_late_requests_and_refuses_none() -> None:
    launched = for_launch(config(), ModelState(3, 8, 5000), "detector", deprioritize_after_s=0.15)
    policy = json.loads(to_json(launched))["dynamic_batching"]["default_queue_policy"]
    assert policy == {"timeout_action": "DELAY", "default_timeout_microseconds": "150000"}
    assert not is_reload(state_of(launched), ModelState(1, 8, 5000))


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (TEXT.replace("preferred_batch_size: [2, 8]", "default_queue_policy { max_queue_size: 9 }"), ModelState(1, 8, 5000)),
        (TEXT.replace("dynamic_batching {", "# ").replace(" max_queue_delay_microseconds: 5000 }", ""), ModelState(1, 1)),
        (TEXT, ModelState(1, 1)),
    ],
    ids=["a policy of its own", "no batcher", "no batches"],
)
def test_where_no_queue_is_made_patient(text: str, state: ModelState) -> None:
    assert for_launch(config(text), state, "detector", deprioritize_after_s=0.15) == for_launch(config(text), state, "detector")


def test_what_triton_need_not_complete() -> None:
    assert is_complete(config())
    assert not is_complete(config('name: "m" backend: "python"'))


def test_a_bad_file_is_named_with_line_and_column() -> None:
    with pytest.raises(SettingsError, match=r"repository/detector/config.pbtxt:2:\d+.*max_batchsize"):
        config('name: "m"\nmax_batchsize: 3')


@pytest.mark.parametrize(
    ("served", "fields"),
    [
        ("", []),
        ('optimization { priority: PRIORITY_MAX } version_policy { latest { num_versions: 1 } } default_model_filename: "model.py"', []),
        ("max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 9 preserve_ordering: true }", []),
        ("dynamic_batching { preserve_ordering: false }", ["dynamic_batching"]),
        ('parameters { key: "other" value { string_value: "x" } }', ["parameters"]),
        ('parameters { key: "precision" value { string_value: "fp32" } }', ["parameters"]),
        ("response_cache { enable: true }", ["response_cache"]),
        ('model_warmup { name: "again" }', ["model_warmup"]),
    ],
)
def test_what_a_server_runs_otherwise_than_the_file_has_it(served: str, fields: list[str]) -> None:
    own = config(TEXT.replace("dynamic_batching {", 'model_warmup { name: "w" batch_size: 1 } dynamic_batching { preserve_ordering: true'))
    loaded = config(render_config(own))
    loaded.instance_group[0].count = 5
    addition = config(served)
    if addition.HasField("dynamic_batching"):
        loaded.ClearField("dynamic_batching")
    loaded.MergeFrom(addition)
    assert differing_fields(own, loaded) == fields


@pytest.mark.parametrize(
    ("own", "served", "fields"),
    [
        ("{ name: 'X' dims: 2 }", "{ name: 'X' dims: 3 }", ["input"]),
        ("{ name: 'X' dims: 2 }", "{ name: 'X' dims: 2 optional: true }", ["input"]),
        ("{ name: 'X' dims: 2 }", "[{ name: 'Z' dims: 1 }, { name: 'X' dims: 2 }]", ["input"]),
        ("[{ name: 'Z' dims: 1 }, { name: 'X' dims: 2 }]", "[{ name: 'X' dims: 2 }, { name: 'Z' dims: 1 }]", []),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_tensors_that_differ_from_a_files_are_told_and_what_backends_complete_is_not(
    own: str, served: str, fields: list[str], complete: bool
) -> None:
    rest, backend = "output { name: 'Y' dims: 1 }", "backend: 'python'" if complete else ""
    file = config(f"name: 'm' input {own} {rest} {backend}")
    running = config(f"name: 'm' backend: 'python' input {served} {rest} model_transaction_policy {{ }} default_model_filename: 'model.py'")
    assert differing_fields(file, running) == (fields if complete or "dims: 3" in served else [])


RATE = 'rate_limiter { resources { name: "lane" count: 3 } priority: 2 }'
BY_HAND = f'instance_group {{ name: "m_0" count: 2 kind: KIND_CPU host_policy: "one" {RATE} }}'
ON_ONE = "instance_group { count: 1 kind: KIND_GPU gpus: 1 }"


@pytest.mark.parametrize(
    ("own", "served", "override"),
    [
        ("", BY_HAND, BY_HAND.replace("count: 2", "count: 3")),
        ("instance_group { count: 1 kind: KIND_CPU }", BY_HAND, BY_HAND.replace("count: 2", "count: 3")),
        (
            "instance_group { gpus: 0 }",
            ON_ONE,
            ON_ONE.replace("count: 1", "count: 3"),
        ),
        (
            "instance_group { kind: KIND_CPU } instance_group { kind: KIND_CPU host_policy: 'a' }",
            "instance_group { count: 1 kind: KIND_CPU host_policy: 'b' }",
            "instance_group { count: 3 kind: KIND_CPU host_policy: 'b' }",
        ),
    ],
)
def test_a_count_change_keeps_what_was_loaded_by_hand_in_the_instance_groups(own: str, served: str, override: str) -> None:
    file, running = (config(f'name: "m" max_batch_size: 2 {groups}') for groups in (own, served))
    differing = differing_fields(file, running)
    assert differing == ["instance_group"]
    changed = with_state(base_of(file, running, differing), ModelState(3, 1), running)
    assert list(changed.instance_group) == list(config(override).instance_group)
    assert changed.max_batch_size == 2


@pytest.mark.parametrize(
    ("own", "served", "override"),
    [
        ("", "instance_group { name: 'm' count: 1 kind: KIND_CPU }", "instance_group { name: 'm' count: 3 kind: KIND_CPU }"),
        ("instance_group { count: 2 }", "instance_group { count: 1 kind: KIND_GPU gpus: 1 }", "instance_group { count: 3 gpus: 1 }"),
        (
            "instance_group { kind: KIND_CPU } instance_group { kind: KIND_CPU host_policy: 'a' count: 2 }",
            "instance_group { count: 1 kind: KIND_CPU }",  # the other one was left out by a change to one instance
            "instance_group { kind: KIND_CPU count: 1 } instance_group { kind: KIND_CPU host_policy: 'a' count: 2 }",
        ),
    ],
)
def test_what_triton_fills_in_and_what_a_change_left_out_is_no_difference(own: str, served: str, override: str) -> None:
    file, running = (config(f'name: "m" {groups}') for groups in (own, served))
    assert differing_fields(file, running) == []
    changed = with_state(base_of(file, running, []), ModelState(3, 1), running)
    assert list(changed.instance_group) == list(config(override).instance_group)
