"""Any change of a valid settings file: every error is a problem with a place and a fix, never an exception."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from themis_triton.core.errors import SettingsError
from themis_triton.settings import load_settings, problems
from themis_triton.settings.json_schema import settings_schema
from themis_triton.settings.schema import Settings
from themis_triton.settings.shipped import shipped

DUMPER = yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper
SHIPPED = (shipped("config") / "themis.yaml").read_text(encoding="utf-8")
DATA: dict[str, Any] = Settings.model_validate(yaml.safe_load(SHIPPED)).model_dump(mode="json", exclude_none=True)
SCHEMA = Draft202012Validator(settings_schema())
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["0.3s", "300", "gpu:0", "127.0.0.1:9001", "0.0.0.0:9901", "[::1]:80", "video-detector", "512MiB", "1e3", "$HOME"]),
    st.lists(st.integers(-1, 9), max_size=4),
    st.dictionaries(st.sampled_from(["min", "max", "table", "surface", "device", "name", "slo", "x"]), st.integers(-1, 9), max_size=3),
)


def paths(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key path in the data."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, child in entries for inner in paths(child, (*path, key)))]


PATHS = paths(DATA)[1:]
CHANGES = st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(["replace", "remove", "rename"]), ODD), min_size=1, max_size=4)


def changed(changes: list[tuple[tuple[Any, ...], str, Any]]) -> Any:
    data = copy.deepcopy(DATA)
    for path, how, odd in changes:
        parent: Any = data
        for key in path[:-1]:
            parent = parent.get(key) if isinstance(parent, dict) else None
        if not isinstance(parent, dict) or path[-1] not in parent:
            continue
        value = parent.pop(path[-1])
        if how != "remove":
            parent[f"{path[-1]}x" if how == "rename" else path[-1]] = odd if how == "replace" else value
    return data


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES)
@example([(("models", "video-detector", "profile", "surface"), "replace", {})])
@example([(("pipelines",), "replace", {"x": 1})])
@example([])
@example([(("models", "video-detector", "profile", "learn"), "replace", True)])
@example([(("models", "video-detector", "profile", "surface"), "remove", None)])
@example([(("launch", "slots"), "replace", "cpu:0")])
def test_every_error_has_a_place_and_a_fix(tmp_path: Path, changes: list[tuple[tuple[Any, ...], str, Any]]) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text(yaml.dump(changed(changes), Dumper=DUMPER, allow_unicode=True), encoding="utf-8")
    result = problems(path)
    assert all(problem.line and problem.error and problem.expected and problem.fix for problem in result)
    if not result:
        assert load_settings(path).pipelines
        SCHEMA.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        return
    with pytest.raises(SettingsError) as raised:
        load_settings(path)
    assert all(str(problem) in str(raised.value) for problem in result)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(SHIPPED)), st.text(max_size=3), st.integers(0, 5))
def test_a_slip_of_the_keyboard_is_never_an_exception(tmp_path: Path, at: int, typed: str, lost: int) -> None:
    path = tmp_path / "themis.yaml"
    text = SHIPPED
    path.write_bytes((text[:at] + typed + text[at + lost :]).encode("utf-8", "surrogatepass"))
    assert all(problem.error and problem.fix for problem in problems(path))
