"""`themis compare` from made-up live runs: figures, table, pictures, JSON, and flags that are refused before anything starts."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from themis_triton.cli import app
from themis_triton.commands import compare_command, compared_runs
from themis_triton.commands.compare_command import busy_words, draw, live_policies, orders, table
from themis_triton.commands.compared_runs import (
    ComparedLoad,
    ComparedRun,
    RunFigures,
    measured_figures,
    run_from,
    simulated_again,
    simulated_figures,
    simulated_like,
)
from themis_triton.commands.host_use import HostUse, HostWatch
from themis_triton.core.action import ActionKind, OutcomeKind
from themis_triton.core.errors import SettingsError
from themis_triton.core.policy import PolicyName
from themis_triton.demo.base import read_base
from themis_triton.demo.frame import DemoSummary
from themis_triton.demo.run import DemoOptions
from themis_triton.load.traces import TraceOptions, load_trace
from themis_triton.report.series import EventKind, RunEvent, RunSeries
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped
from themis_triton.sim.setup import PREROLL_S

SETTINGS = shipped("config") / "themis.yaml"
PAPER = shipped("config") / "paper-video.yaml"
SECONDS = 20
ADOPTED = {
    "grpc": "127.0.0.1:8001",
    "http": "127.0.0.1:8000",
    "metrics": "127.0.0.1:8002",
    "device": "cpu:0",
    "model_control_key": "k",
    "model_repository": str(shipped("model_repository")),
}
ADDRESSES = {"grpc": "127.0.0.1:9001", "http": "127.0.0.1:9000", "status": "127.0.0.1:9180"}


def series(label: str) -> RunSeries:
    rate = [30] * SECONDS
    p99 = [None, *[100.0 + second for second in range(1, SECONDS)]]
    nothing = [0] * SECONDS
    events = (RunEvent(3.0, EventKind.GROW, "grow"),)
    return RunSeries(label, rate, [40.0] * SECONDS, p99, [1] * SECONDS, [4] * SECONDS, nothing, [0] * 19 + [2], events)


def run_of(policy: str, measured_cost: float, simulated_cost: float) -> ComparedRun:
    measured = RunFigures(600, 0, 0.01, 95.2, 250.4, measured_cost, 20.0, 80.0, 1, {"grow": 2})
    measured = replace(measured, server_seconds_by_kind={"launched": 20.0, "starting": 0.0})
    by_kind = {"launched": 18.0, "starting": 2.0}
    simulated = replace(measured, violations=0.02, p99_ms=None, cost=simulated_cost, server_seconds_by_kind=by_kind)
    return ComparedRun(policy, 300.0, measured, simulated, series("measured"), series("simulated"), (0.5, 1.5), 800.0)


RUNS = [run_of("themis", 1000.0, 1100.0), run_of("horizontal", 1200.0, 1080.0)]


def demo_settings(folder: Path, policy: PolicyName, source: Path | None = None, peak_rps: float | None = None) -> Path:
    """The settings of a live run that adopted a server, with nothing started."""
    path = folder / "themis.yaml"
    base = replace(read_base(source, None), peak_rps=peak_rps)
    path.write_text(json.dumps(base.settings(policy, ADOPTED, ADDRESSES, folder / "state")))
    return path


def test_a_run_survives_json_and_tells_by_how_much_the_simulator_is_wrong() -> None:
    row = RUNS[0].row()
    assert (row["policy"], row["violations"], row["simulated"]["cost"]) == ("themis", 0.01, 1100.0)
    assert (row["cost_vs_clairvoyant"], row["simulated"]["cost_vs_clairvoyant"]) == (1.25, pytest.approx(1.375))
    assert row["cost_error"] == pytest.approx(0.1)
    assert {"violations", "p50_ms", "p99_ms", "cost", "cost_vs_clairvoyant", "failed"} <= set(row) & set(row["simulated"])
    earlier = {key: value for key, value in RUNS[0].as_plain().items() if key != "server_seconds_by_kind"}
    assert run_from(earlier).measured.server_seconds_by_kind == {}
    again = run_from(json.loads(json.dumps(RUNS[0].as_plain() | {"machine": "other keys do not matter"})))
    assert again.row() == row
    assert list(again.simulated_series.p99_ms) == list(RUNS[0].simulated_series.p99_ms)
    assert again.measured_series.events == RUNS[0].measured_series.events


def test_the_table_has_both_sides_of_every_policy_and_the_two_orders() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(table(RUNS))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    rows = [line.split() for line in text.splitlines()]
    assert ["themis", "measured", "0", "1.000%", "95", "250", "1,000"] in rows
    assert ["simulated", "0", "2.000%", "95", "–", "1,100", "+10.0%"] in rows
    assert ["simulated", "0", "2.000%", "95", "–", "1,080", "-10.0%"] in rows
    assert "600 requests for each policy, inside 300 ms" in text
    assert "server-seconds of themis: 20 launched; simulated 18 launched + 2 starting; instance-seconds: 80; simulated 80" in " ".join(
        text.split()
    )
    by_cost = "by cost: themis, horizontal; simulated horizontal, themis"
    assert orders(RUNS) == f"{by_cost}; by late requests: themis = horizontal; simulated the same"
    equal = [replace(RUNS[0], measured=replace(RUNS[0].measured, violations=0.0)), replace(RUNS[1], simulated=RUNS[0].simulated)]
    equal += [replace(RUNS[1], policy="vertical", measured=replace(RUNS[1].measured, violations=0.0))]
    assert "by late requests: themis = vertical, horizontal; simulated themis = horizontal = vertical" in orders(equal)
    late = [replace(RUNS[0], measured=replace(RUNS[0].measured, violations=0.03)), *RUNS[1:]]
    assert orders(late) == f"{by_cost}; by late requests: horizontal, themis; simulated themis = horizontal"


def test_pictures_of_each_policy_and_of_all(tmp_path: Path) -> None:
    draw(RUNS, "video under surge", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["horizontal.png", "summary.png", "themis.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_the_simulator_starts_from_what_the_live_run_had(tmp_path: Path) -> None:
    config = load_settings(demo_settings(tmp_path, PolicyName.HORIZONTAL))
    assert [pipeline.name for pipeline in config.pipelines] == ["video"]
    assert (config.policy.name, len(config.servers)) == (PolicyName.HORIZONTAL, 1)
    assert config.launch is not None
    assert [slot.name for slot in config.launch.slots] == ["cpu-1", "cpu-2", "cpu-3"]
    load = ComparedLoad(TraceOptions("surge", duration_s=20), seed=3)
    first, second = simulated_like(config, load), simulated_like(config, load)
    assert first.digest() == second.digest()
    assert first.policy == "horizontal"
    assert first.usage[0].servers == 1
    assert first.duration_s == 20
    other = simulated_like(config, replace(load, seed=4))
    assert not np.array_equal(other.pipelines[0].arrival_s, first.pipelines[0].arrival_s)


def test_the_settings_own_sections_are_kept_and_paths_made_absolute(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(shipped("model_repository"))
    own = tmp_path / "own.yaml"
    shipped_slots = "  slots: [cpu:0, cpu:1, cpu:2, cpu:3]\n"
    text = SETTINGS.read_text().replace(shipped_slots, f"{shipped_slots}  model_repository: models\n") + "prices: {server: 7}\n"
    own.write_text(text.replace("slots: [cpu:0, cpu:1, cpu:2, cpu:3]", "slots: [cpu:4]"))
    base = read_base(own, "nlp")
    written = base.settings(PolicyName.VERTICAL, ADOPTED, ADDRESSES, tmp_path / "run" / "state")
    assert "launch" not in written
    assert written["prices"]["server"] == 7
    assert list(written["pipelines"]) == ["nlp"]
    assert len(written["models"]) == 3
    assert base.launch.model_repository == tmp_path / "models"
    two = tmp_path / "two.yaml"
    two.write_text(text.replace("slots: [cpu:0, cpu:1, cpu:2, cpu:3]", "slots: [cpu:4, cpu:5]"))
    written = read_base(two, None).settings(PolicyName.VERTICAL, ADOPTED, ADDRESSES, tmp_path / "run" / "state")
    assert written["launch"]["slots"] == ["cpu:5"]
    assert written["launch"]["model_repository"] == str(tmp_path / "models")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "themis.yaml").write_text(json.dumps(written))
    assert load_settings(tmp_path / "run" / "themis.yaml").policy.name is PolicyName.VERTICAL


def test_a_cold_start_is_in_the_profiles_and_in_the_simulated_launches(tmp_path: Path) -> None:
    load = ComparedLoad(TraceOptions("surge", duration_s=60), SETTINGS, cold_start_s=15.0)
    path = tmp_path / "themis.yaml"
    base = read_base(load.settings, None, load.cold_start_s)
    path.write_text(json.dumps(base.settings(PolicyName.HORIZONTAL, ADOPTED, ADDRESSES, tmp_path / "state")))
    config = load_settings(path)
    assert {model.profile.server_launch_s for model in config.models.values()} == {15.0}
    assert {model.profile.instance_init_s for model in config.models.values()} == {0.8}
    outcomes = simulated_like(config, load).outcomes
    launches_s = [o.ended_at_s - o.started_at_s for o in outcomes if (o.action.kind, o.kind) == (ActionKind.LAUNCH, OutcomeKind.DONE)]
    assert launches_s
    assert all(15.8 <= launch_s < 18.0 for launch_s in launches_s)
    again = simulated_again(run_of("horizontal", 1.0, 1.0), load)
    assert again.simulated == simulated_figures(simulated_like(config, load))


def test_a_kept_run_can_be_simulated_again(tmp_path: Path) -> None:
    load = ComparedLoad(TraceOptions("surge", duration_s=20), seed=3)
    again = simulated_again(RUNS[1], load)
    expected = simulated_like(load_settings(demo_settings(tmp_path, PolicyName.HORIZONTAL)), load)
    assert (again.measured, again.measured_series, again.load_average) == (RUNS[1].measured, RUNS[1].measured_series, RUNS[1].load_average)
    assert (again.simulated.cost, again.simulated.requests) == (expected.cost, expected.requests)
    assert again.simulated_series.label == "simulated"


def test_figures_of_a_live_run() -> None:
    summary = DemoSummary("themis", 100, 2, 300.0, 0.95, 80.0, 200.0, 30.0, 90.0, 2, 6, {"grow": 1}, 390.0)
    outcome_found = measured_figures(summary)
    assert outcome_found.violations == pytest.approx(0.05)
    assert (outcome_found.failed, outcome_found.cost, outcome_found.server_seconds, outcome_found.instance_seconds) == (
        2,
        390.0,
        30.0,
        90.0,
    )


def live(options: DemoOptions) -> DemoSummary:
    """In the place of a live run: what one leaves behind."""
    options.directory.mkdir(parents=True)
    assert options.cold_start_s == 12.0
    demo_settings(options.directory, options.policy, options.settings, options.peak_rps)
    (options.directory / "series.json").write_text(json.dumps(RUNS[0].as_plain()["measured_series"]))
    return DemoSummary(options.policy.value, 600, 0, 300.0, 0.99 - 0.01 * options.seed, 80.0, 200.0, 30.0, 90.0, 2, 6, {"grow": 1}, 390.0)


def run(*flags: str, settings: Path = SETTINGS) -> str:
    result = CliRunner().invoke(app, ["compare", "-c", str(settings), *flags])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_the_last_line_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared_runs, "run_demo", live)
    flags = ("--policies", "horizontal,vertical", "--cold-start", "12", "--duration", "20", "--out", str(tmp_path / "out"))
    rows = json.loads(run(*flags, "--json").splitlines()[-1])
    assert [row["policy"] for row in rows] == ["horizontal", "vertical"]
    assert all(row["cost_error"] == pytest.approx(row["simulated"]["cost"] / 390.0 - 1.0) for row in rows)
    assert [list(row["references"]) for row in rows] == [["vertical-themis", "oracle"]] * 2
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["horizontal", "horizontal.json", "horizontal.png", "summary.png", "vertical", "vertical.json", "vertical.png"]
    kept = run_from(json.loads((tmp_path / "out" / "vertical.json").read_text()))
    assert kept.row() | {"runs": [kept.row()]} == rows[1]


def test_several_seeds_give_means_with_an_interval_and_the_references_that_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compared_runs, "run_demo", live)
    policies = ("--policies", "horizontal,vertical-themis", "--seeds", "2")
    flags = (*policies, "--cold-start", "12", "--duration", "20", "--out", str(tmp_path / "out"))
    first, second = json.loads(run(*flags, "--json").splitlines()[-1])
    assert (first["seeds"], first["requests"], first["violations"]) == (2, 1200, pytest.approx(0.015))
    assert first["violations_error"] == pytest.approx(12.706 * 0.01 / 2)  # two values that differ by 0.01
    assert [each["violations"] for each in first["runs"]] == [pytest.approx(0.01), pytest.approx(0.02)]
    assert first["references"] == second["references"]
    assert {name: row["cost_vs_clairvoyant"] > 1.0 for name, row in first["references"].items()} == {"oracle": True}
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {f"{policy}-seed-{seed}" for policy in ("horizontal", "vertical-themis") for seed in (0, 1)}
    planned = load_settings(tmp_path / "out" / "vertical-themis-seed-1" / "themis.yaml").policy.vertical.planned_rps
    assert planned == load_trace(TraceOptions("surge", duration_s=20), 1).rates_rps.max()
    assert load_settings(tmp_path / "out" / "horizontal-seed-0" / "themis.yaml").policy.vertical.planned_rps is None


def test_the_table_states_intervals_busy_cores_and_the_oracle() -> None:
    host = HostUse(cores=2, busy_cores=1.8)
    runs = [
        replace(RUNS[0], seeds=3, violations_error=0.004, host=host, references={"oracle": RUNS[0].simulated}),
        replace(RUNS[1], host=HostUse(2, 0.9)),
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(table(runs))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert ["oracle", "simulated", "0", "2.000%", "95", "–", "1,100"] in [line.split() for line in text.splitlines()]
    assert "violations of 3 seeds, with 95 % intervals: themis 1.000% ± 0.400%" in text
    assert "busy cores of 2, all processes: themis 1.8, horizontal 0.9" in text
    assert busy_words(runs).startswith("warning: the machine was busy in the runs of themis (1.8 of 2 cores): measured latencies")
    assert busy_words(runs[1:]) == ""
    assert run_from(json.loads(json.dumps(runs[0].as_plain()))).row() == runs[0].row()


def test_the_watch_counts_the_processor_time_of_this_machine() -> None:
    watch, until_s = HostWatch(), time.process_time() + 0.2
    while time.process_time() < until_s:
        pass
    use = watch.use()
    assert use.busy_cores is not None
    assert 0.0 < use.busy_cores <= use.cores * 1.5
    assert (HostUse(2, 1.71).too_busy, HostUse(2, 1.69).too_busy, HostUse().too_busy) == (True, False, False)


def test_the_load_begins_once_launched_servers_can_serve() -> None:
    slow, prompt = (ComparedLoad(TraceOptions("surge"), cold_start_s=cold_start_s) for cold_start_s in (20.0, None))
    assert (slow.settle_s, prompt.settle_s) == (PREROLL_S + 20.0, PREROLL_S)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seeds", "0"), "--seeds: 0 is invalid: expected at least 1"),
        (("--policies", "oracle"), "oracle cannot run live: expected themis"),
        (("--policies", "magic"), "magic cannot run live: expected themis"),
        (("--policies", "clairvoyant"), "clairvoyant cannot run live: expected themis"),
        (("--policies", ","), "--policies: the list is empty: expected themis"),
        (("--pipeline", "audio"), "--pipeline: audio is invalid: expected"),
        (("--trace", "nowhere"), "--trace: nowhere is neither a file nor a known trace"),
        (("--cold-start", "-1"), "--cold-start: -1 is invalid: expected at least 0 and less than launch.ready_timeout_s, 120 s"),
        (("--duration", "0"), "--duration: 0 is invalid: expected 1 to"),
    ],
)
def test_a_wrong_flag_is_named_before_anything_starts(flags: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_command, "compared_run", None)
    with pytest.raises(SettingsError, match=message):
        run(*flags)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_command, "compared_run", None)
    (tmp_path / "vertical").mkdir()
    (tmp_path / "vertical" / "diary.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"vertical holds diary\.txt"):
        run("--policies", "horizontal,vertical", "--out", str(tmp_path))
    with pytest.raises(SettingsError, match="is a file: expected a folder"):
        run("--policies", "horizontal", "--out", str(tmp_path / "vertical" / "diary.txt"))


def test_settings_that_cannot_run_live_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_command, "compared_run", None)
    with pytest.raises(SettingsError, match="launch is missing: expected"):
        run(settings=PAPER)


def test_each_policy_once() -> None:
    assert live_policies("vertical, themis,vertical") == [PolicyName.VERTICAL, PolicyName.THEMIS]
