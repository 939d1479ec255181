"""`themis simulate` on the shipped settings."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from themis_triton.cli import app
from themis_triton.core.errors import SettingsError
from themis_triton.settings.shipped import shipped

SETTINGS = str(shipped("config") / "themis.yaml")
PAPER = str(shipped("config") / "paper-video.yaml")


@lru_cache
def run(*flags: str, settings: str = SETTINGS) -> str:
    """What the command prints; asked for the same twice it runs once."""
    result = CliRunner().invoke(app, ["simulate", "-c", settings, "--trace", "surge", "--duration", "30", *flags])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_the_last_line_is_json_and_the_same_each_time(tmp_path: Path) -> None:
    flags = ("--policies", "horizontal,vertical", "--seeds", "2", "--cold-start", "5", "--json")
    first = run(*flags, "--out", str(tmp_path))
    rows = json.loads(first.splitlines()[-1])
    assert [row["policy"] for row in rows] == ["horizontal", "vertical"]
    assert all(row["failed"] == 0 and row["seeds"] == 2 and 0.0 <= row["violations"] < 1.0 for row in rows)
    assert rows[0]["requests"] == rows[1]["requests"]
    assert rows[0]["cost"] < rows[1]["cost"]
    for row in rows:
        assert sum(row["server_seconds_by_kind"].values()) == pytest.approx(row["server_seconds"])
    horizontal = rows[0]["server_seconds_by_kind"]
    assert min(horizontal["launched"], horizontal["starting"]) > 0.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["simulated-horizontal.png", "simulated-vertical.png", "simulated.png"]
    assert json.loads(run(*flags).splitlines()[-1]) == rows


def test_the_papers_settings_run_in_the_papers_world_against_the_bound(tmp_path: Path) -> None:
    flags = ("--policies", "horizontal,clairvoyant", "--json")
    horizontal, bound = json.loads(run(*flags, "--out", str(tmp_path), settings=PAPER).splitlines()[-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["simulated-horizontal.png", "simulated.png"]
    assert (bound["policy"], bound["violations"], bound["failed"], bound["p99_ms"]) == ("clairvoyant", 0.0, 0, None)
    assert bound["cost_vs_clairvoyant"] == 1.0
    assert horizontal["cost_vs_clairvoyant"] == pytest.approx(horizontal["cost"] / bound["cost"])
    assert horizontal["mean_cost"] == pytest.approx(horizontal["cost"] / 30)
    assert horizontal["requests"] == bound["requests"]
    assert horizontal["cost_vs_clairvoyant"] > 1.0


def test_baselines_of_separate_stages_run_by_the_papers_rules_from_starts_of_their_own() -> None:
    names = ["themis-paper", "horizontal", "vertical", "inferline", "static"]
    rows = {row["policy"]: row for row in json.loads(run("--policies", ",".join(names), "--json", settings=PAPER).splitlines()[-1])}
    assert list(rows) == names
    assert all(row["failed"] == 0 for row in rows.values())
    assert rows["static"]["violations"] == 0.0
    assert rows["static"]["server_seconds"] == pytest.approx(30 * rows["static"]["max_servers"])
    assert rows["vertical"]["server_seconds"] == pytest.approx(30 * rows["vertical"]["max_servers"])
    assert rows["themis-paper"]["violations"] < rows["horizontal"]["violations"]
    assert rows["vertical"]["max_servers"] < rows["static"]["max_servers"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--cold-start", "15"),
        ("--profile-error", "0.2"),
        ("--noise", "0.5"),
        ("--metrics-lag", "2"),
        ("--batch-wait", "0.2"),
        ("--devices", "8"),
        ("--world", "triton"),
    ],
)
def test_every_difference_of_the_world_shows(flags: tuple[str, ...]) -> None:
    plain, other = (json.loads(run("--policies", "horizontal", "--json", *added, settings=PAPER).splitlines()[-1]) for added in ((), flags))
    assert plain != other
    assert other[0]["requests"] == plain[0]["requests"]


def test_a_slower_in_place_change_shows_where_cores_move() -> None:
    prompt, slow = (run("--policies", "vertical", "--json", "--in-place", seconds, settings=PAPER) for seconds in ("0.1", "5"))
    assert json.loads(prompt.splitlines()[-1])[0]["violations"] < json.loads(slow.splitlines()[-1])[0]["violations"]


def test_the_table_names_every_policy() -> None:
    text = run("--policies", "horizontal,vertical,clairvoyant", settings=PAPER)
    assert [line.split()[0] for line in text.splitlines() if line.strip()][-3:] == ["horizontal", "vertical", "clairvoyant"]


def test_a_load_that_nothing_carries_is_said_and_drawn(tmp_path: Path) -> None:
    flags = ("--policies", "horizontal,clairvoyant", "--scale", "30")
    rows = json.loads(run(*flags, "--out", str(tmp_path), "--json").splitlines()[-1])
    assert [row["bound_infeasible_s"] for row in rows] == [30, 30]
    assert rows[0]["failed"] > 0
    assert rows[1]["violations"] is None
    assert (tmp_path / "simulated.png").read_bytes().startswith(b"\x89PNG")
    assert "No configuration carries the load in 30 s" in run(*flags)


def test_a_pipeline_named_twice_is_simulated_once() -> None:
    once, twice = (run("--policies", "horizontal", "--json", *(("--pipeline", "nlp") * times)) for times in (1, 2))
    assert once == twice


def test_pipelines_share_the_places_that_static_starts_on() -> None:
    flags = ("--pipeline", "video", "--pipeline", "nlp", "--policies", "static", "--json")
    assert json.loads(run(*flags).splitlines()[-1])[0]["max_servers"] == 4


def test_adopted_servers_count_as_devices(tmp_path: Path) -> None:
    settings = tmp_path / "themis.yaml"
    adopted = "servers:\n  a: {grpc: '127.0.0.1:1', http: '127.0.0.1:2', metrics: '127.0.0.1:3', device: 'cpu:7'}\n"
    settings.write_text(Path(SETTINGS).read_text() + adopted)
    flags = ("--policies", "horizontal", "--json", "--scale", "3")
    max_servers = [json.loads(run(*flags, "--devices", n, settings=str(settings)).splitlines()[-1])[0]["max_servers"] for n in ("1", "3")]
    assert max_servers == [1, 3]
    with pytest.raises(SettingsError, match=r"--devices: 6 is invalid: expected 1 to 5, for 1 adopted servers"):
        run(*flags, "--devices", "6", settings=str(settings))


def test_runs_in_processes_of_their_own_say_the_same() -> None:
    flags = ("--policies", "horizontal,vertical", "--json")
    assert run(*flags, "--jobs", "2") == run(*flags)


def test_nothing_that_costs_has_no_ratio(tmp_path: Path) -> None:
    settings = tmp_path / "themis.yaml"
    settings.write_text(Path(SETTINGS).read_text() + "prices: {server: 0, instance: 0}\n")
    (row,) = json.loads(run("--policies", "static", "--json", settings=str(settings)).splitlines()[-1])
    assert (row["cost"], row["cost_vs_clairvoyant"]) == (0.0, None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--policies", "magic"), "--policies: magic is invalid: expected themis"),
        (("--policies", ","), "--policies: the list is empty: expected themis"),
        (("--pipeline", "audio"), "--pipeline: audio is invalid: expected a pipeline of the settings"),
        (("--seeds", "0"), "--seeds: 0(.0)? is invalid: expected"),
        (("--cold-start", "-1"), "--cold-start: -1(.0)? is invalid: expected"),
        (("--in-place", "-0.1"), "--in-place: -0.1(.0)? is invalid: expected"),
        (("--noise", "nan"), "--noise: nan(.0)? is invalid: expected"),
        (("--profile-error", "-1"), "--profile-error: -1(.0)? is invalid: expected"),
        (("--metrics-lag", "-2"), "--metrics-lag: -2(.0)? is invalid: expected"),
        (("--devices", "0"), "--devices: 0(.0)? is invalid: expected"),
        (("--devices", "99"), "--devices: 99 is invalid: expected 1 to 4, for 0 adopted servers and 4 slots"),
        (("--batch-wait", "0.1"), "--batch-wait: 0.1 has no effect: there is no central queue"),
        (("--world", "flat"), "--world: flat(.0)? is invalid: expected"),
        (("--out", __file__), "is a file: expected a folder"),
        (("--out", "/dev/null/x"), "cannot be created"),
    ],
)
def test_a_wrong_flag_is_named(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run(*flags)
