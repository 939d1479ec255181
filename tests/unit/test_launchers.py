"""The registry of launchers: every kind of the settings has one, and what was launched is found and stopped through the port."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from themis_triton.adapters.launchers import LAUNCHERS, bare_launchers, build_launcher, stop_all
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.processes import OWNER_VARIABLE, find_process, owner_mark, spawn
from themis_triton.core.config import DeviceSlot, LaunchConfig, LaunchKind, LocalLaunchConfig
from themis_triton.core.errors import SettingsError
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped


def test_every_kind_has_its_configuration_and_its_launcher(tmp_path: Path) -> None:
    assert len(LAUNCHERS) == len(LaunchKind)
    assert all(issubclass(kind, LaunchConfig) for kind in LAUNCHERS)
    assert isinstance(build_launcher(LocalLaunchConfig((DeviceSlot("a", "cpu:0"),), tmp_path), tmp_path), LocalLauncher)


def test_what_was_started_is_stopped_without_settings(tmp_path: Path) -> None:
    process = spawn(["/bin/sh", "-c", "sleep 60; :"], {**os.environ, OWNER_VARIABLE: owner_mark(tmp_path)}, tmp_path / "log")
    assert str(process.pid) in asyncio.run(stop_all(tmp_path, 5.0))
    assert find_process(process) is None
    assert asyncio.run(stop_all(tmp_path, 5.0)) == ()
    assert asyncio.run(bare_launchers(tmp_path)[0].discover()) == ()


def test_an_unknown_kind_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    text = (shipped("config") / "themis.yaml").read_text(encoding="utf-8").replace("launch:\n", "launch:\n  kind: docker\n")
    assert "kind: docker" in text
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"launch\.kind: docker is invalid: expected local"):
        load_settings(path)
