"""`models.NAME.inputs` in warm-up, profile, probe and load; and points of a profile that are unsteady or poor."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import InferInput, model_config_pb2

from tests.unit.test_settings import changed, write
from themis_triton.adapters.triton.warmup import file_sample, remedy, warmup_inputs
from themis_triton.adapters.triton.warmup_data import own_samples
from themis_triton.commands.bench_place import BenchFlags, models_of, resolve, warmed_with
from themis_triton.commands.profile_command import made_up_warning
from themis_triton.core.config import ModelInputs
from themis_triton.core.errors import SettingsError
from themis_triton.load.requests import ModelSpec, TensorSpec, build_chain
from themis_triton.profile.drive import ClosedLoop
from themis_triton.profile.inputs import InputOptions, build_request, made_up_shapes, shapes_of, with_configured
from themis_triton.profile.measure import Samples, better_point, is_poor, planned_ms
from themis_triton.settings import load_settings, problems
from themis_triton.settings.measured import PointSettings

SPEC = ModelSpec("m", (TensorSpec("IDS", "INT64", (-1, -1)), TensorSpec("MASK", "INT64", (-1, 8))))
BATCHED = model_config_pb2.ModelConfig(max_batch_size=8)


def test_inputs_of_the_settings_reach_models_and_launcher(tmp_path: Path) -> None:
    (tmp_path / "arrays.npz").touch()
    text = changed("max_batch: 4", "max_batch: 4\n    inputs: {shapes: {IDS: [128]}}")
    text = text.replace("profile: classifier.yaml", "profile: classifier.yaml\n    inputs: {file: arrays.npz}")
    config = load_settings(write(tmp_path, text))
    expected = {"detector": ModelInputs({"IDS": (128,)}), "classifier": ModelInputs(file=tmp_path / "arrays.npz")}
    assert {name: model.inputs for name, model in config.models.items()} == expected
    assert config.launch is not None
    assert config.launch.inputs == expected


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("{file: absent.npz}", "models.detector.inputs.file: absent.npz does not exist: expected the path of an .npz file. Fix: correct"),
        ("{shapes: {A: [0]}}", "models.detector.inputs.shapes.A[0]: 0 is invalid: expected an integer ≥ 1. Fix: "),
        ("{shapes: {A: [1]}, file: a.npz}", "models.detector.inputs: both `shapes` and `file` are set: expected one of"),
    ],
)
def test_wrong_inputs_are_errors_of_the_settings(inputs: str, message: str, tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, changed("max_batch: 4", f"max_batch: 4\n    inputs: {inputs}")))
    assert message in str(problem)


def test_a_model_whose_profile_file_is_missing_can_be_profiled_by_its_settings(tmp_path: Path) -> None:
    path = write(tmp_path, changed("profile: classifier.yaml", "profile: absent.yaml"))
    (tmp_path / "models" / "classifier" / "config.pbtxt").write_text('name: "classifier"', encoding="utf-8")
    (tmp_path / "models" / "detector" / "config.pbtxt").write_text('name: "detector"', encoding="utf-8")
    with pytest.raises(SettingsError, match=r"absent\.yaml does not exist: .* Fix: measure it with `themis profile classifier -c "):
        load_settings(path)
    assert models_of("video", resolve(BenchFlags(config=path))) == ("detector", "classifier")


def test_shapes_come_from_flags_then_settings_then_the_models_own_warm_up() -> None:
    config = model_config_pb2.ModelConfig(max_batch_size=8)
    config.model_warmup.add().inputs["IDS"].dims.append(16)
    configured = ModelInputs({"IDS": (64,)})

    def ids(options: InputOptions) -> tuple[int, ...]:
        return options.shapes["m.IDS"]

    assert ids(with_configured(InputOptions(), "m", ModelInputs(), config)) == (16,)
    assert ids(with_configured(InputOptions(), "m", configured, config)) == (64,)
    assert ids(with_configured(InputOptions({"m.IDS": (256,)}), "m", configured, config)) == (256,)
    file = Path("a.npz")
    assert with_configured(InputOptions(), "m", ModelInputs(file=file), config).file == file
    assert with_configured(InputOptions({"m.IDS": (256,)}), "m", ModelInputs(file=file), config).file is None


def test_flags_reach_the_warm_up_of_the_measured_server(tmp_path: Path) -> None:
    place = resolve(BenchFlags(repository=tmp_path))
    assert warmed_with(place, "m", InputOptions({"m.IDS": (9,), "n.IDS": (1,)})).launch.inputs["m"] == ModelInputs({"IDS": (9,)})
    file = Path("a.npz")
    assert warmed_with(place, "m", InputOptions(file=file)).launch.inputs["m"] == ModelInputs(file=file)


def test_made_up_shapes_are_named_and_recorded() -> None:
    assert made_up_shapes(SPEC, InputOptions(), batched=True) == {"IDS": [1]}
    assert made_up_shapes(SPEC, InputOptions({"m.IDS": (128,)}), batched=True) == {}
    assert made_up_shapes(SPEC, InputOptions(file=Path("a.npz")), batched=True) == {}
    emulated = ModelSpec("m", (TensorSpec("INPUT", "FP32", (-1, -1)),), offset=1.0)
    assert made_up_shapes(emulated, InputOptions(), batched=True) == {}
    assert "made-up shape [1]. Fix: set models.m.inputs" in made_up_warning("m", "IDS", [1])
    request = build_request(SPEC, 4, InputOptions({"m.IDS": (128,)}), batched=True)
    assert shapes_of(request, batched=True) == {"IDS": [128], "MASK": [8]}


def metadata() -> SimpleNamespace:
    inputs = [SimpleNamespace(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape) for tensor in SPEC.inputs]
    return SimpleNamespace(name="m", inputs=inputs)


def test_warm_up_sends_the_configured_inputs(tmp_path: Path) -> None:
    sent = warmup_inputs(metadata(), BATCHED, 4, ModelInputs({"IDS": (128,)}), {})
    assert [tensor.shape() for tensor in sent] == [[4, 128], [4, 8]]
    file, ids_array = tmp_path / "a.npz", np.arange(1, 4, dtype=np.int64)
    np.savez(file, **{"IDS": ids_array, "m.MASK": np.ones(8, dtype=np.int64)})
    ids, mask = warmup_inputs(metadata(), BATCHED, 2, ModelInputs(file=file), file_sample(file, metadata(), BATCHED))
    assert (ids.shape(), mask.shape()) == ([2, 3], [2, 8])
    assert np.frombuffer(ids._raw_content, np.int64).tolist() == [1, 2, 3, 1, 2, 3]
    np.savez(file, IDS=ids_array)
    with pytest.raises(SettingsError, match=r"a\.npz: no array for input MASK of model m"):
        file_sample(file, metadata(), BATCHED)


OWN = """
name: "m" max_batch_size: 8
model_warmup { name: "first" batch_size: 1
  inputs { key: "IDS" value { data_type: TYPE_INT64 dims: [3] input_data_file: "ids" } }
  inputs { key: "MASK" value { data_type: TYPE_INT64 dims: [8] zero_data: true } } }
