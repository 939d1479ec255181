"""`themis simulate` on the shipped settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from themis_triton.cli import app
from themis_triton.core.errors import SettingsError
from themis_triton.settings.shipped import shipped

SETTINGS = str(shipped("config") / "themis.yaml")


def run(*flags: str) -> str:
    result = CliRunner().invoke(app, ["simulate", "-c", SETTINGS, "--trace", "surge", "--duration", "30", *flags])
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["simulated-horizontal.png", "simulated-vertical.png", "simulated.png"]
    assert json.loads(run(*flags).splitlines()[-1]) == rows


def test_the_table_names_every_policy() -> None:
    assert "horizontal" in run("--policies", "horizontal")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--policies", "magic"), "there is no policy 'magic'"),
        (("--policies", ","), "found nothing"),
        (("--pipeline", "audio"), "not a pipeline"),
        (("--seeds", "0"), "--seeds 0"),
        (("--cold-start", "-1"), "--cold-start -1"),
    ],
)
def test_a_wrong_flag_is_named(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        run(*flags)
