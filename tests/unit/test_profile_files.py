"""Traces, inputs, the profile file, and when it is stale."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ByteSize
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from tests.unit.samples import config as make_config
from themis_triton.adapters.findings import Severity
from themis_triton.commands.profile_command import busiest, time_left
from themis_triton.commands.settings_commands import stale_findings
from themis_triton.core.config import DeviceSlot, LatencyTable, LocalLaunchConfig, ProfileOrigin, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.load.requests import ModelSpec, StageRequest, TensorSpec
from themis_triton.profile.files import Conditions, Progress, read_profile, read_progress, resume_path, write_profile, write_progress
from themis_triton.profile.grid import GridPlan
from themis_triton.profile.identity import SERVED, config_hash, device_name, model_config, model_hash
from themis_triton.profile.inputs import InputOptions, build_request
from themis_triton.profile.probe import OpenLoad
from themis_triton.profile.run import finished, memory_line, retained_operations
from themis_triton.profile.stale import refuse_stale, stale_profiles
from themis_triton.profile.trace import parse_trace, without_overhead
from themis_triton.settings import load_settings
from themis_triton.settings.measured import PROVING_REQUESTS, OperationSettings, OperationsSettings, PointSettings

REPOSITORY = Path(__file__).parents[2] / "model_repository"
CONDITIONS = Conditions(
    model="m",
    model_version="1",
    config_hash="c",
    model_hash="h",
    triton_version="2",
    machine="here",
    device="cpu: x",
    percentile=99.0,
    inputs="",
)


def point(batch: int, instances: int, service_ms: float) -> PointSettings:
    return PointSettings(
        batch=batch,
        instances=instances,
        samples=400,
        service_ms=service_ms,
        mean_ms=service_ms,
        median_ms=service_ms,
        statistics_ms=service_ms,
        queue_ms=0.0,
        client_ms=service_ms,
        outliers=0,
    )


def stamps(number: int, start: int, end: int | None) -> str:
    texts = [f'{{"id":{number},"model_name":"m","model_version":1}}']
    texts.append(f'{{"id":{number},"timestamps":[{{"name":"COMPUTE_START","ns":{start}}}]}}')
    texts.append(f'{{"id":{number},"timestamps":[{{"name":"COMPUTE_INPUT_END","ns":{start + 1}}}]}}')
    texts += [f'{{"id":{number},"timestamps":[{{"name":"COMPUTE_END","ns":{end}}}]}}'] if end is not None else []
    return ",".join(texts)


def test_a_trace_gives_the_requests_that_lie_wholly_in_the_window() -> None:
    content = f"[{stamps(1, 5_000_000, 9_000_000)},{stamps(2, 10_000_000, 13_000_000)},{stamps(3, 12_000_000, None)}]"
    content += f",{stamps(4, 11_000_000, 12_500_000)},{stamps(5, 12_000_000, 30_000_000)}]"
    assert parse_trace(content.encode(), 10_000_000, 20_000_000) == [3.0, 1.5]


def test_the_overhead_is_taken_off_in_the_mean() -> None:
    assert without_overhead([10.0, 12.0, 14.0], 9.0) == [7.0, 9.0, 11.0]
    assert without_overhead([10.0], 11.0) == [10.0]


def test_inputs_have_the_batch_size_and_the_free_dimensions_asked_for() -> None:
    spec = ModelSpec("m", (TensorSpec("A", "FP32", (-1, 3, -1, -1)), TensorSpec("B", "BYTES", (-1, 2))))
    message = build_request(spec, 4, InputOptions({"m.A": (3, 8, 16)}), batched=True).message
    assert [list(tensor.shape) for tensor in message.inputs] == [[4, 3, 8, 16], [4, 2]]
    with pytest.raises(SettingsError, match=r"--shape m.A: \[4, 8, 16\] is invalid: expected \[3, -1, -1\]"):
        build_request(spec, 4, InputOptions({"m.A": (4, 8, 16)}), batched=True)


def test_a_type_that_cannot_be_made_up_is_an_error_that_names_the_remedy() -> None:
    spec = ModelSpec("m", (TensorSpec("A", "BF16", (-1, 3)),))
    with pytest.raises(SettingsError, match=r"model m: no values can be made up for input A of type BF16.*--data FILE.npz"):
        build_request(spec, 1, InputOptions(), batched=True)


def test_inputs_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, A=np.arange(3, dtype=np.float32))
    spec = ModelSpec("m", (TensorSpec("A", "FP32", (-1, 3)),))
    message = build_request(spec, 2, InputOptions(file=file), batched=True).message
    assert np.frombuffer(message.raw_input_contents[0], np.float32).tolist() == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]
    np.savez(tmp_path / "named.npz", A=np.zeros(3, dtype=np.float32), **{"m.A": np.ones(3, dtype=np.float32)})
    own = build_request(spec, 1, InputOptions(file=tmp_path / "named.npz"), batched=True).message
    assert np.frombuffer(own.raw_input_contents[0], np.float32).tolist() == [1.0, 1.0, 1.0]
    half = ModelSpec("m", (TensorSpec("A", "BF16", (-1, 3)),))
    upper = np.arange(3, dtype=np.float32).view(np.uint16)[1::2]
    assert build_request(half, 1, InputOptions(file=file), batched=True).message.raw_input_contents[0] == upper.tobytes()
    other = ModelSpec("m", (TensorSpec("Z", "FP32", (-1, 3)),))
    with pytest.raises(SettingsError, match=r"no array for input Z of model m: expected Z or m\.Z, found A"):
        build_request(other, 2, InputOptions(file=file), batched=True)
    with pytest.raises(SettingsError, match="array A is float32: expected INT8"):
        build_request(ModelSpec("m", (TensorSpec("A", "INT8", (-1, 3)),)), 2, InputOptions(file=file), batched=True)


def test_an_unfinished_profile_is_read_back_and_only_under_its_own_conditions(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    progress = Progress(conditions=CONDITIONS, points=[point(1, 1, 5.0)], instance_init_s=0.5, memory_bytes={1: 100})
    write_progress(path, progress)
    assert read_progress(path, CONDITIONS) == progress
    with pytest.raises(SettingsError, match=r"m.yaml.resume: was measured under other conditions \(percentile 99.0, now 90.0\)"):
        read_progress(path, CONDITIONS.model_copy(update={"percentile": 90.0}))
    for text in ("points: 3", "points: " + "[" * 1000):
        resume_path(path).write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError, match="not a file of `themis profile`"):
            read_progress(path, CONDITIONS)


def test_a_finished_profile_is_read_back_and_ends_the_resume_file(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    points = [point(b, k, 4.0 * b * k + 20.0) for b in (1, 2, 4) for k in (1, 2, 4)]
    progress = Progress(conditions=CONDITIONS, points=points, instance_init_s=0.5, memory_bytes={1: 100, 2: 150, 4: 250})
    write_progress(path, progress)
    profile = finished(progress, GridPlan(4, 4), traced=True)
    write_profile(path, profile)
    assert read_profile(path) == profile
    assert not resume_path(path).exists()
    assert profile.instance_memory == 50
    assert profile.measured is not None
    assert [fit.form for fit in profile.measured.fits if fit.kept] == ["contention"]


def test_probed_levers_outlive_a_new_profile_of_the_same_model_server_and_device() -> None:
    progress = Progress(conditions=CONDITIONS, points=[point(1, 1, 5.0)])
    actuator = OperationSettings(in_place=True, duration_s=0.5, requests=10, errors=0, latency_added_ms=1.0, memory_peak=ByteSize(1))
    probed = finished(progress, GridPlan(1, 1), traced=True).model_copy(update={"operations": OperationsSettings(add_one=actuator)})
    assert retained_operations(probed, finished(progress, GridPlan(1, 1), traced=True)) == probed.operations
    for changed in ({"config_hash": "other"}, {"model_hash": "other"}, {"device": "cpu: y"}, {"triton_version": "3"}):
        other = Progress(conditions=CONDITIONS.model_copy(update=changed), points=progress.points)
        assert retained_operations(probed, finished(other, GridPlan(1, 1), traced=True)) is None
    assert retained_operations(None, probed) is None


def test_time_left_is_told_in_minutes() -> None:
    assert time_left(125.4) == "at least 2:05 left"


def test_settings_are_measured_as_far_as_plans_read_the_surface() -> None:
    shipped = load_settings(REPOSITORY.parent / "examples" / "ocr" / "ocr.yaml")
    assert busiest(shipped, "cpu:0") == sum(model.max_instances for model in shipped.models.values())


def test_means_stand_where_they_were_measured_and_elsewhere_in_their_usual_share() -> None:
    def mean_point(batch: int, instances: int, service_ms: float, mean_ms: float) -> PointSettings:
        return point(batch, instances, service_ms).model_copy(update={"statistics_ms": mean_ms})

    shares = {(1, 1): 0.8, (2, 1): 0.7, (1, 2): 0.95, (2, 2): 0.5}
    points = [mean_point(b, k, 50.0 * b * k, share * 50.0 * b * k) for (b, k), share in shares.items()]
    profile = finished(Progress(conditions=CONDITIONS, points=points), GridPlan(2, 2), traced=True)
    whole = profile.to_core(2, 2).mean_table
    assert whole == LatencyTable((1, 2), (1, 2), ((40.0, 95.0), (70.0, 100.0)))
    assert profile.measured is not None
    three = profile.measured.model_copy(
        update={"points": [each for each in profile.measured.points if (each.batch, each.instances) != (2, 2)]}
    )
    means = profile.model_copy(update={"measured": three}).to_core(2, 2).mean_table
    assert means == LatencyTable((1, 2), (1, 2), ((40.0, 95.0), (70.0, 160.0)))
    declared = profile.model_copy(update={"measured": None})
    assert declared.to_core(2, 2).mean_table is None


def test_memory_of_an_instance_is_the_slope() -> None:
    assert memory_line({1: 100, 2: 150, 4: 250}) == (50, 100)
    assert memory_line({2: 150}) == (0, 150)
    assert memory_line({1: 0}) == (0, 0)


def test_counts_and_batching_do_not_change_the_hash_and_all_else_does(tmp_path: Path) -> None:
    folder = tmp_path / "video-detector"
    shutil.copytree(REPOSITORY / "video-detector", folder)
    before = config_hash(model_config(folder)), model_hash(folder)
    file = folder / "config.pbtxt"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("count: 1,", "count: 5,").replace("max_batch_size: 8", "max_batch_size: 4"), encoding="utf-8")
    assert (config_hash(model_config(folder)), model_hash(folder)) == before
    file.write_text(text.replace('string_value: "20"', 'string_value: "21"'), encoding="utf-8")
    assert config_hash(model_config(folder)) != before[0]
    (folder / "1" / "weights").write_bytes(b"new")
    assert model_hash(folder) != before[1]


def test_a_model_that_moves_to_the_gpu_is_another() -> None:
    config = model_config(REPOSITORY / "video-detector")
    before = config_hash(config)
    config.instance_group[0].count = 7
    assert config_hash(config) == before
    config.instance_group[0].kind = ModelInstanceGroup.KIND_GPU
    assert config_hash(config) != before


def test_a_lever_under_which_too_little_was_on_its_way_is_not_proven() -> None:
    def probed(requests: int, errors: int = 0) -> OperationSettings:
        return OperationSettings(
            in_place=True, duration_s=0.5, requests=requests, errors=errors, latency_added_ms=1.0, memory_peak=ByteSize(1)
        )

    few, enough = PROVING_REQUESTS - 1, PROVING_REQUESTS
    found = OperationsSettings(
        add_one=probed(few),
        remove_one=probed(enough),
        add_many=probed(few, errors=1),
        add_device=probed(enough),
        remove_device=probed(enough, errors=1),
        rebatch=probed(enough, errors=1),
    )
    assert found.renewing == frozenset()
    slow = probed(enough).model_copy(update={"in_place": False})
    assert found.model_copy(update={"add_many": slow, "load_failure": slow}).renewing == {"add_many"}
    assert found.proven == {"remove_one": True, "add_many": False, "add_device": True, "remove_device": False, "rebatch": False}


def test_requests_in_flight_when_a_lever_is_pulled_count() -> None:
    load = OpenLoad(None, StageRequest(None), 1.0)
    load.answers += [(0.0, 0.9, 900.0), (0.5, 1.2, None), (1.1, 1.3, 200.0), (4.0, 4.5, 500.0)]
    assert load.ended_between(0.0, 1.0) == [900.0]
    assert load.in_flight(1.0, 3.0) == ([200.0], 1)


def test_a_stale_profile_is_named_and_refused_unless_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "detector"
    shutil.copytree(REPOSITORY / "video-detector", folder)
    config = make_config()
    name = next(iter(config.models))
    folder.rename(tmp_path / name)
    folder = tmp_path / name
    origin = ProfileOrigin(config_hash(model_config(folder)), model_hash(folder), device_name("cpu:0"), 99.0)

    def measured(found: ProfileOrigin) -> ThemisConfig:
        model = config.models[name]
        models = config.models | {name: replace(model, profile=replace(model.profile, origin=found))}
        return replace(config, models=models, servers=(), launch=LocalLaunchConfig((DeviceSlot("a", "cpu:0"),), tmp_path))

    assert list(stale_profiles(measured(origin))) == []
    assert list(stale_profiles(measured(replace(origin, config_hash=f"{SERVED}other")))) == [], "a file cannot tell about it"
    assert list(stale_profiles(measured(replace(origin, percentile=50.0)))) == [
        f"models.{name}.profile: its times are those at the percentile 50, and a pipeline promises 99"
    ]
    assert "the model's files" in next(stale_profiles(measured(replace(origin, model_hash="other"))))
    stale = measured(replace(origin, config_hash="other", device="gpu: other"))
    with pytest.raises(SettingsError) as error:
        refuse_stale(stale)
    assert f"models.{name}.profile: {folder / 'config.pbtxt'} has changed" in str(error.value)
    assert "was measured on gpu: other" in str(error.value)
    assert "allow_stale_profiles: true" in str(error.value)
    assert len(refuse_stale(replace(stale, allow_stale_profiles=True))) == 2
    assert [(finding.severity, finding.what, finding.exit_code) for finding in stale_findings(stale)] == [
        (Severity.ERROR, f"models.{name}.profile", SettingsError.exit_code)
    ] * 2
    assert {finding.exit_code for finding in stale_findings(replace(stale, allow_stale_profiles=True))} == {0}
    custom = folder / "configs" / "h100.pbtxt"
    custom.parent.mkdir()
    custom.write_text((folder / "config.pbtxt").read_text(encoding="utf-8").replace('string_value: "20"', 'string_value: "21"'))
    named = LocalLaunchConfig((DeviceSlot("a", "cpu:0"),), tmp_path, model_config_name="h100")
    other = replace(origin, config_hash=config_hash(model_config(folder, "h100")))
    assert list(stale_profiles(replace(measured(other), launch=named))) == []
    assert list(stale_profiles(replace(measured(origin), launch=named))) == [
        f"models.{name}.profile: {custom} has changed since it was measured"
    ]
    unknown = replace(stale, launch=LocalLaunchConfig((DeviceSlot("a", "gpu:77"),), tmp_path))
    assert "gpu:77" in stale_findings(unknown)[0].found
