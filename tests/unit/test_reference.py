"""The generated pages of docs/reference are current."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator

from themis_triton.cli import app
from themis_triton.commands.man_page import man_page
from themis_triton.daemon.openapi import openapi_text
from themis_triton.settings.json_schema import schema_text, settings_schema
from themis_triton.settings.reference import reference_page, reference_rows
from themis_triton.settings.starter import starter

REPOSITORY = Path(__file__).parents[2]
REFERENCE = REPOSITORY / "docs" / "reference"


def test_the_settings_reference_is_current() -> None:
    page = reference_page()
    assert (REFERENCE / "settings.md").read_text(encoding="utf-8") == page, "run scripts/reference"
    assert all(f"| `{row.key}` |" in page for row in reference_rows())


def test_the_published_schema_is_current_and_a_schema() -> None:
    assert (REFERENCE / "settings.schema.json").read_text(encoding="utf-8") == schema_text(), "run scripts/reference"
    Draft202012Validator.check_schema(settings_schema())


def test_the_published_description_of_the_api_is_current() -> None:
    assert (REFERENCE / "openapi.json").read_text(encoding="utf-8") == openapi_text(), "run scripts/reference"


def test_the_manual_page_is_current_has_every_command_and_is_formatted_without_a_warning() -> None:
    page = REFERENCE / "themis.1"
    assert page.read_text(encoding="utf-8") == man_page(app), "run scripts/reference"
    if shutil.which("man") is None:
        pytest.skip("no man: it is in Debian's package man-db")
    environment = os.environ | {"MANWIDTH": "100", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C.UTF-8"}
    formatted = subprocess.run(
        ["man", "--warnings=w", "-l", str(page)], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (formatted.returncode, formatted.stderr) == (0, "")
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]  # a group, as there is more than one
        assert f"\n   themis {name}" in formatted.stdout
        assert f"           themis {name} " in formatted.stdout or f"           themis {name}\n" in formatted.stdout
    assert "--token-file" in formatted.stdout


@pytest.mark.parametrize(
    "path",
    sorted([*REPOSITORY.glob("config/*.yaml"), *REPOSITORY.glob("examples/*/[!c]*.yaml")]),
    ids=lambda path: f"{path.parent.name}-{path.name}",
)
def test_the_shipped_settings_are_valid_by_the_schema(path: Path) -> None:
    assert list(Draft202012Validator(settings_schema()).iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))) == []


def test_what_init_writes_is_valid_by_the_schema_that_it_names() -> None:
    assert starter().startswith("# yaml-language-server: $schema=settings.schema.json\n")
    Draft202012Validator(settings_schema()).validate(yaml.safe_load(starter()))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slo_ms", 0),
        ("slo_ms", "100"),
        ("slo", 100),
        ("stages", ["first", "second"]),
    ],
)
def test_the_schema_rejects_what_validate_rejects(key: str, value: object) -> None:
    data = yaml.safe_load(starter())
    data["pipelines"]["my-pipeline"][key] = value
    (error,) = Draft202012Validator(settings_schema()).iter_errors(data)
    assert error.json_path.startswith("$.pipelines['my-pipeline']")


def test_the_schema_describes_units_bounds_and_defaults() -> None:
    definitions = settings_schema()["$defs"]
    slo = definitions["PipelineSettings"]["properties"]["slo_ms"]
    assert slo == {"description": "end-to-end latency SLO; in ms", "exclusiveMinimum": 0, "type": "number"}
    assert definitions["EnvoySettings"]["properties"]["grpc_listen"]["default"] == "127.0.0.1:9001"
