"""What emulated models read: parameters, the scale file, the switch that fails initialisation, and the configurations that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from themis_triton.emulation.controls import ScaleFile, init_must_fail
from themis_triton.emulation.parameters import read_parameters
from themis_triton.emulation.surface import Surface

REPOSITORY = Path(__file__).parents[2] / "model_repository"
EMULATED = {
    "video-detector": 36,
    "video-classifier": 18,
    "sentiment-audio-to-text": 60,
    "sentiment-analysis": 8.4,
    "nlp-language-identification": 16,
    "nlp-translation": 86,
    "nlp-sentiment-analysis": 8.5,
}
GOOD = {"alpha_ms": "4", "beta_ms": "8", "gamma_ms": "4", "zeta_ms": "20", "init_s": "0.5", "offset": "-1"}


def as_config(parameters: dict[str, str]) -> dict[str, object]:
    return {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}


def test_reads_all_parameters() -> None:
    parameters = read_parameters(
        "m", as_config({**GOOD, "service_scale": "1.5", "noise_cv": "0.1", "scale_file": "/a", "EXECUTION_ENV_PATH": "x"})
    )
    assert parameters.surface == Surface(6, 12, 6, 30)
    assert (parameters.init_s, parameters.offset, parameters.noise_cv) == (0.5, -1, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": "4"}, "m/config.pbtxt: unknown parameter alpha: expected alpha_ms, "),
        ({"zeta_ms": "fast"}, "parameter zeta_ms: 'fast' is invalid: expected a number"),
        ({"zeta_ms": "nan"}, "parameter zeta_ms: 'nan' is invalid: expected a number"),
        ({"init_s": "-1"}, "parameter init_s: -1 is invalid: expected at least 0"),
        ({"service_scale": "0"}, "the service time of one request is 0.0 ms"),
    ],
)
def test_a_wrong_parameter_is_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=r"m/config\.pbtxt") as caught:
        read_parameters("m", as_config({**GOOD, **change}))
    assert message in str(caught.value)


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(ValueError, match="parameter alpha_ms, offset is missing"):
        read_parameters("m", as_config({key: value for key, value in GOOD.items() if key not in ("alpha_ms", "offset")}))


def test_files_come_from_the_configuration_or_the_environment() -> None:
    environment = {"THEMIS_EMULATED_SCALE_FILE": "/env/scale", "THEMIS_EMULATED_FAIL_INIT_FILE": "/env/fail"}
    plain = read_parameters("m", as_config(GOOD))
    assert (plain.scale_path(environment), plain.fail_init_path(environment)) == (Path("/env/scale"), Path("/env/fail"))
    assert (plain.scale_path({}), plain.fail_init_path({})) == (None, None)
    named = read_parameters("m", as_config({**GOOD, "scale_file": "/own/scale", "fail_init_file": "/own/fail"}))
    assert (named.scale_path(environment), named.fail_init_path(environment)) == (Path("/own/scale"), Path("/own/fail"))


@pytest.mark.parametrize(
    ("content", "expected"), [(None, 1.0), ({"a": 1.4}, 1.4), ({"*": 2}, 2.0), ({"a": 1.4, "*": 2}, 1.4), ({"b": 3}, 1.0), ({}, 1.0)]
)
def test_scale_file(tmp_path: Path, content: dict[str, float] | None, expected: float) -> None:
    path = tmp_path / "scale.json"
    if content is not None:
        path.write_text(json.dumps(content))
    warnings: list[str] = []
    assert ScaleFile(path, "a", warnings.append)() == expected
    assert warnings == []


def test_scale_file_follows_changes_but_not_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("themis_triton.emulation.controls.time.monotonic", lambda: now_s)
    path = tmp_path / "scale.json"
    scale = ScaleFile(path, "a", pytest.fail)
    assert scale() == 1.0
    path.write_text('{"a": 1.4}')
    now_s = 100.1
    assert scale() == 1.0
    now_s = 100.25
    assert scale() == 1.4
    path.unlink()
    now_s = 100.5
    assert scale() == 1.0


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 0}', '{"a": "x"}', '{"a": -1}', '{"a": null}'])
def test_a_bad_scale_file_is_reported_once_and_the_last_factor_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    now_s = 100.0
    monkeypatch.setattr("themis_triton.emulation.controls.time.monotonic", lambda: now_s)
    path = tmp_path / "scale.json"
    path.write_text('{"a": 1.4}')
    warnings: list[str] = []
    scale = ScaleFile(path, "a", warnings.append)
    assert scale() == 1.4
    path.write_text(text)
    now_s = 101.0
    assert scale() == 1.4
    now_s = 102.0
    assert scale() == 1.4
    assert len(warnings) == 1
    assert str(path) in warnings[0]


@pytest.mark.parametrize(("content", "expected"), [(None, False), ("", True), ("a\n", True), ("b\na\n", True), ("b\n", False)])
def test_init_fails_when_told_to(tmp_path: Path, content: str | None, expected: bool) -> None:
    path = tmp_path / "fail"
    if content is not None:
        path.write_text(content)
    assert init_must_fail(path, "a") is expected


def shipped(model: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse((REPOSITORY / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.mark.parametrize(("model", "shortest_ms"), EMULATED.items())
def test_shipped_emulated_models(model: str, shortest_ms: float) -> None:
    config = shipped(model)
    parameters = read_parameters(model, json_format.MessageToDict(config, preserving_proto_field_name=True))
    assert parameters.surface.service_ms(1, 1) == pytest.approx(shortest_ms)
    assert (config.name, config.max_batch_size, config.HasField("dynamic_batching")) == (model, 8, True)


def test_every_shipped_model_starts_with_one_instance_and_offsets_differ() -> None:
    models = sorted(path.parent.name for path in REPOSITORY.glob("*/config.pbtxt"))
    assert models == sorted(EMULATED)
    for model in models:
        group = shipped(model).instance_group
        assert [(part.count, part.kind) for part in group] == [(1, model_config_pb2.ModelInstanceGroup.KIND_CPU)]
    offsets = {shipped(model).parameters["offset"].string_value for model in EMULATED}
    assert len(offsets) == len(EMULATED)
