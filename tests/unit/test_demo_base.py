"""The settings of a demo with a cold start: the profiles follow the process start of the emulated servers."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from themis_triton.core.errors import SettingsError
from themis_triton.core.policy import PolicyName
from themis_triton.demo.base import read_base
from themis_triton.settings.shipped import shipped

ADDRESSES = {"grpc": "127.0.0.1:1", "http": "127.0.0.1:2", "status": "127.0.0.1:4"}
STAGES = ("video-detector", "video-classifier")


def profiles(cold_start_s: float | None, state: Path) -> list[dict[str, object]]:
    """The profiles of the models in the settings that a demo writes."""
    settings = read_base(None, "video", cold_start_s).settings(PolicyName.THEMIS, {}, ADDRESSES, state)
    assert tuple(settings["models"]) == STAGES
    return [model["profile"] for model in settings["models"].values()]


@pytest.mark.parametrize(("cold_start_s", "launch_s"), [(None, 0.7), (20.0, 20.0), (0.0, 0.7)], ids=["none", "long", "short"])
def test_only_the_launch_follows_the_cold_start(cold_start_s: float | None, launch_s: float, tmp_path: Path) -> None:
    own = profiles(None, tmp_path)
    assert profiles(cold_start_s, tmp_path) == [profile | {"server_launch_s": launch_s} for profile in own]


@pytest.mark.parametrize("cold_start_s", [-0.5, 120.0, math.inf, math.nan])
def test_a_cold_start_out_of_range_is_refused(cold_start_s: float) -> None:
    with pytest.raises(SettingsError, match=f"--cold-start: {cold_start_s:g} is invalid: expected at least 0 and less than launch.ready"):
        read_base(None, "video", cold_start_s)


def test_models_that_are_not_emulated_have_no_chosen_cold_start(tmp_path: Path) -> None:
    shutil.copytree(shipped("model_repository"), tmp_path / "models")
    path = tmp_path / "themis.yaml"
    text = (shipped("config") / "themis.yaml").read_text()
    path.write_text(text.replace("launch:\n", "launch:\n  model_repository: models\n"))
    assert read_base(path, "video", 20.0).cold_start_s == 20.0
    (tmp_path / "models" / STAGES[1] / "config.pbtxt").write_text(f'name: "{STAGES[1]}"\nbackend: "onnxruntime"\n')
    with pytest.raises(SettingsError, match=r"--cold-start: model video-classifier in .* is not emulated"):
        read_base(path, "video", 20.0)
    assert read_base(path, "nlp", 20.0).pipeline.name == "nlp"
    assert read_base(path, "video").cold_start_s is None


@pytest.mark.parametrize(("shows_launches", "cold_start_s", "expected"), [(True, 20.0, "process"), (False, 20.0, None), (True, None, None)])
def test_only_a_demo_with_a_cold_start_moves_settled_load_to_servers(
    shows_launches: bool, cold_start_s: float | None, expected: str | None, tmp_path: Path
) -> None:
    base = replace(read_base(None, "video", cold_start_s), shows_launches=shows_launches)
    assert base.settings(PolicyName.THEMIS, {}, ADDRESSES, tmp_path)["launch"].get("isolation") == expected
