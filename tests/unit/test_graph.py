"""Pipelines that the server drives by itself: what a request reaches, what is measured, and what a server must hold."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, STAGES, config, route, server, snapshot
from tests.unit.samples import estimate as estimated
from themis_triton.adapters.server_files import ServerFiles, build_view
from themis_triton.adapters.triton.warmup import _missing_callee
from themis_triton.commands.plan_command import PlanFlags, plan_command
from themis_triton.commands.settings_commands import validate_command
from themis_triton.commands.status_command import show
from themis_triton.core.config import PipelineConfig, Placement
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import ModelState, Phase
from themis_triton.core.graph import Calls, Parallel, Series
from themis_triton.core.observation import ModelCounters, ServerReading, Snapshot
from themis_triton.core.status import STATUS_VERSION, PipelineStatus, Status
from themis_triton.decide.state import PolicyInput
from themis_triton.estimate.estimate import History, estimate
from themis_triton.planning import WhatIf
from themis_triton.settings import load_settings

CONFIG = config()
(VIDEO,) = CONFIG.pipelines
ENSEMBLE = replace(VIDEO, entry="ens")
SETTINGS = """\
models:
  pre: {profile: {surface: &s {form: contention, alpha_ms: 1, beta_ms: 1, gamma_ms: 1, zeta_ms: 1}}, max_batch: 4}
  net: {profile: {surface: *s}, max_batch: 4}
  bls: {profile: {surface: *s}, max_batch: 4}
pipelines:
  all: {model: outer, slo_ms: 300}
