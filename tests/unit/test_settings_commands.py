"""`themis init` and `themis validate` without `--live`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from themis_triton.commands.settings_commands import init_command, validate_command
from themis_triton.settings.starter import starter


def test_init_writes_a_file_that_validates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "themis.yaml"
    assert init_command(path, force=False) == 0
    assert path.read_text(encoding="utf-8") == starter()
    assert validate_command(path, live=False, as_json=False) == 0
    assert f"{path} is valid: 1 model, 1 pipeline, 1 adopted server, 0 launch slots" in capsys.readouterr().out


def test_init_replaces_a_file_only_when_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text("mine", encoding="utf-8")
    assert init_command(path, force=False) == 2
    assert path.read_text(encoding="utf-8") == "mine"
    assert "--force" in capsys.readouterr().out
    assert init_command(path, force=True) == 0
    assert path.read_text(encoding="utf-8") == starter()


def test_init_says_where_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init_command(tmp_path / "absent" / "themis.yaml", force=False) == 3
    assert "No such file or directory" in capsys.readouterr().out


def test_validate_shows_every_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text(starter().replace("mode: advisory", "mode: [active]").replace("slo_ms: 100", 'slo_ms: "0.3s"'), encoding="utf-8")
    assert validate_command(path, live=False, as_json=False) == 2
    shown = capsys.readouterr().out
    assert "2 errors in" in shown
    assert 'error    "0.3s" is invalid' in shown
    assert "fix      write 300; the key is in ms" in shown


def test_validate_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text(starter().replace("slo_ms: 100", 'slo_ms: "0.3s"'), encoding="utf-8")
    assert validate_command(path, live=True, as_json=True) == 2
    report = json.loads(capsys.readouterr().out)
    assert (report["valid"], report["findings"]) == (False, [])
    (problem,) = report["problems"]
    assert (problem["file"], problem["key"], problem["error"]) == (str(path), "pipelines.my-pipeline.slo_ms", '"0.3s" is invalid')
    assert starter().splitlines()[problem["line"] - 1].strip() == "slo_ms: 100"


def test_validate_says_how_the_calls_of_shared_models_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, text = tmp_path / "themis.yaml", (Path(__file__).parents[2] / "config" / "themis.yaml").read_text(encoding="utf-8")
    more = (
        "pipelines:\n"
        "  boxes: {stages: [video-detector], slo_ms: 250}\n"
        "  inside: {model: both, slo_ms: 900}\n"
        "calls:\n  both: [video-detector, video-classifier]\n"
    )
    first, rest = more.split("calls:")
    path.write_text("calls:" + rest + text.replace("pipelines:\n", first, 1), encoding="utf-8")
    assert validate_command(path, live=False, as_json=False) == 0
    shown = capsys.readouterr().out
    assert "note    pipelines.boxes, pipelines.video: video-detector is the first model of each" in shown
    assert "is planned for the stricter SLO, 250 ms at p99 of boxes" in shown
    assert "note    pipelines.boxes, pipelines.inside, pipelines.video: video-detector is planned for the sum of their calls; " in shown
    assert "they are told apart, those of inside by the calls of both" in shown
    assert "note    pipelines.inside, pipelines.video: video-classifier is planned for the sum of their calls\n" in shown


@pytest.mark.parametrize(
    ("slots", "note"),
    [
        ("[cpu:0, cpu:1, cpu:2]", "launch.slots: 3 for 20 pipelines: a server holds several of them, as far as its memory allows\n"),
        ("[{device: gpu:0, memory: 2GiB}, {device: gpu:1, memory: 2GiB}]", "as far as its memory allows\n"),
        (
            "[{device: gpu:0, memory: 1GiB}, {device: gpu:1, memory: 512MiB}]",
            "all slots have 1,536 MiB, and the fewest instances of all models need 2,000 MiB: some pipelines get no server. Fix: ",
        ),
        (str([f"cpu:{number}" for number in range(20)]), "is valid: 20 models, 20 pipelines, 0 adopted servers, 20 launch slots\n"),
    ],
)
def test_validate_says_how_pipelines_are_served_where_slots_are_fewer(
    slots: str, note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"m{number}" for number in range(20)]
    for name in names:
        (tmp_path / "models" / name / "1").mkdir(parents=True)
    profile = "profile: {instance_memory: 100MiB, surface: {form: contention, alpha_ms: 1, beta_ms: 2, gamma_ms: 1, zeta_ms: 5}}"
    models = "".join(f"  {name}: {{max_batch: 8, {profile}}}\n" for name in names)
    pipelines = "".join(f"  {name}: {{stages: [{name}], slo_ms: 200}}\n" for name in names)
    path = tmp_path / "themis.yaml"
    path.write_text(f"launch: {{slots: {slots}, model_repository: models}}\nmodels:\n{models}pipelines:\n{pipelines}", encoding="utf-8")
    assert validate_command(path, live=False, as_json=False) == 0
    shown = capsys.readouterr().out
    assert note in shown
    assert ("launch.slots:" in shown) is ("memory" in note or "server. Fix" in note)
