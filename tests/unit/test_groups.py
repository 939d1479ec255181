"""Instance groups on several devices, without a server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.samples import server
from themis_triton.adapters.triton.groups import active_groups, expected_devices, numbered_devices
from themis_triton.adapters.triton.model_config import Config, for_launch, parse_config, state_of, with_state
from themis_triton.core.errors import ChangeRefusedError
from themis_triton.core.fleet import ModelState

GPUS = {"gpu:0": 0, "gpu:1": 1, "gpu:2": 2}
CPUS = {"cpu:0": 0, "cpu:1": 1, "cpu:2": 2}
EIGHT = ModelState(0, 8, 5)


def config(groups: str) -> Config:
    return parse_config(f'name: "m" max_batch_size: 8 dynamic_batching {{ max_queue_delay_microseconds: 5 }} {groups}', "m/config.pbtxt")


def shapes(written: Config) -> list[tuple[str, int, list[int], str]]:
    return [(group.name, group.count, list(group.gpus), group.host_policy) for group in written.instance_group]


def test_the_state_has_the_instances_on_each_device() -> None:
    on_gpus = config(
        "instance_group { count: 2 kind: KIND_GPU gpus: [0] } instance_group { count: 1 kind: KIND_GPU gpus: [2] }"
        " instance_group { count: 9 passive: true }"
    )
    assert state_of(on_gpus, None, GPUS) == EIGHT.spread_over({"gpu:0": 2, "gpu:2": 1})
    on_cpus = config(
        'instance_group { count: 2 kind: KIND_CPU } instance_group { count: 3 kind: KIND_CPU host_policy: "cpu:1" }'
        ' instance_group { count: 1 kind: KIND_CPU host_policy: "their own" }'
    )
    assert state_of(on_cpus, None, CPUS) == EIGHT.spread_over({"cpu:0": 3, "cpu:1": 3})
    assert state_of(parse_config('name: "e" ensemble_scheduling {}', "e"), None, CPUS).instances == 0


def test_a_group_on_several_gpus_counts_on_each_and_is_joint_until_it_is_divided() -> None:
    served = config("instance_group { count: 1 kind: KIND_GPU gpus: [0, 1, 5] }")
    state = state_of(served, None, GPUS)
    assert state == EIGHT.spread_over({"gpu:0": 1, "gpu:1": 1})
    grown = state.spread_over({"gpu:0": 2, "gpu:1": 1})
    assert state.joint
    assert grown.renews_all(state)
    assert not state.renews_all(state)
    divided = with_state(config(""), grown, served, GPUS)
    assert shapes(divided) == [("m_gpu:0", 2, [0], ""), ("m_gpu:1", 1, [1], ""), ("m_gpu:5", 1, [5], "")]
    after = state_of(divided, None, GPUS)
    assert after == grown
    assert not after.joint
    assert not grown.spread_over({"gpu:2": 1}).renews_all(after)


def test_a_change_on_one_device_leaves_the_groups_of_the_others_as_they_are() -> None:
    served = config(
        'instance_group { name: "main" count: 2 kind: KIND_GPU gpus: [0] profile: "a" }'
        ' instance_group { name: "m_gpu:1" count: 1 kind: KIND_GPU gpus: [1] profile: "b" }'
    )
    grown = with_state(
        config('instance_group { name: "main" count: 1 kind: KIND_GPU gpus: [0] }'),
        EIGHT.spread_over({"gpu:0": 2, "gpu:1": 3, "gpu:2": 1}),
        served,
        GPUS,
    )
    assert grown.instance_group[0] == served.instance_group[0]
    assert shapes(grown) == [("main", 2, [0], ""), ("m_gpu:1", 3, [1], ""), ("m_gpu:2", 1, [2], "")]
    assert [list(group.profile) for group in grown.instance_group] == [["a"], ["b"], ["a"]]
    shrunk = with_state(config(""), EIGHT.spread_over({"gpu:1": 1}), grown, GPUS)
    assert shapes(shrunk) == [("m_gpu:1", 1, [1], "")]


def test_on_a_cpu_the_host_policy_names_the_device() -> None:
    file = config("instance_group { count: 1 kind: KIND_CPU }")
    served = config('instance_group { name: "m_0" count: 1 kind: KIND_CPU }')
    grown = with_state(file, EIGHT.spread_over({"cpu:0": 1, "cpu:2": 2}), served, CPUS)
    assert shapes(grown) == [("m_0", 1, [], ""), ("m_cpu:2", 2, [], "cpu:2")]
    away = with_state(file, EIGHT.spread_over({"cpu:2": 2}), grown, CPUS)
    assert shapes(away) == [("m_cpu:2", 2, [], "cpu:2")]
    assert shapes(with_state(file, EIGHT.spread_over({"cpu:0": 1, "cpu:2": 2}), away, CPUS))[0] == ("", 1, [], "")


def test_several_groups_on_a_device_keep_their_proportions() -> None:
    file = config('instance_group { count: 1 kind: KIND_CPU } instance_group { count: 2 kind: KIND_CPU host_policy: "x" }')
    assert shapes(with_state(file, EIGHT.spread_over({"cpu:0": 6, "cpu:1": 1}), None, CPUS)) == [
        ("", 2, [], ""),
        ("", 4, [], "x"),
        ("m_cpu:1", 1, [], "cpu:1"),
    ]


def test_batching_and_passive_groups_are_kept_and_changed_as_on_one_device() -> None:
    file = config('instance_group { name: "p" passive: true count: 2 } instance_group { count: 1 kind: KIND_CPU }')
    changed = with_state(file, replace(EIGHT.spread_over({"cpu:0": 1, "cpu:1": 1}), max_queue_delay_us=7), None, CPUS)
    passive = [group.passive for group in changed.instance_group]
    assert (changed.dynamic_batching.max_queue_delay_microseconds, passive) == (7, [False, False, True])


def test_instances_on_the_processor_beside_gpus_have_a_group_for_each_gpu() -> None:
    file, spread = config("instance_group { count: 1 kind: KIND_CPU }"), EIGHT.spread_over({"gpu:0": 2, "gpu:1": 1})
    changed = with_state(file, spread, file, GPUS)
    assert shapes(changed) == [("", 2, [], ""), ("m_gpu:1", 1, [], "gpu:1")]
    assert state_of(changed, None, GPUS) == spread
    assert shapes(with_state(file, EIGHT.spread_over({"gpu:0": 1}), changed, GPUS)) == [("", 1, [], "")]


@pytest.mark.parametrize(
    ("group", "spread", "devices", "words"),
    [
        ("kind: KIND_MODEL", {"gpu:0": 1, "gpu:1": 1}, GPUS, "m: its instances are of KIND_MODEL, which cannot be bound to gpu:1. Fix: "),
        ("kind: KIND_CPU", {"cpu:7": 1}, CPUS, "model m: cpu:7 is invalid: expected one of the server's devices cpu:0, cpu:1, cpu:2"),
    ],
)
def test_where_instances_cannot_be(group: str, spread: dict[str, int], devices: dict[str, int], words: str) -> None:
    with pytest.raises(ChangeRefusedError, match=words):
        with_state(config(f"instance_group {{ count: 1 {group} }}"), EIGHT.spread_over(spread), None, devices)


@pytest.mark.parametrize(
    ("groups", "devices", "expected"),
    [
        ("instance_group { count: 1 kind: KIND_CPU }", CPUS, [("", 3, [], "cpu:0")]),
        ('instance_group { count: 1 kind: KIND_CPU host_policy: "mine" }', CPUS, [("", 3, [], "mine")]),
        ("instance_group { count: 1 kind: KIND_GPU gpus: [5] }", GPUS, [("", 3, [0], "")]),
        ("", GPUS, [("", 3, [0], "")]),
        ("instance_group { count: 1 kind: KIND_CPU }", GPUS, [("", 3, [], "")]),
    ],
)
def test_a_launched_server_with_a_reach_binds_its_instances_to_its_slot(
    groups: str, devices: dict[str, int], expected: list[tuple[str, int, list[int], str]]
) -> None:
    launched = for_launch(config(groups), ModelState(3, 8, 5), "m", None, devices)
    assert shapes(launched) == expected
    assert state_of(launched, None, devices) == ModelState(0, 8, 5).spread_over({next(iter(devices)): 3})


def test_a_launched_server_can_have_instances_on_several_devices_from_the_start() -> None:
    launched = for_launch(
        config("instance_group { count: 1 kind: KIND_CPU }"), EIGHT.spread_over({"cpu:0": 1, "cpu:1": 2}), "m", None, CPUS
    )
    assert shapes(launched) == [("", 1, [], "cpu:0"), ("m_cpu:1", 2, [], "cpu:1")]


@pytest.mark.parametrize(
    ("device", "reach", "launched", "numbers"),
    [
        ("gpu:3", (), True, {}),
        ("gpu:3", ("gpu:0", "gpu:1"), True, {"gpu:3": 0, "gpu:0": 1, "gpu:1": 2}),
        ("gpu:3", ("gpu:0", "gpu:1"), False, {"gpu:3": 3, "gpu:0": 0, "gpu:1": 1}),
        ("gpu:GPU-b", ("gpu:GPU-a",), False, {"gpu:GPU-b": 0, "gpu:GPU-a": 1}),
    ],
)
def test_a_gpus_number_in_triton(device: str, reach: tuple[str, ...], launched: bool, numbers: dict[str, int]) -> None:
    assert numbered_devices(replace(server("a"), device=device, reach=reach, launched=launched)) == numbers


@pytest.mark.parametrize(
    ("groups", "devices", "expected"),
    [
        ("", GPUS, {"gpu:0", "gpu:1", "gpu:2"}),
        ("instance_group { count: 2 kind: KIND_GPU }", GPUS, {"gpu:0", "gpu:1", "gpu:2"}),
        ("instance_group { count: 2 kind: KIND_GPU gpus: [2, 7] }", GPUS, {"gpu:2"}),
        ("instance_group { count: 2 kind: KIND_CPU }", GPUS, {"gpu:0"}),
        ("", CPUS, set()),
        ('instance_group { count: 1 kind: KIND_CPU host_policy: "cpu:1" }', CPUS, {"cpu:1"}),
    ],
)
def test_the_devices_that_a_server_takes_by_its_models_own_files(groups: str, devices: dict[str, int], expected: set[str]) -> None:
    assert expected_devices(active_groups(config(groups)), devices) == expected