launch: {slots: [cpu:0], model_repository: models}
"""
STEP = 'step {{ model_name: "{}" model_version: -1 input_map {{ key: "X" value: "{}" }} output_map {{ key: "Y" value: "{}" }} }}'

INPUT = 'input_map {{ key: "X{}" value: "{}" }}'


def write(folder: Path, text: str = SETTINGS) -> Path:
    """Settings and a repository: `outer` is `pre`, then the ensemble `ens` of `net`, `bls` and `net` again, its steps in another order."""
    ensembles = {
        "outer": [("ens", "between", "Y"), ("pre", "X", "between")],
        "ens": [("net", "b", "Y"), ("bls", "a", "b"), ("net", "X", "a")],
    }
    for model in ("pre", "net", "bls", *ensembles):
        steps = " ".join(STEP.format(*step) for step in ensembles.get(model, ()))
        (folder / "models" / model).mkdir(parents=True)
        scheduling = f"ensemble_scheduling {{ {steps} }}" if steps else 'backend: "python"'
        (folder / "models" / model / "config.pbtxt").write_text(f'name: "{model}"\nmax_batch_size: 4\n{scheduling}\n')
    (folder / "themis.yaml").write_text(text)
    return folder / "themis.yaml"


def test_an_ensemble_is_its_members_in_the_order_of_its_steps(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path))
    (pipeline,) = settings.pipelines
    assert (pipeline.stages, pipeline.front, pipeline.client_calls) == (("pre", "net", "bls"), "outer", ("outer",))
    assert (pipeline.per_request, pipeline.sequential) == ((1.0, 2.0, 1.0), (False, True, False))
    assert settings.called_models == ("pre", "net", "bls", "outer")
    assert settings.launch is not None
    assert settings.launch.ensembles_of(("pre", "net", "bls")) == ("outer", "ens")
    assert settings.launch.ensembles_of(("net", "bls")) == ("ens",)


def joined(folder: Path, *steps: tuple[str, tuple[str, ...], str], more: str = "") -> PipelineConfig:
    """The pipeline of an ensemble `all` with these steps: a model with what it takes and what it makes."""
    models = dict.fromkeys((*(model for model, _, _ in steps), "a"))
    for model in (*models, "all"):
        (folder / "models" / model).mkdir(parents=True)
    maps = [
        f'step {{ model_name: "{model}" {" ".join(INPUT.format(i, each) for i, each in enumerate(takes))} '
        f'output_map {{ key: "Y" value: "{makes}" }} }}'
        for model, takes, makes in steps
    ]
    (folder / "models" / "all" / "config.pbtxt").write_text(f'name: "all"\nensemble_scheduling {{ {" ".join(maps)} }}\n')
    surface = "{form: contention, alpha_ms: 1, beta_ms: 1, gamma_ms: 1, zeta_ms: 1}"
    defined = "".join(f"  {model}: {{profile: {{surface: {surface}}}, max_batch: 4}}\n" for model in models)
    tail = "pipelines: {all: {model: all, slo_ms: 300}}\nlaunch: {slots: [cpu:0], model_repository: models}\n"
    (folder / "themis.yaml").write_text(f"models:\n{defined}{tail}{more}")
    (pipeline,) = load_settings(folder / "themis.yaml").pipelines
    return pipeline


def test_steps_that_do_not_wait_for_each_other_run_side_by_side(tmp_path: Path) -> None:
    diamond = joined(tmp_path, ("d", ("b", "c"), "out"), ("a", ("in",), "a"), ("b", ("a",), "b"), ("c", ("a",), "c"))
    assert diamond.stages == ("a", "b", "c", "d")
    assert diamond.graph == Series(("a", Parallel(("b", "c")), "d"))
    assert (diamond.bound, diamond.order) == (False, "a → (b ∥ c) → d")


def test_steps_whose_order_is_not_series_parallel_are_planned_with_the_fewest_more_waits(tmp_path: Path) -> None:
    first = ("a", ("in",), "a"), ("b", ("in",), "b")
    crossing = joined(tmp_path, *first, ("c", ("a", "b"), "c"), ("d", ("b",), "d"), ("e", ("c", "d"), "e"))
    assert crossing.graph == Series((Parallel(("a", "b")), Parallel(("c", "d")), "e"))
    assert crossing.bound
    assert crossing.order.startswith("(a ∥ b) → (c ∥ d) → e (bound: ")


def test_validate_plan_and_status_say_the_order_and_that_it_is_a_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ("a", ("in",), "a"), ("b", ("in",), "b")
    crossing = joined(tmp_path, *first, ("c", ("a", "b"), "c"), ("d", ("b",), "d"))
    path = tmp_path / "themis.yaml"
    assert validate_command(path, live=False, as_json=False) == 0
    assert "(a ∥ b) → (c ∥ d) (bound: " in " ".join(capsys.readouterr().out.split())
    assert validate_command(path, live=False, as_json=True) == 0
    (row,) = json.loads(capsys.readouterr().out)["pipelines"]
    assert (row["order"], row["bound"]) == (crossing.order, True)
    assert row["graph"] == {"series": [{"parallel": ["a", "b"]}, {"parallel": ["c", "d"]}]}
    plan_command(PlanFlags(path, "5", WhatIf(), as_json=True))
    table, row = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    assert "Order: (a ∥ b) → (c ∥ d) (bound: " in " ".join(table.split())
    assert json.loads(row)[0]["bound"] is True
    console = Console(file=io.StringIO(), width=200)
    pipelines = (PipelineStatus(crossing.name, crossing.stages, crossing.slo_ms, crossing.percentile, order=crossing.order),)
    show(Status(STATUS_VERSION, "1.0", 1, NOW_S, "active", "themis", paused=False, sentence="steady", pipelines=pipelines), console, NOW_S)
    assert isinstance(console.file, io.StringIO)
    assert f"all: {crossing.order}" in console.file.getvalue()


def test_a_model_that_a_branch_and_a_later_step_call_is_planned_in_turn_as_a_bound(tmp_path: Path) -> None:
    calls = "calls: {b: [{model: c, per_request: 2}]}\n"
    inner = joined(tmp_path, ("a", ("in",), "a"), ("b", ("in",), "b"), ("c", ("a", "b"), "c"), more=calls)
    assert inner.graph == Series(("c", Parallel(("a", "b"))))
    assert (inner.bound, inner.per_request, inner.sequential) == (True, (1.0, 1.0, 3.0), (False, False, True))


def test_a_model_that_two_branches_call_at_once_is_one_stage_with_two_requests(tmp_path: Path) -> None:
    twice = joined(tmp_path, ("a", ("in",), "x"), ("a", ("in",), "y"), ("b", ("in",), "z"), ("c", ("x", "y", "z"), "out"))
    assert twice.graph == Series((Parallel(("a", "b")), "c"))
    assert (twice.bound, twice.per_request, twice.sequential) == (False, (2.0, 1.0, 1.0), (False, False, False))


def test_the_steps_are_those_of_the_configuration_that_the_server_reads(tmp_path: Path) -> None:
    path = write(tmp_path, SETTINGS.replace("slots: [cpu:0], ", "slots: [cpu:0], model_config_name: h100, "))
    custom = tmp_path / "models" / "outer" / "configs" / "h100.pbtxt"
    custom.parent.mkdir()
    custom.write_text(f'name: "outer"\nensemble_scheduling {{ {STEP.format("pre", "X", "Y")} }}\n')
    (pipeline,) = load_settings(path).pipelines
    assert pipeline.stages == ("pre",)


def test_an_slo_below_the_longest_path_is_refused_with_its_stages(tmp_path: Path) -> None:
    joined(tmp_path, ("a", ("in",), "a"), ("b", ("in",), "b"), ("c", ("a", "b"), "c"))
    path = tmp_path / "themis.yaml"
    path.write_text(path.read_text().replace("slo_ms: 300", "slo_ms: 5").replace("zeta_ms: 1", "zeta_ms: 3", 1))
    with pytest.raises(SettingsError, match=r"at least the service time of one request: a 6 \+ c 4 = 10 ms"):
        load_settings(path)


def test_callees_are_named_in_the_settings(tmp_path: Path) -> None:
    called = SETTINGS.replace("model: outer", "model: bls") + "calls: {bls: [pre, {model: net, per_request: 3}]}\n"
    (pipeline,) = load_settings(write(tmp_path, called)).pipelines
    assert (pipeline.stages, pipeline.front, pipeline.per_request) == (("bls", "pre", "net"), "bls", (1.0, 1.0, 3.0))
    assert pipeline.order == "bls (calls pre → net)"


def test_the_time_of_a_caller_contains_that_of_its_callees_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The caller takes 12 ms, its callees 4 ms each; each has instances for its own requests."""
    slow = SETTINGS.replace("bls: {profile: {surface: *s}", "bls: {profile: {surface: {form: contention, zeta_ms: 9, <<: *s}}", 1)
    called = slow.replace("model: outer, slo_ms: 300", "model: bls, slo_ms: 23") + "calls: {bls: [{model: pre, per_request: 3}, net]}\n"
    path = write(tmp_path, called)
    plan_command(PlanFlags(path, "10", WhatIf(), as_json=True))
    (plan,) = json.loads(capsys.readouterr().out.rstrip().rsplit("\n", 1)[1])
    assert plan["feasible"], plan
    assert 12.0 <= plan["predicted_p99_ms"] <= 23.0
    path.write_text(path.read_text().replace("slo_ms: 23", "slo_ms: 9"))
    with pytest.raises(SettingsError, match=r"at least the service time of one request: bls 12 ms"):
        load_settings(path)


