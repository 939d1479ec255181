"""Each row of the benchmark of policies keeps the settings it ran with, also where other rows are added later."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import triton_policies
from policies import LATE, caption
from policy_results import Result, added, differences, read_result, result_of, settings_of
from policy_tables import markdown

from themis_triton.core.policy import PolicyName
from themis_triton.settings import load_settings

CONFIG = Path(__file__).parents[2] / "config"
OLD = {"video": {"tick_s": "0.1", "late": "0.6"}, "nlp": {"tick_s": "0.1", "late": "0.6"}}
NEW = {"video": {"tick_s": "0.1", "late": "0.5"}, "nlp": {"tick_s": "0.1", "late": "0.5"}}
PIPELINE = {
    **dict.fromkeys(("violations", "p50_ms", "p99_ms", "longest_ms", "mean_cost", "cost_vs_clairvoyant"), 1.0),
    "bound_infeasible_s": 0,
}


def row(policy: str, setting: str = "slice") -> dict[str, Any]:
    numbers = {"violations": 0.0, "violations_error": None, "cost_vs_clairvoyant": 1.0, "failed": 0}
    return {"setting": setting, "policy": policy, **numbers, "pipelines": {"video": PIPELINE}}


def last() -> Result:
    return result_of([row("themis"), row("vertical")], "a" * 40, 5, OLD)


def test_rows_that_stay_keep_their_settings_and_new_rows_bring_theirs() -> None:
    every = added(last(), result_of([row("themis")], "b" * 40, 3, NEW), ("themis", "vertical"))
    assert [(each["policy"], each["commit"][0], each["seeds"]) for each in every.rows] == [("themis", "b", 3), ("vertical", "a", 5)]
    assert [every.settings[each["settings"]] for each in every.rows] == [NEW, OLD]


def test_settings_that_no_row_has_any_more_are_dropped() -> None:
    every = added(last(), result_of([row("themis"), row("vertical")], "b" * 40, 3, NEW), ())
    assert list(every.settings.values()) == [NEW]


def test_the_caption_gives_the_settings_that_differ_between_rows() -> None:
    every = added(last(), result_of([row("themis")], "b" * 40, 5, NEW), ("themis", "vertical"))
    text = markdown("Policies", "", every)
    assert f"- Commit {'b' * 12}, seeds: 5, late 0.5: themis." in text
    assert f"- Commit {'a' * 12}, seeds: 5, late 0.6: vertical." in text
    assert "tick_s" not in text


def test_the_caption_tells_after_which_fractions_of_the_slo_the_rows_deprioritize() -> None:
    fractions = [{"video": {LATE: value}} for value in ("0.6", "0.5", "None")]
    first, second, never = (result_of([row(policy)], "a" * 40, 5, own) for policy, own in zip("xyz", fractions, strict=True))
    assert "after 60 % of the SLO, except in turn." in caption("slice", first)
    assert "after 50 % or 60 %, as given below the tables, of the SLO" in caption("slice", added(first, added(second, never, ()), ()))


def test_rows_of_one_run_need_no_caption() -> None:
    assert "Commit" not in markdown("Policies", "", last())


def test_rows_of_one_commit_with_other_settings_are_told_apart() -> None:
    every = added(last(), result_of([row("themis")], "a" * 40, 5, NEW), ())
    assert f"- Commit {'a' * 12}, seeds: 5, late 0.5: themis." in markdown("Policies", "", every)


def test_a_row_without_recorded_settings_says_so() -> None:
    old = Result([row("vertical") | {"commit": "a" * 40, "seeds": 5}])
    text = markdown("Policies", "", added(old, result_of([row("themis")], "b" * 40, 5, NEW), ()))
    assert f"- Commit {'a' * 12}, seeds: 5, settings of themis not recorded: vertical." in text


def test_a_difference_names_the_pipeline_where_pipelines_differ_and_ignores_keys_that_only_some_have() -> None:
    mixed = {"video": {"tick_s": "0.1", "late": "0.5"}, "nlp": {"tick_s": "0.1", "late": "0.4", "new": "1"}}
    assert differences({"x": OLD, "y": mixed}) == {"x": ("late 0.6",), "y": ("late 0.5 (video), 0.4 (nlp)",)}


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    path, result = tmp_path / "policies-slice.json", last()
    assert read_result(path) == Result([])
    path.write_text(json.dumps({"commit": "c" * 40, "seeds": [0], "settings": result.settings, "rows": result.rows}), encoding="utf-8")
    assert read_result(path) == result


@pytest.mark.parametrize("pipeline", ["video", "sentiment", "nlp"])
def test_the_settings_of_a_run_are_those_of_its_files(pipeline: str) -> None:
    config = load_settings(CONFIG / f"paper-{pipeline}.yaml")
    policy = config.under(PolicyName.THEMIS).policy
    own = settings_of({pipeline: config})[pipeline]
    assert own["deprioritize_after_slo_fraction"] == str(policy.deprioritize_after_slo_fraction)
    assert own["headroom_sigmas"] == str(policy.demand.headroom_sigmas)
    assert own["drift.window_s"] == str(policy.drift.window_s)
    assert not any("{" in value for value in own.values())


def test_the_table_of_tritons_world_tells_which_rows_ran_with_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_policies, "RESULTS", tmp_path)
    run = {"label": "vertical", "second": 0, "pipeline": "video", "seed": 0, "cold_start_s": 5.0, "reach": False}
    numbers = {"requests": 10, "late": 1, "cost": 2.0, "bound_cost": 1.0}
    for own, words in (({"settings": "old"}, "late 0.6"), ({}, "not recorded")):
        last = {"commit": "a" * 40, "settings": {"old": OLD}, "runs": [run | numbers | own, run | numbers | own | {"label": "themis"}]}
        (tmp_path / "t.json").write_text(json.dumps(last), encoding="utf-8")
        stays, settings = triton_policies.kept("t", ["themis"])
        new = [(replace(case, label="themis"), replace(found, settings="new")) for case, found in stays]
        text = triton_policies.markdown(triton_policies.rows_of([*stays, *new]), settings | {"new": NEW})
        assert f"- Settings of themis: {words}: vertical." in text
        assert "- Settings of themis: late 0.5: themis." in text
    assert "Settings of themis" not in triton_policies.markdown(triton_policies.rows_of(new), {"new": NEW})
