"""`themis plan`: the table, the JSON line, the picture, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from tests.unit.fakes import FakeClock
from tests.unit.samples import NOW_S, config, record, server, snapshot
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.sockets import free_ports
from themis_triton.cli import app
from themis_triton.commands.plan_command import PlanFlags, parse_rates, parse_what_if, plan_command
from themis_triton.commands.plan_live import live_fleet
from themis_triton.commands.plan_migrations import Fleet, show_paths, unused_operations
from themis_triton.commands.run_command import run_command
from themis_triton.core.action import ActionKind
from themis_triton.core.address import Address
from themis_triton.core.config import Placement, PlanningConfig
from themis_triton.core.decision import PipelineEvidence
from themis_triton.core.errors import SettingsError
from themis_triton.core.estimate import Estimate, LearntTimes, OtherDemand, PipelineEstimate, PipelineKnowledge
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.overrides import Drain, Overrides
from themis_triton.core.policy import PolicyConfig, PolicyName, VerticalConfig
from themis_triton.core.status import STATUS_VERSION, Status
from themis_triton.daemon.api import serving
from themis_triton.daemon.status import StatusBoard
from themis_triton.planning import RatePlan, WhatIf, plan_migration, plan_rates
from themis_triton.settings import load_settings
from themis_triton.solver.fleet import ServerAssignment

REPOSITORY = Path(__file__).parents[2]
PAPER = REPOSITORY / "config" / "paper-nlp.yaml"
SHIPPED = REPOSITORY / "config" / "themis.yaml"


def test_json_is_the_last_line_with_the_papers_horizontal_plan() -> None:
    result = CliRunner().invoke(app, ["plan", "-c", str(PAPER), "--rate", "100", "--json"])
    assert result.exit_code == 0
    (answer,) = json.loads(result.stdout.splitlines()[-1])
    assert (answer["rate_rps"], answer["feasible"], answer["cost"], answer["predicted_p99_ms"]) == (100, True, 518, 412)
    assert answer["stages"] == [
        {"model": "nlp-language-identification", "servers": 2, "instances": 1, "batch": 3},
        {"model": "nlp-translation", "servers": 22, "instances": 1, "batch": 1},
        {"model": "nlp-sentiment-analysis", "servers": 2, "instances": 1, "batch": 2},
    ]
    assert (answer["binding"], answer["runner_up"]) == ("throughput", {"servers": 27, "cost": 537, "predicted_p99_ms": 348})


def test_the_table_says_what_binds_and_what_comes_second(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    plan_command(PlanFlags(PAPER, "100", WhatIf()))
    shown = capsys.readouterr().out
    for messages_seen in ("SLO 700 ms at p99, policy horizontal", "22×1, 1", "throughput", "n = 27: 348 ms, +19", "n×cores, b"):
        assert messages_seen in shown, messages_seen


def test_a_rate_that_no_plan_carries_is_an_answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    result = CliRunner().invoke(app, ["plan", "-c", str(SHIPPED), "--rate", "20:4020:4000", "--json"])
    assert result.exit_code == 0
    slow, fast = json.loads(result.stdout.splitlines()[-1])
    assert slow["carried_rps"] == 20
    (edge, beyond) = plan_command(PlanFlags(SHIPPED, f"{fast['carried_rps']}:{fast['carried_rps'] + 1}:1", WhatIf()))
    assert (edge.feasible, beyond.feasible) == (True, False)
    assert (slow["feasible"], fast["feasible"], fast["binding"]) == (True, False, "devices")
    assert [stage["servers"] for stage in fast["stages"]] == [4, 4]
    plan_command(PlanFlags(SHIPPED, "4000", WhatIf()))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"NO PLAN: devices, at {fast['carried_rps']:.0f}/s" in shown


def test_requests_a_stage_are_planned_and_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    text = SHIPPED.read_text(encoding="utf-8")
    assert "stages: [video-detector, video-classifier]" in text
    often = tmp_path / "often.yaml"
    called = "stages: [video-detector, {model: video-classifier, per_request: 4}]"
    often.write_text(text.replace("stages: [video-detector, video-classifier]", called), encoding="utf-8")
    (once,), (four,) = (plan_command(PlanFlags(path, "30", WhatIf())) for path in (SHIPPED, often))
    assert four.stages[1].total_instances > once.stages[1].total_instances
    assert "4 a request" in capsys.readouterr().out


def test_other_devices_slo_and_pipeline_can_be_asked_about() -> None:
    plan_for = {devices: plan_command(PlanFlags(SHIPPED, "400", WhatIf(devices=devices)))[0] for devices in (1, 4, 40)}
    assert [answer.feasible for answer in plan_for.values()] == [False, False, True]
    assert all(stage.servers == 1 for stage in plan_for[1].stages)
    assert not plan_command(PlanFlags(SHIPPED, "20", WhatIf(slo_ms=50)))[0].feasible
    (nlp,) = plan_command(PlanFlags(SHIPPED, "20", WhatIf(pipeline="nlp")))
    assert [stage.name for stage in nlp.stages] == ["nlp-language-identification", "nlp-translation", "nlp-sentiment-analysis"]


@pytest.mark.parametrize("name", ["plans.png", "plans.svg"])
def test_the_picture_is_drawn_over_feasible_and_infeasible_rates(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    plan_command(PlanFlags(SHIPPED, "50:350:100", WhatIf(), plot=path))
    assert path.stat().st_size > 20_000
    if name.endswith("svg"):
        text = path.read_text()
        for messages_seen in ("Plans for video, policy themis", "2 of 4 rates have a plan inside the SLO of 300 ms", "video-classifier"):
            assert messages_seen in text, messages_seen


def test_a_picture_of_one_rate(tmp_path: Path) -> None:
    plan_command(PlanFlags(PAPER, "0", WhatIf(), plot=tmp_path / "one.png"))
    assert (tmp_path / "one.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("120", (120.0,)),
        ("0", (0.0,)),
        ("12.5", (12.5,)),
        ("20:60:20", (20.0, 40.0, 60.0)),
        ("20:50:20", (20.0, 40.0)),
        ("0.1:0.3:0.1", (0.1, 0.2, 0.3)),
        ("5:5:1", (5.0,)),
    ],
)
def test_rates_as_typed(text: str, rates: tuple[float, ...]) -> None:
    assert parse_rates(text) == rates


@pytest.mark.parametrize(
    "text",
    ["", "fast", "-1", "nan", "1e999", "20:400", "400:20:20", "20:400:0", "20:400:-1", "1:2:3:4", "0:100000:1", "9999999", "1_0"],
)
def test_a_rate_that_is_none_is_named(text: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_rates(text)
    assert f'--rate: "{text}" is invalid: expected a rate of 0 to 1,000,000 requests/s, or from:to:step' in str(error.value)


@pytest.mark.parametrize(
    ("what_if", "message"),
    [
        (WhatIf(slo_ms=0.0), "--slo-ms: 0 is invalid: expected a number > 0"),
        (WhatIf(slo_ms=float("nan")), "--slo-ms: nan is invalid"),
        (WhatIf(devices=0), "--devices: 0 is invalid: expected a whole number ≥ 1 and ≤ 1,000,000"),
        (WhatIf(devices=10**20), "--devices: 100000000000000000000 is invalid: expected"),
        (WhatIf(pipeline="vidoe"), "--pipeline: vidoe is invalid: expected a pipeline of the settings: nlp"),
        (WhatIf(devices=2), "2 servers in total for 3 stages that are separate are too few"),
    ],
)
def test_what_cannot_be_asked_is_named(what_if: WhatIf, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan_command(PlanFlags(PAPER, "20", what_if))


@pytest.mark.parametrize(
    ("flag", "typed", "expected"),
    [
        ("--slo-ms", "fast", "a number > 0, in ms"),
        ("--slo-ms", "", "a number > 0, in ms"),
        ("--slo-ms", "1e400", "a number > 0, in ms"),
        ("--devices", "1.5", "a whole number ≥ 1"),
        ("--devices", "-2", "a whole number ≥ 1"),
        ("--devices", "9" * 40, "a whole number ≥ 1"),
    ],
)
def test_a_flag_that_is_no_number_is_named_with_what_is_allowed(flag: str, typed: str, expected: str) -> None:
    result = CliRunner().invoke(app, ["plan", "-c", str(PAPER), "--rate", "20", flag, typed])
    assert isinstance(result.exception, SettingsError)
    assert str(result.exception).startswith(f"{flag}: ")
    assert f" is invalid: expected {expected}" in str(result.exception)


def test_horizontal_fixes_instances_and_vertical_servers() -> None:
    rates = [20.0, 60.0, 120.0]
    fixed = plan_rates(config(PolicyConfig(name=PolicyName.HORIZONTAL)), rates, WhatIf())
    assert len({tuple(stage.instances for stage in answer.stages) for answer in fixed}) == 1

    fixed_servers = plan_rates(config(PolicyConfig(name=PolicyName.VERTICAL, vertical=VerticalConfig(servers=3))), rates, WhatIf())
    assert {stage.servers for answer in fixed_servers for stage in answer.stages} == {3}
    free = plan_rates(config(), rates, WhatIf())
    assert all(a.cost <= min(b.cost, c.cost) for a, b, c in zip(free, fixed, fixed_servers, strict=True) if b.feasible and c.feasible)


def test_vertical_with_separate_stages_divides_the_devices() -> None:
    separate = replace(
        config(PolicyConfig(name=PolicyName.VERTICAL)),
        planning=PlanningConfig(placement=Placement.SEPARATE),
    )
    (answer,) = plan_rates(separate, [20.0], WhatIf(devices=7))
    assert [stage.servers for stage in answer.stages] == [3, 3]


def test_the_daemon_refuses_cores() -> None:
    with pytest.raises(SettingsError, match=r"planning\.throughput: cores cannot run live: expected instances"):
        run_command(PAPER)


def test_the_daemon_refuses_separate_stages_without_a_slot(tmp_path: Path) -> None:
    text = SHIPPED.read_text().replace("launch:\n  slots: [cpu:0, cpu:1, cpu:2, cpu:3]\n", "planning: {placement: separate}\n")
    (tmp_path / "themis.yaml").write_text(text)
    with pytest.raises(SettingsError, match="neither `servers` nor `launch` is set"):
        run_command(tmp_path / "themis.yaml")


def test_the_way_from_what_runs_says_its_steps_and_when_the_slo_holds() -> None:
    result = CliRunner().invoke(app, ["plan", "-c", str(SHIPPED), "--rate", "120", "--from", "1:2,1", "--json"])
    assert result.exit_code == 0, result.output
    (answer,) = json.loads(result.stdout.splitlines()[-1])
    path = answer["path"]
    # A cold start of 0.7 s, then the longest initialisation of an instance, 0.8 s.
    assert path["slo_holds_after_s"] == 1.5
    assert [step["kind"] for step in path["steps"]] == ["launch"] * (path["servers"] - 1)
    assert "inside the SLO after 1.5 s" in result.stdout


def test_a_way_down_breaks_nothing_before_it_has_made_room() -> None:
    result = CliRunner().invoke(app, ["plan", "-c", str(SHIPPED), "--rate", "60", "--from", "4:1,1:8,8", "--json"])
    path = json.loads(result.stdout.splitlines()[-1])[0]["path"]
    made = {i for i, step in enumerate(path["steps"]) if step["kind"] in {"grow", "launch", "rebatch"}}
    retired = [step for step in path["steps"] if step["kind"] == "retire"]
    assert retired
    assert all(made <= set(step["requires"]) for step in retired)


@pytest.mark.parametrize("now", ["", "2", "2:1", "2:1,0", "2:1,1:8", "99:1,1", "-1:1,1"])
def test_a_fleet_that_cannot_be_read_is_refused_with_its_form(now: str) -> None:
    with pytest.raises(
        SettingsError,
        match=r"--from: .* is invalid: expected live \(the running fleet\) or SERVERS:N,N \(counts of video-detector",
    ):
        plan_command(PlanFlags(SHIPPED, "50", WhatIf(), start=now))


def test_separate_stages_have_no_way_to_show() -> None:
    with pytest.raises(SettingsError, match=r"--from: no migration with planning\.placement separate"):
        plan_command(PlanFlags(PAPER, "50", WhatIf(), start="1:1,1,1"))


def test_more_servers_than_can_be_weighed_are_refused_at_once() -> None:
    with pytest.raises(SettingsError, match=r"--devices, planning\.max_servers: 1000000 servers.* too many: expected at most 256"):
        plan_command(PlanFlags(SHIPPED, "100", WhatIf(devices=1_000_000)))


def test_replicas_bind_where_they_alone_are_short() -> None:
    result = CliRunner().invoke(app, ["plan", "-c", str(PAPER), "--rate", "1000000", "--json"])
    assert json.loads(result.stdout.splitlines()[-1])[0]["binding"] == "devices"


def test_the_way_begins_at_what_the_sidecar_says_that_serves_each_server_with_its_own_counts() -> None:
    settings = load_settings(SHIPPED)
    pipeline = settings.pipelines[0]

    def status(*servers: Server) -> Status:
        return Status(STATUS_VERSION, "1", 1, 0.0, "active", "themis", paused=False, sentence="steady", servers=servers)

    other = replace(server("other"), models={"another": ModelState(9, 8)})
    servers = (server("a", (4, 1)), server("b", (8, 4)), server("c", launched=False), server("d", phase=Phase.WARMING), other)
    in_order = tuple(
        ServerAssignment(n, (ModelState(one, 8), ModelState(two, 8))) for n, one, two in (("c", 1, 1), ("b", 8, 4), ("a", 4, 1))
    )
    assert live_fleet(status(*servers), pipeline, settings) == Fleet(in_order, adopted=1)
    drained = replace(status(*servers), overrides=Overrides(drains=(Drain("b", 0.0, launched=True),)))
    assert live_fleet(drained, pipeline, settings) == Fleet((in_order[0], in_order[2]), adopted=1)
    with pytest.raises(SettingsError, match="--from live: no server serves video now"):
        live_fleet(status(*servers[3:]), pipeline, settings)


def test_a_migration_names_the_operations_that_the_sidecar_does_not_use(capsys: pytest.CaptureFixture[str]) -> None:
    base = load_settings(SHIPPED)
    detector, classifier = (base.models[name] for name in base.pipelines[0].stages)
    lossy = replace(detector, profile=replace(detector.profile, operations={"add_one": True, "remove_one": False}))
    strict = replace(classifier, require_probed_operations=True, profile=replace(classifier.profile, operations={"add_many": False}))
    settings = replace(base, models=base.models | {detector.name: lossy, classifier.name: strict})
    fleet = Fleet((ServerAssignment("a", (ModelState(2, 8),) * 2),))
    show_paths(Console(width=200), settings, [10.0, 20.0], WhatIf(), fleet)
    limits = [line for line in capsys.readouterr().out.splitlines() if line.startswith("limited: ")]
    assert limits[0] == f"limited: {detector.name}: the sidecar does not use remove_one (loses requests, as probed)"
    unprobed = f"add_one, remove_one, rebatch (not probed: run `themis probe {classifier.name}`)"
    assert limits[1:] == [f"limited: {classifier.name}: the sidecar does not use add_many (loses requests, as probed) and {unprobed}"]
    assert unused_operations(base, show_paths(Console(), base, [10.0], WhatIf(), fleet)) == []


def test_a_migration_never_retires_servers_that_were_adopted() -> None:
    config = load_settings(SHIPPED)
    now = [ServerAssignment(name, (ModelState(2, 8),) * 2) for name in ("a", "b", "c")]
    free, kept = (plan_migration(config, 1.0, WhatIf(), now, adopted) for adopted in (0, 2))
    assert [step.server for step in free.steps if step.kind is ActionKind.RETIRE] == ["b", "c"]
    assert [step.server for step in kept.steps if step.kind is ActionKind.RETIRE] == ["c"]


def shared_settings(tmp_path: Path) -> Path:
    """The shipped settings with pipelines that share models of the first one."""
    text = SHIPPED.read_text(encoding="utf-8")
    more = (
        "pipelines:\n"
        "  boxes: {stages: [video-detector], slo_ms: 250}\n"
        "  labels: {stages: [nlp-translation, {model: video-classifier, per_request: 2}], slo_ms: 3000}\n"
    )
    path = tmp_path / "themis.yaml"
    path.write_text(text.replace("pipelines:\n", more, 1), encoding="utf-8")
    return path


def test_plans_name_what_shares_a_model_and_carry_the_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shared_settings(tmp_path)
    (alone,) = plan_command(PlanFlags(path, "60", parse_what_if("video", None, None)))
    shown = capsys.readouterr().out
    assert (
        "video and boxes: video-detector is the first model of each, so that their calls cannot be told apart: they are one demand" in shown
    )
    assert "video and labels: video-classifier is planned for the sum of their calls" in shown
    flags = parse_what_if("video", None, None, ["labels=40", "video-classifier=20"])
    (summed,) = plan_command(PlanFlags(path, "60", flags))
    assert "video-classifier is planned for 80/s of labels + 20/s of direct calls beside those of video" in capsys.readouterr().out
    assert summed.stages[1].capacity_rps >= 160.0
    assert summed.cost > alone.cost


def test_plans_from_what_runs_count_the_measured_calls_of_other_pipelines_and_the_measured_requests_a_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, (port,) = shared_settings(tmp_path), free_ports(1)
    path.write_text(re.sub(r"(?m)^status:.*(\n .*)*", "", path.read_text()) + f"\nstatus: {{address: '127.0.0.1:{port}'}}\n")
    settings = load_settings(path)

    def planned(also: Sequence[str] = (), calls: float = 1.0, *others: OtherDemand) -> tuple[RatePlan, str]:
        """The plan for 60 requests/s while so many calls reach the second stage, and what is printed."""
        measured = PipelineEstimate("video", 60.0, 60.0, 60.0, 0.0, 0.0, None, per_request=(1.0, calls), others=((), others))
        board = StatusBoard(settings, NOW_S)
        both = server("a", launched=False), replace(server("b"), models={"video-classifier": ModelState(1, 8)})
        board.take(replace(record(seen=snapshot(both)), estimate=Estimate(NOW_S, pipelines={"video": measured})), 1.0)

        async def asked() -> RatePlan:
            async with serving(Address("127.0.0.1", port), board, Exporter(), FakeClock()):
                flags = PlanFlags(path, "60", parse_what_if("video", None, None, also), start="live")
                return (await asyncio.to_thread(plan_command, flags))[0]

        return asyncio.run(asked()), capsys.readouterr().out

    labels, direct = OtherDemand("labels", 90.0, 160.0), OtherDemand(None, 9.0, 40.0)
    alone, twice, summed = planned(), planned(calls=2.0), planned((), 1.0, labels, direct)
    assert "2 a request" not in alone[1].replace("\n", " ")
    assert "2 a request" in twice[1].replace("\n", " ")
    assert twice[0].stages[1].capacity_rps >= 120.0
    assert "video-classifier is planned for 160/s of labels + 40/s of direct calls beside those of video" in summed[1]
    # Each of two servers with one instance takes half of all calls, and the other one half of the pipeline's own.
    assert (summed[0],) == plan_rates(settings, [60.0], WhatIf("video", also=(("video-classifier", 200.0 / 2 - 60.0 / 2),)))
    changed = planned(["labels=20"], 1.0, labels)
    assert "video-classifier is planned for 40/s of labels beside those of video" in changed[1]
    assert (changed[0],) == (alone[0],), "what the other server takes makes room for 20/s"


def test_plans_from_what_runs_take_the_service_times_that_the_sidecar_has_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shared_settings(tmp_path)
    data = yaml.safe_load(path.read_text())
    data["models"]["video-classifier"]["profile"] = {"learn": True}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    known = PipelineKnowledge("video", True, (LearntTimes("video-classifier", 300.0, 9.0, 31.0),))
    steady = PipelineEstimate("video", 20.0, 20.0, 20.0, 0.0, 0.0, None)
    board, told = StatusBoard(load_settings(path), NOW_S), record(seen=snapshot([server("a", launched=False)]))
    board.take(replace(told, estimate=Estimate(NOW_S, pipelines={"video": steady}, knowledge=(known,))), 1.0)
    monkeypatch.setattr("themis_triton.commands.plan_command.fetch_status", lambda _: board.status())
    guess, learnt = (plan_command(PlanFlags(path, "20", parse_what_if("video", None, None), start=start))[0] for start in ("1:1,1", "live"))
    assert guess.stages[1].latency_ms < 40.0 <= learnt.stages[1].latency_ms
    assert capsys.readouterr().out.count("or use `--from live` once a sidecar has learnt its service times") == 1


def test_without_a_rate_plans_from_what_runs_are_for_the_demand_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shared_settings(tmp_path)
    board = StatusBoard(load_settings(path), NOW_S)
    told, steady = record(seen=snapshot([server("a", launched=False)])), PipelineEstimate("video", 20.0, 20.0, 20.0, 0.0, 0.0, None)
    numbers = PipelineEvidence("video", 38.2, 20.0, 16.0, 300.0, None, None, 1, 1)
    decided = replace(told.decision, evidence=(numbers,))
    board.take(replace(told, decision=decided, estimate=Estimate(NOW_S, pipelines={"video": steady})), 1.0)
    monkeypatch.setattr("themis_triton.commands.plan_command.fetch_status", lambda _: board.status())
    (plan,) = plan_command(PlanFlags(path, None, parse_what_if("video", None, None), start="live"))
    assert plan.rate_rps == 39.0
    assert "Migration to 39/s" in capsys.readouterr().out
    for start in (None, "1:1,1"):
        with pytest.raises(SettingsError, match=r"--rate: missing: expected .*\. Fix: add it, or --from live for the demand of now"):
            plan_command(PlanFlags(path, None, parse_what_if("video", None, None), start=start))


def test_the_exit_code_says_whether_any_rate_has_a_plan() -> None:
    codes = [CliRunner().invoke(app, ["plan", "-c", str(SHIPPED), "--rate", rate]).exit_code for rate in ("50", "50:9050:9000", "9050")]
    assert codes == [0, 0, 1]


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("boxes=10", "--also: boxes starts with video-detector, as video does: its requests are part of --rate"),
        (
            "nlp-translation=10",
            "--also: nlp-translation is invalid: expected another pipeline that calls video-detector or video-classifier",
        ),
        ("labels", '--also: "labels" is invalid: expected NAME=RATE with a rate of 0 to 1,000,000 requests/s'),
        ("=3", '--also: "=3" is invalid: expected NAME=RATE'),
        ("labels=-3", '--also: "labels=-3" is invalid: expected NAME=RATE'),
    ],
)
def test_what_cannot_be_added_is_named(tmp_path: Path, also: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan_command(PlanFlags(shared_settings(tmp_path), "60", parse_what_if("video", None, None, [also])))
