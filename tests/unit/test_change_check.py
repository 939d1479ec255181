"""What `themis validate --live` says about the instance groups that a server reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.samples import DETECTOR
from tests.unit.samples import config as make_config
from themis_triton.adapters.triton.change_check import check_changes, check_probed
from themis_triton.adapters.triton.model_config import parse_config
from themis_triton.core.address import Address
from themis_triton.core.config import AdoptedServer, ModelConfig, ThemisConfig

ONE_EACH = "instance_group { count: 1 kind: KIND_GPU gpus: [0] } instance_group { count: 1 kind: KIND_GPU gpus: [1] }"
JOINT = "instance_group { count: 1 kind: KIND_GPU gpus: [0, 1] }"
ADDRESS = Address("127.0.0.1", 1)
ALL = ("add_one", "remove_one", "add_many", "add_device", "remove_device", "rebatch")


def model(*probed: str, memory_bytes: int = 0) -> ModelConfig:
    base = make_config().models[DETECTOR]
    profile = replace(base.profile, operations=dict.fromkeys(probed, True), instance_memory_bytes=memory_bytes)
    return replace(base, name="m", profile=profile)


def found(
    groups: str, *devices: str, of: ModelConfig | None = None, backend: str = "python", repository: Path | None = None
) -> list[tuple[str, str]]:
    served = parse_config(f'name: "m" backend: "{backend}" {groups}', "m")
    server = AdoptedServer("first", ADDRESS, ADDRESS, ADDRESS, devices[0], reach=devices[1:], model_repository=repository)
    findings = check_changes(server, of or model(), served)
    assert all(finding.what == "servers.first: model m" and finding.exit_code == 0 for finding in findings)
    return [(finding.found, finding.remedy) for finding in findings]


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        (ONE_EACH, ("gpu:0", "gpu:1")),
        ("instance_group { count: 2 kind: KIND_GPU gpus: [0] }", ("gpu:3",)),  # CUDA_VISIBLE_DEVICES=3 makes GPU 3 Triton's GPU 0.
        ("instance_group { count: 2 kind: KIND_CPU }", ("cpu:0", "cpu:1")),
        ("instance_group { count: 2 kind: KIND_CPU }", ("gpu:0",)),
        ("instance_group { count: 2 kind: KIND_CPU } instance_group { count: 1 kind: KIND_GPU gpus: [7] passive: true }", ("cpu:0",)),
    ],
)
def test_groups_that_are_changed_in_place_on_the_devices_of_the_settings_are_fine(groups: str, devices: tuple[str, ...]) -> None:
    assert found(groups, *devices) == []


def test_an_ensemble_among_the_models_is_an_error_with_its_members() -> None:
    server = AdoptedServer("first", ADDRESS, ADDRESS, ADDRESS, "gpu:0")
    steps = 'step { model_name: "a" } step { model_name: "b" } step { model_name: "a" }'
    (finding,) = check_changes(server, model(), parse_config(f'name: "m" ensemble_scheduling {{ {steps} }}', "m"))
    assert finding.exit_code == 3
    assert finding.remedy == "remove it from `models:`, define its members there, and write `calls: {m: [a, b]}`"


def test_a_model_with_sequences_whose_file_cannot_be_read_is_told_to_stay_as_it_is(tmp_path: Path) -> None:
    sequences = "sequence_batching { } instance_group { count: 2 kind: KIND_CPU }"
    ((sentence, remedy),) = found(sequences, "cpu:0")
    assert "its count stays as it is" in sentence
    assert remedy == "name servers.first.model_repository, if it can be read here"
    ((_, remedy),) = found(sequences, "cpu:0", repository=tmp_path)
    assert remedy == f"write {tmp_path / 'm' / 'config.pbtxt'}"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_text(sequences)
    assert found(sequences, "cpu:0", repository=tmp_path) == []


def test_a_model_that_was_loaded_by_hand_is_told_to_be_another_on_launched_servers(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    file = tmp_path / "m" / "config.pbtxt"
    file.write_text('backend: "python" input { name: "X" dims: 2 } output { name: "Y" dims: 2 }')
    tensors, group = 'input {{ name: "X" dims: {} }} output {{ name: "Y" dims: 2 }} {}', "instance_group { count: 2 kind: KIND_CPU }"
    assert found(tensors.format(2, group), "cpu:0", repository=tmp_path) == []
    ((sentence, _),) = found(tensors.format(3, group), "cpu:0", repository=tmp_path)
    assert sentence == "the server runs it with another input than its config.pbtxt: changes keep that, launched servers have the file's"
    by_hand = tensors.format(2, "instance_group { count: 2 kind: KIND_CPU host_policy: 'cpu:1' }")
    ((sentence, _),) = found(by_hand, "cpu:0", repository=tmp_path)
    assert "another instance_group than" in sentence
    assert found(by_hand, "cpu:0", "cpu:1", repository=tmp_path) == []
    file.write_text("nonsense: 1")
    ((sentence, remedy),) = found(tensors.format(2, group), "cpu:0", repository=tmp_path)
    assert (str(file) in sentence, remedy) == (True, "correct the file")


def test_a_group_over_several_gpus_is_priced_and_a_probe_is_asked_for_until_there_is_one() -> None:
    ((sentence, remedy),) = found(JOINT, "gpu:0", "gpu:1", of=model(memory_bytes=300 * 2**20))
    assert sentence.endswith("the first change makes all 2 instances anew beside the old ones, with 600 MiB more memory for that time")
    assert remedy == (
        "write one instance_group for each GPU in its config.pbtxt, or run `themis probe m`: "
        "its operation rebatch shows what a change of all instances costs"
    )
    ((sentence, remedy),) = found(JOINT, "gpu:0", "gpu:1", of=model("rebatch"))
    assert sentence.endswith("beside the old ones")
    assert remedy == "write one instance_group for each GPU in its config.pbtxt"


def test_instances_on_devices_that_the_settings_do_not_name_are_reported() -> None:
    ((sentence, remedy),) = found(ONE_EACH + "instance_group { count: 1 kind: KIND_GPU gpus: [5] }", "gpu:0", "gpu:1")
    assert (
        sentence == "it has instances on Triton's GPU 5, which servers.first.devices does not name: Themis neither counts nor changes them"
    )
    assert remedy == "add the GPU to servers.first.devices, or remove it from the model's instance_group"
    ((sentence, _),) = found(JOINT, "gpu:0")
    assert sentence == "it has instances on Triton's GPU 0, 1, and servers.first.device is gpu:0: plans know nothing of the other devices"
    ((sentence, remedy),) = found("instance_group { count: 1 kind: KIND_GPU gpus: [0] }", "cpu:0")
    assert sentence == "it has instances on Triton's GPU 0, and servers.first.device is cpu:0: plans know nothing of the other devices"
    assert remedy == "name all GPUs that the server uses in servers.first.devices"


def test_instances_that_cannot_be_bound_to_a_further_gpu_are_reported() -> None:
    assert found("instance_group { count: 1 kind: KIND_CPU }", "gpu:0", "gpu:1") == []
    ((sentence, _),) = found("instance_group { count: 1 kind: KIND_MODEL }", "gpu:0", "gpu:1", of=model("add_one"))
    assert sentence == "its instances are of KIND_MODEL, which cannot be bound to gpu:1: it is scaled on gpu:0 only"


@pytest.mark.parametrize(
    ("backend", "groups", "words"),
    [
        ("tensorrt", ONE_EACH, "its backend tensorrt makes all instances anew at each change of their count"),
        (
            "python",
            "instance_group { count: 1 kind: KIND_MODEL }",
            "its instances are of KIND_MODEL, which choose",
        ),
    ],
)
def test_changes_that_are_known_to_be_dear_ask_for_a_probe_until_there_is_one(backend: str, groups: str, words: str) -> None:
    ((sentence, remedy),) = found(groups, "gpu:0", *(["gpu:1"] if backend == "tensorrt" else []), backend=backend)
    assert sentence.startswith(words)
    assert remedy.startswith("run `themis probe m`")
    assert found(groups, "gpu:0", *(["gpu:1"] if backend == "tensorrt" else []), of=model("add_one"), backend=backend) == []


def test_operations_that_are_required_to_be_probed_and_were_not_are_listed() -> None:
    def listed(*probed: str, reach: tuple[str, ...] = (), required: bool = True) -> list[str]:
        base = make_config()
        server = AdoptedServer("first", ADDRESS, ADDRESS, ADDRESS, "gpu:0", reach=reach)
        strict = {"m": replace(model(*probed), require_probed_operations=required)}
        config: ThemisConfig = replace(base, models=strict, servers=(server,), launch=None)
        return [f"{finding.what}: {finding.found}" for finding in check_probed(config)]

    key = "models.m.require_probed_operations"
    assert listed(reach=("gpu:1",), required=False) == []
    assert listed(*ALL, reach=("gpu:1",)) == []
    assert listed("add_one", "remove_one", "add_many", "rebatch") == []
    assert listed("add_one", "remove_one", "add_many", "add_device", "rebatch", reach=("gpu:1",)) == [
        f"{key}: remove_device was not probed, and will not be used"
    ]
    assert listed("add_many", "rebatch") == [f"{key}: add_one, remove_one were not probed, and will not be used"]