def test_a_caller_s_estimate_is_never_below_its_calls_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the usual form a batch of 4 takes 10 ms; its callees take 4 ms a call, `net` twice, for each of its requests."""
    called = SETTINGS.replace("model: outer", "model: bls") + "calls: {bls: [pre, {model: net, per_request: 2, sequential: true}]}\n"
    path = write(tmp_path, called)
    models = load_settings(path).models
    assert [row[0] for row in models["bls"].profile.table.latency_ms] == [12.0, 24.0, 36.0, 48.0]
    assert [row[0] for row in models["net"].profile.table.latency_ms] == [4.0, 6.0, 8.0, 10.0]
    assert validate_command(path, live=False, as_json=False) == 0
    assert "models.bls.profile.surface: is below the time of the calls of pre, net, one after" in " ".join(capsys.readouterr().out.split())
    measured = "bls: {profile: {table: {batches: [1, 4], instances: [1], latency_ms: [[3], [5]]}}, instances: [1, 1]"
    path.write_text(called.replace("bls: {profile: {surface: *s}", measured, 1))
    table = load_settings(path).models["bls"].profile.table
    assert table.latency_ms == ((3.0,), (5.0,))


def test_a_caller_that_two_steps_call_is_one_stage_that_contains_its_callee(tmp_path: Path) -> None:
    twice = joined(tmp_path, ("bls", ("in",), "x"), ("bls", ("x",), "y"), ("net", ("y",), "out"), more="calls: {bls: [a]}\n")
    assert twice.graph == Series((Calls("bls", "a"), "net"))
    assert (twice.bound, twice.order) == (False, "bls (calls a) → net")
    assert (twice.per_request, twice.sequential) == ((2.0, 2.0, 1.0), (True, True, False))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "model: outer",
            "stages: [bls]",
            r"all.stages\[0\]: bls calls other models by itself, .* Fix: write `model: bls`",
        ),
        ("model: outer", "stages: [net, bls]", r"all.stages\[1\]: bls calls .* Fix: give bls a pipeline of its own, `bls: {model: bls, "),
        ("model: outer", "stages: [outer]", r"all.stages\[0\]: outer calls other models by itself"),
        ("model: outer", "stages: [{model: pre, per_request: 3}, net]", r"\[0\].per_request: 3 is not possible for the first stage, "),
        (
            "calls: {bls",
            "calls: {blz",
            "calls.blz: no model blz is under `models:`, in a pipeline or in .* did you mean bls?",
        ),
        ("calls: {bls: [pre]", "calls: {bls: [pre], outer: [pre], net: [prr]", r"calls.net\[0\]: no model prr .* did you mean pre?"),
        (
            "  bls: {profile",
            "  ens: {profile: {surface: *s}}\n  bls: {profile",
            "models.ens: ens is an ensemble, which has no instances of its own",
        ),
        ("model: outer", "model: elsewhere", r"unknown model elsewhere: .*; if it is an ensemble, .* `calls: {elsewhere: \[MEMBER, …\]}`"),
        (
            "calls: {bls: [pre]}",
            "calls: {bls: [pre], ens: [net, outer, bls]}",
            "all.model: outer contains itself, directly or through its members",
        ),
        (
            "  pre: {profile",
            f"  {'ä' * 128}: {{profile: {{surface: &t {{form: cores}}}}}}\n  pre: {{profile",
            "is invalid: expected the name .* of at most 255 bytes",
        ),
    ],
)
def test_calls_that_cannot_be_as_written_are_refused_with_the_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, (SETTINGS + "calls: {bls: [pre]}\n").replace(old, new))
    with pytest.raises(SettingsError, match=message):
        load_settings(path)


def test_a_file_of_an_ensemble_that_cannot_be_parsed_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "models" / "outer" / "config.pbtxt").write_text("ensemble_scheduling { oops }")
    with pytest.raises(SettingsError, match=r"all.model: \S+/outer/config.pbtxt:1:\d+ : .*oops.*: the steps of outer cannot be read"):
        load_settings(path)


def test_a_member_that_is_not_defined_is_named(tmp_path: Path) -> None:
    text = SETTINGS.replace("  bls: {profile: {surface: *s}, max_batch: 4}\n", "")
    expected = "pipelines.all.model: outer calls bls, which is not defined under `models:`: expected each called model defined there"
    with pytest.raises(SettingsError, match=expected):
        load_settings(write(tmp_path, text))


def test_models_that_call_each_other_end(tmp_path: Path) -> None:
    called = SETTINGS.replace("model: outer", "model: bls") + "calls: {bls: [pre], pre: [bls]}\n"
    (pipeline,) = load_settings(write(tmp_path, called)).pipelines
    assert set(pipeline.stages) == {"bls", "pre"}


def seen(second: int) -> Snapshot:
    """40 calls of the ensemble a second at the proxy; inside, the classifier answers three requests for each of them."""
    counts = {DETECTOR: 40.0 * second, CLASSIFIER: 120.0 * second}
    models = {name: ModelCounters(success=count, inferences=count, pending=2.0) for name, count in counts.items()}
    return replace(
        snapshot([server("a")], NOW_S + second),
        readings=(ServerReading("a", NOW_S + second, models),),
        routes=(route("ens", NOW_S + second, 40.0 * second, (40.0 * second,) * 3),),
    )


def test_demand_and_latency_are_the_clients_and_the_stages_share_is_the_servers() -> None:
    history = History()
    for second in range(31):
        history, result = estimate(history, seen(second), replace(CONFIG, pipelines=(ENSEMBLE,)))
    video = result.pipelines["video"]
    assert video.stable_rps == pytest.approx(40.0)
    assert video.backlog == pytest.approx(2.0 + 2.0 / 3.0)  # a request makes three of the second model's calls at once
    assert video.per_request == (1.0, 3.0)
    assert video.p99_ms == pytest.approx(9.9)
    assert set(result.models) == set(STAGES)


def test_direct_calls_of_a_member_are_not_calls_of_the_ensemble() -> None:
    """The server counts 120 calls of the classifier, of which 80 came through the proxy."""
    history = History()
    for second in range(31):
        snap = seen(second)
        direct = route(CLASSIFIER, NOW_S + second, 80.0 * second)
        history, result = estimate(history, replace(snap, routes=(*snap.routes, direct)), replace(CONFIG, pipelines=(ENSEMBLE,)))
    video = result.pipelines["video"]
    assert video.per_request == (1.0, 1.0)
    ((), (part,)) = video.others
    assert part.pipeline is None
    assert 70.0 < part.stable_rps < 80.0


def test_a_server_without_the_ensemble_does_not_serve_its_pipeline() -> None:
    with_it = replace(server("a"), ready_models=(*STAGES, "ens"))
    unknown, coming = replace(server("c"), ready_models=None), server("d", phase=Phase.WARMING)
    fleet = snapshot([with_it, replace(server("b", launched=False), ready_models=STAGES), unknown, coming])
    (group,) = PolicyInput(fleet, estimated(1.0)).groups(ENSEMBLE, Placement.COLOCATED)
    assert [place.server.name for place in group.ready] == ["a", "c"]
    assert [place.server.name for place in group.coming] == ["d"]


def test_a_launched_server_gets_the_ensemble_as_it_is(tmp_path: Path) -> None:
    write(tmp_path)
    files, repository = ServerFiles(tmp_path / "state", "new"), tmp_path / "models"
    build_view(files, repository, {"net": ModelState(2, 4), "bls": ModelState(1, 4)}, {}, None, (), ("ens",))
    links = {path.name: path.is_symlink() for path in files.models.iterdir()}
    assert links == {"bls": False, "ens": True, "net": False, "outer": True, "pre": True}
    assert (files.models / "ens" / "config.pbtxt").read_text() == (repository / "ens" / "config.pbtxt").read_text()


def test_a_warm_up_that_fails_for_a_callee_names_the_key() -> None:
    cause = "Failed for execute the inference request. Model 'inner' is not ready."
    assert _missing_callee("bls", cause) == "name it under `calls:`, as `calls: {bls: [inner]}`, and in `models:`"
    assert "[a model]" in _missing_callee("bls", cause.replace("inner", "a model"))
    assert _missing_callee("inner", cause) == _missing_callee("bls", "another cause") == ""