model_warmup { name: "second" batch_size: 4 inputs { key: "IDS" value { data_type: TYPE_INT64 dims: [2] random_data: true } } }
model_warmup { name: "third" batch_size: 1 inputs { key: "IDS" value { data_type: TYPE_INT64 dims: [9] zero_data: true } } }
"""


def own_config(more: str = "") -> Any:
    return text_format.Parse(OWN + more, model_config_pb2.ModelConfig())


def own_folder(tmp_path: Path) -> Path:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "ids").write_bytes(np.arange(5, 9, dtype=np.int64).tobytes())
    return tmp_path


def test_the_data_of_a_models_own_warm_up_are_read_as_triton_reads_them(tmp_path: Path) -> None:
    first, second = own_samples(own_config(), own_folder(tmp_path))
    assert (first["IDS"].tolist(), first["MASK"].tolist()) == ([5, 6, 7], [0] * 8)
    assert (second["IDS"].shape, second["IDS"].dtype.name) == ((2,), "int64")
    (without_files,) = own_samples(own_config(), None)
    assert without_files["IDS"].tolist() == second["IDS"].tolist()
    ids, mask = warmup_inputs(metadata(), BATCHED, 2, ModelInputs(), first)
    assert np.frombuffer(ids._raw_content, np.int64).tolist() == [5, 6, 7, 5, 6, 7]
    assert mask.shape() == [2, 8]
    ids, mask = warmup_inputs(metadata(), BATCHED, 1, ModelInputs(), second)
    assert (ids.shape(), mask.shape()) == ([1, 2], [1, 8])


def test_strings_of_a_models_own_warm_up_have_their_lengths_before_them(tmp_path: Path) -> None:
    text = 'name: "m" model_warmup { name: "a" inputs { key: "T" value { data_type: TYPE_STRING dims: [2] input_data_file: "ids" } } }'
    config, file = text_format.Parse(text, model_config_pb2.ModelConfig()), own_folder(tmp_path) / "warmup" / "ids"
    file.write_bytes(b"".join(struct.pack("<I", len(each)) + each for each in (b"one", b"two", b"3")))
    (sample,) = own_samples(config, tmp_path)
    assert sample["T"].tolist() == [b"one", b"two"]
    for content, message in ((b"\3\0\0\0one", "1 strings: expected 2 for input T"), (b"on", "not serialized strings")):
        file.write_bytes(content)
        with pytest.raises(SettingsError, match=message):
            own_samples(config, tmp_path)


def test_data_of_a_models_own_warm_up_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"warmup/ids: cannot be read \(No such file"):
        own_samples(own_config(), tmp_path)
    (own_folder(tmp_path) / "warmup" / "ids").write_bytes(b"12345678")
    with pytest.raises(SettingsError, match=r"ids: 8 bytes: expected 24 for input IDS of INT64 \[3\]\. Fix: "):
        own_samples(own_config(), tmp_path)


def test_every_data_type_can_be_random() -> None:
    types = ("BOOL", "UINT8", "INT32", "FP16", "BF16", "FP64", "STRING")
    entries = [f'inputs {{ key: "{each}" value {{ data_type: TYPE_{each} dims: [2] random_data: true }} }}' for each in types]
    config = text_format.Parse(f'name: "m" model_warmup {{ name: "a" {" ".join(entries)} }}', model_config_pb2.ModelConfig())
    (sample,) = own_samples(config, None)
    for name, value in sample.items():
        InferInput(name, [2], "BYTES" if name == "STRING" else name).set_data_from_numpy(value)
    assert len(sample) == len(types)


def test_a_profile_measures_with_the_models_own_data_unless_inputs_are_given(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    options = with_configured(InputOptions(), "m", ModelInputs(), own_config(), folder)
    request = build_request(SPEC, 2, options, batched=True)
    assert np.frombuffer(request.message.raw_input_contents[0], np.int64).tolist() == [5, 6, 7, 5, 6, 7]
    assert made_up_shapes(SPEC, options, batched=True) == {}
    given = with_configured(InputOptions(), "m", ModelInputs({"IDS": (4,)}), own_config(), folder)
    assert shapes_of(build_request(SPEC, 1, given, batched=True), batched=True) == {"IDS": [4], "MASK": [8]}


def test_a_file_of_warm_up_inputs_is_that_of_launched_servers_only(tmp_path: Path) -> None:
    (tmp_path / "real.npz").touch()
    text = changed("max_batch: 4", "max_batch: 4\n    inputs: {shapes: {IDS: [128]}}\n    warmup: real.npz")
    config = load_settings(write(tmp_path, text))
    assert config.launch is not None
    assert config.launch.inputs["detector"] == ModelInputs(file=tmp_path / "real.npz")
    assert config.models["detector"].inputs == ModelInputs({"IDS": (128,)})
    (problem,) = problems(write(tmp_path, text.replace("real.npz", "absent.npz")))
    assert "models.detector.warmup: absent.npz does not exist: expected the path of an .npz file. Fix: correct" in str(problem)


@pytest.mark.parametrize(
    ("configured", "own", "fix"),
    [
        (ModelInputs(), False, "set models.m.warmup to an .npz file with real inputs, or give the model model_warmup data"),
        (ModelInputs(file=Path("a.npz")), False, "correct the arrays of a.npz"),
        (ModelInputs(file=Path("a.npz")), True, "correct the data of its model_warmup"),
    ],
)
def test_the_remedy_of_a_failed_warm_up_names_where_its_inputs_came_from(configured: ModelInputs, own: bool, fix: str) -> None:
    assert remedy("m", configured, own=own) == fix


def test_load_sends_the_configured_inputs(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, IDS=np.arange(1, 4), MASK=np.ones(8, dtype=np.int64))
    rng = np.random.default_rng(0)

    def sent(inputs: ModelInputs, shapes: dict[str, tuple[int, ...]]) -> list[list[int]]:
        ((request,),) = build_chain([SPEC], 1, rng, shapes, {"m": inputs})
        return [list(tensor.shape) for tensor in request.message.inputs]

    assert sent(ModelInputs({"IDS": (128,)}), {}) == [[1, 128], [1, 8]]
    assert sent(ModelInputs({"IDS": (128,)}), {"m.IDS": (1, 7)}) == [[1, 7], [1, 8]]
    assert sent(ModelInputs(file=file), {}) == [[1, 3], [1, 8]]
    with pytest.raises(SettingsError, match=r"models\.m\.inputs\.shapes\.MASK: \[1, 9\] is invalid: expected \[-1, 8\]"):
        sent(ModelInputs({"MASK": (9,)}), {})


def point(service_ms: float, low_ms: float | None, high_ms: float | None) -> PointSettings:
    times = dict.fromkeys(("service_ms", "mean_ms", "median_ms", "statistics_ms", "client_ms"), service_ms)
    return PointSettings(batch=1, instances=1, samples=9, low_ms=low_ms, high_ms=high_ms, queue_ms=0.0, outliers=0, **times)


def test_a_poor_point_is_planned_with_the_upper_end_of_its_interval() -> None:
    poor, good, open_end = point(173.0, 171.0, 204.0), point(180.0, 178.0, 185.0), point(173.0, None, None)
    assert [is_poor(each) for each in (poor, good, open_end)] == [True, False, False]
    assert [planned_ms(each) for each in (poor, good, open_end)] == [204.0, 180.0, 173.0]
    assert better_point(poor, good) is good
    assert better_point(poor, point(190.0, 150.0, 260.0)) is poor


@pytest.mark.parametrize(("inferences", "executions", "same"), [(160, 10, True), (144, 10, True), (160, 11, True), (160, 16, False)])
def test_counters_may_differ_by_an_execution_of_each_instance(inferences: int, executions: int, same: bool) -> None:
    """15.992 instead of 16 was a race of Triton's two counters, and ended a profile after nine minutes."""
    assert Samples(inferences=inferences, executions=executions).are_of(16, instances=1) is same


def test_a_model_settles_before_it_is_measured() -> None:
    async def run() -> int:
        loop = ClosedLoop(stub=None, request=build_request(SPEC, 1, InputOptions(), batched=True), instances=1, timeout_s=1.0)

        async def answer() -> None:
            for number in range(100):
                loop.latencies_ms.append(max(5.0, 80.0 - 5.0 * number))
                loop._progress.set()
                await asyncio.sleep(0)

        answering = asyncio.create_task(answer())
        await loop.settle(max_s=30.0)
        settled = len(loop.latencies_ms)
        answering.cancel()
        return settled

    assert 15 <= asyncio.run(run()) < 40
